"""VinePPO: values by Monte Carlo (Kazemnejad et al. 2024, arxiv.org/abs/2410.01679).

PPO whose critic is the policy itself.  What an answer is worth at the beginning of a step is the
mean reward of K answers that go on from there:

    V(s) = 1/K sum_k r(y_k),   y_k sampled by the policy from s
    A_t  = V(s') - V(s) for every token t of the step from s to s',   r - V(s) for the last step
    L    = -(1/N) sum_t min(rho_t A_t, clip(rho_t, 1-eps, 1+eps) A_t)

A language model can be put back into any state, so no critic is needed that must learn values while
the policy moves on.  V has no bias, and the variance of r from s, over K.  The price is tokens:
they count as sampled ones.  By hand:

    dL/dlogp_t = -rho_t A_t / N   where the clip is not active, else 0

with rho_t = pi/old and N the answer tokens in the gradient step.  A step ends as the task says
(`step_end`, a line's end).  Equal beginnings are one state: answers to a prompt share V(prompt).

The discount is 1, as in the paper, and A is the one-step error, so there is no lambda.  Where we
differ: there is no KL to the starting policy, and A is not whitened; the authors' code whitens it.
"""

import math
from dataclasses import dataclass

import torch

from minipost import ops
from minipost.datasets.tools import GOES_ON, refuse
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.ops import masked_sum
from minipost.rollout import logprobs, minibatches, received
from minipost.sampler import ends, together

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = ("draws its values: they are exact in the mean, and with exact ones its mean step is the "
         "gradient of J (tests/test_vineppo.py)")


@dataclass(frozen=True)
class Config(Descent):
    """PPO with values from K answers that go on from every step."""

    steps: int = 16             # rollouts to learn from
    prompts: int = 16           # prompts per rollout (P)
    group_size: int = 4         # answers per prompt (G)
    branches: int = 9           # answers that go on from the beginning of each step (K)
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 64    # answers per gradient step
    epochs: int = 1             # passes over each rollout (mu)
    clip: float = 0.2           # how far a ratio may go from 1 before its gain stops (eps)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm


@ops.shapes(logp="B T", logp_old="B T", adv="B T", mask="B T")
def loss(logp, logp_old, adv, mask, *, clip, count):
    """logp, logp_old, adv, mask (B, T); count = N  ->  scalar loss, metrics that add up"""
    edges = logp, logp_old, adv, clip, clip
    value = -masked_sum(ops.clipped_surrogate(*edges), mask) / count
    return value, {
        "loss": value.detach(),
        "clip_ratio": masked_sum(ops.is_clipped(*edges).to(logp), mask).detach() / count,
    }


def loss_grad(logp, logp_old, adv, mask, *, clip, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    gain = ops.clipped_surrogate_grad(logp, logp_old, adv, clip, clip)
    return {"logp": -gain * mask / count}


def check(run, cfg):
    """MinipostError where a tool has a say in answers."""
    refuse(run, "vineppo", GOES_ON)


def step_starts(run, ids):
    """Where the steps of an answer begin, as indices of its tokens; 0 is the first."""
    after = [k + 1 for k in ends(run.vocabulary, ids, run.task.step_end)]
    return [0, *dict.fromkeys(k for k in after if 0 < k < len(ids))]


def mean_rewards(run, problems, states, branches, temperature):
    """V of each state: the mean reward of answers that go on from it.  -> list of float

    NaN where none of them has a reward.
    states: (number of the problem, ids of the answer so far) of each.  An answer has at most
    run.max_new_tokens tokens in all.
    """
    asked = [run.prompt_ids(problem.prompt) for problem in problems]
    begun, found = [asked[p] + ids for p, ids in states], [0.0] * len(states)
    left = [run.max_new_tokens - len(ids) for _, ids in states]
    for most, group in together(begun, left, run.policy.module.context).items():
        drawn = run.complete([begun[k] for k in group], branches, temperature=temperature,
                             purpose="branches", max_new_tokens=most)
        rows = []
        for place, ids in enumerate(drawn.written()):
            k = group[place // branches]
            p, said = states[k]
            rows.append((p, said + ids[: left[k]]))
        whole = received([asked[p] for p, _ in rows], [(ids, [0.0] * len(ids)) for _, ids in rows],
                         run.vocabulary.eos, run.vocabulary.pad).to(drawn.tokens.device)
        reward = run.score([problems[p] for p, _ in rows], whole, none=True)
        each = reward.double().view(-1, branches)
        means = each.nanmean(1) if each.isnan().any() else each.mean(1)
        for k, value in zip(group, means.tolist()):
            found[k] = value
    return found


def advantages(run, cfg, problems, rollout, reward):
    """A of every token (B, T), and V of the states that the rollout passes, a list.

    A step between two values of which one is not known (NaN) has no advantage: 0.
    """
    said = rollout.written()
    starts = [step_starts(run, ids) for ids in said]
    states = [[(p, tuple(ids[:k])) for k in begun]
              for p, ids, begun in zip(rollout.prompt.tolist(), said, starts)]
    every = list(dict.fromkeys(state for row in states for state in row))
    known = dict(zip(every, mean_rewards(run, problems, [(p, list(ids)) for p, ids in every],
                                         cfg.branches, cfg.temperature)))
    adv = torch.zeros_like(rollout.logp)
    first = rollout.mask.int().argmax(1).tolist()
    for row, begun in enumerate(starts):
        worth = [known[state] for state in states[row]] + [float(reward[row])]
        for j, k in enumerate(begun):
            end = begun[j + 1] if j + 1 < len(begun) else len(said[row])
            adv[row, first[row] + k : first[row] + end] = worth[j + 1] - worth[j]
    return adv.nan_to_num(0.0), [value for value in known.values() if value == value]


def train(run, cfg):
    """prompts -> rollout -> values -> advantages -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        adv, values = advantages(run, cfg, problems, rollout, reward)       # (B, T)
        run.keep(problems, rollout, reward, adv)

        meter, updates = Meter("loss", "clip_ratio"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            count = int(rollout.mask[rows].sum())
            for i in run.micro_batches(rows, rollout):
                batch, gain = rollout.take(i, adv)
                logp = logprobs(policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                value, stats = loss(logp, batch.logp, gain, batch.mask, clip=cfg.clip, count=count)
                value.backward()
                meter.add(**stats)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(updates)), **describe(rollout, reward, cfg.group_size),
               "states": len(values), "value": math.fsum(values) / max(1, len(values)),
               "grad_norm": sum(updates) / len(updates), "learning_rate": rate}
