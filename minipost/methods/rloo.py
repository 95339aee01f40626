"""RLOO: REINFORCE leave-one-out (Ahmadian et al. 2024, arxiv.org/abs/2402.14740).

REINFORCE with G answers to each prompt.  An answer's baseline is the mean score of its siblings
(Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"):

    R_i = r_i - beta sum_t log pi/ref                          the KL as a price on the whole answer
    A_i = R_i - mean of the other R_j of the group  =  G/(G-1) (R_i - mean(R))
    L   = -(1/N) sum_i sum_t A_i logp_t                        N answer tokens in the gradient step

    dL/dlogp_t = -A_i / N on answer tokens, 0 elsewhere

The siblings' scores do not depend on the answer.  So (1/B) sum_i A_i grad log pi(y_i) is on average
the gradient of E[r] - beta KL(pi || ref), without the factor (G-1)/G that the mean of the whole
group would bring.  The price counts as a number: the part of the gradient that goes through its own
log pi is zero on average.

Where we differ from the paper: the sum is divided by its answer tokens N, not by its answers B.
With beta = 0 no reference is kept.  Answers whose group ties are left out: their gradient is
exactly zero.  A group ties where its scores are equal, or all its answers are the same.
"""

from dataclasses import dataclass

import torch

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.ops import leave_one_out
from minipost.rollout import logprobs

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2, beta=0.3), rows=2, loss="minus_regularised",
              factor=1.0, divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """Policy gradient with the mean reward of an answer's siblings as its baseline."""

    steps: int = 28             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    beta: float = 0.01          # price of an answer's log-ratio to the starting policy (beta)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2"}


def alike(rollout, group_size):
    """Which rows are in a group whose answers are all the same.  (P*G,) bool

    Their prices are equal, but may be rounded differently in another micro-batch.
    """
    rows = torch.cat([rollout.tokens, rollout.mask], 1)                     # (P*G, ...)
    rows = rows.view(-1, group_size, rows.shape[1])
    return (rows == rows[:, :1]).flatten(1).all(1).repeat_interleave(group_size)


loss, loss_grad = ops.policy_gradient, ops.policy_gradient_grad


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    reference = run.reference() if cfg.beta else None
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        ratio = run.log_ratio(rollout, reference, cfg.temperature)          # (B, T)
        adv = leave_one_out(reward - cfg.beta * ratio.sum(1), cfg.group_size)    # (B,)
        adv = adv.where(~alike(rollout, cfg.group_size), 0.0)
        run.keep(problems, rollout, reward, adv)

        meter, count = Meter("loss"), int(rollout.mask.sum())
        live = [row for row in range(len(rollout)) if adv[row] != 0]
        for i in run.micro_batches(live, rollout):
            batch, gain = rollout.take(i, adv)
            logp = logprobs(policy.module, batch, cfg.temperature)
            run.compare(logp, batch)
            value, stats = loss(logp, gain, batch.mask, count=count)
            value.backward()
            meter.add(**stats)
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), **describe(rollout, reward, cfg.group_size),
               "kl": float(ratio.sum() / count), "grad_norm": norm, "learning_rate": rate}
