"""What a run's own numbers say about its health: a plain sentence each, and what to do.

A check looks at the lines of metrics.jsonl and gives a Finding, or None where the run has no such
metric.  "At the end" is the mean over the last tenth of the steps that have the metric, at least
three of them; "at the start" is that over the first.
"""

from statistics import fmean

from minipost.checks.finding import FAULT, NATS, OK, WARNING, Finding
from minipost.measure.stats import FEWEST, beyond_chance
from minipost.page.reading import moved

LARGE_KL = 0.5      # nats per token; beyond, an answer of 20 tokens is 20,000 times as likely
FLAT = 0.05         # nats per token; below, answers to a prompt are nearly all the same
UNSCORED = 0.5      # share of answers to which no reward function applies
TIED = 0.8          # share of groups without an advantage
CUT = 0.2           # share of answers that end at the length limit
CLIPPED = 0.3       # share of tokens whose ratio is held
SOLVED = 0.9        # mean reward, within 0..1; beyond, little is left to learn


def examine(run):
    """The Findings on a RunData, faults and warnings first."""
    found = [check(run) for check in (log, finite, skipped, gain, unscored, gold, kl, entropy, ties,
                                      cut, apart, clip, longer, critic)]
    order = {FAULT: 0, WARNING: 1, OK: 2}
    return sorted((f for f in found if f), key=lambda f: order[f.status])


def solved(run):
    """How well a task of right and wrong goes at the end, where it is nearly solved; else None."""
    seen = ends(run, "reward")
    every = [line["reward"] for line in run.lines if line.get("reward") is not None]
    exact = seen and min(every) >= 0 and max(every) <= 1
    return seen[1] if exact and seen[1] >= SOLVED else None


def ends(run, metric):
    """(start, end) of a metric, or None where fewer than two steps have it."""
    values = [line[metric] for line in run.lines if line.get(metric) is not None]
    if len(values) < 2:
        return None
    n = min(max(3, len(values) // 10), len(values) // 2)
    return fmean(values[:n]), fmean(values[-n:])


def at_the_end(run, metric, wrong, name, said, why, remedy):
    """A Finding on where a metric ends: a warning, with its reason, where that is wrong."""
    seen = ends(run, metric)
    if not seen:
        return None
    if wrong(seen[1]):
        return Finding(name, WARNING, said.format(seen[1]), why, remedy)
    return Finding(name, OK, said.format(seen[1]))


def log(run):
    """Whether the numbers of all steps are there."""
    if not run.complaint:
        return None
    return Finding("log", FAULT, run.complaint, "curves and checks lack those steps",
                   "put the file back as the run wrote it, and write the page again")


def finite(run):
    bad = [(line["step"], name) for line in run.lines for name, x in line.items() if x is None]
    if not run.lines:
        return None
    if bad:
        step, name = bad[0]
        return Finding("numbers", FAULT, f"{name} was not finite in step {step}",
                       "what was learnt after it may be worthless",
                       "lower --lr or --max-grad-norm, and check the reward")
    return Finding("numbers", OK, "all numbers of all steps are finite")


def skipped(run):
    n = run.summary.get("skipped")
    if not n:
        return None
    return Finding("updates", WARNING, f"{n} updates were left out, since their gradient was not "
                   "finite", "the run learnt less than its steps say",
                   "look at the loss and the rewards" if run.summary.get("unchanged")
                   else "lower --lr")


def gain(run):
    """Whether the difference before and after is more than chance."""
    found, before, after = (run.summary.get(name) for name in ("gain", "before", "after"))
    if not (found and before and after):
        return None
    more = f"measure more than {found['n']} problems ({'--eval-n' if run.config else '--n'})"
    if found["n"] < FEWEST:
        return Finding("result", WARNING, f"{found['n']} problems are too few to tell a gain from "
                       "chance", f"with fewer than {FEWEST} a gain on each may be chance", more)
    if (sign := beyond_chance(found)) > 0:
        return Finding("result", OK, "the gain is more than chance: its interval is above 0")
    if sign < 0:
        up = ends(run, "reward")
        why = ("training reward rose meanwhile, so the policy may exploit the reward"
               if up and up[1] > up[0] else "the model is worse on held-out problems than before")
        return Finding("result", WARNING, "held-out results fell by more than chance", why,
                       "stop earlier, lower --lr, or raise --beta")
    if others := moved(run.summary):
        return Finding("result", OK, "the interval of the headline's gain contains 0, that of "
                       f"{', '.join(name for name, _ in others)} does not")
    return Finding("result", WARNING, "the interval of the gain contains 0",
                   "these problems cannot tell whether anything changed",
                   more + ", or train longer" * bool(run.config))


def unscored(run):
    return at_the_end(run, "unscored_ratio", lambda x: x > UNSCORED, "rewards",
                      "no reward function applies to {:.0%} of the answers at the end",
                      "they teach nothing and are not measured",
                      "let a function of --reward return a number for every row")


def gold(run):
    """Over-optimisation: what the learner is paid for rises, what is meant falls."""
    seen, paid = ends(run, "gold"), ends(run, "reward")
    if not seen:
        return None
    series = [(line["gold"], line["step"]) for line in run.lines
              if line.get("gold") is not None]
    values = [value for value, _ in series]
    jumps = [b - a for a, b in zip(values, values[1:])]
    noise = (fmean(jump * jump for jump in jumps) / 2) ** 0.5  # deviation of one step's mean
    best, step = max((fmean(values[k - 1:k + 2]), series[k][1])
                     for k in range(1, len(values) - 1)) if len(values) > 2 else (seen[1], 0)
    if paid and paid[1] > paid[0] and len(values) >= 12 and best - seen[1] > 2 * noise:
        return Finding("gold reward", WARNING, f"the reward rose to the end, the gold reward was "
                       f"best in step {step} and has fallen since ({best:.3g}, now {seen[1]:.3g})",
                       "the policy exploits the reward model",
                       f"stop near step {step}, raise --beta, or train a better reward model")
    return Finding("gold reward", OK, "the gold reward has not fallen behind the learnt one")


def kl(run):
    return at_the_end(run, "kl", lambda x: x > LARGE_KL, "KL",
                      "KL to the starting policy is {:.2g} nats per token at the end",
                      "the policy has gone far from the model it began as",
                      "raise --beta, lower --lr, or stop earlier")


def entropy(run):
    seen = ends(run, "entropy")
    if not seen:
        return None
    start, end = seen
    if end < FLAT and (reward := solved(run)):
        return Finding("entropy", OK, f"entropy fell from {start:.2g} to {end:.2g} nats per token, "
                       f"since the task is nearly solved (reward {reward:.2f})")
    if end < FLAT and end < 0.3 * start:
        return Finding("entropy", WARNING, f"entropy fell from {start:.2g} to {end:.2g} nats per "
                       "token", "answers to a prompt are nearly alike and teach little more",
                       "raise --temperature or --beta, lower --lr, or try dapo")
    return Finding("entropy", OK, f"entropy went from {start:.2g} to {end:.2g} nats per token")


def ties(run):
    seen = ends(run, "frac_reward_zero_std")
    if not seen:
        return None
    if seen[1] > TIED and (reward := solved(run)):
        return Finding("tied groups", OK, f"{seen[1]:.0%} of the groups tie at the end, since the "
                       f"task is nearly solved (reward {reward:.2f}); harder problems would teach "
                       "more")
    if seen[1] > TIED:
        return Finding("tied groups", WARNING, f"{seen[1]:.0%} of the groups tie at the end",
                       "most answers have no advantage and teach nothing",
                       "take harder or easier problems, raise --group-size, or use dapo, which "
                       "draws until groups differ")
    return Finding("tied groups", OK, f"{seen[1]:.0%} of the groups tie at the end; the others "
                   "teach")


def cut(run):
    return at_the_end(run, "completions/clipped_ratio", lambda x: x > CUT, "cut-off answers",
                      "{:.0%} of the answers are cut off at the end",
                      "they are judged on what they never finished", "raise --max-new-tokens")


def apart(run):
    """Whether sampler and training agree on log-probs."""
    name = "sampling_logp_difference/max"
    values = [line[name] for line in run.lines if line.get(name) is not None]
    if not values:
        return None
    most, limit = max(values), NATS.get(run.options.get("dtype", "float32"), NATS["float32"])
    if most > limit:
        return Finding("sampler and training", WARNING, "log-probs of sampler and training differ "
                       f"by up to {most:.2g} nats", "ratios are wrong before the first update",
                       "use --dtype float32, or --correct truncated where the sampler is a server")
    return Finding("sampler and training", OK, "log-probs of sampler and training differ by at "
                   f"most {most:.1g} nats")


def clip(run):
    return at_the_end(run, "clip_ratio", lambda x: x > CLIPPED, "clipping",
                      "{:.1%} of the tokens are clipped at the end",
                      "much of each rollout no longer moves the policy", "lower --lr or --epochs")


def longer(run):
    seen, paid = ends(run, "completions/mean_length"), ends(run, "reward")
    if not seen or not paid or seen[0] <= 0:
        return None
    if seen[1] > 1.5 * seen[0] and paid[1] > paid[0]:
        return Finding("length", WARNING, f"answers grew from {seen[0]:.0f} to {seen[1]:.0f} "
                       "tokens while the reward rose", "it may be length that is rewarded",
                       "read the samples below, and compare rewards of short and long answers")
    return Finding("length", OK, f"answers have {seen[0]:.0f} tokens at the start and "
                   f"{seen[1]:.0f} at the end")


def critic(run):
    return at_the_end(run, "explained_variance", lambda x: x <= 0, "critic",
                      "the critic explains {:.0%} of the variance of returns at the end",
                      "it is no better than their mean", "raise --critic-lr, or give it more steps")
