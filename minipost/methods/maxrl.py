"""MaxRL: maximum likelihood by reinforcement (Tajwar et al. 2026, arxiv.org/abs/2602.02710).

Let p be the chance of a right answer to a prompt.  RL climbs p; likelihood climbs

    log p = -sum over k >= 1 of (1 - p)^k / k,      grad log p = sum over k of (1/k) grad pass@k

so it also cares for the chance that one of many samples is right, most of all where p is small.  Of
G answers, r_i in {0, 1} says which are right, and

    A_i = (r_i - mean(r)) / mean(r),  0 where none is right         one number per answer  (alg. 1)
    L   = -(1/N) sum_i sum_t A_i logp_t                        N answer tokens in the gradient step

    dL/dlogp_t = -A_i / N on answer tokens, 0 elsewhere

The mean step, per answer, is exactly that series as far as k = G - 1:

    sum over k < G of (1/k) grad pass@k  =  (1 - (1-p)^(G-1)) / p  grad p

So two answers make REINFORCE, and many make likelihood.  (Without the baseline the series goes as
far as G: the paper's theorem 2.  The baseline takes the last term away, as groups without a
right answer are left out.)  GRPO divides by the deviation instead, about sqrt(p (1 - p)).

Where we differ from the paper: the sum is divided by its tokens N, not by its answers.  Rewards
that are not 0 or 1 count as right from `least` on.
"""

from dataclasses import dataclass

import torch

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.rollout import logprobs

TASK = "countdown"
METRIC = "sampled"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2, least=0.5), rows=2, loss="minus_success",
              factor=1.0, divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """Policy gradient of the log of each prompt's chance of success."""

    steps: int = 40             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 16        # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    least: float = 1.0          # least reward of an answer that is right
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2", "least": ""}


def over_mean(right, group_size):
    """(r - mean) / mean of each group, 0 where none is right or all are.  (P*G,) -> (P*G,)

    NaN is no reward: its row has 0, and no sibling counts it.
    """
    gap = ops.group_centred(right, group_size)                              # (P, G)
    mean = right.view(-1, group_size).nanmean(1, keepdim=True)
    return (gap / mean.where(gap.any(1, keepdim=True), 1.0)).flatten()


loss, loss_grad = ops.policy_gradient, ops.policy_gradient_grad


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        right = (reward >= cfg.least).to(reward).where(~reward.isnan(), torch.nan)
        adv = over_mean(right, cfg.group_size)                              # (B,)
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
        yield {**meter.means(), **describe(rollout, reward, cfg.group_size), "grad_norm": norm,
               "learning_rate": rate}
