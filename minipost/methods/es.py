"""ES: evolution strategies on all weights, without a backward pass (Qiu et al. 2025,
arxiv.org/abs/2509.24372; Salimans et al. 2017, arxiv.org/abs/1703.03864).

Not tokens are explored but weights.  Of a population of N policies each stands a little off, and
answers the same problems; the weights move towards those that earned more:

    r_n   = mean reward of the policy with theta + sigma eps_n,     eps_n ~ N(0, I)
    z_n   = (r_n - mean(r)) / (std(r) + 1e-8)
    theta <- theta + (alpha / N) sum_n z_n eps_n                    1/sigma is within alpha

As E[r(theta + sigma eps) eps] = sigma grad E[r(theta + sigma eps)], the step climbs the reward of a
cloud around theta, of whatever kind the reward is.  There is no loss, and nothing is kept for
one: only the seeds of the noise, from which it is drawn again.  The price is the noise of the
estimate: with W weights the angle to the gradient is about sqrt(N / W) away from a right one.

Where we differ from the paper: after each policy the weights are put back from a copy.  The paper's
own code subtracts the noise again, which saves the copy and leaves a rounding in every weight, and
its main script begins the same noise anew in each tensor, so that tensors share it; ours is
independent.  It has sigma 0.001 and alpha 0.0005 for models of billions of weights.
"""

from dataclasses import dataclass

import numpy as np
import torch

from minipost.errors import Bounded, MinipostError

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
PROOF = "has no loss: its step is an estimate from rewards alone (tests/test_es.py)"


@dataclass(frozen=True)
class Config(Bounded):
    """Evolution strategies: perturb all weights, and move towards what earns more."""

    steps: int = 12             # populations to learn from, one update each
    prompts: int = 32           # problems that every policy of a population answers (P)
    group_size: int = 1         # answers of each policy to a problem
    population: int = 30        # policies of a population (N), at least 2
    sigma: float = 0.01         # standard deviation of the noise on each weight (sigma)
    alpha: float = 0.02         # length of a step (alpha)
    temperature: float = 0.0    # sampling temperature (tau); 0: greedy answers

    LIMITS = {"population": ">= 2", "sigma": "> 0", "temperature": ">= 0"}


def noise(name, params):
    """Independent N(0, 1) noise for parameters, as a vector in their order; the same by name.

    name: integers, such as (seed, step, number of the policy).
    """
    drawn = np.random.Generator(np.random.Philox(np.random.SeedSequence(name))).standard_normal(
        sum(p.numel() for p in params), dtype=np.float32)
    return torch.from_numpy(drawn)


def noise_of(run, n):
    """The noise of the step's policy number n."""
    return noise((run.seed, run.step, n), run.policy.params)


def normalised(reward):
    """z: less the mean, over the deviation; exactly 0 where all are equal.  (N,) -> (N,)

    NaN, a policy of whose answers none has a reward, has 0 and does not count.
    """
    known = reward[~reward.isnan()]
    if not len(known) or (known == known[0]).all():
        return torch.zeros_like(reward)
    return ((reward - known.mean()) / (known.std(correction=0) + 1e-8)).nan_to_num(0.0)


def check(run, cfg):
    """MinipostError where no rank has all weights, or an optimiser is asked for."""
    if run.shard:
        raise MinipostError("es moves all weights at once; leave out --shard")
    if run.policy.allocator:
        raise MinipostError("es moves the weights by itself, and --lora-budget shares out ranks in "
                            "an optimiser's steps; leave it out, or take another method")
    if run.policy.muon:
        raise MinipostError("es moves the weights by itself, without an optimiser; leave out "
                            "--optimizer muon, or take another method")


@torch.no_grad()
def train(run, cfg):
    """problems -> rewards of a population -> its noise again, weighed -> weights.  Metrics."""
    policy = run.policy
    while True:
        problems, start, earned = run.problems(cfg.prompts), policy.master.clone(), []
        without = 0                                                         # answers, no reward
        try:
            for n in range(cfg.population):
                policy.assign(torch.add(start, noise_of(run, n).to(start), alpha=cfg.sigma))
                rollout = run.sample(problems, cfg.group_size, temperature=cfg.temperature,
                                     purpose="population")
                found = run.score(problems, rollout, none=True)
                earned.append(float(found[~found.isnan()].mean()))          # NaN: none has one
                without += int(found.isnan().sum())
        except BaseException:   # such as a reward's error: who catches it goes on from a policy
            policy.assign(start)
            raise
        reward = torch.tensor(earned, dtype=torch.float64)                  # (N,)
        moved = start.clone()
        for n, z in enumerate(normalised(reward).tolist()):
            moved.add_(noise_of(run, n).to(start), alpha=cfg.alpha * z / cfg.population)
        policy.assign(moved)
        policy.updates += 1
        known = reward[~reward.isnan()]
        worth = {"reward": float(known.mean()), "reward_std": float(known.std()),
                 "reward_best": float(known.max())} if len(known) > 1 else {}
        if without:
            worth["unscored_ratio"] = without / (cfg.population * len(rollout))
        yield {**worth, "moved": float((moved - start).norm()),
               "completions/mean_length": float(rollout.lengths.float().mean())}
