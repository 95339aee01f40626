"""Preference data and how good a scorer is: shared by everything that learns or uses a reward model.

Pairs come from a file (rows with `chosen` and `rejected`) or are sampled: answers of the policy to
each prompt, which a labeller compares two by two.  A labeller is a function

    label(run, problems, rollout) -> (P,)    > 0 where a prompt's first answer is better, < 0 where
                                             its second is, 0 for a tie, which makes no pair

What a scorer is worth is measured on held-out prompts, against the exact reward and without noise.
"""

import copy
import itertools
import random
from dataclasses import asdict, replace
from math import isfinite

import torch

from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.rollout import Pairs, pack
from minipost.stats import bootstrap, interval

BEST_OF = 8  # answers per held-out prompt of which a scorer picks one


def by_reward(run, problems, rollout):
    """The labeller that asks the run's reward function; `noise` of the task turns labels round."""
    first, second = run.grade(problems, rollout).view(-1, 2).unbind(1)
    rng, noise = run.rng("noise"), getattr(run.task, "noise", 0.0)
    turned = torch.tensor([-1.0 if rng.random() < noise else 1.0 for _ in problems])
    return (first - second) * turned.to(first)


def draw_pairs(run, n, label, temperature, policy=None):
    """Up to n pairs of this step: from the task's file, or sampled from a policy and labelled.

    The policy is the run's unless another module is given.
    """
    problems = run.problems(n)
    if "chosen" in problems[0].columns:
        pairs = file_pairs(run, problems)
        run.tokens += int(pairs.chosen.mask.sum() + pairs.rejected.mask.sum())
        return pairs
    rollout = run.sample(problems, 2, temperature=temperature, module=policy,
                         purpose="pairs")
    return ranked_pairs(rollout, label(run, problems, rollout))


def draw_comparisons(run, prompts, answers, label, temperature):
    """This step's answers, `answers` (K) to each prompt, and which is better than which.

    -> K Sequences of P rows each, wins (P, K, K): true where a row's i-th is better than its j-th.
    From a file they are its pairs (K = 2), else samples of the policy, every two of which the
    labeller compares in one call; two answers of the same words are a tie whatever it says.
    """
    problems = run.problems(prompts)
    if "chosen" in problems[0].columns:
        pairs = file_pairs(run, problems)
        run.tokens += int(pairs.chosen.mask.sum() + pairs.rejected.mask.sum())
        places, wins = [pairs.chosen, pairs.rejected], torch.zeros(len(pairs), 2, 2, dtype=bool)
        wins[:, 0, 1] = True
        return places, wins.to(pairs.chosen.mask.device)
    rollout = run.sample(problems, answers, temperature=temperature, purpose="pairs")
    sides = list(itertools.combinations(range(answers), 2))                 # C of them
    rows = torch.tensor([[p * answers + k for k in side] for p in range(len(problems))
                         for side in sides]).flatten().to(rollout.prompt.device)
    asked = [problem for problem in problems for _ in sides]
    matches = replace(rollout[rows], prompt=torch.arange(len(asked)).repeat_interleave(2)
                      .to(rows.device))
    words = matches.responses()
    same = torch.tensor([a == b for a, b in zip(words[::2], words[1::2])])
    lead = label(run, asked, matches).where(~same.to(rollout.mask.device), 0.0)
    lead = lead.view(len(problems), len(sides))
    wins = torch.zeros(len(problems), answers, answers, dtype=torch.bool, device=lead.device)
    for c, (i, j) in enumerate(sides):
        wins[:, i, j], wins[:, j, i] = lead[:, c] > 0, lead[:, c] < 0
    return [rollout[k::answers] for k in range(answers)], wins


def ranked_pairs(rollout, label):
    """Pairs of rows 2i and 2i+1 of a rollout, in the order that label (P,) says; ties are left out.

    Two answers of the same words are a tie whatever the label says.
    """
    same = torch.tensor([a == b for a, b in zip(*[iter(rollout.responses())] * 2)])
    first = torch.arange(0, len(rollout), 2, device=label.device)
    first, label = first[~same.to(label.device)], label[~same.to(label.device)]
    first, label = first[label != 0], label[label != 0]
    return Pairs(rollout[first + (label < 0)], rollout[first + (label > 0)])


def file_pairs(run, problems):
    """Pairs of rows with the columns `chosen` and `rejected`.

    MinipostError where an answer does not fit the model's context.
    """
    vocabulary, policy = run.vocabulary, run.policy.module
    prompts = [vocabulary.prompt(problem.prompt) for problem in problems]
    pairs = Pairs(*(pack(prompts, [vocabulary.response(p.columns[key]) for p in problems],
                         vocabulary.pad) for key in ("chosen", "rejected")))
    limit = policy.config.max_position_embeddings
    longest = max(pairs.chosen.tokens.shape[1], pairs.rejected.tokens.shape[1])
    if longest > limit:
        raise MinipostError(f"a prompt with one of its answers has {longest} tokens; the model's "
                            f"context holds {limit}")
    return pairs.to(policy.device)


def scorer(run):
    """The learner of the run's reward model; it starts as the policy with a score for its head."""
    return run.learner("reward model", lambda: RewardModel(copy.deepcopy(run.policy.module)))


# ---- how good a scorer is

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
        rollout = at_start(run, problems, BEST_OF)
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


def at_start(run, problems, copies):
    """Answers of the policy that depend on the seed and the problems only."""
    step, run.step, tokens = run.step, 0, run.tokens
    try:
        return run.sample(problems, copies, temperature=1.0, purpose="evaluation")
    finally:
        run.step, run.tokens = step, tokens


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
