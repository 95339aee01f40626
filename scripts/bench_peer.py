"""One job of scripts.bench, done by minipost (`own`) or by TRL and transformers (`peer`).

    python -m scripts.bench_peer own grpo --model DIR --steps 50 --out RESULT.json

Both sides do a job with the same weights, prompts, reward, batch and optimiser, in float32 on the
CPU.  The peer runs with its fastest settings.  Its defaults (bfloat16, gradient checkpointing) are
about seven times slower on a CPU.  Clocks are time.monotonic(), which processes share on Linux.
"""

import argparse
import json
import os
import random
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

from minipost.measure.results import evaluate
from minipost.tasks.base import Problem, Task
from scripts.alternate import CORES

PROMPTS, GROUP, ROOM, LR = 8, 8, 48, 1e-5  # of a GRPO step; 64 completions
PROMPT_DIGITS = 15                          # and BOS: prompts of 16 tokens
ROWS, ROW_DIGITS = 64, 62                   # of an SFT step; BOS, digits and EOS: 64 tokens
TARGET, EVERY, HELD_OUT = 0.90, 2, 400      # sampled accuracy to reach, steps between evaluations


@dataclass
class Digits(Task):
    """Random digits, one token each, as prompts or completions.  All processes draw the same."""

    prompt: int = 0
    completion: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def sample(self, n, rng=None):
        """The next n problems.  `rng` is not used."""
        return [Problem(self.draw(self.prompt), {"completion": self.draw(self.completion)})
                for _ in range(n)]

    def draw(self, n):
        return "".join(self.rng.choices("0123456789", k=n))

    def demonstrate(self, problem, rng=None):
        return problem.columns["completion"]


def letter_share(prompts, completions, **columns):
    """A cheap reward that differs between siblings: the share of letters in a completion."""
    return [sum(c.isalpha() for c in text) / max(1, len(text)) for text in completions]


def prepare(args):
    """Fill the folder --model with the jobs' inputs: random weights, and prompts as JSONL."""
    from minipost import checkpoint
    from minipost.gpt import GPT, GPTConfig
    from scripts.pretrain import tokenizer

    folder, words = Path(args.model), tokenizer()
    for seed, name in enumerate(("model", "teacher")):
        model = GPT(GPTConfig(words.vocab_size)).initialise(seed)
        checkpoint.create(folder / name, model, words)
    rows = [{"prompt": p.prompt} for p in Digits(PROMPT_DIGITS).sample(PROMPTS * 60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"parameters": sum(p.numel() for p in model.parameters())}


# ---- minipost

def own(work, args, task, reward, workers=None):
    """Run work(run) like a user's run: in the default number of processes, if none is given."""
    from minipost import checkpoint, parallel
    from minipost.optim import Learner
    from minipost.run import Run

    def main():
        model, vocabulary = checkpoint.load(args.model)
        return work(Run(Learner(model), vocabulary, task, reward, seed=args.seed,
                        max_new_tokens=ROOM))

    return parallel.launch(main, workers or parallel.default_workers("cpu"))


def follow(run, learn, steps):
    """Make the steps.  -> when each was sampled and ended, its loss, the mean completion length"""
    found, complete = {"sampled": [], "ends": [], "losses": []}, run.complete
    lengths = []

    def noted(*given, **options):
        rollout = complete(*given, **options)
        found["sampled"].append(time.monotonic())
        lengths.append(float(rollout.lengths.double().mean()))
        return rollout

    run.complete = noted
    for run.step in range(steps):
        metrics = next(learn)
        found["ends"].append(time.monotonic())
        found["losses"].append(metrics["loss"])
    return {**found, "length": mean(lengths or [0])}


def own_grpo(args):
    from minipost.methods import grpo

    cfg = grpo.Config(steps=args.steps, prompts=PROMPTS, group_size=GROUP,
                      minibatch_size=PROMPTS * GROUP, beta=0.0, lr=LR)
    return own(lambda run: follow(run, grpo.train(run, cfg), args.steps), args,
               Digits(PROMPT_DIGITS), letter_share)


def own_sft(args):
    from minipost.methods import sft

    cfg = sft.Config(steps=args.steps, batch_size=ROWS, lr=LR, warmup_steps=0)

    def work(run):
        row = Digits(0, ROW_DIGITS).sample(1)[0]
        first = run.encode([row.prompt], [run.task.demonstrate(row)]).tokens[0].tolist()
        return {**follow(run, sft.train(run, cfg), args.steps), "row": first}

    return own(work, args, Digits(0, ROW_DIGITS), None)


def own_sample(args):
    def work(run):
        run.vocabulary.eos = frozenset([run.vocabulary.tokenizer.vocab_size])  # never drawn
        problems, seconds = run.task.sample(PROMPTS), []
        for run.step in range(args.steps):
            start = time.monotonic()
            rollout = run.sample(problems, GROUP, temperature=1.0)
            seconds.append(time.monotonic() - start)
        ids = [run.vocabulary.prompt(problem.prompt) for problem in problems]
        return {"calls": seconds, "tokens": int(rollout.mask.sum()), "prompts": ids}

    return own(work, args, Digits(PROMPT_DIGITS), None)


def accuracy(run):
    """Sampled accuracy on held-out problems, with the same random numbers on both sides."""
    return evaluate(run, run.task.heldout(HELD_OUT), 1.0).score.value


def own_reach(args):
    from minipost.methods import grpo
    from minipost.tasks.arithmetic import Arithmetic

    def work(run):
        learn, seconds = grpo.train(run, replace(grpo.Config(), beta=0.0)), 0.0
        scores = [accuracy(run)]
        for run.step in range(args.steps):
            start = time.monotonic()
            next(learn)
            seconds += time.monotonic() - start
            if (run.step + 1) % EVERY == 0:
                scores.append(accuracy(run))
                if scores[-1] >= TARGET:
                    return {"scores": scores, "reached": seconds}
        return {"scores": scores, "reached": None}

    task = Arithmetic()
    return own(work, args, task, task.reward)


# ---- TRL and transformers

def settings(args, **more):
    """The trainers' settings: the fastest on a CPU, with nothing but training."""
    import torch

    world = int(os.environ.get("WORLD_SIZE", 1))
    torch.set_num_threads(max(1, CORES // world))
    return {
        "output_dir": args.scratch, "max_steps": args.steps, "seed": args.seed, "use_cpu": True,
        "model_init_kwargs": {"dtype": "float32"}, "bf16": False, "gradient_checkpointing": False,
        "optim": "adamw_torch_fused", "weight_decay": 0.0, "max_grad_norm": 1.0,
        "learning_rate": LR, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "logging_strategy": "no", "save_strategy": "no", "eval_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "dataloader_num_workers": 0,
        "dataloader_pin_memory": False, "per_device_train_batch_size": PROMPTS * GROUP // world,
        **more,
    }


def each_step(act):
    """A callback that calls act(model, state, control) when training begins and after each step."""
    from transformers import TrainerCallback

    class Each(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **rest):
            act(model, state, control)

        on_step_end = on_train_begin

    return Each()


def trained(trainer, row=0):
    """Let TRL's trainer make its steps.  -> as `follow`, and the tokens of a row of the first"""
    ends, losses, lengths, rows, compute = [], [], [], [], trainer.compute_loss

    def noted(model, inputs, *given, **options):
        loss = compute(model, inputs, *given, **options)
        losses.append(loss.detach())
        if "completion_mask" in inputs:
            lengths.append(inputs["completion_mask"].sum(1).double().mean())
        if "input_ids" in inputs and not rows:
            rows.append(inputs["input_ids"][row].tolist())
        return loss

    trainer.compute_loss = noted
    trainer.add_callback(each_step(lambda *_: ends.append(time.monotonic())))
    trainer.train()
    return {"ends": ends[1:], "losses": [float(loss) for loss in losses],
            "length": mean(map(float, lengths or [0])), "row": rows[0] if rows else None}


def rows_of(problems, before=""):
    """Problems as TRL's rows, with this text before each prompt."""
    from datasets import Dataset

    return Dataset.from_list([{**problem.columns, "prompt": before + problem.prompt}
                              for problem in problems])


def to_sample(problems):
    """Problems as rows for the trainers that sample, which put no BOS before a prompt."""
    from minipost.tokenizer import BOS

    return rows_of(problems, BOS)


def sampling(args, **more):
    """The settings of the trainers that sample."""
    return settings(args, **{"max_completion_length": ROOM, "temperature": 1.0, "beta": 0.0,
                             "shuffle_dataset": False, **more})


def grpo_trainer(args, problems, reward, **more):
    """TRL's trainer on these problems."""
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(**sampling(args, **{"num_generations": GROUP, **more}))
    return GRPOTrainer(model=args.model, reward_funcs=reward, args=config,
                       train_dataset=to_sample(problems))


def peer_grpo(args, **more):
    problems = Digits(PROMPT_DIGITS).sample(PROMPTS * args.steps)
    return trained(grpo_trainer(args, problems, letter_share, **more))


def peer_sft(args):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = [p.columns["completion"] + tokenizer.eos_token
             for p in Digits(0, ROW_DIGITS).sample(ROWS * args.steps)]
    config = SFTConfig(**settings(args, lr_scheduler_type="cosine", max_length=None,
                                  train_sampling_strategy="sequential",
                                  per_device_train_batch_size=ROWS))
    rows = Dataset.from_dict({"input_ids": tokenizer(text=texts)["input_ids"]})
    return trained(SFTTrainer(model=args.model, args=config, train_dataset=rows))


def peer_sample(args):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    torch.set_num_threads(CORES)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model.generation_config.eos_token_id = None
    config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                              max_new_tokens=ROOM, num_return_sequences=GROUP,
                              pad_token_id=tokenizer.pad_token_id)
    texts = [p.prompt for p in Digits(PROMPT_DIGITS).sample(PROMPTS)]
    read, seconds = tokenizer(text=texts, return_tensors="pt", return_token_type_ids=False), []
    for _ in range(args.steps):
        start = time.monotonic()
        tokens = model.generate(**read, generation_config=config)
        seconds.append(time.monotonic() - start)
    prompts = read["input_ids"].tolist()
    return {"calls": seconds, "prompts": prompts,
            "tokens": tokens[:, len(prompts[0]) :].numel()}


def peer_reach(args):
    from minipost import checkpoint
    from minipost.methods.grpo import Config
    from minipost.optim import Learner
    from minipost.run import Run
    from minipost.tasks.arithmetic import Arithmetic

    cfg, task = replace(Config(), beta=0.0), Arithmetic()
    gpt, vocabulary = checkpoint.load(args.model)
    run = Run(Learner(gpt), vocabulary, task, task.reward, seed=args.seed, max_new_tokens=ROOM)
    problems = []
    for run.step in range(args.steps):
        problems += run.problems(cfg.prompts)
    answers = cfg.prompts * cfg.group_size
    updates = cfg.epochs * answers // cfg.minibatch_size                # gradient steps per rollout
    scores, seconds, start = [], 0.0, None

    def look(model, state, control):
        nonlocal seconds, start
        if state.global_step % (EVERY * updates):
            return
        seconds += time.monotonic() - start if start else 0.0
        copy_weights(model, gpt)
        scores.append(accuracy(run))
        control.should_training_stop = scores[-1] >= TARGET
        start = time.monotonic()

    args.steps *= updates
    trainer = grpo_trainer(
        args, problems, task.reward, learning_rate=cfg.lr, num_generations=cfg.group_size,
        temperature=cfg.temperature, epsilon=cfg.clip, max_grad_norm=cfg.max_grad_norm,
        num_iterations=cfg.epochs, per_device_train_batch_size=cfg.minibatch_size,
        generation_batch_size=answers)
    trainer.add_callback(each_step(look))
    trainer.train()
    return {"scores": scores, "reached": seconds if scores[-1] >= TARGET else None}


def copy_weights(theirs, gpt):
    """Fill our model from a Llama of transformers."""
    import torch

    from minipost.checkpoint import names

    source, state = theirs.state_dict(), gpt.state_dict()
    for name, parts in names(gpt.config).items():
        state[name].copy_(torch.cat([source[part] for part, _ in parts]))


JOBS = {"prepare": {"files": prepare},
        "own": {"grpo": own_grpo, "sft": own_sft, "sample": own_sample, "reach": own_reach},
        "peer": {"grpo": peer_grpo, "sft": peer_sft, "sample": peer_sample, "reach": peer_reach}}


def main(jobs):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("side", choices=jobs)
    parser.add_argument("job", choices={job: 0 for side in jobs.values() for job in side})
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as args.scratch:
        found = jobs[args.side][args.job](args)
    if os.environ.get("RANK", "0") == "0":
        args.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(JOBS)
