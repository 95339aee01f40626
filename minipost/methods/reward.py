"""Reward model: Bradley-Terry on preferred pairs (survey sec. 3.1.1 and 3.2.3).

A score r(x, y) is read at the last real token of prompt and answer.  The labeller is assumed to
prefer y_w to y_l with probability sigmoid(r_w - r_l) (Bradley & Terry 1952).  With
D = r_w - r_l - margin

    L = -(1/B) sum log sigmoid(D) + c/B sum (r_w + r_l)^2          (arxiv.org/abs/2203.02155, eq. 1)

    dL/dr_w = (-sigmoid(-D) + 2c (r_w + r_l)) / B
    dL/dr_l = (+sigmoid(-D) + 2c (r_w + r_l)) / B

Pairs determine r only up to a number per prompt.  The centring term c (arxiv.org/abs/2312.09244,
sec. 3.1) keeps that number near zero.  Run.score_by shifts and scales the score before any learner
uses it.  A margin (arxiv.org/abs/2307.09288, eq. 2) asks for more than a bare lead.

As in InstructGPT (sec. 3.5) a prompt has several answers.  Each is scored once, and all pairs of
the prompt are in one step.  Where we differ: every step samples new answers instead of going over
one set.  So no label is used twice, and nothing can be learnt by heart.  --data FILE goes over the
file's pairs.
"""

from dataclasses import dataclass

import torch

from minipost.datasets import preferences
from minipost.errors import Descent, Schedule
from minipost.measure import scorers
from minipost.measure.meter import Meter
from minipost.ops import shapes
from minipost.rollout import final_scores
from minipost.run import REWARD_MODEL

TASK = "wording"
METRIC = "pair accuracy"
LARGE_LR = 1e-5
SCORED = False
READS = ("chosen", "rejected")
EXPORTS = {REWARD_MODEL: "model"}
measure = scorers.measure
PROOF = [dict(config=dict(prompts=1, group_size=2, center=0.1), rows=2,
              loss="centred_bradley_terry", factor=1.0, learner=REWARD_MODEL)]


@dataclass(frozen=True)
class Config(Descent):
    """A reward model from pairs that a task's hidden reward, or a file, puts in order."""

    steps: int = 350            # gradient steps
    prompts: int = 32           # prompts per step
    group_size: int = 4         # answers to each; every two make a pair (B pairs, less ties)
    temperature: float = 1.0    # sampling temperature of the answers (tau)
    margin: float = 0.0         # lead that the better answer should have
    center: float = 0.001       # weight of the pull of both scores to zero (c)
    lr: float = 1e-3            # peak learning rate (eta); it ends at zero
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 20      # steps over which the learning rate climbs to its peak
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2"}


@shapes(score_w="B", score_l="B")
def loss(score_w, score_l, *, margin, center, count):
    """Scores of better (w) and worse (l); count = B  ->  scalar loss, metrics that add up"""
    lead = score_w - score_l
    value = (-torch.nn.functional.logsigmoid(lead - margin)
             + center * (score_w + score_l).square()).sum() / count
    return value, {"loss": value.detach(),
                   "accuracy": ((lead > 0).to(lead) + 0.5 * (lead == 0)).sum() / count,
                   "margin": lead.detach().sum() / count}


def loss_grad(score_w, score_l, *, margin, center, count):
    """The derivative of `loss`: {"score_w": (b,), "score_l": (b,)}."""
    push, pull = torch.sigmoid(margin - score_w + score_l), 2 * center * (score_w + score_l)
    return {"score_w": (pull - push) / count, "score_l": (pull + push) / count}


def train(run, cfg, label=preferences.by_reward, first=0, mix=None):
    """answers -> labels of every two -> scores -> loss -> update.  Yields metrics per step.

    `first`: the step of the run at which this begins, where other stages come before.
    mix(places, wins) -> what the step learns from, such as older comparisons beside these.
    """
    model = scorers.scorer(run)
    while True:
        places, wins = preferences.draw_comparisons(run, cfg.prompts, cfg.group_size, label,
                                                    cfg.temperature)
        if mix:
            places, wins = mix(places, wins)
        pairs, meter = int(wins.sum()), Meter("loss", "accuracy", "margin")
        for i in run.micro_batches(range(len(wins)), *places):
            scores = final_scores(model.module, [place[i] for place in places])
            p, better, worse = wins[i].nonzero(as_tuple=True)               # (b,) each
            value, stats = loss(scores[p, better], scores[p, worse], margin=cfg.margin,
                                center=cfg.center, count=max(1, pairs))
            value.backward()
            meter.add(**stats)
        rate = cfg.rate(cfg.lr, run.step - first)
        norm = model.step(rate, cfg.max_grad_norm, cfg.weight_decay) if pairs else 0.0
        yield {**meter.means(), "pairs": pairs, "grad_norm": norm, "learning_rate": rate}
