"""IPO: Identity Preference Optimization (Azar et al. 2023, arxiv.org/abs/2310.12036).

Where a preference is certain, DPO's gap has no end: log sigmoid always asks for more.  IPO asks for a
gap of one size.  With h = sum_t log pi/ref of an answer

    L = (1/B) sum (h_w - h_l - 1/(2 tau))^2                                          (eq. 17)

    dL/dlogp_t = +2 (h_w - h_l - 1/(2 tau)) / B on the chosen answer, minus that on the rejected

The file reads beside methods/dpo.py; what learns from pairs is pairwise.learn_pairs in both.  Here h
is a sum as in the paper; libraries that take the mean over tokens need a tau as many times larger as
answers are long.
"""

from dataclasses import dataclass

from minipost import pairwise, preferences
from minipost.errors import require
from minipost.pairwise import row_sums

TASK = "wording"
METRIC = "win rate"


@dataclass(frozen=True)
class Config:
    """Preference optimisation towards a gap of a given size."""

    steps: int = 150            # gradient steps
    pairs: int = 64             # prompts with two answers each per step (B, less ties)
    temperature: float = 1.0    # sampling temperature of the answers
    tau: float = 0.1            # how closely the policy stays by the reference; the gap is 1/(2 tau) nats
    likeliest: float = 1.0      # share of the pairs kept, those whose chosen answer is likeliest
    lr: float = 1e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is shortened to this norm

    def __post_init__(self):
        require(self, at_least=dict(steps=1, pairs=1, lr=0),
                above=dict(temperature=0, tau=0, likeliest=0, max_grad_norm=0),
                at_most=dict(likeliest=1))


def gap(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask):
    """h_w - h_l of each pair.  (b,)"""
    return row_sums(chosen - chosen_ref, chosen_mask) - row_sums(rejected - rejected_ref,
                                                                 rejected_mask)


def loss(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask, *, tau, count):
    """Log-probs and masks (b, T), of two widths; count = B  ->  scalar loss, metrics that add up"""
    h = gap(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask)
    value = (h - 1 / (2 * tau)).square().sum() / count
    return value, {"loss": value.detach(), **pairwise.margins(tau * h, count)}


def loss_grad(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask, *, tau,
              count):
    """The derivative of `loss`: {"chosen": (b, T), "rejected": (b, T)}."""
    h = gap(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask)
    push = 2 * (h - 1 / (2 * tau))[:, None] / count                         # (b, 1)
    return {"chosen": push * chosen_mask, "rejected": -push * rejected_mask}


def measure(run, splits, cfg):
    """Win rate against the starting policy; on a file's pairs, how the implied reward ranks them."""
    return pairwise.report_policy(run, splits, cfg.tau)


def train(run, cfg, label=preferences.by_reward):
    """pairs -> log-probs of policy and reference -> loss -> update.  Yields metrics per step."""
    return pairwise.learn_pairs(run, cfg, lambda *xs, count: loss(*xs, tau=cfg.tau, count=count),
                                   label, scale=cfg.tau)


remark = pairwise.remark
