"""SimPO: Simple Preference Optimization (Meng et al. 2024, arxiv.org/abs/2405.14734).

DPO's implied reward is a sum of log-ratios to a reference.  But answers are sampled by the policy's
own log-probs, token by token.  SimPO takes the mean of those as the reward, so length does not
count and no reference is needed.  With l = (1/|y|) sum_t log pi(y_t)

    u = beta (l_w - l_l) - gamma,    L = -(1/B) sum log sigmoid(u)                   (eq. 6)

    dL/dlogp_t = -beta sigmoid(-u) / (|y_w| B) on the chosen answer,
                 +beta sigmoid(-u) / (|y_l| B) on the rejected

Only few steps and a low learning rate hold the policy near where it began.
"""

from dataclasses import dataclass
from functools import partial

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
PROOF = [dict(config=dict(pairs=1, beta=2.0, gamma=1.0), rows=2, loss="simpo_loss", factor=1.0)]


@dataclass(frozen=True)
class Config(Descent):
    """Preference optimisation without a reference."""

    steps: int = 150            # gradient steps
    pairs: int = 64             # prompts with two answers each per step (B, less ties)
    temperature: float = 1.0    # sampling temperature of the answers
    beta: float = 10.0          # what a nat per token is worth (beta)
    gamma: float = 3.0          # lead that the chosen answer should have (gamma)
    likeliest: float = 1.0      # share of the pairs kept, those whose chosen answer is likeliest
    lr: float = 2e-5            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"beta": "> 0", "likeliest": "> 0, <= 1"}


@shapes(logp_w="B T", logp_l="B S", mask_w="B T", mask_l="B S")
def loss(logp_w, logp_l, mask_w, mask_l, *, beta, gamma, count):
    """Log-probs and masks of chosen (w) and rejected (l) answers; count = B

    ->  scalar loss, metrics that add up
    """
    lead = beta * (row_means(logp_w, mask_w) - row_means(logp_l, mask_l))
    value = -torch.nn.functional.logsigmoid(lead - gamma).sum() / count
    return value, {"loss": value.detach(), **dpo.margins(lead, count)}


def loss_grad(logp_w, logp_l, mask_w, mask_l, *, beta, gamma, count):
    """The derivative of `loss`: {"logp_w": (b, T), "logp_l": (b, S)}."""
    lead = beta * (row_means(logp_w, mask_w) - row_means(logp_l, mask_l))
    push = beta * torch.sigmoid(gamma - lead)[:, None] / count              # (b, 1)
    return {"logp_w": -push * mask_w / mask_w.sum(1, keepdim=True),
            "logp_l": push * mask_l / mask_l.sum(1, keepdim=True)}


def measure(run, splits, cfg):
    """Win rate against the starting policy; on a file's pairs, how mean log-probs rank them."""
    return scorers.report_policy(run, splits, None)


def train(run, cfg, label=by_reward):
    """DPO's loop with this loss and without a reference."""
    data = StepPairs(run, cfg, label, reference=False)
    return dpo.learn(run, cfg, data, partial(loss, beta=cfg.beta, gamma=cfg.gamma))
