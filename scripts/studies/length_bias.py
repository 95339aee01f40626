"""Does GRPO's mean over each answer's tokens make wrong answers longer, and Dr. GRPO not?

checkpoints/base praises things in words (the task `wording`).  An answer is right if it begins
well: its first three words fit and are in alphabetical order.  What follows is free, and by then
it can be known that an answer is wrong.  So nothing rewards length.  The base learns by GRPO with
the paper's mean (`--mean answers`), by GRPO with the mean over all tokens of the step, and by
Dr. GRPO, which divides by neither the answer's length nor the group's deviation.  Growth is the
mean length of the wrong answers of the last tenth of the steps, less that of the first tenth.

reproduced      By the paper's mean wrong answers grow, more than by Dr. GRPO, and more than by the
                mean over tokens, which leaves out the division by length alone: all beyond the
                95% interval over seeds.
reversed        By the paper's mean they grow less than by Dr. GRPO, beyond that interval.
not reproduced  Anything else.
"""

from statistics import fmean

from minipost.measure.stats import t_interval
from minipost.tasks.wording import FITTING, KIND
from scripts.studies import Finding

PAPER = "arxiv.org/abs/2503.20783"
CLAIM = ("Liu et al. 2025: GRPO divides each answer's loss by its length, so a wrong answer is "
         "punished the less the longer it is, and wrong answers grow while a run goes on. Dr. "
         "GRPO, without that division and the one by the group's standard deviation, keeps them "
         "short and is as accurate.")
LIMITS = ("What a nano model can tell: whether the bias moves lengths where nothing rewards "
          "length, and which of the two divisions does it, since all else is the same. What it "
          "cannot: here the words after the third are idle by construction, while a large model's "
          "wrong answers reason on for thousands of tokens. There length also buys accuracy, and a "
          "curve of lengths shows both at once.")
TRIED = ("After tries on countdown the task, the rate, the steps and the parts of a run that are "
         "compared were changed, and the rule came to ask that the mean over tokens is behind too; "
         "all before the runs that are shown.")
METHODS = {
    "GRPO, mean over answers": ["--algo", "grpo", "--beta", "0", "--mean", "answers"],
    "GRPO, mean over tokens": ["--algo", "grpo", "--beta", "0"],
    "Dr. GRPO": ["--algo", "dr-grpo"],
}
PAPERS, OURS, CURE = METHODS
SETTINGS = ["--task", "wording", "--reward", "scripts/studies/length_bias.py:begins_well",
            "--max-new-tokens", "64", "--steps", "80", "--prompts", "32", "--group-size", "8",
            "--lr", "2e-4", "--eval-n", "200"]
KINDS = ("right", "wrong")
WINDOW = 4  # steps of a point of the plot


def begins_well(prompts, completions, thing, **columns):
    """1 where the first three words fit the thing and are in alphabetical order, else 0."""
    begun = [text.split()[:3] for text in completions]
    return [float(len(set(words)) == 3 and words == sorted(words)
                  and set(words) <= set(FITTING[KIND[of]]))
            for words, of in zip(begun, thing, strict=True)]


def runs(seeds):
    return {run_of(name, seed): [*given, "--seed", seed, *SETTINGS]
            for seed in seeds for name, given in METHODS.items()}


def run_of(name, seed):
    return f"{name}-{seed}".lower().replace(" ", "-").replace(",", "").replace(".", "")


def lengths(lines, kind):
    """The mean length of the right or wrong answers of each window of steps that has any."""
    name, found = f"completions/mean_length/{kind}", []
    for k in range(0, len(lines), WINDOW):
        known = [line[name] for line in lines[k : k + WINDOW] if name in line]
        found += [(k, fmean(known))] if known else []
    return found


def growth(lines, kind):
    """How much longer those answers are in the last tenth of the steps than in the first."""
    part = len(lines) // 10
    name = f"completions/mean_length/{kind}"
    first, last = ([line[name] for line in some if name in line]
                   for some in (lines[:part], lines[-part:]))
    return fmean(last) - fmean(first) if first and last else 0.0


def findings(made):
    data, rows, grown = {}, [], {}
    for name in METHODS:
        lines = [made.metrics(run_of(name, seed)) for seed in made.seeds]
        ends = [made.summary(run_of(name, seed))["all"]["sampled, held-out"]["after"]["value"]
                for seed in made.seeds]
        data[name] = {kind: [lengths(each, kind) for each in lines] for kind in KINDS}
        for kind in KINDS:
            grown[name, kind] = [growth(each, kind) for each in lines]
        first = fmean(run[0][1] for run in data[name]["wrong"])
        last = fmean(run[-1][1] for run in data[name]["wrong"])
        rows.append([name, f"{first:.1f}", f"{last:.1f}",
                     *(f"{t_interval(grown[name, kind]):+}" for kind in reversed(KINDS)),
                     f"{fmean(ends):.3f}"])
    wrong = {name: grown[name, "wrong"] for name in METHODS}
    more = {name: t_interval([a - b for a, b in zip(wrong[PAPERS], wrong[name])])
            for name in (OURS, CURE)}
    papers = t_interval(wrong[PAPERS])
    return Finding(
        ["method", "wrong at first, tokens", "wrong at last", "growth of wrong [95%]",
         "growth of right [95%]", "sampled accuracy, held out"], rows,
        judge(papers, more[OURS], more[CURE]),
        f"Wrong answers grow by {papers:+} tokens by the mean over answers, {more[OURS]:+} more "
        f"than by the mean over tokens, {more[CURE]:+} more than by Dr. GRPO.", data,
        [f"{len(made.seeds)} seeds, 80 steps of 32 x 8 answers, {WINDOW} steps a point. Lengths "
         "are of the answers that are learnt from, of at most 64 tokens."])


def judge(papers, than_ours, than_cure):
    """papers: the growth by the paper's mean; the others: how much more that is.  Scores."""
    if than_cure.high < 0:
        return "reversed"
    return ("reproduced" if min(papers.low, than_ours.low, than_cure.low) > 0
            else "not reproduced")


def draw(figure, found):
    both = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(both, KINDS):
        for k, (name, of) in enumerate(found.data.items()):
            for j, run in enumerate(of[kind]):
                axes.plot(*zip(*run), color=f"C{k}", alpha=0.7, label=None if j else name)
        axes.set(xlabel="step", title=f"{kind} answers")
    both[0].set_ylabel("mean length, tokens")
    both[1].legend(frameon=False)
