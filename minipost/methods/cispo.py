"""CISPO: Clipped IS-weight Policy Optimization (MiniMax 2025, arxiv.org/abs/2506.13585, sec. 3.1).

PPO's clip takes the whole gradient from a token whose ratio has left the bounds.  Those are often
unlikely tokens at which reasoning turns ("However", "Wait"), and after one update they teach
nothing more.  CISPO clips the ratio and keeps the token:

    w_t = clip(rho_t, 1-eps_low, 1+eps_high), without a gradient of its own             (eq. 5)
    L   = -(1/N) sum_t w_t A_i logp_t                                                    (eq. 4)

with rho_t = pi/old, A_i as in GRPO, N the answer tokens of the gradient step, and no KL.  So

    dL/dlogp_t = -w_t A_i / N   for every token

In place of w_t logp_t the loss has a gain S whose slope is w_t, so that it is a function with this
derivative: rho between the bounds, and straight on beyond them,

    S = rho,   and where rho is beyond the bound C:   C (1 + log rho/C)

The paper sets no lower bound (`--clip-low 1`) and tunes eps_high, without a figure.  The default,
w at most 5, is of ScaleRL (arxiv.org/abs/2510.13786), which found 4 to 8 alike.  Without a lower
bound a token's weight is that of `--algo grpo --beta 0 --correct truncated --cap 5`.  Some
libraries clip both sides at 0.2: a token that the policy has left already is pushed on with 0.8 of
its weight then, however unlikely it has become.  Answers whose group ties are not trained on.

Where we differ from the paper: its runs also have DAPO's dynamic sampling and penalty on length.
Both are left out here; dapo.py has them.
"""

import math
from dataclasses import dataclass

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.ops import masked_sum
from minipost.rollout import logprobs, minibatches

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="minus_reward",
              why="reward over its group's deviation", divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """Group-relative policy optimisation that clips ratios and drops no token."""

    steps: int = 40             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 256   # answers per gradient step
    epochs: int = 1             # passes over each rollout (mu)
    clip_low: float = 1.0       # a weight is at least 1 less this; 1: no lower bound (eps_low)
    clip_high: float = 4.0      # a weight is at most 1 and this (eps_high)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2", "clip_low": ">= 0, <= 1"}


def bounds(clip_low, clip_high):
    """The logarithms of the least and the largest weight."""
    return math.log(1 - clip_low) if clip_low < 1 else -math.inf, math.log1p(clip_high)


@ops.shapes(logp="B T", logp_old="B T", adv="B", mask="B T")
def loss(logp, logp_old, adv, mask, *, clip_low, clip_high, count):
    """logp, logp_old, mask (B, T); adv (B,); count = N  ->  scalar loss, metrics that add up"""
    gap, (low, high) = logp - logp_old, bounds(clip_low, clip_high)
    held = gap.clamp(low, high)
    gain = held.exp() * (1 + gap - held)                                    # (B, T)
    value = -masked_sum(gain * adv[:, None], mask) / count
    beyond = ((gap < low) | (gap > high)) & (adv[:, None] != 0)
    return value, {
        "loss": value.detach(),
        "clip_ratio": masked_sum(beyond.to(logp), mask).detach() / count,
    }


def loss_grad(logp, logp_old, adv, mask, *, clip_low, clip_high, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    weight = (logp - logp_old).clamp(*bounds(clip_low, clip_high)).exp()
    return {"logp": -weight * adv[:, None] * mask / count}


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        adv = ops.group_normalised(reward, cfg.group_size)                  # (B,)
        run.keep(problems, rollout, reward, adv)

        meter, updates = Meter("loss", "clip_ratio"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            count = int(rollout.mask[rows].sum())
            live = [row for row in rows if adv[row] != 0]
            for i in run.micro_batches(live, rollout):
                batch, gain = rollout.take(i, adv)
                logp = logprobs(policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                value, stats = loss(logp, batch.logp, gain, batch.mask, clip_low=cfg.clip_low,
                                    clip_high=cfg.clip_high, count=count)
                value.backward()
                meter.add(**stats)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(updates)), **describe(rollout, reward, cfg.group_size),
               "grad_norm": sum(updates) / len(updates), "learning_rate": rate}
