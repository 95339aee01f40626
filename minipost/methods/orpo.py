"""ORPO: Odds Ratio Preference Optimization (Hong et al. 2024, arxiv.org/abs/2403.07691).

Fine-tuning on chosen answers also makes rejected ones likelier, because they look alike.  ORPO adds
to that loss a term on the odds of the two (survey sec. 3.2.1).  So it needs neither an earlier
stage nor a reference.  With l = (1/|y|) sum_t log pi(y_t), P = exp(l) and
log odds(P) = l - log(1 - P)

    D = log odds(P_w) - log odds(P_l)
    L = -(1/B) sum [ l_w + lam log sigmoid(D) ]                                  (eqs. 6 and 7)

    dL/dl_w = -(1 + lam sigmoid(-D) / (1 - P_w)) / B,    dL/dl_l = +lam sigmoid(-D) / ((1 - P_l) B)
    dL/dlogp_t = dL/dl / |y|

Where l is near 0, log(1 - exp l) is computed by expm1.  At the character level some answers are
nearly certain, and log1p(-exp l) would be -inf there.  An answer of probability exactly 1 has
infinite odds, so l is clamped to at most -1e-6.  The likelihood is of the answer alone; the
authors' code includes the prompt.
"""

from dataclasses import dataclass
from functools import partial
from math import log

import torch

from minipost.datasets.preferences import StepPairs, by_reward
from minipost.errors import Descent
from minipost.measure import scorers
from minipost.methods import dpo
from minipost.ops import row_means, shapes

TASK = "wording"
METRIC = "win rate"
SCORED = False
READS = ("chosen", "rejected")
LARGE = {"lam": 0.1}       # as its paper has it; the default below suits the nano model
CERTAIN = -1e-6  # a mean log-prob above this counts as this
PROOF = [dict(config=dict(pairs=1), rows=2, loss="orpo_loss", factor=1.0)]


@dataclass(frozen=True)
class Config(Descent):
    """Fine-tuning on chosen answers with a penalty on the odds of rejected ones."""

    steps: int = 150            # gradient steps
    pairs: int = 64             # prompts with two answers each per step (B, less ties)
    temperature: float = 1.0    # sampling temperature of the answers
    lam: float = 3.0            # weight of the odds ratio (lambda)
    likeliest: float = 1.0      # share of the pairs kept, those whose chosen answer is likeliest
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"likeliest": "> 0, <= 1"}


def log_odds(mean):
    """log P - log(1 - P) of P = exp(mean), mean < 0.  (b,) -> (b,)"""
    mean = mean.clamp(max=CERTAIN)
    near = mean > -log(2)
    # Each branch sees only arguments at which it and its derivative are finite.
    small = torch.log(-torch.expm1(mean.where(near, -0.1)))
    large = torch.log1p(-torch.exp(mean.where(~near, -1.0)))
    return mean - small.where(near, large)


@shapes(logp_w="B T", logp_l="B S", mask_w="B T", mask_l="B S")
def loss(logp_w, logp_l, mask_w, mask_l, *, lam, count):
    """Log-probs and masks of chosen (w) and rejected (l) answers; count = B

    ->  scalar loss, metrics that add up
    """
    l_w, l_l = row_means(logp_w, mask_w), row_means(logp_l, mask_l)
    lead = log_odds(l_w) - log_odds(l_l)
    value = -(l_w + lam * torch.nn.functional.logsigmoid(lead)).sum() / count
    return value, {"loss": value.detach(), **dpo.margins(lead, count)}


def loss_grad(logp_w, logp_l, mask_w, mask_l, *, lam, count):
    """The derivative of `loss`: {"logp_w": (b, T), "logp_l": (b, S)}."""
    l_w, l_l = row_means(logp_w, mask_w), row_means(logp_l, mask_l)
    push = lam * torch.sigmoid(log_odds(l_l) - log_odds(l_w)) / count       # (b,)
    g_w = -1 / count - (push / -torch.expm1(l_w)).where(l_w < CERTAIN, 0.0)
    g_l = (push / -torch.expm1(l_l)).where(l_l < CERTAIN, 0.0)
    return {"logp_w": g_w[:, None] * mask_w / mask_w.sum(1, keepdim=True),
            "logp_l": g_l[:, None] * mask_l / mask_l.sum(1, keepdim=True)}


def measure(run, splits, cfg):
    """Win rate against the starting policy; on a file's pairs, how mean log-probs rank them."""
    return scorers.report_policy(run, splits, None)


def train(run, cfg, label=by_reward):
    """DPO's loop with this loss and without a reference."""
    data = StepPairs(run, cfg, label, reference=False)
    return dpo.learn(run, cfg, data, partial(loss, lam=cfg.lam))
