"""REINFORCE++ (Hu et al. 2025, arxiv.org/abs/2501.03262).

REINFORCE with three parts of PPO but without its critic.  Every token pays for its KL.  The clip
lets a rollout be used more than once.  The returns are whitened, so their mean is the baseline:

    r_t = -beta log old/ref  + (score, at the last token)
    R_t = r_t + r_(t+1) + ... to the end of the answer
    A_t = (R_t - mean(R)) / std(R)                             over all tokens of the rollout
    L   = -(1/N) sum_t min(rho_t A_t, clip(rho_t, 1-eps, 1+eps) A_t)

    dL/dlogp_t = -rho_t A_t / N   where the clip is not active, else 0

with rho_t = pi/old and N the answer tokens in the gradient step.  A token is charged only for the
KL from itself on, because it has no part in what was paid before.  The whole rollout has one mean
and one deviation.  So a prompt on which all answers tie still teaches, unlike in GRPO and RLOO: it
went better or worse than the others.

The G answers per prompt allow a comparison at an equal budget with methods that need them.  Here
they are treated as G prompts.  (The paper's variant "w/ baseline" first subtracts their mean.)

Where we differ from the authors' code (OpenRLHF): neither the score nor the KL is clipped at 10.
With beta = 0 no reference is kept.
"""

from dataclasses import dataclass

import torch

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
PROOF = [dict(config=dict(prompts=1, group_size=2, beta=0.3), rows=2, loss="minus_regularised",
              why="whitened, so that every rollout of two is as spread as any other",
              divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """Clipped policy gradient with per-token KL in the reward and whitened returns."""

    steps: int = 28             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G)
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 256   # answers per gradient step
    epochs: int = 1             # passes over each rollout (mu)
    clip: float = 0.2           # how far a ratio may go from 1 before its gain stops (eps)
    beta: float = 0.01          # price of a token's log-ratio to the starting policy (beta)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm


def returns(reward, ratio, mask, beta):
    """The return from each token on, its own KL included.  (B,), (B, T) twice -> (B, T)"""
    paid = ops.at_last(reward, mask) - beta * ratio
    return ops.gae(paid, torch.zeros_like(paid), mask, gamma=1.0, lam=1.0)


@ops.shapes(logp="B T", logp_old="B T", adv="B T", mask="B T")
def loss(logp, logp_old, adv, mask, *, clip, count):
    """logp, logp_old, adv, mask (B, T); count = N  ->  scalar loss, metrics that add up"""
    gain = ops.clipped_surrogate(logp, logp_old, adv, clip, clip)           # (B, T)
    value = -masked_sum(gain, mask) / count
    clipped = ops.is_clipped(logp, logp_old, adv, clip, clip)
    return value, {
        "loss": value.detach(),
        "clip_ratio": masked_sum(clipped.to(logp), mask).detach() / count,
    }


def loss_grad(logp, logp_old, adv, mask, *, clip, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    gain = ops.clipped_surrogate_grad(logp, logp_old, adv, clip, clip)
    return {"logp": -gain * mask / count}


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    reference = run.reference() if cfg.beta else None
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout)                               # (B,)
        ratio = run.log_ratio(rollout, reference, cfg.temperature)          # (B, T)
        ret = returns(reward, ratio, rollout.mask, cfg.beta)                # (B, T)
        adv = ops.whiten(ret, rollout.mask)                                 # (B, T)
        run.keep(problems, rollout, reward, adv)

        meter, updates = Meter("loss", "clip_ratio"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            count = int(rollout.mask[rows].sum())
            for i in run.micro_batches(rows, rollout):
                batch, gain = rollout.take(i, adv)
                logp = logprobs(policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                value, stats = loss(logp, batch.logp, gain, batch.mask,
                                    clip=cfg.clip, count=count)
                value.backward()
                meter.add(**stats)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(updates)), **describe(rollout, reward, cfg.group_size),
               "kl": float(ratio.sum() / rollout.mask.sum()),
               "grad_norm": sum(updates) / len(updates), "learning_rate": rate}
