"""How good a scorer is, on held-out pairs, in calibration and in best of n.

The exact reward without noise is the truth.
"""

import copy
import random
from math import isfinite

import torch

from minipost.datasets.preferences import file_pairs, starting_policy
from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.measure.results import Result, evaluate, on_both, results
from minipost.measure.stats import Score, bootstrap
from minipost.ops import row_means, row_sums
from minipost.run import REWARD_MODEL

BEST_OF = 8  # answers per held-out prompt; a scorer picks one of them


def scorer(run):
    """The learner of the run's reward model.  It starts as the policy with a score as its head."""
    return run.learner(REWARD_MODEL, lambda: RewardModel(copy.deepcopy(run.policy.module)))


def report(run, splits, score):
    """Held-out pair accuracy, calibration and best-of-n of a scorer, {split: {metric: Result}}.

    score(sequences) -> (B,).  The run's policy answers.  A prompt's pair is its first answer and
    the first with another reward.  `calibration error` is the mean gap between sigmoid(score
    difference) and how often the first is better, over ten equal bins.  By chance alone it is about
    1 / sqrt(pairs): 0.10 of 100 pairs, 0.05 of 400, where a scorer states the true chances.
    """
    found = {}
    for split, problems in splits.items():
        if "chosen" in problems[0].columns:
            pairs = file_pairs(run, problems)
            gap = score(pairs.chosen) - score(pairs.rejected)
            found[split] = on_pairs(gap.tolist(), list(range(len(problems))))
            continue
        with run.aside():
            rollout = run.sample(problems, BEST_OF, temperature=1.0, purpose="evaluation")
        gold, guess = run.grade(problems, rollout), score(rollout)
        gold, guess = gold.view(-1, BEST_OF), guess.view(-1, BEST_OF)
        rows, gaps = [], []
        for row, values in enumerate(gold.tolist()):
            other = next((k for k, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                sign = 1 if values[0] > values[other] else -1
                rows.append(row)
                gaps.append(sign * float(guess[row, 0] - guess[row, other]))
        if not rows:
            raise MinipostError(f"{split}: all answers to each prompt have the same reward, so no "
                                "pair of them can be ranked")
        ways = {f"best of {BEST_OF}": guess.argmax(1).tolist(), "one sample": [0] * len(gold),
                f"exact best of {BEST_OF}": gold.argmax(1).tolist()}
        texts, values = run.texts(rollout), gold.flatten().tolist()
        found[split] = on_pairs(gaps, rows)
        for name, places in ways.items():
            picked = [row * BEST_OF + place for row, place in enumerate(places)]
            found[split][name] = Result.of([values[k] for k in picked], [texts[k] for k in picked])
    return found


def measure(run, splits, cfg):
    """Held-out pair accuracy, calibration and best-of-n of the run's reward model."""
    model = scorer(run).module
    return report(run, splits, lambda seqs: run.final_scores(model, seqs))


def on_pairs(gaps, rows):
    """Accuracy and calibration of score differences that should all be positive."""
    if any(not isfinite(gap) for gap in gaps):
        raise MinipostError("the difference of two scores is not finite; the model that gives them "
                            "is broken")
    right = [float(gap > 0) + 0.5 * (gap == 0) for gap in gaps]
    texts = [f"better answer ahead by {round(gap, 2) + 0.0:.2f}" for gap in gaps]
    # The order of a pair is arbitrary, and calibration needs both outcomes.
    coins = [random.Random(row).random() < 0.5 for row in rows]
    chance = torch.tensor(gaps, dtype=torch.float64).mul(
        torch.tensor([1.0 if coin else -1.0 for coin in coins], dtype=torch.float64)).sigmoid()
    error = unbiased(bootstrap(lambda picked: calibration_error(*zip(*picked)),
                               list(zip(chance.tolist(), map(float, coins)))))
    return {"pair accuracy": Result.of(right, texts, rows),
            "calibration error": Result.of(right, texts, rows, error)}


def unbiased(error):
    """The Score of a calibration error with the basic bootstrap's interval, by the percentile one.

    What resampling adds to the error, chance has added to it before, so the ends are mirrored at
    the value.  The interval has no end below 0 and holds the value.
    """
    value = error.value
    return Score(value, max(0.0, min(value, 2 * value - error.high)),
                 max(value, 2 * value - error.low), error.n)


def calibration_error(chance, outcome, bins=10):
    """Expected calibration error: sum over bins of share * |mean outcome - mean chance|."""
    groups = {}
    for p, y in zip(chance, outcome, strict=True):
        groups.setdefault(min(bins - 1, int(p * bins)), []).append(y - p)
    return sum(abs(sum(gap)) for gap in groups.values()) / len(chance)


def win_rate(run, problems, opponent):
    """How often the policy's answer has more reward than the opponent's.  -> Result

    A tie counts half.
    """
    theirs, ours = on_both(evaluate(run, problems, 1.0, module=opponent, purpose="reference"),
                           evaluate(run, problems, 1.0))
    if not ours.rewards:
        raise MinipostError(f"of {len(problems)} held-out problems there is none where both "
                            "answers have a reward, so nothing says how often one is better")
    return Result.of([float(a > b) + 0.5 * (a == b)
                      for a, b in zip(ours.rewards, theirs.rewards, strict=True)],
                     ours.texts, ours.rows)


def report_policy(run, splits, scale):
    """How good a policy is that learns from pairs: {split: {metric: Result}}.

    On a file's pairs, this measures how the implied reward ranks them.  It is `scale` times the
    log-ratio to the reference, or the mean log-prob if scale is None.  On other problems, this
    measures rewards and the win rate against the starting policy.
    """
    policy = run.policy.module
    if all("chosen" in problems[0].columns for problems in splits.values()):

        def implied(seqs):
            logp = run.logprobs(policy, seqs)
            if scale is None:
                return row_means(logp, seqs.mask)
            return scale * row_sums(logp - run.logprobs(run.reference(), seqs), seqs.mask)

        return report(run, splits, implied)
    found, opponent = results(run, splits), (
        starting_policy(run) if scale is None else run.reference())
    for split, problems in splits.items():
        found[split]["win rate"] = win_rate(run, problems, opponent)
    return found
