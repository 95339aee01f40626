"""What does one part of a method add?  `make ablations`, the part of that name of BENCHMARKS.md.

A question has arms, which differ in their own flags alone; the first is the one without the part,
or the model before any training.  Arms have the same seeds, steps and held-out problems, and are
compared problem by problem.  A run that runs/ablations holds is not made again, so remove that
folder after a change to the code.  Ctrl-C stops after the step in progress, and the same command
continues from there.
"""

import argparse
import json
import shlex
import signal
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from minipost import train
from minipost.cli.options import fail_in_one_sentence
from minipost.errors import MinipostError
from minipost.measure.stats import Score, t_interval
from scripts.compare import (
    PARSING,
    Runner,
    check_jobs,
    complete,
    fingerprint,
    over_seeds,
    own_cores,
    paired_difference,
    rewards,
    side_by_side,
)
from scripts.pages import machine, table, write

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "runs" / "ablations"
START = "before training"
LAST = 4        # of what is logged, the mean over so many last steps is shown


@dataclass(frozen=True)
class Question:
    """What is asked, and the runs that answer it.

    flags: of every arm.  arms: {name: its own flags}, the control first.  metric: of the summary,
    what is compared; it is from `least` to 1.  also: {name: metric} that is shown too, of the
    summary or else of the log.  seeds: how many, from 0 on.  start: where the first arm's runs
    begin is the control, a row of its own.
    """

    name: str
    asked: str
    flags: str
    arms: dict[str, str]
    metric: str
    also: dict[str, str] = field(default_factory=dict)
    least: float = 0.0
    seeds: int = 3
    start: bool = False


TEN = ("--task arithmetic --hurried True --terms 10 --model checkpoints/thinker "
       "--max-new-tokens 128 --steps 20 --lr 1e-4")
CORRECTIONS = {
    "as they are": "none", "clipped at 0.2": "clip", "ratios cut at 2 (TIS)": "truncated",
    "tokens masked (MIS)": "masked", "answers masked (MIS)": "masked-answers"}
PROXY = {"proxy": "reward", "proxy less gold": "gap",
         "pairs of its own answers in order": "pair accuracy, held-out"}
SAMPLERS = (("bits", 8, "a sampler of 8 bits"), ("bits", 3, "a sampler of 3 bits"),
            ("top-k", 2, "the two likeliest tokens"))
QUESTIONS = (
    Question("iterative-grpo", "3.2.8: does it help GRPO to renew reward model and reference?",
             "--algo iterative-grpo", {
                 "renewed never": "--iterations 1", "twice": "--iterations 3",
                 "twice, no pairs replayed": "--iterations 3 --replay-share 0"},
             "sampled, held-out", {"KL to the round's start": "kl"}, -1.0),
    Question("iterated-rlhf", "3.1.5: do labels of the policy's own answers close the gap between "
             "proxy and gold, at as many labels?", "--algo iterated-rlhf --reward-steps 40",
             {"taught once": "--rounds 1", "in four rounds": "--rounds 4"},
             "sampled, held-out", PROXY, -1.0),
    Question("iterated-rlhf-free", "3.1.5: and without a price on KL?",
             "--algo iterated-rlhf --reward-steps 150 --beta 0",
             {"taught once": "--rounds 1", "in four rounds": "--rounds 4"},
             "sampled, held-out", PROXY, -1.0, seeds=6),
    Question("clicks", "3.1.2: does a reward model from clicks need the places' propensities?",
             "--algo clicks", {
                 "as they are": "--correct none", "by propensities": "--correct propensity",
                 "in a list of random order, as they are": "--shown random --correct none"},
             "pair accuracy, held-out", {"clicks on the first place": "top"}),
    Question("entropy", "Entropy held: what do three remedies do to GRPO on ten-term sums?",
             f"--algo entropy {TEN}", {
        "none": "--share 1", "the 20% of tokens that fork": "--share 0.2",
        "Clip-Cov": "--share 1 --cov-share 2e-4", "a bonus": "--share 1 --entropy-weight 0.01",
        "Clip-Cov of a hundred times as many": "--share 1 --cov-share 2e-2",
        "ten times the bonus": "--share 1 --entropy-weight 0.1"},
        "sampled, held-out", {"entropy": "entropy"}),
    Question("rules", "3.3.3: are two rules, right and in form, better normalised apart?",
             "--steps 35 --format 1", {
                 "their sum (R1-Zero)": "--algo r1-zero", "apart (GDPO)": "--algo gdpo"},
             "sampled, held-out", {"in form": "format"}),
    Question("rounds", "3.3.2: what do rounds, new beginnings (STaR) and hints add to RFT?",
             "--algo rft --task arithmetic", {
                 "one round": "--iterations 1", "three": "--iterations 3",
                 "three, each from the first weights": "--iterations 3 --restart True",
                 "and with hints": "--iterations 3 --restart True --hint True",
                 "one round, every prompt as much": "--iterations 1 --weigh prompt"},
             "sampled, held-out", {"greedy": "greedy, held-out"}, start=True),
    Question("hints", "3.3.2: what do hints add to STaR?",
             "--algo rft --task arithmetic --iterations 3 --restart True", {
                 "without": "--hint False", "with": "--hint True"},
             "sampled, held-out", {"greedy": "greedy, held-out"}),
    Question("distill", "3.3.5, 4.5: does it matter what of the teacher is learnt?",
             "--algo distill --steps 400", {
                 "distributions, forward KL": "--mix 0", "reverse KL": "--mix 1",
                 "its answers alone": "--on-policy 0 --level sequence"},
             "greedy, held-out", {"the teacher": "teacher greedy, held-out"}, start=True),
    Question("oreo", "3.2.7: does OREO gain by new answers half-way?", "--algo oreo",
             {"one set of answers": "--iterations 1", "two": "--iterations 2"},
             "sampled, held-out", {"greedy": "greedy, held-out"}),
    Question("dpo", "3.2.6: does DPO gain by leaving out the least likely tenth of its pairs?",
             "--algo dpo", {"all pairs": "--likeliest 1", "nine tenths": "--likeliest 0.9"},
             "win rate, held-out", {"gold": "sampled, held-out"}),
    Question("wrong-labels", "20% of DPO's labels are wrong: what does it help to know that?",
             "--algo dpo --noise 0.2", {
                 "as it is": "--label-smoothing 0", "smoothed (cDPO)": "--label-smoothing 0.2",
                 "without bias (robust)": "--label-smoothing 0.2 --robust True"},
             "win rate, held-out", {"gold": "sampled, held-out"}),
    Question("rlaif-dpo", "3.2.4: what does DPO on a judge's labels gain in gold?",
             "--algo rlaif", {"on 2,560 pairs": "--learner dpo"}, "sampled, held-out", {}, -1.0,
             start=True),
    Question("tool-use", "Figure 2: what does RL add to the cold start?", "--algo tool-use", {
        "the cold start and one step": "--steps 1", "and 40 steps": "--steps 40"},
        "greedy, held-out"),
    *(Question(f"sampler-{name}-{size}", f"Answers of {asked}: what do ratios mend of it?",
               f"--algo grpo {TEN} --beta 0", {
                   **{arm: f"--sampler-{name} {size} --correct {correct}"
                      for arm, correct in CORRECTIONS.items()},
                   "the policy's own answers": f"--sampler-{name} 0 --correct none"},
               "sampled, held-out", {"largest log-ratio": "sampling_logp_difference/max"})
      for name, size, asked in SAMPLERS),
)


def arguments(question, arm, seed):
    return shlex.split(f"{question.flags} {question.arms[arm]} --seed {seed} --report False "
                       "--workers 1")


def place(question, arm, seed):
    number = [*question.arms].index(arm)
    return FOLDER / f"{question.name}-{number}-{seed}"


def make(question, arm, seed, runner):
    """One run, unless it is there.  MinipostError where it fails."""
    if runner.stopped:
        return
    given, directory = arguments(question, arm, seed), place(question, arm, seed)
    with PARSING:
        settings = train.settings_of(given)
    origin = fingerprint(ROOT / settings.options.model)
    _, failed = complete(runner, directory, given, origin)
    if failed:
        raise MinipostError(f"{question.name}, {arm}, seed {seed}: {failed}")
    print(f"{question.name}: {arm}, seed {seed}", flush=True)


def read(question, arm, seed):
    """(Score, rewards, {name of `also`: value}, tokens) at the end of a run.

    Where the arm is START, at the beginning of the first arm's; what a run logs is not there.
    """
    when, arm = ("before", next(iter(question.arms))) if arm == START else ("after", arm)
    directory = place(question, arm, seed)
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in
             (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    also = {}
    for name, metric in question.also.items():
        if known := summary["all"].get(metric):
            also[name] = known[when]["value"]
        elif when == "after":
            also[name] = fmean([line[metric] for line in lines
                                if line.get(metric) is not None][-LAST:])
    return (Score(**summary["all"][question.metric][when]),
            rewards(directory, question.metric, when), also,
            summary["tokens"] if when == "after" else 0)


def beside(metric, values):
    """The interval over the seeds; of what is measured on problems it ends at 1."""
    found = t_interval(values)
    return replace(found, high=min(found.high, 1.0)) if metric.endswith(", held-out") else found


def rows(question):
    """The table's rows of a question."""
    seeds = range(question.seeds)
    found = {arm: [read(question, arm, seed) for seed in seeds]
             for arm in (*[START] * question.start, *question.arms)}
    control, cells = [one[1] for one in next(iter(found.values()))], []
    for k, (arm, runs) in enumerate(found.items()):
        gap = paired_difference([one[1] for one in runs], control, 1 - question.least)
        cells.append([
            f"{question.asked} ({question.seeds} seeds)" if k == 0 else "", arm, str(over_seeds(
                [one[0].value for one in runs], [one[0] for one in runs],
                [1 / len(runs)] * len(runs), question.least, 1.0)),
            "" if k == 0 else gap.effect(),
            "; ".join(f"{name} {beside(question.also[name], [one[2][name] for one in runs])}"
                      for name in question.also if name in runs[0][2]),
            f"{fmean(one[3] for one in runs):,.0f}",
            "" if arm == START else f"`{question.flags} {question.arms[arm]}`"])
    return cells


def report():
    """The part of BENCHMARKS.md, as lines."""
    return [
        "## What one part of a method adds", "", machine(), "",
        "`make ablations`; a run is `python -m minipost.train FLAGS --seed SEED`, for seeds from 0 "
        "on.  Arms of a question differ in the flags that stand last, the first is the one without "
        "the part, or the model before training.  Held out (gold reward of wording, pairs in the "
        "right order of a reward model, win rate over the base of DPO, else right answers), with "
        "95% intervals: means over seeds, t over the seeds' values, and never narrower than the "
        "evaluations' own put together; differences are paired by seed and problem.  Beside it "
        f"what else a run measures, and what it logs, a mean over its last {LAST} steps; t over "
        "the seeds.", "",
        *table(["question", "arm", "at the end [95%]", "less the first [95%]", "at the end too",
                "tokens", "flags"], [row for each in QUESTIONS for row in rows(each)]), "",
        "Looked at before: the question of iterated RLHF without a price on KL had three seeds at "
        "first, of one sign and too far apart to tell; it has six since.  The two stronger "
        "remedies for entropy were added when the paper's numbers had left it as it was.",
    ]


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m scripts.ablations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--jobs", type=int, default=len(own_cores()), help="runs at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md", help="file to write")
    args = parser.parse_args(argv)
    check_jobs(parser, args.jobs)
    runner = Runner()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.handle)
    for _ in side_by_side(args.jobs, [partial(make, question, arm, seed, runner)
                                      for question in QUESTIONS for arm in question.arms
                                      for seed in range(question.seeds)]):
        pass
    if runner.stopped:
        return 130
    write(args.out, "ablations", report(), "make")
    return 0


if __name__ == "__main__":
    sys.exit(fail_in_one_sentence(main))
