"""A2C: advantage actor-critic (Mnih et al. 2016, arxiv.org/abs/1602.01783).

REINFORCE with a learned baseline that differs at every token.  A critic V reads the prompt and the
answer so far and predicts the score of the whole answer.

    delta_t = r_t + gamma V_(t+1) - V_t,    A_t = delta_t + gamma lam A_(t+1)     r only at the end
    R_t     = A_t + V_t                     the critic's target at t
    L       = (1/N) [ -sum_t A_t logp_t + c_v/2 sum_t (V_t - R_t)^2 - c_e sum_t H_t ]

A is whitened over the rollout after R is computed.  H_t is the policy's entropy at t, and N is the
number of answer tokens in the gradient step.  By hand, with A and R constant:

    dL/dlogp_t = -A_t / N,      dL/dV_t = c_v (V_t - R_t) / N,      dL/dH_t = -c_e / N

Where we differ from the paper: all ranks work in step, without its asynchrony.  Advantages are
generalised (arxiv.org/abs/1506.02438) instead of n-step ones, and whitened.  The critic is a
network of its own, a copy of the policy with a head that starts at zero.  It has its own Adam, so
c_v hardly matters.  An answer that is cut off counts as ended: it is scored as it stands.
"""

import copy
from dataclasses import dataclass

from minipost import ops
from minipost.errors import Descent
from minipost.gpt import ValueHead
from minipost.measure.meter import Meter, describe
from minipost.ops import masked_sum
from minipost.rollout import readings, values

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2, entropy_weight=0.0), rows=2, loss="minus_reward",
              why="whitened, and lambda 0.95 trusts a critic that knows nothing yet",
              divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """Policy gradient with a learned critic as its baseline."""

    steps: int = 28             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G)
    temperature: float = 1.0    # sampling temperature (tau)
    gamma: float = 1.0          # discount (gamma)
    lam: float = 0.95           # GAE: 0 trusts the critic, 1 the rewards (lambda)
    value_weight: float = 1.0   # weight of the critic's squared error (c_v)
    entropy_weight: float = 0.01  # weight of the entropy bonus (c_e)
    lr: float = 2e-4            # learning rate of the policy (eta)
    critic_lr: float = 1e-3     # learning rate of the critic
    max_grad_norm: float = 1.0  # both gradients are clipped to this norm

    LIMITS = {"gamma": ">= 0, <= 1", "lam": ">= 0, <= 1"}


def advantages(reward, value, mask, gamma, lam):
    """Whitened advantages, and the returns for the critic.  (B,), (B, T) twice -> (B, T) twice"""
    adv = ops.gae(ops.at_last(reward, mask), value, mask, gamma, lam)
    return ops.whiten(adv, mask), adv + value


@ops.shapes(logp="B T", entropy="B T", value="B T", adv="B T", ret="B T", mask="B T")
def loss(logp, entropy, value, adv, ret, mask, *, value_weight, entropy_weight, count):
    """All (B, T); count = N  ->  scalar loss, metrics that add up"""
    error = masked_sum((value - ret).square(), mask) / (2 * count)
    gain = masked_sum(adv * logp + entropy_weight * entropy, mask) / count
    objective = value_weight * error - gain
    return objective, {"loss": objective.detach(), "value_loss": error.detach()}


def loss_grad(logp, entropy, value, adv, ret, mask, *, value_weight, entropy_weight, count):
    """The derivative of `loss`: {"logp": (B, T), "entropy": (B, T), "value": (B, T)}."""
    return {
        "logp": -adv * mask / count,
        "entropy": -entropy_weight * mask.to(entropy) / count,
        "value": value_weight * (value - ret) * mask / count,
    }


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> updates.  Yields metrics per step."""
    policy = run.policy
    critic = run.learner("critic", lambda: ValueHead(copy.deepcopy(policy.module)))
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout)                               # (B,)
        value_old, = run.for_all(lambda batch: [values(critic.module, batch)], rollout)   # (B, T)
        adv, ret = advantages(reward, value_old, rollout.mask, cfg.gamma, cfg.lam)
        run.keep(problems, rollout, reward, adv, value_old)

        meter, count = Meter("loss", "value_loss"), int(rollout.mask.sum())
        for i in run.micro_batches(range(len(rollout)), rollout):
            batch, gain, target = rollout.take(i, adv, ret)
            seen = readings(policy.module, batch, cfg.temperature, entropy=True)
            run.compare(seen.logp, batch)
            objective, stats = loss(
                seen.logp, seen.entropy, values(critic.module, batch), gain, target, batch.mask,
                value_weight=cfg.value_weight, entropy_weight=cfg.entropy_weight,
                count=count)
            objective.backward()
            meter.add(**stats)
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        critic.step(cfg.rate(cfg.critic_lr, run.step), cfg.max_grad_norm,
                    cfg.weight_decay)
        yield {**meter.means(), **describe(rollout, reward, cfg.group_size),
               "explained_variance": ops.explained_variance(value_old, ret, rollout.mask),
               "grad_norm": norm, "learning_rate": rate}
