"""Does RL reach beyond the base, or only sharpen it?  pass@k, exact for any k.

Right texts of countdown can be listed, so the chance p of a right sample is a sum, and pass@k =
1 - (1 - p)^k without a sample (minipost/measure/passes.py).  The base, and the policies that five
methods make of it, are measured to k = 10^6 on the same held-out problems.

reproduced      GRPO's mean pass@1 is above the base's, and at some k up to 10^6 its pass@k is below
                the base's, both beyond the 95% interval of the paired difference over problems.
reversed        It is above the base's beyond the interval at k = 1 and still at k = 10^6.
not reproduced  Anything else.
"""

from functools import partial
from statistics import fmean

from minipost import checkpoint
from minipost.measure import passes
from minipost.measure.stats import paired, pass_at
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.countdown import Countdown
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
BASE = "checkpoints/base"
TASKS = {"countdown-3": dict(numbers=3), "countdown-4": dict(numbers=4),
         "Game of 24": dict(numbers=4, target=24)}
METHODS = {  # arguments besides the task and the seed; seconds are about the same for all
    "grpo": ["--beta", "0", "--steps", "120"],
    "ppo": ["--beta", "0", "--steps", "60", "--prompts", "256"],
    "rft": ["--steps", "200", "--prompts", "1024"],
    "oreo": [],
    "dpo": ["--steps", "200"],
}
KS = [1, 8, 64, 1024, 10**6]
GRID = [10 ** (e / 8) for e in range(49)]  # of k, for the plot and the crossing
N = 400


def runs(seeds):
    """Three seeds on the first task, one on the others."""
    found = {}
    for task, knobs in TASKS.items():
        for seed in seeds if task == "countdown-3" else seeds[:1]:
            for algo, given in METHODS.items():
                found[run_of(task, algo, seed)] = [
                    "--algo", algo, "--task", "countdown",
                    *(part for k, v in knobs.items() for part in (f"--{k}", v)),
                    "--model", BASE, "--seed", seed, "--eval-n", "100", *given]
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
    n, data = made.options.get("n", N), {}
    for task, knobs in made.options.get("tasks", TASKS).items():
        of = [f"{task} base".replace(" ", "-"), ROOT / BASE]
        before = made.once(of[0], partial(chances, of[1], knobs, n))
        data[task] = {"base": [before]}
        for algo in METHODS:
            names = [run_of(task, algo, seed) for seed in made.seeds]
            data[task][algo] = [
                made.once(f"chances-{name}", partial(chances, made.model(name), knobs, n), [name])
                for name in names if (made.folder / name / "summary.json").is_file()]
    rows = [[task, algo, str(len(found)), *(f"{mean_at(found, k):.3f}" for k in KS),
             crossing(data[task]["base"], found) if algo != "base" else "",
             lost(data[task]["base"][0], found) if algo != "base" else ""]
            for task, methods in data.items() for algo, found in methods.items()]
    verdict, sentence = judge(data)
    return Finding(
        ["task", "policy", "seeds", *(f"pass@{k:,}" for k in KS), "the base is ahead from k =",
         "lost"], rows, verdict, sentence, data,
        [f"{n} held-out problems of each task, as far as there are so many; pass@k is exact. "
         "Lost: problems that 1,024 samples of the base solve more often than not and 1,024 of the "
         "trained policy do not, mean over seeds; in brackets those for which it is the other way "
         "round."])


def mean_at(found, k):
    """pass@k, mean over seeds and problems."""
    return fmean(pass_at(p, k) for chances in found for p in chances)


def gain(base, found, k):
    """The paired gain over the base at k, seeds averaged per problem, as a Score."""
    after = [fmean(pass_at(chances[i], k) for chances in found) for i in range(len(base[0]))]
    return paired([pass_at(p, k) for p in base[0]], after)


def crossing(base, found):
    """The first k of a grid from which on the base is ahead, "never" up to 10^6."""
    ahead = [mean_at(base, k) > mean_at(found, k) for k in GRID]
    if not ahead[-1]:
        return "never"
    first = max((i + 1 for i, yes in enumerate(ahead) if not yes), default=0)
    return f"{GRID[first]:,.0f}"


def lost(before, found):
    """How many problems 1,024 samples solved before and not after; in brackets the other way."""
    counts = [[(pass_at(p, 1024) > 0.5) - (pass_at(q, 1024) > 0.5)
               for p, q in zip(before, after, strict=True)] for after in found]
    return (f"{fmean(c.count(1) for c in counts):.0f} "
            f"({fmean(c.count(-1) for c in counts):.0f})")


def judge(data):
    """The verdict and its sentence, by GRPO on the first task."""
    task = next(iter(data))
    base, found = data[task]["base"], data[task]["grpo"]
    first, last = gain(base, found, 1), gain(base, found, 10**6)
    worst = min((gain(base, found, k) for k in GRID), key=lambda s: s.high)
    if first.low > 0 and worst.high < 0:
        verdict = "reproduced"
    elif first.low > 0 and last.low > 0:
        verdict = "reversed"
    else:
        verdict = "not reproduced"
    return verdict, (f"On {task} GRPO gains {first:+} at k = 1 over the base's "
                     f"{mean_at(base, 1):.3f}; at k = 10^6 the difference is {last:+}, and the "
                     f"base is ahead from k = {crossing(base, found)}.")


def draw(figure, found):
    colours = dict(zip(["base", *METHODS], ("black", "tab:blue", "tab:orange", "tab:green",
                                            "tab:red", "tab:purple")))
    for axes, (task, methods) in zip(
            figure.subplots(1, len(found.data), sharey=True, squeeze=False)[0], found.data.items()):
        for algo, chances in methods.items():
            axes.plot(GRID, [mean_at(chances, k) for k in GRID], color=colours[algo], label=algo,
                      linestyle="--" if algo == "base" else "-", linewidth=1.6)
        axes.set(xscale="log", xlabel="k", title=task)
    figure.axes[0].set_ylabel("pass@k, held out, exact")
    figure.axes[0].legend(frameon=False)
