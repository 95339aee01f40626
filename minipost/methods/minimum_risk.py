"""Minimum risk training (Shen et al. 2016, arxiv.org/abs/1512.02433; survey sec. 2.2).

The risk of an answer is what it lacks in reward.  Of G sampled answers to a prompt, each different
one is a candidate once, S(x).  Their chances, sharpened by alpha and renormalised, weigh the risk:

    Q(y) = pi(y)^alpha / sum over y' in S(x) of pi(y')^alpha                             (eq. 10)
    L    = -(1/P) sum_x sum over y in S(x) of Q(y) r(y)          P prompts in the gradient step

    dL/dlogp_t = -(alpha / P) Q(y) (r(y) - sum_y' Q(y') r(y'))      on the tokens of a candidate,
                                                                    0 on those of a repeated answer

So the mean reward under Q is the baseline.  With all answers as candidates and alpha = 1 this is
the gradient of the expected reward, without sampling noise.  With few candidates it is not, as the
answers that were not drawn do not count (`prove --algo minimum-risk`).  As alpha -> 0 all
candidates weigh the same: Dr. GRPO's advantage, over different answers.

Where we differ from the paper: the answer that the data gives is not put among the candidates (the
paper's algorithm 1 does so).  The mean is over prompts.  Prompts whose candidates
all score the same are left out: their gradient is zero.
"""

from dataclasses import dataclass

import torch

from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.ops import group_centred, row_sums, shapes
from minipost.rollout import logprobs

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [
    dict(config=dict(prompts=1, group_size=2, alpha=0.7), rows=2, loss="minimum_risk", factor=1.0),
    dict(variant="--alpha 1", config=dict(prompts=1, group_size=2, alpha=1.0), rows=2,
         loss="minus_reward", why="answers that were not drawn do not count"),
]


@dataclass(frozen=True)
class Config(Descent):
    """The expected risk over sampled candidates, by their own renormalised chances."""

    steps: int = 28             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    alpha: float = 0.005        # sharpness of the weights of candidates (alpha)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2", "alpha": "> 0"}


def weights(logp, first, mask, alpha, group_size):
    """Q of each candidate, 0 of other rows.  Each group has a candidate.  (B, T) -> (B/G, G)"""
    total = alpha * row_sums(logp, mask)                                    # (B,)
    return total.masked_fill(~first, -torch.inf).view(-1, group_size).softmax(1)


def pull(logp, reward, first, mask, alpha, group_size):
    """alpha Q (r - sum Q r): how strongly each answer is made likelier.  (B,)"""
    q = weights(logp, first, mask, alpha, group_size)
    r = reward.where(first, 0.0).view(-1, group_size)
    return (alpha * q * (r - (q * r).sum(1, keepdim=True))).flatten()


@shapes(logp="B T", reward="B", first="B", mask="B T")
def loss(logp, reward, first, mask, *, alpha, group_size, count):
    """logp, mask (B, T); reward, first (B,), G rows of each prompt side by side; count = P

    first: which rows are candidates, that is, repeat no earlier scored answer of their group
    ->  scalar loss, metrics that add up
    """
    q = weights(logp, first, mask, alpha, group_size)
    value = -(q * reward.where(first, 0.0).view(-1, group_size)).sum() / count
    return value, {"loss": value.detach()}


def loss_grad(logp, reward, first, mask, *, alpha, group_size, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    return {"logp": -pull(logp, reward, first, mask, alpha, group_size)[:, None] * mask / count}


def candidates(rollout, reward):
    """Which rows have a reward, and repeat no earlier answer to their prompt that has one.  (B,)"""
    seen, first = set(), []
    for number, ids, mask, worth in zip(rollout.prompt.tolist(), rollout.targets, rollout.mask,
                                        reward.tolist()):
        answer = number, tuple(ids[mask].tolist())
        first.append(worth == worth and answer not in seen)     # NaN is no reward
        if first[-1]:
            seen.add(answer)
    return torch.tensor(first, device=reward.device)


def train(run, cfg):
    """prompts -> rollout -> rewards -> candidates -> loss -> update.  Yields metrics per step."""
    policy, size = run.policy, cfg.group_size
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        first = candidates(rollout, reward)                                 # (B,)
        live = group_centred(reward, size).any(1)                           # (P,)  not a tie
        adv = pull(rollout.logp, reward, first, rollout.mask, cfg.alpha, size)
        run.keep(problems, rollout, reward, adv.where(live.repeat_interleave(size), 0.0))

        meter, rows = Meter("loss"), torch.arange(len(rollout)).view(-1, size)[live.cpu()]
        places = [rollout[place] for place in rows.t()]
        for i in run.micro_batches(range(len(rows)), *places):
            batch, earned, drawn = rollout.take(rows[i].flatten(), reward, first)
            logp = logprobs(policy.module, batch, cfg.temperature)
            run.compare(logp, batch)
            value, stats = loss(logp, earned, drawn, batch.mask, alpha=cfg.alpha, group_size=size,
                                count=cfg.prompts)
            value.backward()
            meter.add(**stats)
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), **describe(rollout, reward, size),
               "candidates": float(first.sum()) / cfg.prompts, "grad_norm": norm,
               "learning_rate": rate}
