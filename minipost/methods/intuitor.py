"""Intuitor: the model's own certainty for a reward (Zhao et al. 2025, arxiv.org/abs/2505.19590).

Nobody says what is right.  An answer is paid for how far the policy's distributions along it are
from uniform over the vocabulary V, its self-certainty:

    u = (1/|y|) sum_t KL(U || pi_t) = -(1/|y|) sum_t (1/|V|) sum_j log(|V| pi_t(j))         (eq. 3)

GRPO (methods/grpo.py has the loss and its gradient) learns from u, which counts as a number: its
own derivative is not taken.  The group's mean and deviation are taken away, so neither a shift nor
a scale of u matters.  The paper's own code leaves log |V| out.

Certainty helps where what the model is sure of is right.  Where it is sure of an error, it learns
to be surer: `make study-label-free`.  And a text that is easy to be sure of is paid for whatever it
says, so the reward can be gamed.  `accuracy` is logged by the task's reward, and nothing
learns from it.

Where we differ from the paper: the KL's weight is 0 by default (0.005 there), and ids that no
text can have are not in V.
"""

import math
from dataclasses import dataclass

from minipost.engine.packed import alike
from minipost.errors import Schedule
from minipost.measure.meter import averaged
from minipost.methods import grpo
from minipost.ops import row_means, spread
from minipost.rollout import distribution

TASK = "arithmetic"
METRIC = "sampled"
SCORED = False
ON_POLICY = True
TRACE = ("reward", "accuracy", "entropy", "completions/mean_length")
PROOF = "takes the steps of grpo; only the reward is the policy's certainty"


@dataclass(frozen=True)
class Config(grpo.Config):
    """GRPO on the certainty of the policy's own distributions."""

    steps: int = 16             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    beta: float = 0.0           # weight of the KL to the starting policy (beta)
    lr: float = 5e-5            # peak learning rate (eta); it ends at zero
    schedule: Schedule = "linear"  # of the learning rate after the warm-up


def certainty(logp_all, unused=None):
    """KL(U || p) of each distribution.  (N, V) -> (N,)

    unused (V,): true for ids that no text can have; U and p are over the others.  None: there is no
    such id.
    """
    known = logp_all if unused is None else logp_all[:, ~unused]
    return -known.mean(-1) - math.log(known.shape[-1])


def self_certainty(run, rollout, temperature):
    """The mean certainty along each answer.  (B,)

    Equal answers have equal ones, as in Run.finite_scores: micro-batches would round them apart.
    """
    module = run.policy.module

    def of(batch):
        return [spread(certainty(distribution(module, batch, temperature), module.unused),
                       batch.mask)]

    found, = run.for_all(of, rollout, whole=True)
    which, first = alike(rollout.tokens, rollout.spans()[1] + 1)
    return row_means(found, rollout.mask)[first][which]


def train(run, cfg):
    """GRPO on self-certainty.  Yields metrics per step."""
    seen = {}

    def score(problems, rollout):
        gold = run.gold(problems, rollout)                                  # learns nothing
        seen.clear()
        seen.update(averaged("accuracy", gold))
        return self_certainty(run, rollout, cfg.temperature).to(rollout.logp)

    for metrics in grpo.train(run, cfg, score):
        yield {**metrics, **seen}
