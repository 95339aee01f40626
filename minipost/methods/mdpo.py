"""mDPO: preferences between sets of answers (Wang et al. 2024, arxiv.org/abs/2410.12138).

One answer does not show how varied or how even answers are.  So two sets of K answers to a prompt
are compared (survey sec. 3.2.9).  The mean log-ratio of a set takes the place of one answer's
log-ratio in DPO.  With h = sum_t log pi/ref of an answer

    u = beta ( mean of h over the better set - mean of h over the worse )
    L = -(1/B) sum log sigmoid(u)                                                     (eq. 5)

    dL/dlogp_t = -beta sigmoid(-u) / (K B) on the better set, +beta sigmoid(-u) / (K B) on the worse

With K = 1 this is DPO.  The better set has the higher mean of the task's reward.
"""

from dataclasses import dataclass

import torch

from minipost.datasets.preferences import turned
from minipost.errors import Descent
from minipost.measure import scorers
from minipost.measure.meter import Meter
from minipost.methods.dpo import margins
from minipost.ops import row_sums, shapes
from minipost.rollout import logprobs

TASK = "wording"
METRIC = "win rate"
COMPARES = True
LARGE = {"beta": 0.1}       # as its paper has it; the default below suits the nano model
SCORED = False
PROOF = [dict(config=dict(prompts=1, group_size=1, beta=0.3), rows=2, loss="dpo_loss", factor=1.0)]


@dataclass(frozen=True)
class Config(Descent):
    """Preference optimisation between sets of several answers."""

    steps: int = 150            # gradient steps
    prompts: int = 32           # prompts with two sets each per step (B, less ties)
    group_size: int = 2         # answers in a set (K)
    temperature: float = 1.0    # sampling temperature of the answers
    beta: float = 1.0           # how close the policy stays to the reference (beta)
    lr: float = 5e-5            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"beta": "> 0"}


def lead(logp, logp_ref, mask, beta, group_size):
    """u of each comparison.  (b,)"""
    h = row_sums(logp - logp_ref, mask).view(-1, 2, group_size).mean(2)        # better, worse
    return beta * (h[:, 0] - h[:, 1])


@shapes(logp="B T", logp_ref="B T", mask="B T")
def loss(logp, logp_ref, mask, *, beta, group_size, count):
    """Log-probs and mask (2Kb, T), a comparison's better set first; count = B

    ->  scalar loss, metrics that add up
    """
    u = lead(logp, logp_ref, mask, beta, group_size)
    value = -torch.nn.functional.logsigmoid(u).sum() / count
    return value, {"loss": value.detach(), **margins(u, count)}


def loss_grad(logp, logp_ref, mask, *, beta, group_size, count):
    """The derivative of `loss`: {"logp": (2Kb, T)}."""
    push = (beta * torch.sigmoid(-lead(logp, logp_ref, mask, beta, group_size))
            / (group_size * count))
    sides = torch.stack([-push, push], 1).repeat_interleave(group_size, 1)     # (b, 2K)
    return {"logp": sides.view(-1, 1) * mask}


def measure(run, splits, cfg):
    """Win rate against the starting policy."""
    return scorers.report_policy(run, splits, cfg.beta)


def train(run, cfg):
    """answers of the reference -> sets in order -> log-probs -> loss -> update."""
    policy, reference, k = run.policy, run.reference(), cfg.group_size
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.sample(problems, 2 * k, temperature=cfg.temperature, module=reference,
                             purpose="sets")
        value = run.grade(problems, rollout).double().view(-1, 2, k)        # (P, 2, K)
        value = value.sort(2).values.mean(2)    # in one order: equal sets have equal means (P, 2)
        value = value * turned(run, len(problems))[:, None].to(value)
        order = torch.stack([value.argmax(1), value.argmin(1)], 1)
        rows = torch.arange(len(rollout), device=value.device).view(-1, 2, k)
        rows = rows.gather(1, order[:, :, None].expand(-1, -1, k))
        rows = rows[value[:, 0] != value[:, 1]].flatten(1)                  # (B, 2K)
        count, meter = len(rows), Meter("loss", "rewards/margins", "rewards/accuracies")
        places = [rollout[place] for place in rows.t()]
        for i in run.micro_batches(range(count), *places):
            batch = rollout[rows[i].flatten()]
            with torch.no_grad():
                logp_ref = logprobs(reference, batch)
            objective, stats = loss(logprobs(policy.module, batch), logp_ref, batch.mask,
                                    beta=cfg.beta, group_size=k, count=count)
            objective.backward()
            meter.add(**stats)
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay) if count else 0.0
        yield {**meter.means(), "comparisons": count, "grad_norm": norm, "learning_rate": rate}
