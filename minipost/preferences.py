"""Preference data: pairs of answers, from a file or sampled and labelled.

Pairs come from a file (rows with `chosen` and `rejected`) or are sampled: answers of the policy to
each prompt, which a labeller compares two by two.  A labeller is a function

    label(run, problems, rollout) -> (P,)    > 0 where a prompt's first answer is better, < 0 where
                                             its second is, 0 for a tie, which makes no pair
"""

import itertools
from dataclasses import replace

import torch

from minipost.errors import MinipostError
from minipost.rollout import Pairs, pack


def by_reward(run, problems, rollout):
    """The labeller that asks the run's reward function; `noise` of the task turns labels round."""
    first, second = run.grade(problems, rollout).view(-1, 2).unbind(1)
    rng, noise = run.rng("noise"), getattr(run.task, "noise", 0.0)
    turned = torch.tensor([-1.0 if rng.random() < noise else 1.0 for _ in problems])
    return (first - second) * turned.to(first)


def step_pairs(run, n):
    """This step's n problems and, where they are rows of pairs, those pairs, counted; else None."""
    problems = run.problems(n)
    if "chosen" not in problems[0].columns:
        return problems, None
    pairs = file_pairs(run, problems)
    run.tokens += int(pairs.chosen.mask.sum() + pairs.rejected.mask.sum())
    return problems, pairs


def draw_pairs(run, n, label, temperature, policy=None):
    """Up to n pairs of this step: from the task's file, or sampled from a policy and labelled.

    The policy is the run's unless another module is given.
    """
    problems, pairs = step_pairs(run, n)
    if pairs is not None:
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
    problems, pairs = step_pairs(run, prompts)
    if pairs is not None:
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
    prompts = [problem.prompt for problem in problems]
    return Pairs(*(file_answers(run, prompts, [p.columns[side] for p in problems])
                   for side in ("chosen", "rejected")))


def file_answers(run, prompts, answers):
    """Texts as Sequences; MinipostError where a prompt with its answer passes the context."""
    vocabulary, policy = run.vocabulary, run.policy.module
    seqs = pack([vocabulary.prompt(text) for text in prompts],
                [vocabulary.response(text) for text in answers], vocabulary.pad)
    limit, longest = policy.config.max_position_embeddings, seqs.tokens.shape[1]
    if longest > limit:
        row = int((seqs.mask.int().cumsum(1).argmax(1)).argmax())  # whose last token stands furthest
        raise MinipostError(f"the prompt {prompts[row][:40]!r} with its answer {answers[row][:40]!r} "
                            f"has {longest} tokens; the model's context holds {limit}")
    return seqs.to(policy.device)
