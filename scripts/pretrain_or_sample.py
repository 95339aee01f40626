"""Pre-training against test time at equal compute (survey sec. 5.13; Snell et al. 2024,
arxiv.org/abs/2408.03314, sec. 7): `python -m scripts.pretrain_or_sample`.

A model of M times as many parameters costs M times as much to train, on as many tokens, and M times
as much to ask.  The small model may spend the difference on more answers, n to each problem:

    6 N D_train + 2 N n D_asked = 6 M N D_train + 2 M N D_asked,    n = M + 3 (M - 1) / R

with R = D_asked / D_train, the tokens that are asked for over those trained on.  R are the paper's
three.  The base answers once, greedily.  The student answers n times at temperature 1 and votes;
its one greedy answer stands beside it.  Both were trained on the same number of tokens.

The difference is the student's vote less the base's answer, paired by problem, mean over the seeds.
"""

import argparse
from functools import partial
from pathlib import Path

from minipost import checkpoint, parallel
from minipost.cli import inference
from minipost.measure.stats import share
from minipost.test_time import self_consistency
from scripts.bench_test_time import gain
from scripts.pages import machine, table, write

ROOT = Path(__file__).resolve().parents[1]
SMALL, LARGE = "checkpoints/student", "checkpoints/base"
RATIOS = (16, 0.79, 0.16)  # R of the paper's figure 9
TASKS = {
    "sums of 4 terms at once": "--task arithmetic --terms 4 --direct True",
    "sums of 8 terms": "--task arithmetic --terms 8",
    "sums of 12 terms": "--task arithmetic --terms 12",
    "countdown, 3 numbers": "--task countdown",
    "countdown, 4 numbers": "--task countdown --numbers 4",
}


def parameters(model):
    """The number of a model's parameters."""
    return sum(p.numel() for p in checkpoint.load(model)[0].parameters())


def answers(ratio, times):
    """n: the answers of the small model, where the large one has `times` as many parameters."""
    return max(1, round(times + 3 * (times - 1) / ratio))


def asked(model, task, n, seed, counts=()):
    """Of n held-out problems: {"greedy": rewards} or, for each count, {count: (vote, any)}."""
    settings = inference.settings_of(["--method", "self-consistency", *task.split(), "--model",
                                      model, "--seed", str(seed)], "", inference.Measured)
    tools, problems = inference.tools_for(settings), settings.task.heldout(n)
    prompts = [p.prompt for p in problems]
    if not counts:
        return {"greedy": tools.right(problems, tools.greedy(prompts))}
    most, found = max(counts), {}
    drawn = tools.sample(prompts, most)
    right = tools.right([p for p in problems for _ in range(most)],
                        [text for texts in drawn for text in texts])
    for count in counts:
        texts, _ = self_consistency.elected(problems, [texts[:count] for texts in drawn],
                                            settings.task)
        found[count] = (tools.right(problems, texts),
                        [max(right[k * most : k * most + count]) for k in range(len(problems))])
    return found


def rows(args):
    """A row for each task and R, and M."""
    times, found = parameters(LARGE) / parameters(SMALL), []
    counts = {ratio: answers(ratio, times) for ratio in RATIOS}
    workers = parallel.default_workers("cpu")
    for title, task in TASKS.items():
        greedy = {model: parallel.launch(partial(asked, model, task, args.n, 0), workers)["greedy"]
                  for model in (LARGE, SMALL)}
        runs = [parallel.launch(partial(asked, SMALL, task, args.n, seed, tuple(counts.values())),
                                workers) for seed in range(args.seeds)]
        for ratio, n in counts.items():
            vote, best = ([sum(row) / len(row) for row in zip(*(run[n][k] for run in runs))]
                          for k in (0, 1))
            found.append([title, f"{ratio:g}", str(n), str(share(greedy[LARGE])),
                          str(share(greedy[SMALL])), str(share(vote)),
                          gain(vote, greedy[LARGE]), str(share(best))])
            print(" | ".join(found[-1]), flush=True)
    return found, times


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="held-out problems of each task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md", help="report to write")
    args = parser.parse_args()
    found, times = rows(args)
    write(args.out, "scripts.pretrain_or_sample", [
        "## Pre-training or sampling", "", machine(), "",
        f"`python -m scripts.pretrain_or_sample`, {args.n} held-out problems of each task, seeds 0 "
        f"to {args.seeds - 1}. The base (checkpoints/base) has {times:.1f} times the parameters of "
        "the student (checkpoints/student), trained on as many tokens. R is tokens asked for over "
        "tokens trained on; n answers of the student make up for the difference in compute, and "
        "vote. \"any\" is what an exact checker would find among them.", "",
        *table(["task", "R", "n", "base, greedy [95%]", "student, greedy [95%]",
                "student, vote of n [95%]", "vote less base", "any of n [95%]"], found)],
        "python -m")


if __name__ == "__main__":
    main()
