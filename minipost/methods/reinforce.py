"""REINFORCE: the gradient of expected reward (Williams 1992, doi.org/10.1007/BF00992696).

Each sampled answer becomes likelier by as much as it scored above a baseline b.  It becomes less
likely where it scored below:

    A_i = R_i - b,      then  b <- m b + (1-m) mean(R),  from b = 0
    L   = -(1/N) sum_i sum_t A_i logp_t                        N answer tokens in the gradient step

    dL/dlogp_t = -A_i / N on answer tokens, 0 elsewhere

For B answers (1/B) sum_i A_i grad log pi(y_i) is on average the gradient of the mean reward.  That
holds for any b that does not depend on the answers it is subtracted from.  So b is a moving average
of earlier steps: it lowers the variance and adds no bias.

Where we differ from the paper: a rollout of many answers makes one update, by Adam.  The sum over
answers is divided by their tokens N, not by their number B, so a step is as large for long answers
as for short ones.  Answers that score exactly b are left out: their gradient is zero.
"""

from dataclasses import dataclass

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.rollout import logprobs

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="minus_reward", factor=1.0,
              divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """Policy gradient with a moving average of rewards as its baseline."""

    steps: int = 28             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G)
    temperature: float = 1.0    # sampling temperature (tau)
    momentum: float = 0.9       # share of the old baseline in the new one (m)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"momentum": ">= 0, <= 1"}


loss, loss_grad = ops.policy_gradient, ops.policy_gradient_grad


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        baseline, known = run.carried.get("baseline", 0.0), reward[~reward.isnan()]
        mean = float(known.mean()) if len(known) else baseline
        adv = (reward - baseline).nan_to_num(0.0)                           # (B,)  NaN: no reward
        run.keep(problems, rollout, reward, adv)
        run.carried["baseline"] = cfg.momentum * baseline + (1 - cfg.momentum) * mean

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
        yield {**meter.means(), **describe(rollout, reward, cfg.group_size), "baseline": baseline,
               "grad_norm": norm, "learning_rate": rate}
