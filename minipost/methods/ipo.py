"""IPO: Identity Preference Optimization (Azar et al. 2023, arxiv.org/abs/2310.12036).

Where a preference is certain, DPO's gap grows without end: log sigmoid always asks for more.  IPO
asks for a gap of one size.  With h = sum_t log pi/ref of an answer

    L = (1/B) sum (h_w - h_l - 1/(2 tau))^2                                          (eq. 17)

    dL/dlogp_t = +2 (h_w - h_l - 1/(2 tau)) / B on the chosen answer, minus that on the rejected

The loop is that of methods/dpo.py; only the loss differs.  Here h is a sum, as in the paper.
Libraries that take the mean over tokens need a tau larger by a factor of the answers' length.
"""

from dataclasses import dataclass
from functools import partial

from minipost.datasets.preferences import StepPairs, by_reward
from minipost.errors import Descent
from minipost.measure import scorers
from minipost.methods import dpo
from minipost.ops import row_sums, shapes

TASK = "wording"
METRIC = "win rate"
SCORED = False
READS = ("chosen", "rejected")
PROOF = [dict(config=dict(pairs=1, tau=0.3), rows=2, loss="ipo_loss", factor=1.0)]


@dataclass(frozen=True)
class Config(Descent):
    """Preference optimisation towards a gap of a given size."""

    steps: int = 150            # gradient steps
    pairs: int = 64             # prompts with two answers each per step (B, less ties)
    temperature: float = 1.0    # sampling temperature of the answers
    tau: float = 0.1            # closeness to the reference (tau); the gap is 1/(2 tau) nats
    likeliest: float = 1.0      # share of the pairs kept, those whose chosen answer is likeliest
    lr: float = 1e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"tau": "> 0", "likeliest": "> 0, <= 1"}


def gap(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l):
    """h_w - h_l of each pair.  (b,)"""
    return row_sums(logp_w - ref_w, mask_w) - row_sums(logp_l - ref_l, mask_l)


@shapes(logp_w="B T", logp_l="B S", ref_w="B T", ref_l="B S", mask_w="B T", mask_l="B S")
def loss(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, *, tau, count):
    """As dpo.loss, with tau for beta"""
    h = gap(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l)
    value = (h - 1 / (2 * tau)).square().sum() / count
    return value, {"loss": value.detach(), **dpo.margins(tau * h, count)}


def loss_grad(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, *, tau, count):
    """The derivative of `loss`: {"logp_w": (b, T), "logp_l": (b, S)}."""
    h = gap(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l)
    push = 2 * (h - 1 / (2 * tau))[:, None] / count                         # (b, 1)
    return {"logp_w": push * mask_w, "logp_l": -push * mask_l}


def measure(run, splits, cfg):
    """Win rate against the starting policy; on a file's pairs, the implied reward's ranking."""
    return scorers.report_policy(run, splits, cfg.tau)


def train(run, cfg, label=by_reward):
    """DPO's loop with this loss."""
    return dpo.learn(run, cfg, StepPairs(run, cfg, label), partial(loss, tau=cfg.tau))


remark = dpo.remark
