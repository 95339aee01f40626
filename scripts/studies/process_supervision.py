"""Does a reward for every step teach more than one for the answer?  GRPO by exact and learnt steps.

The thinker in a hurry learns sums of ten terms by GRPO, from the exact reward of the answer, from
exact labels of all steps, or from a process reward model (process-grpo).  That is
checkpoints/verifier, which was taught on other answers, the base's, of six terms.  What counts is
the sampled held-out accuracy over a run, its mean over the tokens sampled, as far as all runs go: a
lead would be lost where all end at the top.

reproduced      Exact labels of steps and learnt ones both have more accuracy over the run than the
                reward of the answer, beyond the 95% interval over seeds, paired by seed.
reversed        Both have less, beyond it.
not reproduced  Anything else.
"""

from statistics import fmean

import numpy as np

from minipost import checkpoint
from minipost.measure.stats import Score, t_interval
from minipost.methods import prm, process_grpo
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from scripts.compare import average, difference
from scripts.studies import ROOT, Finding

PAPER = "arxiv.org/abs/2402.03300"
CLAIM = ("Shao et al. 2024 (fig. 5): GRPO with process supervision is ahead of GRPO with outcome "
         "supervision on GSM8K and MATH, both with learnt reward models, at the same number of "
         "steps.")
LIMITS = ("What a nano model can tell: how much of a lead is the credit of steps and how much is "
          "lost by learning what they are worth, since the exact labels are known. What it cannot: "
          "here each step is a line with one right result, and what a step of a proof is worth is "
          "less clear. The outcome's reward is exact, the paper's was learnt, and its reward "
          "models were taught on answers like those that they judge.")
TRIED = ("The rate was chosen by the reward of the training problems of shorter tries, on sums of "
         "eight terms. The thinker solves a third of those at first, and there exact rewards of "
         "steps and of answers were alike; so the study took the ten terms of `make compare`. The "
         "last arm was added when the others had been made, and the rule does not look at it.")
TERMS, BASE, VERIFIER = 10, "checkpoints/thinker", "checkpoints/verifier"
OUTCOME, EXACT, LEARNT = "answer, exact", "steps, exact", "steps, learnt"
HELD = "steps, learnt, with the paper's KL"
ARMS = {
    OUTCOME: ["--algo", "grpo"],
    EXACT: ["--algo", "process-grpo"],
    LEARNT: ["--algo", "process-grpo", "--verifier", VERIFIER],
    HELD: ["--algo", "process-grpo", "--verifier", VERIFIER, "--beta", "0.04"],
}
SETTINGS = ["--task", "arithmetic", "--hurried", "True", "--terms", TERMS, "--model", BASE,
            "--beta", "0", "--steps", "24", "--prompts", "16", "--lr", "1e-4",
            "--max-new-tokens", "96", "--eval-n", "150", "--eval-every", "4"]
HELD_OUT = "eval/held-out/sampled"
N = 200     # answers by which the verifier is judged
GRID = 50   # points of a run at which its accuracy is read


def runs(seeds):
    return {run_of(arm, seed): [*SETTINGS, *given, "--seed", seed]
            for seed in seeds for arm, given in ARMS.items()}


def run_of(arm, seed):
    return f"{'kl' if arm == HELD else arm}-{seed}".replace(", ", "-")


def curve(made, arm, seed):
    """[(tokens, sampled held-out accuracy)] of a run, from before its first step on."""
    before = made.summary(run_of(arm, seed))["all"]["sampled, held-out"]["before"]["value"]
    return [(0, before), *((line["num_tokens"], line[HELD_OUT])
                           for line in made.metrics(run_of(arm, seed)) if HELD_OUT in line)]


def over_tokens(curves):
    """The mean accuracy of each curve over the tokens that the shortest has."""
    end = min(points[-1][0] for points in curves)
    return [float(np.interp(np.linspace(0, end, GRID), *zip(*points)).mean()) for points in curves]


def told(base, verifier, n):
    """Of the base's steps, and of its answers, how often a right one is ahead of a wrong one."""
    module, vocabulary = checkpoint.load(str(base))
    task = Arithmetic(terms=TERMS, hurried=True)
    run = Run(Learner(module), vocabulary, task, task.reward, max_new_tokens=96)
    scorer = checkpoint.load_reward_model(str(verifier), vocabulary)
    problems = task.heldout(n)
    rollout = run.sample(problems, 1, temperature=1.0)
    last = prm.final(rollout.mask)
    right = process_grpo.exact(run, problems, rollout)
    chance = process_grpo.learnt(run, scorer, problems, rollout)
    found = {}
    for name, where in (("steps", prm.marks(run, rollout, False) & ~last), ("answers", last)):
        good, bad = (chance[where & (right == label)] for label in (1, 0))
        lead = good[:, None] - bad
        found[name] = float(((lead > 0) + (lead == 0) / 2).double().mean())
    return found


def findings(made):
    curves = {arm: [curve(made, arm, seed) for seed in made.seeds] for arm in ARMS}
    means = iter(over_tokens([points for arm in ARMS for points in curves[arm]]))
    over = {arm: [next(means) for _ in made.seeds] for arm in ARMS}
    ends = {arm: [Score(**made.summary(run_of(arm, seed))["all"]["sampled, held-out"]["after"])
                  for seed in made.seeds] for arm in ARMS}
    leads = {arm: lead(over[arm], over[OUTCOME]) for arm in ARMS if arm != OUTCOME}
    rows = []
    for arm in ARMS:
        tokens = fmean(points[-1][0] for points in curves[arm])
        length = fmean(made.metrics(run_of(arm, seed))[-1]["completions/mean_length"]
                       for seed in made.seeds)
        rows.append([arm, f"{fmean(over[arm]):.3f}", f"{leads[arm]:+}" if arm in leads else "",
                     f"{average(ends[arm])}",
                     f"{difference(ends[arm], ends[OUTCOME]):+}" if arm in leads else "",
                     f"{length:.0f}", f"{tokens:,.0f}"])
    ahead = made.once("told", told, ROOT / BASE, ROOT / VERIFIER, made.options.get("n", N))
    start = fmean(points[0][1] for points in curves[OUTCOME])
    return Finding(
        ["paid for", "accuracy over the run", "lead over the answer's", "at the end",
         "lead at the end", "tokens of an answer", "tokens"], rows, judge(leads),
        f"Over a run exact labels of steps are ahead of the answer's reward by {leads[EXACT]:+}, "
        f"learnt ones by {leads[LEARNT]:+}, and with the paper's KL by {leads[HELD]:+}.", curves,
        [f"{len(made.seeds)} seeds, 150 held-out problems each, sampled; {start:.3f} before "
         f"training. Of the thinker's answers the verifier puts a right step before a wrong one "
         f"{ahead['steps']:.3f} of the time, and by its last token a right answer before a wrong "
         f"one {ahead['answers']:.3f} of the time."])


def lead(ours, theirs):
    """The mean over seeds of ours - theirs, paired."""
    return t_interval([a - b for a, b in zip(ours, theirs, strict=True)])


def judge(leads):
    """leads: {arm: its lead over the answer's reward}, Scores."""
    judged = [leads[EXACT], leads[LEARNT]]
    if all(one.low > 0 for one in judged):
        return "reproduced"
    return "reversed" if all(one.high < 0 for one in judged) else "not reproduced"


def draw(figure, found):
    axes = figure.add_subplot()
    for arm, colour in zip(ARMS, ("tab:red", "tab:blue", "tab:green", "tab:olive")):
        for k, points in enumerate(found.data[arm]):
            axes.plot(*zip(*points), marker="o", markersize=3, color=colour,
                      label="_" if k else arm)
    axes.set(xlabel="tokens sampled", ylabel="sampled accuracy, held out")
    axes.legend(frameon=False, title="paid for, by rewards")
