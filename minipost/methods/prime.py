"""PRIME: process rewards that are implicit in an outcome model (Cui et al. 2025,
arxiv.org/abs/2502.01456).

A language model phi, at first a copy of the policy, learns from outcomes alone which answers are
right.  Its score of an answer is a sum over tokens, so each token has its share of it:

    r_phi(y_t) = beta log phi(y_t | x, y_<t) / ref(y_t | x, y_<t)                          (eq. 3)
    L_phi      = -(1/B) sum_i [ r_i log s_i + (1 - r_i) log(1 - s_i) ],
                 s_i = sigmoid(sum_t r_phi(y_t)),  r_i the outcome, B answers       (algorithm 1)

    dL_phi/dlogp_phi,t = beta (s_i - r_i) / B on answer tokens, 0 elsewhere

(`loss`.)  The policy learns from both rewards, each less the mean of the G - 1 siblings   (eq. 5)

    A_it = sum over s >= t of [ r_phi(y_is) - mean over siblings j of their mean r_phi ]
           + r_i - mean over siblings j of r_j

by the clipped gain, reinforce_pp's loss.

phi judges a rollout before it learns from it, as in algorithm 1: "single forward", `update=after`
in the authors' script.  So in the first step phi is still the reference, and A is RLOO's.  With
`--judge after` it judges the answers that it has just learnt: "double forward", `update=before`,
the default of verl's recipe.  The paper saw similar rewards with both.

Where we differ from the paper: prompts of any accuracy are kept (it keeps those from 0.2 to 0.8),
and phi makes one update per rollout.  As printed, eq. 5 subtracts the siblings' whole scores; its
text and the authors' pseudocode say their means over tokens, as here.  Their code takes a process
reward's distance from the mean of all G means, its own among them, times G / (G - 1); before, it
divides process rewards by the largest |sum over s >= t| of the rollout, and at last it whitens A.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch

from minipost import ops
from minipost.errors import Descent, MinipostError
from minipost.measure.meter import Meter, describe
from minipost.methods import reinforce_pp
from minipost.rollout import logprobs, minibatches

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
SCORED = False      # its rewards are outcomes, within 0..1
ON_POLICY = True
TRACE = ("reward", "implicit/accuracy", "process_reward", "entropy")
PROOF = [
    dict(config=dict(prompts=1, group_size=2, beta=0.3), rows=2, loss="implicit_entropy",
         factor=1.0, learner="implicit"),
    dict(variant="policy", config=dict(prompts=1, group_size=2, beta=0.3), rows=2,
         loss="minus_reward", why="process rewards besides, which are what phi takes for right",
         divisor="tokens"),
]

Order = Literal["before", "after"]


@dataclass(frozen=True)
class Config(Descent):
    """Outcome and implicit process rewards, by a model that learns from outcomes as it goes."""

    steps: int = 28             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 256   # answers per gradient step of the policy
    epochs: int = 1             # passes over each rollout (mu)
    clip: float = 0.2           # how far a ratio may go from 1 before its gain stops (eps)
    beta: float = 0.05          # scale of the implicit reward (beta); 0: RLOO
    judge: Order = "before"     # phi judges answers before or after it learns from them
    lr: float = 2e-4            # learning rate of the policy (eta)
    implicit_lr: float = 2e-4   # learning rate of the implicit reward model
    max_grad_norm: float = 1.0  # each gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2"}


@ops.shapes(logp="B T", logp_ref="B T", reward="B", mask="B T")
def loss(logp, logp_ref, reward, mask, *, beta, count):
    """logp of phi, logp_ref, mask (B, T); reward (B,) within 0..1; count = B

    ->  scalar loss, metrics that add up
    """
    score = beta * ops.row_sums(logp - logp_ref, mask)                      # (B,)
    value = -(torch.nn.functional.logsigmoid(-score) + reward * score).sum() / count
    hit = ((score > 0) == (reward > 0.5)).to(score).where(score != 0, 0.5)
    return value, {"implicit/loss": value.detach(), "implicit/accuracy": hit.sum() / count}


def loss_grad(logp, logp_ref, reward, mask, *, beta, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    score = beta * ops.row_sums(logp - logp_ref, mask)
    return {"logp": beta * (torch.sigmoid(score) - reward)[:, None] * mask / count}


def less_siblings(x, group_size):
    """The mean of each row's siblings.  (B,) -> (B,)"""
    group = x.view(-1, group_size)
    return ((group.sum(1, keepdim=True) - group) / (group_size - 1)).flatten()


def advantages(reward, process, mask, group_size):
    """A of each token, from outcomes (B,) and process rewards (B, T).  -> (B, T)"""
    base = less_siblings(ops.row_means(process, mask), group_size)          # (B,)
    paid = (process - base[:, None]).where(mask, 0.0)
    outcome = ops.leave_one_out(reward, group_size)                         # (B,)
    ahead = paid.flip(1).cumsum(1).flip(1)                                  # from the token on
    return (ahead + outcome[:, None]).where(mask, 0.0)


def learn(run, cfg, model, rollout, reward, logp_ref, rate):
    """Let the implicit model learn these outcomes.  -> its metrics"""
    meter = Meter("implicit/loss", "implicit/accuracy")
    for i in run.micro_batches(range(len(rollout)), rollout):
        batch, ref, right = rollout.take(i, logp_ref, reward)
        value, stats = loss(logprobs(model.module, batch), ref, right, batch.mask, beta=cfg.beta,
                            count=len(rollout))
        value.backward()
        meter.add(**stats)
    model.step(rate, cfg.max_grad_norm, cfg.weight_decay)
    return meter.means()


def train(run, cfg):
    """rollout -> outcomes -> process rewards, implicit model -> advantages -> policy."""
    policy, reference = run.policy, run.reference()
    model = run.learner("implicit", lambda: copy.deepcopy(policy.module))
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout)                               # (B,)
        if not 0 <= float(reward.min()) <= float(reward.max()) <= 1:
            raise MinipostError(f"the rewards of a step go from {float(reward.min()):g} to "
                                f"{float(reward.max()):g}; PRIME needs outcomes within 0..1, wrong "
                                "to right")
        logp_ref = run.logprobs(reference, rollout)                         # (B, T)
        if cfg.judge == "before":
            logp_phi = run.logprobs(model.module, rollout)                  # (B, T)
        seen = learn(run, cfg, model, rollout, reward, logp_ref,
                     cfg.rate(cfg.implicit_lr, run.step))
        if cfg.judge == "after":
            logp_phi = run.logprobs(model.module, rollout)
        process = cfg.beta * (logp_phi - logp_ref)                          # (B, T)
        adv = advantages(reward, process, rollout.mask, cfg.group_size)     # (B, T)
        run.keep(problems, rollout, reward, adv)

        meter, updates = Meter("loss", "clip_ratio"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            count = int(rollout.mask[rows].sum())
            for i in run.micro_batches(rows, rollout):
                batch, gain = rollout.take(i, adv)
                logp = logprobs(policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                value, stats = reinforce_pp.loss(logp, batch.logp, gain, batch.mask, clip=cfg.clip,
                                                 count=count)
                value.backward()
                meter.add(**stats)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(updates)), **seen, **describe(rollout, reward, cfg.group_size),
               "process_reward": float(ops.masked_sum(process, rollout.mask) / len(rollout)),
               "grad_norm": sum(updates) / len(updates), "learning_rate": rate}
