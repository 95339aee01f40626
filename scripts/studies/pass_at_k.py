"""Does RL reach beyond the base, or only sharpen it?  pass@k, exact for any k.

Right texts of countdown can be listed, so the chance p of a right sample is a sum, and pass@k =
1 - (1 - p)^k without a sample (minipost/measure/passes.py).  The base, and the policies that five
methods make of it, are measured to k = 10^6 on the same held-out problems.  The interval of a
difference is the wider one of two: over hands, since problems that share one are alike, and over
seeds.

reproduced      GRPO's mean pass@1 is above the base's beyond the 95% interval, and at one of k = 8,
                64, 1,024, 10^6 its pass@k is below the base's beyond the interval at 98.75%, so
                that one of four is outside by chance in at most 5% of cases.
reversed        Its pass@k is above the base's beyond the 95% interval at k = 1 and k = 10^6.
not reproduced  Anything else.
"""

import math
from statistics import fmean

import numpy as np

from minipost import checkpoint
from minipost.measure import passes
from minipost.measure.stats import Score, clustered, pass_at, t_interval
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.countdown import Countdown
from scripts import looks
from scripts.studies import ROOT, Finding

PAPER = "arxiv.org/abs/2504.13837"
CLAIM = ("Yue et al. 2025: after RL with verifiable rewards a model is better at pass@1, but its "
         "base overtakes it at large k (tens to hundreds in their figures), so RL narrows what "
         "the base could already do.")
LIMITS = ("What a nano model can tell: here the curves are exact, so a crossing is no accident "
          "of sampling. What it cannot: a base of 0.86M parameters knows one way to write a "
          "solution, so there are no new ways of thinking to be found or lost. Large models are "
          "measured with at most some hundred samples, where part of what looks impossible is "
          "merely rare.")
TRIED = ("The rule took problems for independent and the k where the base's lead was largest; it "
         "was replaced before the runs that are shown.  For time, PPO, RFT and DPO then took their "
         "defaults (they had 60 steps of 256 prompts, 200 of 1,024 answered, and 200), OREO 100 "
         "steps of 200.  GRPO, which decides, is as it was.")
BASE = "checkpoints/base"
TASKS = {"countdown-3": dict(numbers=3), "countdown-4": dict(numbers=4),
         "Game of 24": dict(numbers=4, target=24)}
METHODS = {  # arguments besides the task and the seed
    "grpo": ["--beta", "0", "--steps", "120"],
    "ppo": ["--beta", "0"],
    "rft": [],
    "oreo": ["--steps", "100"],
    "dpo": [],
}
KS = [1, 8, 64, 1024, 10**6]
LEVEL = 1 - 0.05 / len(KS[1:])
GRID = sorted({round(10 ** (e / 8)) for e in range(49)})  # of k, for the plot and the crossing
N, ASKED = 400, 100  # held-out problems; those of them that a run asks by sampling


def runs(seeds):
    """Three seeds on the first task, one on the others."""
    found = {}
    for task, knobs in TASKS.items():
        for seed in seeds if task == "countdown-3" else seeds[:1]:
            for algo, given in METHODS.items():
                found[run_of(task, algo, seed)] = [
                    "--algo", algo, "--task", "countdown",
                    *(part for k, v in knobs.items() for part in (f"--{k}", v)),
                    "--model", BASE, "--seed", seed, "--eval-n", ASKED, *given]
    return found


def run_of(task, algo, seed):
    return f"{task.replace(' ', '-').lower()}-{algo}-{seed}"


def chances(model, knobs, n):
    """The exact chance of a right sample, of each of n held-out problems."""
    module, vocabulary = checkpoint.load(str(model))
    task = Countdown(**knobs)
    run = Run(Learner(module), vocabulary, task, task.reward, max_new_tokens=64)
    return passes.chances(run, task.heldout(n))


def findings(made):
    n, data, hands, sampled = made.options.get("n", N), {}, {}, {}
    for task, knobs in made.options.get("tasks", TASKS).items():
        before = made.once(f"{task} base".replace(" ", "-"), chances, ROOT / BASE, knobs, n)
        data[task] = {"base": [before]}
        hands[task] = [tuple(sorted(problem.columns["numbers"]))
                       for problem in Countdown(**knobs).heldout(n)]
        for algo in METHODS:
            names = [name for name in (run_of(task, algo, seed) for seed in made.seeds)
                     if (made.folder / name / "summary.json").is_file()]
            data[task][algo] = [made.once(f"chances-{name}", chances, made.model(name), knobs, n)
                                for name in names]
            found = [made.summary(name)["all"]["sampled, held-out"] for name in names]
            sampled[task, algo], sampled[task, "base"] = (
                fmean(row[when]["value"] for row in found) for when in ("after", "before"))
    rows = []
    for task, methods in data.items():
        for algo, found in methods.items():
            first = crossing(methods["base"], found)
            rows.append([task, algo, str(len(found)), f"{sampled[task, algo]:.3f}",
                         f"{mean_at([some[:ASKED] for some in found], 1):.3f}",
                         *(f"{mean_at(found, k):.3f}" for k in KS),
                         *(["", ""] if algo == "base" else
                           [f"{first:,}" if first else "never", lost(methods["base"][0], found)])])
    verdict, sentence = judge(data, hands)
    return Finding(
        ["task", "policy", "seeds", f"{ASKED} asked: right by samples", "exactly",
         *(f"pass@{k:,}" for k in KS), "the base is ahead from k =", "lost"],
        rows, verdict, sentence, data,
        [f"{n} held-out problems of each task, as far as there are so many; pass@k is exact. The "
         f"runs ask the first {ASKED} of them by one sample each at temperature 1. "
         "Lost: problems that 1,024 samples of the base solve more often than not and 1,024 of the "
         "trained policy do not, mean over seeds; in brackets those for which it is the other way "
         "round."])


def mean_at(found, k):
    """pass@k, mean over seeds and problems."""
    return fmean(pass_at(p, k) for chances in found for p in chances)


def gain(base, found, k, hands, level=0.95):
    """The paired gain over the base at k, as a Score: the wider interval of two, at either end."""
    gains = [[pass_at(q, k) - pass_at(p, k) for p, q in zip(base[0], chances, strict=True)]
             for chances in found]
    both = [clustered(list(map(fmean, zip(*gains))), hands, level)]
    if len(gains) > 1:
        both.append(t_interval(list(map(fmean, gains)), level))
    return Score(both[0].value, min(s.low for s in both), max(s.high for s in both), both[0].n)


def crossing(base, found):
    """The first whole k from which on the base is ahead, up to 10^6; None if it never is."""
    def ahead(k):
        return log_missed(base, k) < log_missed(found, k)

    behind = [k for k in GRID if not ahead(k)]
    if not behind:
        return 1
    low, high = behind[-1], next((k for k in GRID if k > behind[-1]), None)
    while high and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ahead(middle) else (middle, high)
    return high


def log_missed(found, k):
    """The log of the mean chance that all of k samples are wrong: where pass@k rounds to 1, too."""
    with np.errstate(divide="ignore"):
        each = k * np.log1p(-np.array(found))
    return np.logaddexp.reduce(each, axis=None) - math.log(each.size)


def lost(before, found):
    """How many problems 1,024 samples solved before and not after; in brackets the other way."""
    counts = [[(pass_at(p, 1024) > 0.5) - (pass_at(q, 1024) > 0.5)
               for p, q in zip(before, after, strict=True)] for after in found]
    return (f"{fmean(c.count(1) for c in counts):.0f} "
            f"({fmean(c.count(-1) for c in counts):.0f})")


def judge(data, hands):
    """The verdict and its sentence, by GRPO on the first task.  hands: of each task's problems."""
    task = next(iter(data))
    base, found = data[task]["base"], data[task]["grpo"]
    first, last = (gain(base, found, k, hands[task]) for k in (KS[0], KS[-1]))
    later = {k: gain(base, found, k, hands[task], LEVEL) for k in KS[1:]}
    worst = min(later, key=lambda k: later[k].high)
    verdict = ("not reproduced" if first.low <= 0 else
               "reproduced" if later[worst].high < 0 else
               "reversed" if last.low > 0 else "not reproduced")
    k = crossing(base, found)
    return verdict, (f"On {task} GRPO gains {first:+} at k = 1 over the base's "
                     f"{mean_at(base, 1):.3f}; of the larger k it is furthest behind, or least "
                     f"ahead, at k = {worst:,}, by {later[worst]:+} (interval at "
                     f"{100 * LEVEL:.2f}%). "
                     + (f"The base is ahead from k = {k:,} on." if k else
                        "The base is not ahead at k = 10^6."))


def draw(figure, found):
    for axes, (task, methods) in zip(
            figure.subplots(1, len(found.data), sharey=True, squeeze=False)[0], found.data.items()):
        for algo, chances in methods.items():
            axes.plot(GRID, [mean_at(chances, k) for k in GRID], color=looks.colour(algo),
                      label=algo, linestyle="--" if algo == "base" else "-", linewidth=1.6)
        axes.set(xscale="log", xlabel="k", title=task)
    figure.axes[0].set_ylabel("pass@k, held out, exact")
    figure.axes[0].legend(frameon=False)
