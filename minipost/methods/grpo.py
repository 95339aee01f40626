"""GRPO: Group Relative Policy Optimization (Shao et al. 2024, arxiv.org/abs/2402.03300).

Sample G answers to each prompt.  An answer's advantage is its lead over its siblings, so GRPO needs
no critic:

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)                  one number per answer     (sec. 4.1.2)
    L   = -(1/N) sum_t min(rho_t A, clip(rho_t, 1-eps, 1+eps) A) + beta/N sum_t KL_t       (eq. 3)

with rho_t = pi/old, N the answer tokens in the gradient step, and KL_t the divergence from the
starting policy.  By hand:

    dL/dlogp_t = -rho_t A / N   where the clip is not active, else 0
    dL/dKL_t   =  beta / N,     and for the exact KL  dKL_t/dz = p (log p/q - KL_t)

Where we differ from the paper: it says nothing of the 1e-4, nor by what std divides; TRL has the
1e-4 and n - 1, as here.  The mean is over the tokens of the whole gradient step, not over
answers and then tokens, so a long answer is not diluted (DAPO, arxiv.org/abs/2503.14476, sec. 3.3).
The paper's mean is `--mean answers`: 1/N is 1/(B |y|) then, for B answers, each of |y| tokens.  The
longer a wrong answer, the less each of its tokens loses (arxiv.org/abs/2503.20783, sec. 3.1).

Where answers are older than the policy (`--lag`, a second minibatch), or drawn by a server that
rounds otherwise (`--sampler vllm`, which chooses truncated), `--correct` says what is done
about it.  dL/dlogp_t = -w_t A / N with

    clip        w = rho where the clip is not active, else 0        as above
    none        w = 1                                               as if the policy had sampled
    truncated   w = min(rho, C)       TIS: Yao et al. 2025 (fengyao.notion.site/off-policy-rl); also
                                      CISPO without a lower bound (cispo.py)
    masked      w = rho, 0 outside 1/C .. C       MIS by token: arxiv.org/abs/2510.18855, sec. 2.3
    masked-answers  w = rho(y), the answer's ratio, 0 outside 1/C .. C            MIS by answer

rho(y) is the product of the answer's rho_t.  It alone weighs answers as often as the policy gives
them; the others weigh a token as if the policy had reached its state (`make prove`).  What is
dropped still counts in N.  Where we differ: in the sources a fixed ratio, of the policy when the
update began to the sampler, weighs PPO's clipped loss, whose own ratio begins at 1.  Here rho is to
the sampler throughout and nothing is clipped besides; both agree in the first gradient step.

The KL is exact over the vocabulary (`--kl exact`).  The paper's k3 estimate (`--kl k3`), used as a
loss, descends KL(ref || pi) instead of KL(pi || ref).  With beta = 0 no reference is kept, and
answers whose group ties are not trained on: their gradient is exactly zero.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.ops import masked_sum
from minipost.rollout import minibatches, readings

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [
    dict(config=dict(prompts=1, group_size=2, beta=0.3), rows=2, loss="minus_regularised",
         why="reward over its group's deviation; KL in each state, not of how often it is reached",
         divisor="tokens"),
    dict(variant="--kl k3", config=dict(prompts=1, group_size=2, beta=0.3, kl="k3"), rows=2,
         loss="minus_regularised", why="as grpo, and k3 as a loss descends KL(ref || pi)",
         divisor="tokens"),
    dict(variant="--mean answers", config=dict(prompts=1, group_size=2, beta=0.3, mean="answers"),
         rows=2, loss="minus_regularised",
         why="as grpo, and each answer counts the less per token the longer it is"),
    *(dict(variant=f"--correct {correct}", config=dict(prompts=1, group_size=2, beta=0.3,
                                                       correct=correct),
           rows=2, loss="minus_regularised", why="as grpo where the policy has not moved",
           divisor="tokens") for correct in ("none", "truncated", "masked", "masked-answers")),
]

Correct = Literal["clip", "none", "truncated", "masked", "masked-answers"]


@dataclass(frozen=True)
class Config(Descent):
    """Group-relative policy optimisation against a task's reward or --reward."""

    steps: int = 40             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 256   # answers per gradient step
    epochs: int = 1             # passes over each rollout (mu)
    mean: Literal["tokens", "answers"] = "tokens"  # over all tokens, or first over each answer's
    correct: Correct = "clip"   # for answers of an older or rounded policy: what is done about it
    clip: float = 0.2           # how far a ratio may go from 1 before its gain stops (eps)
    cap: float = 2.0            # truncated, masked: the largest ratio that counts (C)
    beta: float = 0.01          # weight of the KL to the starting policy (beta)
    kl: Literal["exact", "k3"] = "exact"  # over the whole vocabulary, or Schulman's estimate
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2", "cap": ">= 1"}


def corrected(logp, logp_old, adv, mask, *, correct, clip, cap):
    """Each token's gain, its derivative by logp, and where a ratio is held.  (B, T) three times

    The gain of a whole answer stands on its last token.
    """
    gap = logp - logp_old
    if correct == "none":
        return gap * adv, adv.expand_as(gap), torch.zeros_like(gap)
    if correct == "truncated":
        return (ops.truncated_surrogate(logp, logp_old, adv, cap),
                ops.truncated_surrogate_grad(logp, logp_old, adv, cap), gap > math.log(cap))
    if correct == "masked":
        return (ops.masked_surrogate(logp, logp_old, adv, cap),
                ops.masked_surrogate_grad(logp, logp_old, adv, cap), gap.abs() > math.log(cap))
    if correct == "masked-answers":
        whole = ops.row_sums(gap, mask)
        answer = whole, torch.zeros_like(whole), adv[:, 0], cap
        return (ops.at_last(ops.masked_surrogate(*answer), mask),
                ops.masked_surrogate_grad(*answer)[:, None].expand_as(gap),
                (whole.abs() > math.log(cap))[:, None].expand_as(gap))
    edges = logp, logp_old, adv, clip, clip
    return (ops.clipped_surrogate(*edges), ops.clipped_surrogate_grad(*edges),
            ops.is_clipped(*edges))


@ops.shapes(logp="B T", logp_old="B T", kl="B T", adv="B", mask="B T")
def loss(logp, logp_old, kl, adv, mask, *, clip, beta, count, mean="tokens", correct="clip",
         cap=2.0):
    """logp, logp_old, kl, mask (B, T); adv (B,)  ->  scalar loss, metrics that add up

    count: the tokens N of the gradient step, or for a mean over answers their number B
    """

    def averaged(x):                                                        # (B, T) -> ()
        return (ops.row_means(x, mask).sum() if mean == "answers" else masked_sum(x, mask)) / count

    gain, _, held = corrected(logp, logp_old, adv[:, None], mask, correct=correct, clip=clip,
                              cap=cap)
    value = averaged(beta * kl - gain)
    return value, {
        "loss": value.detach(),
        "clip_ratio": averaged(held.to(logp)).detach(),
    }


def loss_grad(logp, logp_old, kl, adv, mask, *, clip, beta, count, mean="tokens", correct="clip",
              cap=2.0):
    """The derivative of `loss`: {"logp": (B, T), "kl": (B, T)}."""
    each = count * mask.sum(1, keepdim=True) if mean == "answers" else count
    _, slope, _ = corrected(logp, logp_old, adv[:, None], mask, correct=correct, clip=clip,
                              cap=cap)
    return {"logp": -slope * mask / each, "kl": beta * mask.to(kl) / each}


def divergence(cfg, seen):
    """KL to the reference at each answer token, in the form that the Config names.  -> (B, T)"""
    if seen.logp_ref is None:
        return torch.zeros_like(seen.logp)
    return seen.kl if cfg.kl == "exact" else ops.kl_k3(seen.logp, seen.logp_ref)


def train(run, cfg, score=None, first=0, advantages=ops.group_normalised):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step.

    score(problems, rollout) -> (B,) what learns, the run's own score if None.  An answer without a
    reward (NaN) counts for nothing but the KL.
    first: the step of the run at which this begins, where other stages come before.
    advantages(reward, group_size) -> (B,)
    """
    policy, score = run.policy, score or partial(run.score, none=True)
    reference = run.reference() if cfg.beta else None
    while True:
        rate = cfg.rate(cfg.lr, run.step - first)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature,
                              corrected=cfg.correct not in ("clip", "none"))
        reward = score(problems, rollout)                               # (B,)
        adv = advantages(reward, cfg.group_size)                            # (B,)
        run.keep(problems, rollout, reward, adv)

        meter, updates = Meter("loss", "kl", "clip_ratio"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            tokens = int(rollout.mask[rows].sum())
            count = len(rows) if cfg.mean == "answers" else tokens
            live = rows if cfg.beta else [row for row in rows if adv[row] != 0]
            for i in run.micro_batches(live, rollout):
                batch, gain = rollout.take(i, adv)
                seen = readings(policy.module, batch, cfg.temperature, reference,
                                kl=cfg.kl == "exact")
                run.compare(seen.logp, batch)
                kl = divergence(cfg, seen)                                  # (B, T)
                value, stats = loss(seen.logp, batch.logp, kl, gain, batch.mask,
                                    clip=cfg.clip, beta=cfg.beta, count=count, mean=cfg.mean,
                                    correct=cfg.correct, cap=cfg.cap)
                value.backward()
                meter.add(**stats, kl=masked_sum(kl, batch.mask).detach() / tokens)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(updates)), **describe(rollout, reward, cfg.group_size),
               "grad_norm": sum(updates) / len(updates), "learning_rate": rate}
