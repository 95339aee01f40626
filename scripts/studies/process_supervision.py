"""Does a reward for every step teach more than one for the answer?  GRPO, exact and learnt rewards.

The thinker in a hurry learns sums of eight terms by GRPO.  It is paid for the answer alone or for
every step (process-grpo), by what is exactly right or by a process reward model.  That is
checkpoints/verifier, which was taught on other answers, the base's; for the answer alone it is read
at the last token.  All runs sample as many tokens.

reproduced      Both with exact rewards and with learnt ones, rewards of steps end with more sampled
                held-out accuracy than rewards of answers, beyond the 95% interval over seeds,
                paired by seed.
reversed        Both end with less, beyond it.
not reproduced  Anything else.
"""

from statistics import fmean

from minipost.measure.stats import Score
from scripts.compare import average, difference
from scripts.studies import Finding

PAPER = "arxiv.org/abs/2402.03300"
CLAIM = ("Shao et al. 2024 (fig. 5): GRPO with process supervision is ahead of GRPO with outcome "
         "supervision on GSM8K and MATH, both with learnt reward models, at the same number of "
         "steps.")
LIMITS = ("What a nano model can tell: how much of a lead is the credit of steps and how much the "
          "reward model, since the exact labels of both kinds are known. What it cannot: here each "
          "step is one line with one right result, and what a step of a proof is worth is less "
          "clear. The verifier is of the policy's size and sees a fault that it was not taught, "
          "while the paper's was taught on answers of the model that it judges.")
TRIED = "The number of terms, the budget and the rates were chosen on shorter tries."
VERIFIER = "checkpoints/verifier"
OUTCOME, PROCESS = "answer", "steps"
ARMS = {  # (what is paid for, by what)
    (OUTCOME, "exact"): ["--algo", "grpo"],
    (PROCESS, "exact"): ["--algo", "process-grpo"],
    (OUTCOME, "learnt"): ["--algo", "grpo", "--reward-model", VERIFIER],
    (PROCESS, "learnt"): ["--algo", "process-grpo", "--verifier", VERIFIER],
}
SOURCES = "exact", "learnt"
SETTINGS = ["--task", "arithmetic", "--hurried", "True", "--terms", "8", "--model",
            "checkpoints/thinker", "--beta", "0", "--steps", "1000", "--budget", "100000",
            "--prompts", "16", "--lr", "1e-4", "--max-new-tokens", "64", "--eval-n", "200",
            "--eval-every", "5"]
HELD_OUT = "eval/held-out/sampled"


def runs(seeds):
    return {run_of(arm, seed): [*given, *SETTINGS, "--seed", seed]
            for seed in seeds for arm, given in ARMS.items()}


def run_of(arm, seed):
    return f"{'-'.join(arm)}-{seed}"


def curve(made, arm):
    """[(tokens, sampled held-out accuracy)], means over seeds, from before the first step on."""
    before = [made.summary(run_of(arm, seed))["all"]["sampled, held-out"]["before"]["value"]
              for seed in made.seeds]
    lines = zip(*([line for line in made.metrics(run_of(arm, seed)) if HELD_OUT in line]
                  for seed in made.seeds))
    return [(0, fmean(before)), *((fmean(line["num_tokens"] for line in some),
                                   fmean(line[HELD_OUT] for line in some)) for some in lines)]


def findings(made):
    ends, rows = {}, []
    for arm in ARMS:
        ends[arm] = [Score(**made.summary(run_of(arm, seed))["all"]["sampled, held-out"]["after"])
                     for seed in made.seeds]
        lines = [line for seed in made.seeds for line in made.metrics(run_of(arm, seed))]
        ties = fmean(line["frac_reward_zero_std"] for line in lines)
        tokens = fmean(made.summary(run_of(arm, seed))["tokens"] for seed in made.seeds)
        lead = "" if arm[0] == OUTCOME else f"{difference(ends[arm], ends[OUTCOME, arm[1]]):+}"
        rows.append([*arm, f"{average(ends[arm])}", lead, f"{ties:.2f}", f"{tokens:,.0f}"])
    leads = {source: difference(ends[PROCESS, source], ends[OUTCOME, source])
             for source in SOURCES}
    price = difference(ends[PROCESS, "exact"], ends[PROCESS, "learnt"])
    start = fmean(made.summary(run_of(arm, seed))["all"]["sampled, held-out"]["before"]["value"]
                  for arm in ARMS for seed in made.seeds)
    return Finding(
        ["paid for", "by rewards that are", "sampled accuracy, held out", "lead of steps",
         "groups whose answers tie", "tokens"], rows, judge(leads),
        f"Paying for steps leads by {leads['exact']:+} with exact rewards and by "
        f"{leads['learnt']:+} with learnt ones; exact labels of steps are ahead of learnt ones by "
        f"{price:+}.", {arm: curve(made, arm) for arm in ARMS},
        [f"{len(made.seeds)} seeds, 200 held-out problems each, {start:.3f} of them right before "
         "training."])


def judge(leads):
    """leads: {source: the lead of rewards of steps}, Scores."""
    if all(lead.low > 0 for lead in leads.values()):
        return "reproduced"
    return "reversed" if all(lead.high < 0 for lead in leads.values()) else "not reproduced"


def draw(figure, found):
    axes = figure.add_subplot()
    for arm, points in found.data.items():
        axes.plot(*zip(*points), "-" if arm[1] == "exact" else "--", marker="o", markersize=3,
                  color="tab:blue" if arm[0] == PROCESS else "tab:red",
                  label=f"{arm[0]}, {arm[1]}")
    axes.set(xlabel="tokens sampled", ylabel="sampled accuracy, held out")
    axes.legend(frameon=False, title="paid for, by rewards")
