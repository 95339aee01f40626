"""SimPO: Simple Preference Optimization (Meng et al. 2024, arxiv.org/abs/2405.14734).

DPO's implied reward is a sum of log-ratios to a reference, while answers are sampled by the policy's
own log-probs, token by token.  SimPO takes those for the reward, as a mean so that length does not
count, and needs no reference.  With l = (1/|y|) sum_t log pi(y_t)

    u = beta (l_w - l_l) - gamma,    L = -(1/B) sum log sigmoid(u)                   (eq. 6)

    dL/dlogp_t = -beta sigmoid(-u) / (|y_w| B) on the chosen answer,
                 +beta sigmoid(-u) / (|y_l| B) on the rejected

Nothing here holds the policy near where it began but few steps and a low learning rate.
"""

from dataclasses import dataclass

import torch

from minipost import pairwise, preferences
from minipost.errors import require
from minipost.pairwise import row_means

TASK = "wording"
METRIC = "win rate"


@dataclass(frozen=True)
class Config:
    """Preference optimisation without a reference."""

    steps: int = 150            # gradient steps
    pairs: int = 64             # prompts with two answers each per step (B, less ties)
    temperature: float = 1.0    # sampling temperature of the answers
    beta: float = 10.0          # what a nat per token is worth (beta)
    gamma: float = 3.0          # lead that the chosen answer should have (gamma)
    likeliest: float = 1.0      # share of the pairs kept, those whose chosen answer is likeliest
    lr: float = 2e-5            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is shortened to this norm

    def __post_init__(self):
        require(self, at_least=dict(steps=1, pairs=1, gamma=0, lr=0),
                above=dict(temperature=0, beta=0, likeliest=0, max_grad_norm=0),
                at_most=dict(likeliest=1))


def loss(chosen, rejected, chosen_mask, rejected_mask, *, beta, gamma, count):
    """Log-probs and masks (b, T), of two widths; count = B  ->  scalar loss, metrics that add up"""
    lead = beta * (row_means(chosen, chosen_mask) - row_means(rejected, rejected_mask))
    value = -torch.nn.functional.logsigmoid(lead - gamma).sum() / count
    return value, {"loss": value.detach(), **pairwise.margins(lead, count)}


def loss_grad(chosen, rejected, chosen_mask, rejected_mask, *, beta, gamma, count):
    """The derivative of `loss`: {"chosen": (b, T), "rejected": (b, T)}."""
    lead = beta * (row_means(chosen, chosen_mask) - row_means(rejected, rejected_mask))
    push = beta * torch.sigmoid(gamma - lead)[:, None] / count              # (b, 1)
    return {"chosen": -push * chosen_mask / chosen_mask.sum(1, keepdim=True),
            "rejected": push * rejected_mask / rejected_mask.sum(1, keepdim=True)}


def measure(run, splits, cfg):
    """Win rate against the starting policy; on a file's pairs, how mean log-probs rank them."""
    return pairwise.report_policy(run, splits, None)


def train(run, cfg, label=preferences.by_reward):
    """pairs -> log-probs of the policy -> loss -> update.  Yields metrics per step."""
    return pairwise.learn_pairs(
        run, cfg, lambda *xs, count: loss(*xs, beta=cfg.beta, gamma=cfg.gamma, count=count), label)


remark = pairwise.remark
