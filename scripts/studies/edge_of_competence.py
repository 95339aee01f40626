"""Where does RL teach most: on what the base can do, nearly can do, or cannot do?

The thinker in a hurry counts large terms short.  The more terms, the rarer a right answer: from
most to none.  GRPO trains on each length apart, with the same number of steps.

reproduced      Of lengths in three classes by the base's sampled accuracy p (can: p >= 0.7; edge:
                0.02 <= p < 0.7; cannot: p < 0.02), the edge gains more greedy accuracy than either
                of the others, beyond the 95% intervals over seeds.
reversed        The edge gains less than either.
not reproduced  Anything else.
"""

from statistics import fmean

from minipost.measure.stats import Score
from scripts.compare import over_seeds
from scripts.studies import Finding

PAPER = "arxiv.org/abs/2512.07783"
CLAIM = ("Zhang et al. 2025: RL adds capability where its tasks lie at the edge of what the "
         "model can do, hard and not out of reach; on tasks that pre-training covers, or that "
         "are beyond it, it adds little.")
LIMITS = ("What a nano model can tell: how a policy gradient depends on the rate of success when "
          "nothing else differs. What it cannot: here all lengths need the same skill, so a long "
          "sum is beyond reach only because it multiplies chances; the paper's tasks also differ "
          "in what has to be known. Where the edge of a large model lies depends on its "
          "pre-training.")
TERMS = (2, 4, 6, 8, 12, 16, 24)
SETTINGS = ["--steps", "40", "--max-new-tokens", "240"]
CLASSES = {"can": (0.7, 1.01), "edge": (0.02, 0.7), "cannot": (0.0, 0.02)}


def runs(seeds):
    return {run_of(terms, seed): [
        "--algo", "grpo", "--task", "arithmetic", "--model", "checkpoints/thinker",
        "--hurried", "True", "--terms", terms, "--seed", seed, "--eval-n", 200, *SETTINGS]
        for seed in seeds for terms in TERMS}


def run_of(terms, seed):
    return f"{terms}-terms-{seed}"


def findings(made):
    data, rows = {}, []
    for terms in made.options.get("terms", TERMS):
        found = [made.summary(run_of(terms, seed))["all"] for seed in made.seeds]
        n = len(found)
        start = fmean(row["sampled, held-out"]["before"]["value"] for row in found)
        ends = [[Score(**row["greedy, held-out"][when]) for row in found]
                for when in ("before", "after")]
        gain = over_seeds([b.value - a.value for a, b in zip(*ends)], [*ends[1], *ends[0]],
                          [1 / n] * n + [-1 / n] * n, -1.0, 1.0)
        data[terms] = {"start": start, "gain": [gain.value, gain.low, gain.high]}
        rows.append([str(terms), class_of(start), f"{start:.3f}",
                     *(f"{fmean(s.value for s in end):.3f}" for end in ends),
                     f"{gain:+}"])
    best = {name: max((d["gain"] for d in data.values() if class_of(d["start"]) == name),
                      default=None) for name in CLASSES}
    return Finding(["terms", "class", "sampled before", "greedy before", "greedy after",
                    "greedy gain [95%]"], rows, judge(best), sentence(best), data,
                   [f"{len(made.seeds)} seeds, 200 held-out problems each, 40 steps of 32 x 8 "
                    "answers. Beyond 8 terms the sums are longer than any that the thinker was "
                    "taught."])


def class_of(start):
    return next(name for name, (low, high) in CLASSES.items() if low <= start < high)


def judge(best):
    edge, others = best["edge"], [best[name] for name in ("can", "cannot")]
    if edge is None or None in others:
        return "not reproduced"
    if all(edge[1] > other[2] for other in others):
        return "reproduced"
    return "reversed" if all(edge[2] < other[1] for other in others) else "not reproduced"


def sentence(best):
    def show(gain):
        return f"{gain[0]:+.3f} [{gain[1]:+.3f}, {gain[2]:+.3f}]" if gain else "no such length"

    return ("The largest gain in greedy accuracy: "
            + "; ".join(f"{name} {show(gain)}" for name, gain in best.items()) + ".")


def draw(figure, found):
    axes = figure.add_subplot()
    for terms, point in found.data.items():
        value, low, high = point["gain"]
        axes.errorbar(point["start"], value, [[value - low], [high - value]], fmt="o",
                      color="tab:blue", capsize=2)
        axes.annotate(f"{terms}", (point["start"], value), textcoords="offset points",
                      xytext=(6, 4))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="sampled accuracy of the base, held out (numbers: terms)",
             ylabel="gain in greedy accuracy after 40 steps of GRPO")
