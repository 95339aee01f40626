"""How good a scorer is: held-out pairs, calibration, best of n, against the exact reward without noise."""

import copy
import random
from dataclasses import asdict
from math import isfinite

import torch

from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.preferences import file_pairs
from minipost.stats import bootstrap, interval

BEST_OF = 8  # answers per held-out prompt of which a scorer picks one


def scorer(run):
    """The learner of the run's reward model; it starts as the policy with a score for its head."""
    return run.learner("reward model", lambda: RewardModel(copy.deepcopy(run.policy.module)))


def report(run, splits, score):
    """Held-out pair accuracy, calibration and best-of-n of a scorer, in the form of Session.measure.

    score(sequences) -> (B,).  Per prompt the pair is the first two of its answers that differ in
    reward; the policy that answers is the run's.  `calibration error` is the mean gap between
    sigmoid(score difference) and how often the first is better, over ten equal bins.
    """
    found = {}
    for split, problems in splits.items():
        if "chosen" in problems[0].columns:
            pairs = file_pairs(run, problems)
            gap = score(pairs.chosen) - score(pairs.rejected)
            found[split] = on_pairs(gap.tolist(), list(range(len(problems))))
            continue
        rollout = run.look(problems, BEST_OF, 1.0)
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
        picked = gold.gather(1, guess.argmax(1, keepdim=True))[:, 0].tolist()
        found[split] = {**on_pairs(gaps, rows), f"best of {BEST_OF}": result(picked, rollout, run),
                        "one sample": result(gold[:, 0].tolist(), rollout, run),
                        f"exact best of {BEST_OF}": result(gold.amax(1).tolist(), rollout, run)}
    return found


def on_pairs(gaps, rows):
    """Accuracy and calibration of score differences that should all be positive."""
    if any(not isfinite(gap) for gap in gaps):
        raise MinipostError("the difference of two scores is not finite; the model that gives them "
                            "is broken")
    right = [float(gap > 0) + 0.5 * (gap == 0) for gap in gaps]
    texts = [f"better answer ahead by {round(gap, 2) + 0.0:.2f}" for gap in gaps]
    # Which of a pair stands first is arbitrary, and calibration needs both outcomes.
    coins = [random.Random(row).random() < 0.5 for row in rows]
    chance = torch.tensor(gaps, dtype=torch.float64).mul(
        torch.tensor([1.0 if coin else -1.0 for coin in coins], dtype=torch.float64)).sigmoid()
    error = bootstrap(lambda picked: calibration_error(*zip(*picked)),
                      list(zip(chance.tolist(), map(float, coins))))
    return {
        "pair accuracy": {"score": asdict(interval(right)), "rewards": right, "texts": texts,
                          "rows": rows},
        "calibration error": {"score": asdict(error), "rewards": right, "texts": texts,
                              "rows": rows},
    }


def calibration_error(chance, outcome, bins=10):
    """Expected calibration error: sum over bins of share * |mean outcome - mean chance|."""
    groups = {}
    for p, y in zip(chance, outcome, strict=True):
        groups.setdefault(min(bins - 1, int(p * bins)), []).append(y - p)
    return sum(abs(sum(gap)) for gap in groups.values()) / len(chance)


def result(values, rollout, run):
    return {"score": asdict(interval(values)), "rewards": values,
            "texts": run.texts(rollout)[:: BEST_OF]}
