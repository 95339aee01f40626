"""How few trained parameters are enough, and does RL need fewer of them than SFT?

The thinker learns to count right in a hurry, from a reward (GRPO) and from demonstrations (SFT).
What learns is 1, 13 or 64 numbers on fixed directions of the weights (`--lora-numbers`), an adapter
of rank 1, 4 or 16, or all weights.  A size is enough if its gain of accuracy is at least nine
tenths of the gain of all weights, in the mean over seeds.  Beside them a prefix and bottlenecks
learn the sums, at their default rates.  No verdict rests on these.

reproduced      GRPO's smallest size that is enough has at most a hundredth of the numbers of SFT's
                on the same sums, and at GRPO's size SFT gains less than nine tenths of what all
                weights gain, beyond the 95% interval of the difference paired by seed.
reversed        The same with SFT's and GRPO's size exchanged.
not reproduced  Anything else.
"""

from statistics import fmean

import minipost
from minipost.engine.lora import trained
from minipost.measure.stats import Score
from scripts import looks
from scripts.studies import ROOT, Finding, combined

PAPER = "arxiv.org/abs/2602.04118"
CLAIM = ("Morris et al. 2026: a model of 8B parameters learns to reason by GRPO in 13 trained "
         "numbers, and SFT needs 100 to 1,000 times as many for the same accuracy. Schulman 2025 "
         "(<https://thinkingmachines.ai/blog/lora>): RL with LoRA of rank 1 is as good as "
         "with all weights, while SFT falls behind once the data exceed what an adapter can hold.")
LIMITS = ("What a nano model can tell: how accuracy depends on what is trained, from one number to "
          "all, on the same problems by SFT and by RL. What it cannot: a large model knows much "
          "that it does not show, and a few numbers may bring it out; the thinker was taught one "
          "way of adding up and one slip. With 0.86M parameters a rank of 1 is one weight in "
          "ninety, not one in thousands.")
SIZES = {  # name: flags
    "1 number": ["--lora", "2", "--lora-numbers", "1"],
    "13 numbers": ["--lora", "2", "--lora-numbers", "13"],
    "64 numbers": ["--lora", "2", "--lora-numbers", "64"],
    "rank 1": ["--lora", "1"], "rank 4": ["--lora", "4"], "rank 16": ["--lora", "16"],
    "all": [], "prefix": ["--prefix", "8"], "bottleneck": ["--bottleneck", "2"],
}
BESIDE = ("prefix", "bottleneck")  # which no verdict rests on
EVERY = tuple(SIZES)
SETTINGS = {  # name: model, flags, what is measured, sizes
    "GRPO, sums": ("checkpoints/thinker", [
        "--algo", "grpo", "--task", "arithmetic", "--hurried", "True", "--beta", "0",
        "--steps", "20", "--prompts", "16"], "greedy, held-out", EVERY),
    "SFT, sums": ("checkpoints/thinker", [
        "--algo", "sft", "--task", "arithmetic", "--hurried", "True", "--steps", "40",
        "--batch-size", "32"], "greedy, held-out", EVERY),
}
RATES = {  # the learning rate of each size; of sizes and ranks on sums chosen on training problems
    "GRPO, sums": {"1 number": "0.01", "13 numbers": "0.01", "64 numbers": "0.003",
                   "rank 1": "0.006", "rank 4": "0.002", "rank 16": "0.002", "all": "0.0002",
                   "prefix": "0.02", "bottleneck": "0.002"},
    "SFT, sums": {"1 number": "0.01", "13 numbers": "0.03", "64 numbers": "0.003",
                  "rank 1": "0.02", "rank 4": "0.002", "rank 16": "0.002", "all": "0.0002",
                  "prefix": "0.1", "bottleneck": "0.01"},
}
TRIED = ("The rate of each size on sums is the best of three to six on training problems of "
         "another seed, in runs of 8 steps of GRPO and 20 of SFT; a first grid, of larger rates, "
         "broke the runs of a few numbers, and these were made again. The base was first to learn "
         "facts too; in 300 steps of 32 rows no size recalled one, and this part was left out. The "
         "rule is as it was written before.")
ENOUGH, FEWER = 0.9, 100


def runs(seeds):
    return {run_of(setting, size, seed): [
        *given, "--model", model, *SIZES[size], "--lr", RATES[setting][size], "--seed", seed,
        "--eval-n", 200, "--workers", 1]
        for setting, (model, given, _, sizes) in SETTINGS.items() for seed in seeds
        for size in sizes}


def run_of(setting, size, seed):
    return f"{setting}-{size}-{seed}".replace(",", "").replace(" ", "-").lower()


def learnt(setting, size):
    """How many numbers learn."""
    model, flags = SETTINGS[setting][0], SIZES[size]
    given = dict(zip((flag[2:].replace("-", "_") for flag in flags[::2]), map(int, flags[1::2])))
    run = minipost.open(str(ROOT / model), task="arithmetic", **given)
    return sum(p.numel() for p in trained(run.policy.module))


def findings(made):
    data, rows = {}, []
    for setting, (_, _, measured, sizes) in SETTINGS.items():
        data[setting] = {}
        for size in sizes:
            done = [made.summary(run_of(setting, size, seed))["all"][measured]
                    for seed in made.seeds]
            before, after = ([Score(**one[when]) for one in done] for when in ("before", "after"))
            data[setting][size] = {"numbers": learnt(setting, size), "before": before,
                                   "after": after}
        for size, one in data[setting].items():
            rows.append([setting, size, f"{one['numbers']:,}", RATES[setting][size],
                         f"{fmean(s.value for s in one['before']):.3f}",
                         f"{average(one['after']):.3f}", f"{share(data[setting], size):.2f}"])
    verdict, sentence = judge(data)
    return Finding(["learns", "size", "trained numbers", "lr", "before", "after",
                    "part of the gain of all"], rows, verdict, sentence, data,
                   [f"Means of {len(made.seeds)} seeds; greedy on {done[0]['after']['n']} held-out "
                    "sums each. Rates were chosen on training problems, but those of prefix and "
                    "bottleneck."])


def average(scores):
    """The mean over seeds."""
    return fmean(score.value for score in scores)


def share(sizes, size):
    """The part of the gain of all weights that a size gains."""
    before, after = (average(sizes["all"][when]) for when in ("before", "after"))
    gain = average(sizes[size]["after"]) - average(sizes[size]["before"])
    return gain / (after - before) if after > before else 0.0


def enough(sizes):
    """The smallest size that is enough.  All weights always are."""
    return next(size for size in sizes if size not in BESIDE
                and (size == "all" or share(sizes, size) >= ENOUGH))


def behind(sizes, size):
    """By how much nine tenths of the gain of all weights exceed a size's gain, as a Score."""
    return combined((ENOUGH, sizes["all"]["after"]), (-ENOUGH, sizes["all"]["before"]),
                    (-1, sizes[size]["after"]), (1, sizes[size]["before"]))


def judge(data):
    ours, theirs = (data[setting] for setting in SETTINGS)
    few, many = enough(ours), enough(theirs)
    numbers = [sizes[size]["numbers"] for sizes, size in ((ours, few), (theirs, many))]
    forward = FEWER * numbers[0] <= numbers[1]
    backward = FEWER * numbers[1] <= numbers[0]
    lag = behind(theirs, few) if not backward else behind(ours, many)
    verdict = "not reproduced"
    if (forward or backward) and lag.low > 0:
        verdict = "reproduced" if forward else "reversed"
    short = behind(ours, "rank 1")
    return verdict, (
        f"The smallest size that gains nine tenths of what all weights gain: {few} "
        f"({numbers[0]:,}) for GRPO on sums, {many} ({numbers[1]:,}) for SFT on the same sums. "
        f"At the smaller of the two {'GRPO' if backward else 'SFT'} is behind nine tenths of what "
        f"all weights gain by {lag:+}, and GRPO with rank 1 by {short:+}.")


def draw(figure, found):
    axes = figure.add_subplot()
    for name, sizes in found.data.items():
        line = [one for size, one in sizes.items() if size not in BESIDE]
        numbers = [one["numbers"] for one in line]
        means = [average(one["after"]) for one in line]
        colour = dict(zip(SETTINGS, (looks.colour("grpo"), looks.RED)))[name]
        axes.plot(numbers, means, "o-", color=colour, label=name)
        for size, mark in zip(BESIDE, "s^"):
            if size in sizes:
                axes.scatter(sizes[size]["numbers"], average(sizes[size]["after"]), marker=mark,
                             facecolors="none", edgecolors=colour)
        for one in line:
            axes.scatter([one["numbers"]] * len(one["after"]),
                         [score.value for score in one["after"]], s=8, color=colour, alpha=0.5)
        axes.axhline(average(sizes["all"]["before"]), color=colour, linewidth=0.8, linestyle=":")
    axes.set(xscale="log", ylabel="greedy accuracy",
             xlabel="trained numbers (square: a prefix, triangle: bottlenecks, dotted: before)")
    axes.legend(frameon=False)
