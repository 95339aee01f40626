"""The part search of BENCHMARKS.md: `python -m scripts.bench search`.

Seconds per problem of four searches, on the Game of 24 and on sums, by minipost and by the same
code over transformers.  Only what asks the model differs (`Theirs`): one call of `generate` for
each batch of texts, and one padded forward pass for a verifier's scores.

    python -m scripts.bench_search own batched --out RESULT.json    one side's searches, in one mode
"""

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import mean, median

from minipost import checkpoint, parallel, test_time
from minipost.measure.texts import Texts
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.countdown import Countdown
from scripts.alternate import CORES, Bench, Failed, measure
from scripts.pages import machine, table, write

MODEL, VERIFIER = "checkpoints/thinker", "checkpoints/verifier"
TASKS = {"Game of 24": lambda: Countdown(numbers=4, target=24), "sums": Arithmetic}
LONGER = {"tree of thoughts, b=5, sums": {"expansions": 40}}  # a sum takes more steps than a hand
SEARCHES = {  # name: method, settings
    "tree of thoughts, b=5": ("tot", {}),
    "MCTS": ("mcts", {}),
    "best of 32, PRM": ("best-of-n", {"group_size": 32}),
    "self-consistency of 33": ("self-consistency", {"group_size": 33}),
}
MODES = {"batched": 20, "alone": 3}  # problems: all in one call, or each in a call of its own
ROOM = 192      # most tokens of an answer, as in minipost.evaluate --method and minipost.solve
ROUNDS = 2
WANTED = "tree of thoughts, b=5, Game of 24", 0.5  # a search, and seconds that it may take


# ---- one side, in its own process

def own(seed):
    """The tools of a search by minipost: {task: Texts}."""
    model, vocabulary = checkpoint.load(MODEL)
    verifier = checkpoint.load_reward_model(VERIFIER, vocabulary)
    return {name: Texts(Run(Learner(model), vocabulary, task(), None, seed=seed,
                            max_new_tokens=ROOM), verifier=verifier)
            for name, task in TASKS.items()}


def peer(seed):
    """The same, but transformers answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.set_num_threads(CORES)
    torch.manual_seed(seed)
    llama = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(
        VERIFIER, dtype=torch.float32).eval()

    class Theirs(Run):
        """A Run whose answers transformers samples."""

        @torch.inference_mode()
        def complete(self, prompts, group_size, *, temperature, purpose, stop, max_new_tokens):
            from minipost.rollout import assemble

            pad, longest = self.vocabulary.pad, max(map(len, prompts))
            sizes = torch.tensor([len(ids) for ids in prompts])
            read = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts])
            stop = sorted({*self.vocabulary.eos, *stop})
            draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            found = llama.generate(
                read, attention_mask=(torch.arange(longest) >= longest - sizes[:, None]).long(),
                max_new_tokens=max_new_tokens, num_return_sequences=group_size,
                eos_token_id=stop, pad_token_id=pad, **(draw if temperature else
                                                        {"do_sample": False}))
            said = found[:, longest:]
            prompt = torch.arange(len(prompts)).repeat_interleave(group_size)
            flush = read.gather(1, (torch.arange(longest) - sizes[:, None]) % longest)
            ends = torch.zeros(llama.config.vocab_size, dtype=torch.bool)
            ends[stop] = True
            return assemble(flush[prompt], sizes[prompt], said, torch.zeros(said.shape), prompt,
                            ends, said.shape[1], pad)

        @torch.inference_mode()
        def for_all(self, score, seqs, outputs=1):
            return score(seqs)

    class Verifier:
        """A value head, as minipost asks it."""

        def at(self, tokens, where, prompts=None):
            return scorer.score(scorer.model(tokens).last_hidden_state)[where][..., 0]

    gpt, vocabulary = checkpoint.load(MODEL)
    return {name: Texts(Theirs(Learner(gpt), vocabulary, task(), None, seed=seed,
                               max_new_tokens=ROOM), verifier=Verifier())
            for name, task in TASKS.items()}


def job(side, mode, seed):
    """What a search costs: {"name, task": {seconds, tokens, right}}, and greedy answers."""
    tools, found, greedy = {"own": own, "peer": peer}[side](seed), {}, {}
    for task, ask in tools.items():
        problems = ask.task.heldout(MODES[mode])
        calls = [problems] if mode == "batched" else [[problem] for problem in problems]
        greedy[task] = ask.greedy([problem.prompt for problem in problems])  # warms up, too
        for name, (method, settings) in SEARCHES.items():
            method, name = test_time.load(method), f"{name}, {task}"
            cfg = method.Config(**settings | LONGER.get(name, {}))
            start, tokens, answers = time.monotonic(), ask.tokens, []
            for part in calls:
                answers += method.solve(part, ask, cfg)[0]
            found[name] = {
                "seconds": (time.monotonic() - start) / len(problems),
                "tokens": (ask.tokens - tokens) / len(problems),
                "right": sum(map(graded, [ask.task] * len(problems), problems, answers))
                / len(problems)}
    return {"searches": found, "greedy": greedy}


def graded(task, problem, answer):
    columns = {name: [value] for name, value in problem.columns.items()}
    return task.reward([problem.prompt], [answer], **columns)[0] == 1.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("side", choices=["own", "peer"])
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    args = parser.parse_args()
    # As a user's run does it: minipost.evaluate has workers, minipost.solve has none.
    workers = parallel.default_workers("cpu") if (args.side, args.mode) == ("own", "batched") else 1
    args.out.write_text(json.dumps(
        parallel.launch(lambda: job(args.side, args.mode, args.seed), workers)))


# ---- the table

def search(args):
    """Write the table, unless transformers is missing."""
    import importlib.util

    if importlib.util.find_spec("transformers") is None:
        print("search: skipped, transformers cannot be imported here (pip install -e '.[bench]')")
        return
    with tempfile.TemporaryDirectory(prefix="minipost-bench-") as folder:
        bench, out = Bench(Path(folder), args.model, args.quick), Path(folder) / "result.json"

        def run(side, mode, seed):
            out.unlink(missing_ok=True)
            cost = measure([sys.executable, "-m", "scripts.bench_search", side, mode, "--seed",
                            str(seed), "--out", str(out)])
            return {**cost, **json.loads(out.read_text())}

        try:
            found = bench.rounds(ROUNDS, **{f"{side} {mode}": partial(run, side, mode)
                                            for mode in MODES for side in ("own", "peer")})
        except Failed as failure:
            print(f"search: skipped, {failure}")
            return
    if not alike(found):
        print("search: skipped, the likeliest answers of the two sides differ")
        return
    write(args.out, "search", [
        "## Search", "", machine("transformers"), "", "`python -m scripts.bench search`", "",
        *table(COLUMNS, [row(name, mode, found) for mode in MODES
                         for name in found[f"own {mode}"][0]["searches"]]), "",
        NOTE.format(workers=parallel.default_workers("cpu"), rounds=len(found["own batched"]))])


COLUMNS = ["search, task, problems", "s a problem", "transformers", "ratio [pairs]", "wanted",
           "reached", "tokens a problem", "transformers", "tokens/s", "transformers", "right",
           "transformers"]
NOTE = f"""\
The columns are minipost's and, where they say so, those of transformers.  Batched:
{MODES["batched"]} held-out problems in one call, minipost in {{workers}} processes, as
`minipost.evaluate` has it.  Alone: {MODES["alone"]} problems, each in a call of its own, in one
process, as `minipost.solve` has it.  transformers has one process of {CORES} threads.  The model is
{MODEL}.  Both sides run the same code but for what asks the model, and their likeliest answers are
the same.  Samples are drawn with other random numbers, so tokens and the share that is right agree
up to noise.  Tokens are those of all samples, whether or not they were computed together.  Medians
of {{rounds}} rounds of fresh processes in turn, each with a seed of its own; loading is not
counted."""


def alike(found):
    """Whether both sides gave the same likeliest answers in every process."""
    return all(mine["greedy"] == theirs["greedy"] for mode in MODES
               for mine, theirs in zip(found[f"own {mode}"], found[f"peer {mode}"]))


def row(name, mode, found):
    """A line of the table: what a search costs in this mode."""
    own, peer = ({what: [result["searches"][name][what] for result in found[f"{side} {mode}"]]
                  for what in ("seconds", "tokens", "right")} for side in ("own", "peer"))
    mine, theirs = median(own["seconds"]), median(peer["seconds"])
    pairs = [b / a for a, b in zip(own["seconds"], peer["seconds"])]
    wanted = ["", ""]
    if name == WANTED[0]:
        wanted = [f"<= {WANTED[1]} s", "yes" if mine <= WANTED[1] else "no"]
    sides = (own, peer)
    return [f"{name}, {mode}", f"{mine:.3f}", f"{theirs:.3f}",
            f"{theirs / mine:.1f} [{min(pairs):.1f}, {max(pairs):.1f}]", *wanted,
            *(f"{median(side['tokens']):,.0f}" for side in sides),
            *(f"{median(t / s for t, s in zip(side['tokens'], side['seconds'])):,.0f}"
              for side in sides),
            *(f"{mean(side['right']):.2f}" for side in sides)]


if __name__ == "__main__":
    main()
