"""Where does RL teach most: on what the base can do, nearly can do, or cannot do?

The thinker in a hurry counts large terms short.  The more terms, the rarer a right answer: from
most to none.  GRPO trains on each length apart, with the same number of steps.  The base's sampled
accuracy p gives a length its class (can: p >= 0.7; edge: 0.02 <= p < 0.7; cannot: p < 0.02).
Where the base is right 9 times in 10 there is little to gain.  So what counts is the share of a
class's greedy mistakes that RL mends, over all its lengths.

reproduced      The share at the edge is above that of either other class, beyond the 95% interval
                of the paired difference over seeds.
reversed        It is below either, beyond that interval.
not reproduced  Anything else.
"""

from math import inf
from statistics import fmean

from minipost.measure.stats import Score
from scripts.studies import Finding, combined

PAPER = "arxiv.org/abs/2512.07783"
CLAIM = ("Zhang et al. 2025: RL adds capability where its tasks lie at the edge of what the "
         "model can do, hard and not out of reach; on tasks that pre-training covers, or that "
         "are beyond it, it adds little. They measure pass@128, also on problems deeper than those "
         "of RL; here it is the share of greedy mistakes that are mended, on lengths that RL saw.")
LIMITS = ("What a nano model can tell: how a policy gradient depends on the rate of success when "
          "nothing else differs. What it cannot: here all lengths need the same skill, so a long "
          "sum is beyond reach only because it multiplies chances; the paper's tasks also differ "
          "in what has to be known. Where the edge of a large model lies depends on its "
          "pre-training.")
TRIED = ("The rule compared the largest gains in accuracy of each class, and one class could have "
         "no large one; it was replaced before the runs that are shown, the settings were not.")
TERMS = (2, 4, 6, 8, 12, 16, 24)
SETTINGS = ["--steps", "40", "--max-new-tokens", "240"]
WHERE = {"can": "on lengths that the base can do", "edge": "at the edge",
         "cannot": "on lengths that it cannot do"}
CLASSES = {"can": (0.7, 1.01), "edge": (0.02, 0.7), "cannot": (0.0, 0.02)}


def runs(seeds):
    return {run_of(terms, seed): [
        "--algo", "grpo", "--task", "arithmetic", "--model", "checkpoints/thinker",
        "--hurried", "True", "--terms", terms, "--seed", seed, "--eval-n", 200, *SETTINGS]
        for seed in seeds for terms in TERMS}


def run_of(terms, seed):
    return f"{terms}-terms-{seed}"


def findings(made):
    data, rows, lengths = {}, [], {name: [] for name in CLASSES}
    for terms in made.options.get("terms", TERMS):
        found = [made.summary(run_of(terms, seed))["all"] for seed in made.seeds]
        p = fmean(row["sampled, held-out"]["before"]["value"] for row in found)
        ends = [[Score(**row["greedy, held-out"][when]) for row in found]
                for when in ("before", "after")]
        lengths[class_of(p)].append(ends)
        share = mended([ends])
        data[terms] = {"start": p, "mended": share}
        rows.append([str(terms), class_of(p), f"{p:.3f}",
                     *(f"{fmean(s.value for s in end):.3f}" for end in ends), show(share)])
    return Finding(["terms", "class", "sampled before", "greedy before", "greedy after",
                    "mistakes mended [95%]"], rows, *judge(lengths), data,
                   [f"{len(made.seeds)} seeds, 200 held-out problems each, 40 steps of 32 x 8 "
                    "answers. Beyond 8 terms the sums are longer than any that the thinker was "
                    "taught."])


def class_of(start):
    return next(name for name, (low, high) in CLASSES.items() if low <= start < high)


def mended(*classes):
    """The share of a class's mistakes that RL mends, less that of a second class, as a Score.

    classes: one or two lists of lengths, each the greedy Scores (before, after), one of each seed.
    -> None where a class has no mistakes
    """
    parts = []
    for sign, lengths in zip((1, -1), classes):
        wrong = sum(fmean(1 - score.value for score in before) for before, _ in lengths)
        if not wrong:
            return None
        parts += [part for before, after in lengths
                  for part in ((sign / wrong, after), (-sign / wrong, before))]
    return combined(*parts, most=1 if len(classes) == 1 else inf)


def judge(lengths):
    """The verdict and its sentence, of {class: [greedy Scores before and after of each length]}."""
    shares = {name: mended(of) for name, of in lengths.items()}
    leads = [lead for name in ("can", "cannot")
             if (lead := mended(lengths["edge"], lengths[name]))]
    verdict = ("reproduced" if len(leads) == 2 and min(lead.low for lead in leads) > 0 else
               "reversed" if len(leads) == 2 and max(lead.high for lead in leads) < 0 else
               "not reproduced")
    some = [f"{share:+} {WHERE[name]}" for name, share in shares.items() if share]
    none = [WHERE[name] for name, share in shares.items() if not share]
    return verdict, (
        f"Of the greedy mistakes RL mends {', '.join(some) or 'none'}."
        + (f" There are none to mend {' and '.join(none)}." if none else "")
        + (f" The edge is ahead by {' and '.join(f'{lead:+}' for lead in leads)}." if leads else
           " So the classes cannot be compared."))


def show(share):
    return f"{share:+}" if share else "none to mend"


def draw(figure, found):
    axes = figure.add_subplot()
    for terms, point in found.data.items():
        share = point["mended"]
        if share is None:
            continue
        axes.errorbar(point["start"], share.value, [[share.value - share.low],
                                                    [share.high - share.value]],
                      fmt="o", color="tab:blue", capsize=2)
        axes.annotate(f"{terms}", (point["start"], share.value), textcoords="offset points",
                      xytext=(6, 4))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="sampled accuracy of the base, held out (numbers: terms)",
             ylabel="share of greedy mistakes that 40 steps of GRPO mend")
