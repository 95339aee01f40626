"""DPO: Direct Preference Optimization (Rafailov et al. 2023, arxiv.org/abs/2305.18290; survey 3.2.6).

The policy that maximises a reward less beta KL(pi || ref) is pi* ~ ref exp(r / beta), so a reward can
be read off a policy, r = beta log pi/ref plus a number per prompt (eq. 5), and Bradley-Terry on that
reward needs no reward model and no sampling while it learns.  With h = sum_t log pi/ref of an answer

    L = -(1/B) sum log sigmoid(u),    u = beta (h_w - h_l)                             (eq. 7)

    dL/dlogp_t = -beta sigmoid(-u) / B on the chosen answer, +beta sigmoid(-u) / B on the rejected

Where a share e of the labels is wrong (`--flip e`), the loss of a pair, l(u) = -log sigmoid(u), becomes

    cDPO     (1-e) l(u) + e l(-u)                 least at u = log((1-e)/e), so certainty is capped
    robust   ((1-e) l(u) - e l(-u)) / (1-2e)      its mean over flipped labels is l(u) on true ones
                                                  (Chowdhury et al. 2024, arxiv.org/abs/2403.00409, eq. 11)

    cDPO     dL/du = -((1-e) sigmoid(-u) - e sigmoid(u)) / B
    robust   dL/du = -((1-e) sigmoid(-u) + e sigmoid(u)) / ((1-2e) B)

Watch `logps/chosen` and `drift/chosen`, its distance from the reference: the loss asks only for a
growing gap, and both answers may fall.  With the usual beta of 0.1 they do so here until answers are no
words any more; a beta of 1 keeps them.  `--likeliest 0.95` drops the pairs whose chosen answer has the
highest perplexity under the reference, as off its distribution (survey sec. 3.2.6).

Where we differ from the paper: unless --data has pairs, they are sampled from the starting policy at
every step and labelled by the task's reward, so none is used twice.
"""

from dataclasses import dataclass

import torch

from minipost import pairwise, preferences
from minipost.errors import require
from minipost.pairwise import row_sums

TASK = "wording"
METRIC = "win rate"


@dataclass(frozen=True)
class Config:
    """Direct preference optimisation on pairs that a task's reward, or a file, puts in order."""

    steps: int = 150            # gradient steps
    pairs: int = 64             # prompts with two answers each per step (B, less ties)
    temperature: float = 1.0    # sampling temperature of the answers (tau)
    beta: float = 1.0           # how closely the policy stays by the reference (beta)
    flip: float = 0.0           # share of the labels taken to be wrong (e), below 0.5
    robust: bool = False        # with flip: undo the flips on average instead of smoothing (cDPO)
    likeliest: float = 1.0      # share of the pairs kept, those whose chosen answer is likeliest
    lr: float = 5e-5            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is shortened to this norm

    def __post_init__(self):
        require(self, at_least=dict(steps=1, pairs=1, flip=0, lr=0),
                above=dict(temperature=0, beta=0, likeliest=0, max_grad_norm=0),
                at_most=dict(flip=0.49, likeliest=1))


def lead(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask, beta):
    """u of each pair.  (b,)"""
    return beta * (row_sums(chosen - chosen_ref, chosen_mask)
                   - row_sums(rejected - rejected_ref, rejected_mask))


def loss(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask, *, beta,
         flip=0.0, robust=False, count):
    """Log-probs and masks (b, T), of two widths; count = B  ->  scalar loss, metrics that add up"""
    u = lead(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask, beta)
    right, wrong = (-torch.nn.functional.logsigmoid(sign * u).sum() / count for sign in (1, -1))
    value = (1 - flip) * right + (-flip if robust else flip) * wrong
    if robust:
        value = value / (1 - 2 * flip)
    return value, {"loss": value.detach(), **pairwise.margins(u, count)}


def loss_grad(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask, *, beta,
              flip=0.0, robust=False, count):
    """The derivative of `loss`: {"chosen": (b, T), "rejected": (b, T)}."""
    u = lead(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask, beta)
    slope = (1 - flip) * torch.sigmoid(-u) + (flip if robust else -flip) * torch.sigmoid(u)
    push = beta * slope[:, None] / (count * (1 - 2 * flip if robust else 1))    # (b, 1)
    return {"chosen": -push * chosen_mask, "rejected": push * rejected_mask}


def measure(run, splits, cfg):
    """Win rate against the starting policy; on a file's pairs, how the implied reward ranks them."""
    return pairwise.report_policy(run, splits, cfg.beta)


def train(run, cfg, label=preferences.by_reward):
    """pairs -> log-probs of policy and reference -> loss -> update.  Yields metrics per step."""
    return pairwise.learn_pairs(
        run, cfg, lambda *xs, count: loss(*xs, beta=cfg.beta, flip=cfg.flip, robust=cfg.robust,
                                          count=count), label, scale=cfg.beta)


remark = pairwise.remark
