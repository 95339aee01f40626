"""What predicts forgetting: the method, or the KL to the base on the new task?

The thinker learns to count right in a hurry, from demonstrations, from its own right answers, from
a reward and from pairs, at several learning rates.  Before and after, other things that it was
taught are measured: sums in steps and at once, the Game of 24, recall.  KL(base || policy) is exact
over the vocabulary, summed over an answer of the base to a held-out prompt of the new task.

reproduced      Over all runs a quadratic of the KL explains at least half of the variance of
                forgetting, and among runs that reach 0.9 greedy on the new task GRPO's mean KL and
                mean forgetting are below those of SFT.
reversed        The quadratic explains that much, and both are above those of SFT.
not reproduced  Anything else.
"""

from dataclasses import asdict
from functools import partial
from statistics import fmean

import numpy as np
import torch

from minipost import checkpoint, ops
from minipost.measure.results import evaluate
from minipost.optim import Learner
from minipost.rollout import distribution
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.countdown import Countdown
from minipost.tasks.recall import Recall
from scripts.studies import ROOT, Finding

PAPER = "arxiv.org/abs/2509.04259"
CLAIM = ("Shenfeld et al. 2025: how much a model forgets is predicted by its KL to the base on "
         "the new task, whatever the method (R^2 0.96 in their small world, 0.71 for a language "
         "model), and on-policy RL forgets less than SFT because it ends nearer to the base.")
LIMITS = ("What a nano model can tell: the KL is exact, the old tasks are known, and all methods "
          "start from the same weights. What it cannot: in 0.86M parameters everything shares "
          "its weights, so a small change is felt everywhere. The old skills of a large model "
          "are many and are measured by a few benchmarks.")
BASE = "checkpoints/thinker"
NEW = Arithmetic(hurried=True)
OLD = {"in steps": Arithmetic(), "at once": Arithmetic(direct=True),
       "Game of 24": Countdown(numbers=4, target=24), "recall": Recall(episodes=2)}
RATES = ("5e-5", "2e-4", "8e-4")
METHODS = {
    "sft": ["--steps", "150", "--batch-size", "64"],
    "rft": ["--steps", "100"],
    "grpo": ["--steps", "40", "--beta", "0"],
    "dpo": ["--steps", "100"],
}
N = 200


def runs(seeds):
    return {run_of(algo, rate, seed): [
        "--algo", algo, "--task", "arithmetic", "--hurried", "True", "--model", BASE,
        "--seed", seed, "--lr", rate, "--eval-n", N, *given]
        for seed in seeds for algo, given in METHODS.items() for rate in RATES}


def run_of(algo, rate, seed):
    return f"{algo}-{rate}-{seed}"


def opened(directory, task, seed=0):
    module, vocabulary = checkpoint.load(str(directory))
    return Run(Learner(module), vocabulary, task, task.reward, seed=seed, max_new_tokens=64)


def abilities(directory, n):
    """{task: greedy accuracy, held out} of the new task and the old ones."""
    found = {}
    for name, task in {"new": NEW, **OLD}.items():
        run = opened(directory, task)
        found[name] = asdict(evaluate(run, task.heldout(n), 0.0).score)["value"]
    return found


@torch.no_grad()
def divergence(directory, n):
    """KL(base || policy) in nats an answer, exact at each token of the base's own answers."""
    base, policy = (opened(where, NEW) for where in (ROOT / BASE, directory))
    rollout = base.sample(NEW.heldout(n), 1, temperature=1.0)
    total = 0.0
    for first in range(0, len(rollout), 32):
        part = rollout[torch.arange(first, min(first + 32, len(rollout)))]
        p, q = (distribution(run.policy.module, part) for run in (base, policy))
        total += float(ops.kl_exact(p, q).sum())
    return total / len(rollout)


def findings(made):
    n = made.options.get("n", N)
    before = made.once("base", partial(abilities, ROOT / BASE, n))
    points = []
    for algo in METHODS:
        for rate in made.options.get("rates", RATES):
            for seed in made.seeds:
                run = run_of(algo, rate, seed)
                model = made.model(run)
                after = made.once(f"abilities-{run}", partial(abilities, model, n), [run])
                kl = made.once(f"kl-{run}", partial(divergence, model, n), [run])
                lost = fmean(before[name] - after[name] for name in OLD)
                points.append({"method": algo, "lr": rate, "seed": seed, "new": after["new"],
                               "kl": kl, "forgotten": lost})
    explained = fit([p["kl"] for p in points], [p["forgotten"] for p in points])
    rows = []
    for algo in METHODS:
        for rate in made.options.get("rates", RATES):
            of = [p for p in points if (p["method"], p["lr"]) == (algo, rate)]
            rows.append([algo, rate, *(f"{fmean(p[key] for p in of):.3f}"
                                       for key in ("new", "kl", "forgotten"))])
    verdict, sentence = judge(points, explained)
    return Finding(["method", "lr", "greedy, new task", "KL(base, policy), nats an answer",
                    "forgotten"], rows, verdict, sentence, points,
                   [f"Means of {len(made.seeds)} seeds; {n} held-out problems of each task, "
                    f"greedy. New task before: {before['new']:.3f}. Forgotten: mean loss of "
                    "accuracy over "
                    + ", ".join(f"{name} ({before[name]:.3f} before)" for name in OLD) + "."])


def fit(x, y):
    """The share of the variance of y that a quadratic of x explains."""
    x, y = np.asarray(x), np.asarray(y)
    if not (x.var() > 0 and y.var() > 0):
        return 0.0
    left = y - np.polyval(np.polyfit(x, y, 2), x)
    return float(1 - left.var() / y.var())


def judge(points, explained):
    able = {algo: [p for p in points if p["method"] == algo and p["new"] >= 0.9]
            for algo in ("grpo", "sft")}
    if not all(able.values()):
        return "not reproduced", ("No run of " + " and ".join(a for a, of in able.items() if not of)
                                  + f" reached 0.9; R^2 {explained:.2f}.")
    mean = {(algo, key): fmean(p[key] for p in of)
            for algo, of in able.items() for key in ("kl", "forgotten")}
    below = [mean["grpo", key] < mean["sft", key] for key in ("kl", "forgotten")]
    verdict = ("not reproduced" if explained < 0.5 or any(below) != all(below) else
               "reproduced" if all(below) else "reversed")
    return verdict, (f"A quadratic of the KL explains {explained:.2f} of the variance of "
                     f"forgetting over {len(points)} runs. Where the new task is learnt to 0.9, "
                     f"GRPO is {mean['grpo', 'kl']:.2f} nats away and has forgotten "
                     f"{mean['grpo', 'forgotten']:.3f}, SFT {mean['sft', 'kl']:.2f} nats and "
                     f"{mean['sft', 'forgotten']:.3f}.")


def draw(figure, found):
    axes = figure.add_subplot()
    colours = dict(zip(METHODS, ("tab:red", "tab:green", "tab:blue", "tab:purple")))
    for algo, colour in colours.items():
        of = [p for p in found.data if p["method"] == algo]
        axes.scatter([p["kl"] for p in of], [p["forgotten"] for p in of], color=colour, label=algo,
                     s=[20 + 60 * p["new"] for p in of], alpha=0.8)
    axes.set(xscale="log", xlabel="KL(base, policy) on the new task, nats an answer",
             ylabel="accuracy lost on old tasks (size: new task)")
    axes.legend(frameon=False)
