"""GSPO: Group Sequence Policy Optimization (Zheng et al. 2025, arxiv.org/abs/2507.18071).

GRPO whose ratio is of the whole answer, by its length, so that the clip acts on answers:

    s_i = exp( (1/|y_i|) sum_t log pi/old ),   A_i as in GRPO
    L   = -(1/B) sum_i min(s_i A_i, clip(s_i, 1-eps, 1+eps) A_i)                        (eq. 5)

    dL/dlogp_t = -s_i A_i / (|y_i| B)   where the clip is not active, else 0
"""

from dataclasses import dataclass

from minipost import ops
from minipost.errors import Bounded
from minipost.measure.meter import Meter, describe
from minipost.rollout import logprobs, minibatches

TASK = "arithmetic"
METRIC = "sampled"
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="minus_reward",
              why="reward over its group's deviation; an answer counts by its tokens' mean")]


@dataclass(frozen=True)
class Config(Bounded):
    """Group-relative policy optimisation with a ratio per answer."""

    steps: int = 28             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 64    # answers per gradient step (B)
    epochs: int = 1             # passes over each rollout
    clip: float = 0.01          # how far a ratio may go from 1 before its gain stops (eps)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is shortened to this norm

    LIMITS = {"group_size": ">= 2"}


@ops.shapes(logp="B T", logp_old="B T", adv="B", mask="B T")
def loss(logp, logp_old, adv, mask, *, clip, count):
    """logp, logp_old, mask (B, T); adv (B,); count = B  ->  scalar loss, metrics that add up"""
    mean, old = ops.row_means(logp, mask), ops.row_means(logp_old, mask)
    value = -ops.clipped_surrogate(mean, old, adv, clip, clip).sum() / count
    return value, {"loss": value.detach()}


def loss_grad(logp, logp_old, adv, mask, *, clip, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    mean, old = ops.row_means(logp, mask), ops.row_means(logp_old, mask)
    gain = ops.clipped_surrogate_grad(mean, old, adv, clip, clip) / mask.sum(1)
    return {"logp": -gain[:, None] * mask / count}


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step."""
    while True:
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout)                               # (B,)
        adv = ops.group_normalised(reward, cfg.group_size)                  # (B,)
        meter, norms = Meter("loss"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            for i in run.micro_batches(rows, rollout):
                batch, gain = rollout.take(i, adv)
                logp = logprobs(run.policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                value, stats = loss(logp, batch.logp, gain, batch.mask, clip=cfg.clip,
                                    count=len(rows))
                value.backward()
                meter.add(**stats)
            norms.append(run.policy.step(cfg.lr, cfg.max_grad_norm))
        yield {**meter.means(len(norms)), **describe(rollout, reward, cfg.group_size),
               "grad_norm": sum(norms) / len(norms)}
