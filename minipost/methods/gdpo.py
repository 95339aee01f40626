"""GDPO: several rewards, each normalised by itself (Liu et al. 2026, arxiv.org/abs/2601.05242).

A rule-based reward is a weighted sum of rules (survey sec. 3.3.3 and Table I): right, in form, in
one language, or what several --reward functions say.  GRPO normalises the sum, and then answers
that keep different rules may have the same advantages, and a rule that varies little in a group
says little.  GDPO normalises each rule within the group, adds up, and normalises over the rollout:

    A_ik = (r_ik - mean_k) / (std_k + 1e-4)                  over the group, for each rule k
    A_i  = sum_k w_k A_ik,     A_i <- A_i / (std(A) + 1e-4)  over all answers; their mean is 0

The rest is methods/grpo.py, which has the loss and its gradient.  With one rule A is GRPO's but for
the last scale.  Every rule is logged apart: one of the task under its name, a function as in other
methods.  An answer to which a rule does not apply (None) has no part in that rule.
"""

import math
from dataclasses import dataclass

import torch

from minipost import ops, parallel
from minipost.datasets.rewards import Added
from minipost.errors import MinipostError
from minipost.measure.meter import averaged
from minipost.methods import grpo, r1_zero

TASK = "search"
MODEL = r1_zero.MODEL
DEMO = r1_zero.DEMO
METRIC = "sampled"
SCORED = False
ON_POLICY = True
TRACE = ("reward", "accuracy", "format", "language", "completions/mean_length", "entropy")
PROOF = "takes the steps of grpo; only the advantages are its own"


@dataclass(frozen=True)
class Config(r1_zero.Config):
    """GRPO without a KL on rules with weights, each normalised by itself."""

    steps: int = 35             # rollouts to learn from
    format: float = 1.0         # weight of a whole form: a thought and one answer


class Rules:
    """The score of an answer, a weighted sum, and the advantages, a sum of normalised rules.

    With several --reward functions these are the rules, with their own weights; else they are those
    of the task, with the Config's.  Of the latest call `found` has each rule's values, (B,).
    """

    def __init__(self, run, cfg):
        self.run, self.rules, self.found = run, {}, {}
        parts = run.reward.parts if isinstance(run.reward, Added) else []
        if len(parts) > 1:
            for name, weight in r1_zero.weights(cfg).items():
                if weight != getattr(type(cfg), name):
                    raise MinipostError(f"{name} is {weight:g}, the weight of a rule of the task, "
                                        "and several --reward functions are the rules here; leave "
                                        "it out, and give a function a weight as in "
                                        "--reward FILE:FUNCTION=2")
            weights = {name: part.weight for name, part in zip(run.reward.labels(), parts)}
        else:
            known = r1_zero.Rules(run, r1_zero.weights(cfg))    # which refuses what is not there
            self.rules, weights = known.rules, known.weights
        self.weights = {name: weight for name, weight in weights.items() if weight}
        if not self.weights:
            raise MinipostError("no rule has a weight; there is nothing to learn from")

    def __call__(self, problems, rollout):
        """(B,), NaN where no rule applies."""
        if self.rules:
            rows, texts = [problems[i] for i in rollout.prompt.tolist()], self.run.texts(rollout)
            found = {name: self.run.grade_texts(rows, texts, self.rules[name], rollout, none=True)
                     for name in self.weights}
        else:
            found = self.functions(problems, rollout)
        self.found = {name: values.to(rollout.logp) for name, values in found.items()}
        each = torch.stack([w * self.found[name] for name, w in self.weights.items()])
        return each.nansum(0).where(~each.isnan().all(0), torch.nan)

    def functions(self, problems, rollout):
        """What each --reward function with a weight gives: {name: (B,)}.  They are asked as one."""
        reward = self.run.reward
        self.run.grade(problems, rollout, none=True)
        values = torch.zeros(len(reward.parts), len(rollout), dtype=torch.float64)
        if parallel.rank() == 0:    # which asks, and tells the others
            values = torch.tensor([[math.nan if value is None else value for value in given]
                                   for given in reward.latest], dtype=torch.float64)
        parallel.all_reduce(values)
        return {name: given for name, given in zip(reward.labels(), values) if name in self.weights}

    def advantages(self, reward, group_size):
        """(B,)"""
        return apart(self.found, self.weights, group_size)

    @property
    def seen(self):
        """The mean of each rule of the task.  Those of functions are logged as `rewards/NAME`."""
        means = {}
        for name in self.rules and self.found:
            means |= averaged(name, self.found[name])
        return means


def apart(found, weights, group_size):
    """The advantages of rules {name: (B,)} with weights {name: number}.  (B,)"""
    total = sum(weight * ops.group_normalised(found[name], group_size)
                for name, weight in weights.items())
    return total / (total.std(correction=0) + 1e-4)


def check(run, cfg):
    """MinipostError where a rule is missing or nothing is paid for."""
    Rules(run, cfg)


def train(run, cfg):
    """GRPO on the rules.  Yields metrics per step."""
    rules = Rules(run, cfg)
    for metrics in grpo.train(run, cfg, rules, advantages=rules.advantages):
        yield {**metrics, **rules.seen}
