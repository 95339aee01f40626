"""How much older than the learner may the sampler be, and what do importance ratios mend of it?

The thinker in a hurry learns six-term sums by GRPO from answers of its own policy of k steps ago
(`--lag k`).  Each rollout makes one update, so without a lag all ratios are 1.  A ratio pi/mu of
learner and sampler is left out (`--correct none`), clipped as in PPO, or truncated: a token's
gradient is weighted by min(pi/mu, 2).  At one update a rollout this is the paper's decoupled
objective, whose trust region is around the newest policy, but for the 2.

reproduced      At a lag of 8 truncated ratios lose at most 0.02 of sampled held-out accuracy, and
                the clip loses more than they, beyond the 95% interval over seeds.
reversed        At a lag of 8 the clip loses less than truncated ratios, beyond that interval.
not reproduced  Anything else.
"""

from minipost.measure.stats import Score
from scripts.compare import average, difference
from scripts.studies import Finding

PAPER = "arxiv.org/abs/2505.24298"
CLAIM = ("Fu et al. 2025 (AReaL): with PPO's clip around the policy that sampled, answers "
         "of up to 8 versions ago cost a 1.5B model 6.3 points on AIME24 (42.0 to 35.7), and with "
         "ratios to the sampler kept apart from the clip they cost one (41.0); the figures are "
         "from table 3 of the authors' report on version 0.3.")
LIMITS = ("What a nano model can tell: what staleness alone does, since the sampler is otherwise "
          "the learner and every answer is equally old. What it cannot: how old is too old, "
          "because 8 steps are a tenth of this run and a thirtieth of theirs. A large model's "
          "sampler also differs by its kernels, and its answers are thousands of ratios long.")
TRIED = "The settings were chosen on shorter tries; the rule has not changed."
CORRECTIONS = ("none", "clip", "truncated")
LAGS = (2, 8, 24)
CLAIMED, MARGIN = 8, 0.02
SETTINGS = ["--algo", "grpo", "--task", "arithmetic", "--hurried", "True", "--model",
            "checkpoints/thinker", "--beta", "0", "--steps", "80", "--prompts", "16", "--lr",
            "1e-4", "--eval-n", "200"]


def runs(seeds):
    made = {}
    for seed in seeds:
        made[run_of("clip", 0, seed)] = [*SETTINGS, "--seed", seed]
        made |= {run_of(correct, lag, seed): [*SETTINGS, "--seed", seed, "--correct", correct,
                                              "--lag", lag]
                 for lag in LAGS for correct in CORRECTIONS}
    return made


def run_of(correct, lag, seed):
    """Without a lag the corrections are the same, so there is one run of them."""
    return f"{correct if lag else 'fresh'}-{lag}-{seed}"


def findings(made):
    def ends(correct, lag):
        return [Score(**made.summary(run_of(correct, lag, seed))["all"]["sampled, held-out"][
            "after"]) for seed in made.seeds]

    def most(correct, lag):
        lines = [line for seed in made.seeds for line in made.metrics(run_of(correct, lag, seed))]
        # A step in which all groups tie looks at no log-prob.
        return max(line.get("sampling_logp_difference/max", 0.0) for line in lines)

    fresh = ends("clip", 0)
    rows = [["0", "ratios are 1", f"{average(fresh)}", "", f"{most('clip', 0):.2g}"]]
    lost, data = {}, {correct: [(0, average(fresh))] for correct in CORRECTIONS}
    for lag in LAGS:
        for correct in CORRECTIONS:
            found = ends(correct, lag)
            lost[correct, lag] = difference(fresh, found)
            data[correct].append((lag, average(found)))
            rows.append([str(lag), correct, f"{average(found)}", f"{lost[correct, lag]:+}",
                         f"{most(correct, lag):.2g}"])
    more = difference(ends("truncated", CLAIMED), ends("clip", CLAIMED))
    said = ", ".join(f"{correct} {lost[correct, CLAIMED]:+}" for correct in CORRECTIONS)
    return Finding(
        ["lag, steps", "correction", "sampled accuracy, held out", "lost to lag 0",
         "largest log-ratio"], rows, judge(lost["truncated", CLAIMED], more),
        f"Sampled accuracy lost at a lag of {CLAIMED}: {said}; the clip loses {more:+} more than "
        "truncated ratios.", data,
        [f"{len(made.seeds)} seeds, 80 steps of 16 x 8 answers, 200 held-out problems each. The "
         "largest log-ratio is between the policy that samples and the one that learns, of any "
         "sampled token."])


def judge(lost, more):
    """lost: by truncated ratios.  more: what the clip loses beyond that.  Scores."""
    if more.high < 0:
        return "reversed"
    return "reproduced" if lost.value <= MARGIN and more.low > 0 else "not reproduced"


def draw(figure, found):
    axes = figure.add_subplot()
    for k, (correct, points) in enumerate(found.data.items()):
        lags, scores = zip(*points)
        axes.errorbar([lag + 0.3 * (k - 1) for lag in lags], [s.value for s in scores],
                      [[s.value - s.low for s in scores], [s.high - s.value for s in scores]],
                      fmt="o-", capsize=2, label=correct)
    axes.set(xlabel="lag, steps", ylabel="sampled accuracy, held out [95%]")
    axes.legend(frameon=False, title="ratios to the sampler")
