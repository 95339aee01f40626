"""DPO: Direct Preference Optimization (Rafailov et al. 2023, arxiv.org/abs/2305.18290).

The policy that maximises reward less beta KL(pi || ref) is pi* ~ ref exp(r / beta).  So every
policy implies a reward: r = beta log pi/ref plus a number per prompt (eq. 5).  Bradley-Terry on
that reward needs no reward model and no sampling during training (survey sec. 3.2.6).  With
h = sum_t log pi/ref of an answer

    L = -(1/B) sum log sigmoid(u),    u = beta (h_w - h_l)                             (eq. 7)

    dL/dlogp_t = -beta sigmoid(-u) / B on the chosen answer, +beta sigmoid(-u) / B on the rejected

`--label-smoothing e` assumes that a share e of the labels is wrong.  The loss of a pair,
l(u) = -log sigmoid(u), becomes

    cDPO     (1-e) l(u) + e l(-u)                 least at u = log((1-e)/e), so certainty is capped
    robust   ((1-e) l(u) - e l(-u)) / (1-2e)      its mean over flipped labels is l(u) on true ones
                                    (Chowdhury et al. 2024, arxiv.org/abs/2403.00409, eq. 11)

    cDPO     dL/du = -((1-e) sigmoid(-u) - e sigmoid(u)) / B
    robust   dL/du = -((1-e) sigmoid(-u) + e sigmoid(u)) / ((1-2e) B)

Watch `logps/chosen` and `drift/chosen`, its distance from the reference.  The loss asks only for a
growing gap, so both answers may become less likely.  With the usual beta of 0.1 they do so here
until answers are no longer words.  With a beta of 1 they stay words.  `--likeliest 0.95` drops the
pairs whose chosen answer has the highest perplexity under the reference: such an answer is off the
reference's distribution (survey sec. 3.2.6).

Where we differ from the paper: without pairs in --data, every step samples pairs from the starting
policy and labels them by the task's reward.  So no pair is used twice.
"""

from dataclasses import dataclass
from functools import partial

import torch

from minipost.datasets.preferences import StepPairs, by_reward, take_pairs
from minipost.errors import Descent
from minipost.measure import scorers
from minipost.measure.meter import Meter
from minipost.ops import masked_sum, row_sums, shapes
from minipost.rollout import logprobs_of_each

TASK = "wording"
METRIC = "win rate"
SCORED = False
READS = ("chosen", "rejected")
LARGE = {"beta": 0.1}       # as its paper has it; the default below suits the nano model
PROOF = [dict(config=dict(pairs=1, beta=0.3), rows=2, loss="dpo_loss", factor=1.0)]


@dataclass(frozen=True)
class Config(Descent):
    """Direct preference optimisation on pairs that a task's reward, or a file, puts in order."""

    steps: int = 150            # gradient steps
    pairs: int = 64             # prompts with two answers each per step (B, less ties)
    temperature: float = 1.0    # sampling temperature of the answers (tau)
    beta: float = 1.0           # how close the policy stays to the reference (beta)
    label_smoothing: float = 0.0  # share of the labels taken to be wrong (e), below 0.5
    robust: bool = False        # undo the flipped labels on average instead of smoothing (cDPO)
    likeliest: float = 1.0      # share of the pairs kept, those whose chosen answer is likeliest
    lr: float = 5e-5            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"beta": "> 0", "label_smoothing": ">= 0, <= 0.49", "likeliest": "> 0, <= 1"}


def lead(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, beta):
    """u of each pair.  (b,)"""
    return beta * (row_sums(logp_w - ref_w, mask_w) - row_sums(logp_l - ref_l, mask_l))


@shapes(logp_w="B T", logp_l="B S", ref_w="B T", ref_l="B S", mask_w="B T", mask_l="B S")
def loss(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, *, beta, label_smoothing=0.0,
         robust=False, count):
    """Log-probs, the reference's, and masks of chosen (w) and rejected (l) answers; count = B

    ->  scalar loss, metrics that add up
    """
    u = lead(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, beta)
    right, wrong = (-torch.nn.functional.logsigmoid(sign * u).sum() / count for sign in (1, -1))
    value = ((1 - label_smoothing) * right
             + (-label_smoothing if robust else label_smoothing) * wrong)
    if robust:
        value = value / (1 - 2 * label_smoothing)
    return value, {"loss": value.detach(), **margins(u, count)}


def loss_grad(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, *, beta, label_smoothing=0.0,
              robust=False, count):
    """The derivative of `loss`: {"logp_w": (b, T), "logp_l": (b, S)}."""
    u = lead(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, beta)
    slope = ((1 - label_smoothing) * torch.sigmoid(-u)
             + (label_smoothing if robust else -label_smoothing) * torch.sigmoid(u))
    push = beta * slope[:, None] / (count * (1 - 2 * label_smoothing if robust else 1))    # (b, 1)
    return {"logp_w": -push * mask_w, "logp_l": push * mask_l}


def margins(lead, count):
    """Metrics of implied reward differences (b,) that add up over a step."""
    return {"rewards/margins": lead.detach().sum() / count,
            "rewards/accuracies": ((lead > 0).to(lead) + 0.5 * (lead == 0)).sum() / count}


def measure(run, splits, cfg):
    """Win rate against the starting policy; on a file's pairs, the implied reward's ranking."""
    return scorers.report_policy(run, splits, cfg.beta)


def train(run, cfg, label=by_reward, first=0):
    """pairs -> log-probs of policy and reference -> loss -> update.  Yields metrics per step."""
    objective = partial(loss, beta=cfg.beta, label_smoothing=cfg.label_smoothing, robust=cfg.robust)
    return learn(run, cfg, StepPairs(run, cfg, label), objective, first)


def learn(run, cfg, data, objective, first=0):
    """The training loop of DPO and its relatives, which differ in the objective.

    objective(logp_w, logp_l, [ref_w, ref_l,] mask_w, mask_l, count=B) -> scalar, metrics.  It gets
    the reference's log-probs only where `data` has them.  first: the step at which this begins.
    """
    policy = run.policy
    logged = [f"{kind}/{side}" for kind in (("logps", "drift") if data.reference else ("logps",))
              for side in ("chosen", "rejected")]
    while True:
        rate = cfg.rate(cfg.lr, run.step - first)
        pairs, refs = data.draw()
        count, meter = len(pairs), Meter("loss", "rewards/margins", "rewards/accuracies", *logged)
        for i in run.micro_batches(range(count), pairs.chosen, pairs.rejected):
            batch, ref = take_pairs(pairs, i, refs)
            sides = {"chosen": batch.chosen, "rejected": batch.rejected}
            logp = logprobs_of_each(policy.module, sides.values())
            value, stats = objective(*logp, *(ref or ()), *(side.mask for side in sides.values()),
                                     count=count)
            value.backward()
            meter.add(**stats)
            for k, (name, side) in enumerate(sides.items()):
                meter.add(**{f"logps/{name}": masked_sum(logp[k].detach(), side.mask) / count})
                if ref:
                    drift = masked_sum(logp[k].detach() - ref[k], side.mask) / count
                    meter.add(**{f"drift/{name}": drift})
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay) if count else 0.0
        yield {**meter.means(), "pairs": count, "grad_norm": norm, "learning_rate": rate}


def remark(lines):
    """A sentence on what became of the chosen answers, from a run's metrics."""
    sides = ("drift/chosen", "drift/rejected")
    last = [[line.get(side) for side in sides] for line in lines[-5:]]
    last = [moved for moved in last if None not in moved]
    if not last:
        return ""
    chosen, rejected = (sum(moved) / len(last) for moved in zip(*last))
    if chosen >= 0:
        return ""
    return (f"The chosen answers became less likely than under the starting policy, by "
            f"{-chosen:.1f} nats each: the loss asks only that they gain on the rejected ones, "
            f"which moved by {rejected:+.1f}.")
