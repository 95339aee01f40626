"""Reward model: Bradley-Terry on preferred pairs (survey sec. 3.1.1 and 3.2.3).

A score r(x, y) is read at the last real token of prompt and answer.  Whoever labels the pairs is
taken to prefer y_w to y_l with probability sigmoid(r_w - r_l) (Bradley & Terry 1952), hence with
D = r_w - r_l - margin

    L = -(1/B) sum log sigmoid(D) + c/B sum (r_w + r_l)^2           (arxiv.org/abs/2203.02155, eq. 1)

    dL/dr_w = (-sigmoid(-D) + 2c (r_w + r_l)) / B
    dL/dr_l = (+sigmoid(-D) + 2c (r_w + r_l)) / B

Pairs fix r only up to a number per prompt; the centring term c (arxiv.org/abs/2312.09244, sec. 3.1)
holds that near zero, and Run.score_by shifts and scales the score before any learner uses it.  A
margin (arxiv.org/abs/2307.09288, eq. 2) asks for more than a bare lead.

Where we differ from InstructGPT: pairs are drawn afresh at every step instead of going over one set,
so no label is used twice and nothing can be learnt by heart; --data FILE goes over the file's pairs.
"""

from dataclasses import dataclass

import torch

from minipost import preferences
from minipost.errors import require
from minipost.preferences import scorer
from minipost.rollout import final_score
from minipost.run import Meter, cosine

TASK = "wording"
METRIC = "pair accuracy"
PRODUCT = "reward model"


@dataclass(frozen=True)
class Config:
    """A reward model from pairs that a task's hidden reward, or a file, puts in order."""

    steps: int = 300            # gradient steps
    pairs: int = 64             # prompts with two answers each per step (B, less ties)
    temperature: float = 1.0    # sampling temperature of the answers (tau)
    margin: float = 0.0         # lead that the better answer should have
    center: float = 0.01        # weight of the pull of both scores to zero (c)
    lr: float = 1e-3            # peak learning rate (eta); it ends at zero
    warmup: int = 20            # steps over which the learning rate climbs to its peak
    max_grad_norm: float = 1.0  # the gradient is shortened to this norm

    def __post_init__(self):
        require(self, at_least=dict(steps=1, pairs=1, margin=0, center=0, lr=0, warmup=0),
                above=dict(temperature=0, max_grad_norm=0))


def loss(chosen, rejected, *, margin, center, count):
    """chosen, rejected (b,) scores; count = B  ->  scalar loss, metrics that add up"""
    lead = chosen - rejected
    value = (-torch.nn.functional.logsigmoid(lead - margin)
             + center * (chosen + rejected).square()).sum() / count
    return value, {"loss": value.detach(), "accuracy": ((lead > 0) + 0.5 * (lead == 0)).sum() / count,
                   "margin": lead.detach().sum() / count}


def loss_grad(chosen, rejected, *, margin, center, count):
    """The derivative of `loss`: {"chosen": (b,), "rejected": (b,)}."""
    push, pull = torch.sigmoid(margin - chosen + rejected), 2 * center * (chosen + rejected)
    return {"chosen": (pull - push) / count, "rejected": (pull + push) / count}


def measure(run, splits, cfg):
    """Held-out pair accuracy, calibration and best-of-n of the model as it is."""
    model = scorer(run).module
    return preferences.report(run, splits, lambda seqs: run.final_scores(model, seqs))


def train(run, cfg, label=preferences.by_reward, first=0):
    """answers -> labels -> pairs -> scores -> loss -> update.  Yields metrics per step.

    `first` is the run's step at which this begins, where other stages come before.
    """
    model = scorer(run)
    while True:
        pairs = preferences.draw_pairs(run, cfg.pairs, label, cfg.temperature)
        meter = Meter("loss", "accuracy", "margin")
        lengths = pairs.chosen.lengths + pairs.rejected.lengths
        for i in run.micro_batches(range(len(pairs)), lengths):
            part = pairs[i]
            value, stats = loss(final_score(model.module, part.chosen),
                                final_score(model.module, part.rejected),
                                margin=cfg.margin, center=cfg.center, count=len(pairs))
            value.backward()
            meter.add(**stats)
        rate = cosine(cfg.lr, run.step - first, cfg.steps, cfg.warmup)
        norm = model.step(rate, cfg.max_grad_norm) if len(pairs) else 0.0
        yield {**meter.means(), "pairs": len(pairs), "grad_norm": norm, "learning_rate": rate}
