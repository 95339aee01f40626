"""SAPO: Soft Adaptive Policy Optimization (Gao et al. 2025, arxiv.org/abs/2511.20347).

GRPO whose clip is soft.  A token's weight falls off smoothly as its ratio leaves 1, instead of all
at once at a bound, and sooner where the advantage is negative:

    f(rho) = 4/tau sigmoid(tau (rho - 1)),   tau = tau_pos if A > 0, else tau_neg       (eq. 6)
    L      = -(1/B) sum_i 1/|y_i| sum_t f(rho_t) A_i                                    (eq. 5)

with rho_t = pi/old, A_i as in GRPO, and no KL.  By hand, with p = sigmoid(tau (rho - 1)):

    dL/dlogp_t = -4 p (1 - p) rho_t A_i / (|y_i| B)

4/tau makes this the policy gradient at rho = 1, where 4 p (1 - p) is 1, at any tau.  As tau goes to
0 no ratio is held back.  tau_neg > tau_pos, because less of a token that was wrong is more of every
other token of the vocabulary, which spreads noise.  The defaults are the paper's.  Answers whose
group ties are not trained on: their gradient is exactly zero.
"""

from dataclasses import dataclass

import torch

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.rollout import logprobs, minibatches

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="minus_reward",
              why="reward over its group's deviation; an answer counts by its tokens' mean")]
FAR = 20.0  # a larger log-ratio has gate 1 and slope 0 to the last bit, and its exp would overflow


@dataclass(frozen=True)
class Config(Descent):
    """Group-relative policy optimisation with a soft gate in place of the clip."""

    steps: int = 40             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 256   # answers per gradient step (B)
    epochs: int = 1             # passes over each rollout (mu)
    tau_pos: float = 1.0        # how fast the gate closes where the advantage is positive
    tau_neg: float = 1.05       # how fast it closes where the advantage is negative
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2", "tau_pos": "> 0", "tau_neg": "> 0"}


def gate(logp, logp_old, adv, tau_pos, tau_neg):
    """rho, tau and tau (rho - 1) of every token.  (B, T), (B, 1), (B, T)"""
    ratio = (logp - logp_old).clamp(max=FAR).exp()
    tau = torch.full_like(adv, tau_neg).masked_fill(adv > 0, tau_pos)[:, None]
    return ratio, tau, tau * (ratio - 1)


@ops.shapes(logp="B T", logp_old="B T", adv="B", mask="B T")
def loss(logp, logp_old, adv, mask, *, tau_pos, tau_neg, count):
    """logp, logp_old, mask (B, T); adv (B,); count = B  ->  scalar loss, metrics that add up

    closed: the mean over answers and their tokens of 1 - 4 p (1 - p), 0 where all ratios are 1.
    """
    _, tau, x = gate(logp, logp_old, adv, tau_pos, tau_neg)
    value = -(adv * ops.row_means(4 / tau * x.sigmoid(), mask)).sum() / count
    shut = (1 - 4 * x.sigmoid() * (-x).sigmoid()).where(adv[:, None] != 0, 0.0)
    return value, {
        "loss": value.detach(),
        "closed": ops.row_means(shut, mask).sum().detach() / count,
    }


def loss_grad(logp, logp_old, adv, mask, *, tau_pos, tau_neg, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    ratio, _, x = gate(logp, logp_old, adv, tau_pos, tau_neg)
    slope = 4 * x.sigmoid() * (-x).sigmoid() * ratio                        # (B, T)
    return {"logp": -slope * adv[:, None] * mask / (mask.sum(1, keepdim=True) * count)}


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

        meter, updates = Meter("loss", "closed"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            live = [row for row in rows if adv[row] != 0]
            for i in run.micro_batches(live, rollout):
                batch, gain = rollout.take(i, adv)
                logp = logprobs(policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                value, stats = loss(logp, batch.logp, gain, batch.mask, tau_pos=cfg.tau_pos,
                                    tau_neg=cfg.tau_neg, count=len(rows))
                value.backward()
                meter.add(**stats)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(updates)), **describe(rollout, reward, cfg.group_size),
               "grad_norm": sum(updates) / len(updates), "learning_rate": rate}
