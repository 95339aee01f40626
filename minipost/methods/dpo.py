"""DPO: Direct Preference Optimization (Rafailov et al. 2023, arxiv.org/abs/2305.18290).

The policy that maximises a reward less beta KL(pi || ref) is pi* ~ ref exp(r / beta), so a reward can
be read off a policy, r = beta log pi/ref plus a number per prompt (eq. 5), and Bradley-Terry on that
reward needs no reward model and no sampling while it learns.  With h = sum_t log pi/ref of an answer

    L = -(1/B) sum log sigmoid(u),    u = beta (h_w - h_l)                             (eq. 7)

    dL/dlogp_t = -beta sigmoid(-u) / B on the chosen answer, +beta sigmoid(-u) / B on the rejected

Watch `logps/chosen`: the loss asks only for a growing gap, and both may fall.  With the usual beta of
0.1 they do so here until answers are no words any more; a beta of 1 keeps them.

Where we differ from the paper: unless --data has pairs, they are sampled from the starting policy at
every step and labelled by the task's reward, so none is used twice.
"""

from dataclasses import dataclass

import torch

from minipost import preferences
from minipost.errors import require
from minipost.ops import masked_sum
from minipost.rollout import logprobs
from minipost.run import Meter

TASK = "wording"
METRIC = "sampled"


@dataclass(frozen=True)
class Config:
    """Direct preference optimisation on pairs that a task's reward, or a file, puts in order."""

    steps: int = 150            # gradient steps
    pairs: int = 64             # prompts with two answers each per step (B, less ties)
    temperature: float = 1.0    # sampling temperature of the answers (tau)
    beta: float = 1.0           # how closely the policy stays by the reference (beta)
    lr: float = 5e-5            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is shortened to this norm

    def __post_init__(self):
        require(self, at_least=dict(steps=1, pairs=1, lr=0),
                above=dict(temperature=0, beta=0, max_grad_norm=0))


def row_sums(x, mask):
    """Sum over each row's chosen tokens.  (B, T) -> (B,)"""
    return x.where(mask, 0.0).sum(1)


def loss(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask, *, beta, count):
    """Log-probs and masks (b, T), of two widths; count = B  ->  scalar loss, metrics that add up"""
    h_w = row_sums(chosen - chosen_ref, chosen_mask)                        # (b,)
    h_l = row_sums(rejected - rejected_ref, rejected_mask)
    u = beta * (h_w - h_l)
    value = -torch.nn.functional.logsigmoid(u).sum() / count
    return value, {
        "loss": value.detach(), "rewards/margins": u.detach().sum() / count,
        "rewards/accuracies": ((u > 0) + 0.5 * (u == 0)).sum() / count,
        "logps/chosen": masked_sum(chosen.detach(), chosen_mask) / count,
        "logps/rejected": masked_sum(rejected.detach(), rejected_mask) / count,
    }


def loss_grad(chosen, rejected, chosen_ref, rejected_ref, chosen_mask, rejected_mask, *, beta,
              count):
    """The derivative of `loss`: {"chosen": (b, T), "rejected": (b, T)}."""
    u = beta * (row_sums(chosen - chosen_ref, chosen_mask)
                - row_sums(rejected - rejected_ref, rejected_mask))
    push = beta * torch.sigmoid(-u)[:, None] / count                        # (b, 1)
    return {"chosen": -push * chosen_mask, "rejected": push * rejected_mask}


def measure(run, splits, cfg):
    """On a file's pairs, how well the reward that the policy implies ranks them; else None."""
    if not all("chosen" in problems[0].columns for problems in splits.values()):
        return None
    policy, reference = run.policy.module, run.reference()

    def gap(batch):
        return [logprobs(policy, batch) - logprobs(reference, batch)]       # (b, T)

    def implied(seqs):
        found, = run.for_all(gap, seqs)
        return cfg.beta * row_sums(found, seqs.mask)

    return preferences.report(run, splits, implied)


def train(run, cfg, label=preferences.by_reward):
    """answers of the reference -> labels -> pairs -> log-probs -> loss -> update."""
    policy, reference = run.policy, run.reference()
    while True:
        pairs = preferences.draw_pairs(run, cfg.pairs, label, cfg.temperature, reference)
        meter = Meter("loss", "rewards/margins", "rewards/accuracies", "logps/chosen",
                      "logps/rejected")
        lengths = pairs.chosen.lengths + pairs.rejected.lengths
        for i in run.micro_batches(range(len(pairs)), lengths):
            sides = pairs[i].chosen, pairs[i].rejected
            with torch.no_grad():
                ref = [logprobs(reference, side) for side in sides]
            value, stats = loss(*(logprobs(policy.module, side) for side in sides), *ref,
                                *(side.mask for side in sides), beta=cfg.beta, count=len(pairs))
            value.backward()
            meter.add(**stats)
        norm = policy.step(cfg.lr, cfg.max_grad_norm) if len(pairs) else 0.0
        yield {**meter.means(), "pairs": len(pairs), "grad_norm": norm, "learning_rate": cfg.lr}
