"""TOPR: Tapered Off-Policy REINFORCE (Le Roux et al. 2025, arxiv.org/abs/2503.14286).

A right answer is learnt from whoever gave it; a wrong one only as far as the policy would still
give it, so that what is unlearnt already is not pushed on without end:

    w_i = 1 if A_i > 0, else min(pi(y_i)/old(y_i), 1),    A_i = r_i - mean of its group
    L   = -(1/B) sum_i w_i A_i log pi(y_i),               w_i without a gradient of its own

    dL/dlogp_t = -w_i A_i / B

The paper takes rewards of 1 and -1 less a baseline.  Here the group's mean is the baseline.
"""

from dataclasses import dataclass

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.rollout import logprobs, minibatches

TASK = "arithmetic"
METRIC = "sampled"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="minus_reward", factor=0.5)]


@dataclass(frozen=True)
class Config(Descent):
    """REINFORCE on answers of an older policy, tapered where they are wrong."""

    steps: int = 28             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 64    # answers per gradient step (B)
    epochs: int = 1             # passes over each rollout
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is shortened to this norm

    LIMITS = {"group_size": ">= 2"}


@ops.shapes(logp="B T", logp_old="B T", adv="B", mask="B T")
def loss(logp, logp_old, adv, mask, *, count):
    """logp, logp_old, mask (B, T); adv (B,); count = B  ->  scalar loss, metrics that add up"""
    new, old = ops.row_sums(logp, mask), ops.row_sums(logp_old, mask)
    tapered = ops.truncated_surrogate(new, old, adv, 1.0)
    value = -((new - old) * adv).where(adv > 0, tapered).sum() / count
    return value, {"loss": value.detach()}


def loss_grad(logp, logp_old, adv, mask, *, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    new, old = ops.row_sums(logp, mask), ops.row_sums(logp_old, mask)
    gain = adv.where(adv > 0, ops.truncated_surrogate_grad(new, old, adv, 1.0))
    return {"logp": -gain[:, None] * mask / count}


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step."""
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout)                               # (B,)
        adv = ops.group_centred(reward, cfg.group_size).flatten()           # (B,)
        run.keep(problems, rollout, reward, adv)
        meter, norms = Meter("loss"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            for i in run.micro_batches(rows, rollout):
                batch, gain = rollout.take(i, adv)
                logp = logprobs(run.policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                value, stats = loss(logp, batch.logp, gain, batch.mask, count=len(rows))
                value.backward()
                meter.add(**stats)
            norms.append(run.policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(norms)), **describe(rollout, reward, cfg.group_size),
               "grad_norm": sum(norms) / len(norms)}
