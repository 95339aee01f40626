"""Does thinking get longer and better under RL, and what must the base know for it?

Three bases differ in nothing but the texts that they are fine-tuned on (minipost/tasks/search.py).
One has seen single attempts.  One has also seen texts that go on from a failed attempt to the next
until one is right.  One has seen texts of the same form that leave out what is right and call a
wrong attempt right; they are a little longer.  The first lesson shows searches in half of the
texts, so that they are learnt well, the second in one of twenty, so that each base rarely searches.
Then R1-Zero asks all three the same problems, and pays for right answers and for the form.

Attempts, backtracks and checks are counted by a parser that works every move out again.

reproduced      Sampled accuracy of the base that backtracks ends above that of single attempts, and
                that of the base with wrong contents does too, both beyond the 95% interval over
                seeds.
reversed        Single attempts end above both, beyond the interval.
not reproduced  Anything else.
"""

from statistics import fmean

from minipost.measure.stats import Score
from scripts.compare import over_seeds
from scripts.studies import Finding

PAPER = "arxiv.org/abs/2503.01307"
CLAIM = ("Gandhi et al. 2025: of two models that RL taught Countdown, the one that verifies and "
         "backtracks from the start went to about 60 in 100, the other to 30; primed with such "
         "behaviours it went as far, and even when primed with wrong solutions of that form.")
LIMITS = ("What a nano model can tell: the bases differ in their texts alone, and each attempt and "
          "each check can be worked out again, so it is known what got longer. What it cannot: "
          "all thoughts here are of one kind, an enumeration, and a base of 0.86M parameters does "
          "not find a new kind. A large model has seen many, and which of them RL selects depends "
          "on what was written before it.")
TRIED = ("The lengths and rates of the lessons and of RL were chosen on shorter tries; the rule "
         "is as it was.")
BASES = {"single": "single attempts", "backtracking": "backtracking", "wrong": "wrong contents"}
FOLDER = "runs/studies/priming"
LESSONS = {  # name: arguments of the first and the second lesson
    "taught": ["--rate", "0.5", "--steps", "1500", "--lr", "2e-3"],
    "base": ["--rate", "0.05", "--steps", "60", "--lr", "1e-4"],
}
ROOM = ["--max-new-tokens", "224"]
STEPS = 60
SHOWN = {"accuracy": "on training problems", "completions/mean_length": "tokens an answer",
         "attempts": "attempts", "backtracks": "backtracks", "sound": "sound checks"}
HELD_OUT = "eval/held-out/sampled"


def runs(seeds):
    found = {}
    for traces in BASES:
        model = "checkpoints/base"
        for lesson, given in LESSONS.items():
            name = f"{lesson}-{traces}"
            found[name] = ["--algo", "sft", "--task", "search", "--traces", traces, "--model",
                           model, "--batch-size", 64, "--eval-n", 200, *given, *ROOM]
            model = f"{FOLDER}/{name}/model"
        for seed in seeds:
            found[run_of(traces, seed)] = [
                "--algo", "r1-zero", "--task", "search", "--model", model, "--seed", seed,
                "--steps", STEPS, "--eval-n", 400, "--eval-every", 10, *ROOM]
    return found


def run_of(traces, seed):
    return f"{traces}-{seed}"


def findings(made):
    before, after, rows, curves = {}, {}, [], {}
    for traces, name in BASES.items():
        names = [run_of(traces, seed) for seed in made.seeds]
        done = [made.summary(run)["all"]["sampled, held-out"] for run in names]
        before[traces], after[traces] = ([Score(**one[when]) for one in done]
                                         for when in ("before", "after"))
        lines = [made.metrics(run) for run in names]
        curves[traces] = [{key: [line.get(key) for line in run]
                           for key in ("num_tokens", HELD_OUT, *SHOWN)} for run in lines]
        rows.append([name, mean(before[traces]), mean(after[traces]),
                     *(f"{fmean(of[key][0] for of in curves[traces]):.2f} to "
                       f"{fmean(fmean(of[key][-5:]) for of in curves[traces]):.2f}"
                       for key in SHOWN)])
    verdict, sentence = judge(before, after)
    return Finding(["base", "sampled before", "after", *SHOWN.values()], rows, verdict, sentence,
                   curves, [f"Sampled accuracy on {done[0]['after']['n']} held-out problems, mean "
                            f"of {len(made.seeds)} seeds of RL on one base each. The other columns "
                            "are means of an answer at the first step and over the last five, of "
                            "training problems. A check is sound if its verdict is true and its "
                            "moves are right."])


def mean(scores):
    return f"{fmean(score.value for score in scores):.3f}"


def lead(ours, theirs):
    """The difference of two means over seeds, as a Score with its interval."""
    n = len(ours)
    return over_seeds([a.value - b.value for a, b in zip(ours, theirs, strict=True)],
                      [*ours, *theirs], [1 / n] * n + [-1 / n] * n, -1.0, 1.0)


def judge(before, after):
    leads = {traces: lead(after[traces], after["single"]) for traces in BASES if traces != "single"}
    verdict = ("reproduced" if all(each.low > 0 for each in leads.values()) else
               "reversed" if all(each.high < 0 for each in leads.values()) else "not reproduced")
    ends = "; ".join(f"{name} {mean(before[traces])} to {mean(after[traces])}"
                     for traces, name in BASES.items())
    return verdict, (f"Sampled accuracy under the same RL: {ends}. At the end backtracking is "
                     f"ahead of single attempts by {leads['backtracking']:+}, wrong contents by "
                     f"{leads['wrong']:+}.")


def draw(figure, found):
    colours = dict(zip(BASES, ("tab:gray", "tab:blue", "tab:red")))
    for axes, (key, label) in zip(
            figure.subplots(1, 3), ((HELD_OUT, "sampled accuracy, held out"),
                                    ("completions/mean_length", "tokens an answer"),
                                    ("backtracks", "backtracks an answer"))):
        for traces, curves in found.data.items():
            for k, curve in enumerate(curves):
                points = [(x, y) for x, y in zip(curve["num_tokens"], curve[key]) if y is not None]
                axes.plot(*zip(*points), color=colours[traces], linewidth=1,
                          alpha=0.8, label=BASES[traces] if k == 0 else None)
        axes.set(xlabel="tokens", ylabel=label)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    figure.axes[0].legend(frameon=False)
