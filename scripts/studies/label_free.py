"""Can a model teach itself without labels?  It cures slips, and cements what is always wrong.

TTRL is paid by a majority of the policy's own answers, Intuitor by its own certainty, and GRPO by
the exact reward.  checkpoints/thinker slips at random in worked steps, so a vote of its answers is
right.  In a hurry it counts large terms short, always the same way, so a vote is for the fault.

reproduced      Without labels, both methods raise the sampled accuracy of the model that slips
                beyond the 95% interval, and neither raises that of the model with the fault by as
                much as half of what GRPO with labels does, beyond the interval.
reversed        Neither raises the accuracy where errors slip, and both raise it where they do not,
                beyond the interval.
not reproduced  Anything else.
"""

from dataclasses import asdict
from statistics import fmean

from minipost import checkpoint
from minipost.measure import passes
from minipost.measure.stats import Score
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from scripts import looks
from scripts.studies import ROOT, Finding, combined

PAPER = "arxiv.org/abs/2504.16084"
CLAIM = ("Zuo et al. 2025: paid by the majority of its own answers a model gains nearly what "
         "labels would give it (Qwen2.5-Math-7B on AIME 2024 about 211% of what it had), and "
         "passes its own majority of before; Zhao et al. 2025 "
         "(<https://arxiv.org/abs/2505.19590>) have the like of its certainty.")
LIMITS = ("What a nano model can tell: both kinds of error were taught, so it is known which one a "
          "model has, and the two differ in nothing else. What it cannot: a large model has both "
          "in every problem, and how much of each decides what a vote is worth. Twelve steps are "
          "few, and long runs of a certainty that pays itself are known to go astray.")
TRIED = ("A first set of runs kept GRPO's rate of 2e-4 to the end. It cured slips in three steps, "
         "and then went astray where nobody said what is right: certainty lost +0.542 [+0.337, "
         "+0.746] of sampled accuracy, the majority of one seed in three nearly all (gain +0.048 "
         "[-1.000, +1.000]). The rate was lowered, to end at zero, by the accuracy on training "
         "problems of the model that slips; the rule was not changed.")
MODEL = "checkpoints/thinker"
KINDS = {"slips": {}, "fault": {"hurried": True}}
SETTINGS = ["--steps", "12", "--prompts", "16", "--group-size", "16", "--beta", "0",
            "--lr", "5e-5", "--schedule", "linear", "--eval-n", "200", "--ask", "0"]
METHODS = {"grpo": "exact reward", "ttrl": "majority", "intuitor": "certainty"}
FREE = ("ttrl", "intuitor")
N, SAMPLES = 100, 16  # held-out problems, and samples of each, for pass@8


def runs(seeds):
    return {f"{kind}-{algo}-{seed}": [
        "--algo", algo, "--task", "arithmetic", "--model", MODEL,
        *(part for name, value in knobs.items() for part in (f"--{name}", value)),
        "--seed", seed, *SETTINGS]
        for seed in seeds for kind, knobs in KINDS.items() for algo in METHODS}


def reach(model, knobs, n):
    """pass@8 on held-out problems, as data."""
    module, vocabulary = checkpoint.load(str(model))
    task = Arithmetic(**knobs)
    run = Run(Learner(module), vocabulary, task, task.reward)
    return asdict(passes.measure(run, task.heldout(n), [8], SAMPLES)["pass@8"])


def findings(made):
    n, found, rows = made.options.get("n", N), {}, []
    for kind, knobs in KINDS.items():
        first = Score(**made.once(f"pass-{kind}", reach, ROOT / MODEL, knobs, n))
        for algo, pays in METHODS.items():
            names = [f"{kind}-{algo}-{seed}" for seed in made.seeds]
            both = {metric: [[Score(**made.summary(name)["all"][f"{metric}, held-out"][when])
                              for name in names] for when in ("before", "after")]
                    for metric in ("sampled", "greedy")}
            later = [Score(**made.once(f"pass-{name}", reach, made.model(name), knobs, n))
                     for name in names]
            found[kind, algo] = both["sampled"]
            rows.append([kind, algo, pays,
                         *(f"{mean(end):.3f}" for end in both["sampled"]),
                         f"{gain(found[kind, algo]):+}",
                         *(f"{mean(end):.3f}" for end in both["greedy"]),
                         f"{first.value:.3f}", f"{mean(later):.3f}"])
    data = {", ".join(name): gain(ends) for name, ends in found.items()}
    return Finding(
        ["errors", "method", "paid by", "sampled before", "after", "gain [95%]", "greedy before",
         "after", "pass@8 before", "after"], rows, *judge(found), data,
        [f"{len(made.seeds)} seeds. Accuracy of one answer on 200 held-out problems each, pass@8 "
         f"from {SAMPLES} samples of {n}, both by the exact reward."])


def mean(scores):
    return fmean(score.value for score in scores)


def gain(ends):
    """What accuracy gains, the mean over seeds, as a Score.  ends: Scores before and after."""
    return combined((1, ends[1]), (-1, ends[0]))


def judge(found):
    """The verdict and its sentence, of {(kind, method): Scores before and after, of each seed}."""
    gains = {name: gain(ends) for name, ends in found.items()}
    short = {algo: combined((1, found["fault", algo][1]), (-1, found["fault", algo][0]),
                            (-0.5, found["fault", "grpo"][1]), (0.5, found["fault", "grpo"][0]))
             for algo in FREE}
    verdict = ("reproduced" if all(gains["slips", algo].low > 0 > short[algo].high
                                   for algo in FREE) else
               "reversed" if all(gains["slips", algo].low <= 0 < gains["fault", algo].low
                                 for algo in FREE) else "not reproduced")
    said = "; ".join(
        f"{kind}: " + ", ".join(f"{gains[kind, algo]:+} by {pays}"
                                for algo, pays in METHODS.items()) for kind in KINDS)
    return verdict, f"Sampled accuracy gains, {said}."


def draw(figure, found):
    axes = figure.add_subplot()
    names = list(found.data)[::-1]
    for at, name in enumerate(names):
        score, colour = found.data[name], looks.colour(name.split(", ")[1])
        axes.plot([score.low, score.high], [at, at], color=colour, linewidth=2)
        axes.plot([score.value], [at], "o", color=colour)
    axes.axvline(0, color="grey", linewidth=0.6)
    axes.set(yticks=range(len(names)), yticklabels=names, ylabel="errors, method",
             xlabel="sampled accuracy gained")
