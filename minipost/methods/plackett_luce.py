"""Plackett-Luce reward model: rankings of K answers instead of pairs (survey sec. 3.1-II).

The ranker is assumed to pick the best answer, then the best of the rest, and so on.  It picks each
with a probability proportional to exp(score) among those left (Luce 1959; Plackett 1975).  With
s_1 .. s_K the scores of one prompt's answers from best to worst

    L = -(1/B) sum over rankings  sum_k [ s_k - log sum_(j>=k) exp s_j ]            k = 1 .. K-1

    dL/ds_j = ( sum_(k<=j) exp s_j / sum_(i>=k) exp s_i  -  1 ) / B                 k = 1 .. K

The term k = K is zero in both, because one answer is left.  With K = 2 this is Bradley-Terry
(methods/reward.py).  A ranking fixes the scores up to one number per prompt, as pairs do.

Answers of equal reward are ranked at random.  A prompt whose answers all tie is left out.  A task's
`noise` reverses whole rankings.  --data FILE goes over the file's pairs, which are rankings of two.
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
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="bradley_terry", factor=1.0,
              learner=REWARD_MODEL)]


@dataclass(frozen=True)
class Config(Descent):
    """A reward model from rankings of several answers to a prompt."""

    steps: int = 200            # gradient steps
    prompts: int = 32           # prompts per step (B, less those whose answers all tie)
    group_size: int = 4         # answers to each prompt that are ranked (K), at least 2
    temperature: float = 1.0    # sampling temperature of the answers (tau)
    lr: float = 1e-3            # peak learning rate (eta); it ends at zero
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 20      # steps over which the learning rate climbs to its peak
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2"}


def left(scores):
    """log sum exp of each place's score and those ranked below it.  (b, K) -> (b, K)"""
    above = torch.ones(scores.shape[1], scores.shape[1], device=scores.device).tril(-1).bool()
    return torch.where(above, -torch.inf, scores[:, None, :]).logsumexp(2)


@shapes(scores="B K")
def loss(scores, *, count):
    """scores (b, K), the best answer first; count = B  ->  scalar loss, metrics that add up"""
    value = (left(scores) - scores).sum() / count
    lead = scores[:, :, None] - scores[:, None, :]                          # (b, K, K)
    upper = torch.ones(lead.shape[1:], dtype=torch.bool, device=lead.device).triu(1)
    ordered = (lead > 0).to(scores) + 0.5 * (lead == 0)
    return value, {"loss": value.detach(), "accuracy": ordered[:, upper].mean(1).sum() / count}


def loss_grad(scores, *, count):
    """The derivative of `loss`: {"scores": (b, K)}."""
    chance = (scores[:, None, :] - left(scores)[:, :, None]).exp()          # (b, k, j)
    return {"scores": (chance.triu().sum(1) - 1) / count}


def rank(reward, rng, noise=0.0):
    """Each prompt's answers from best to worst, None where all tie.  (P, K) -> P lists of K"""
    found = []
    for values in reward.tolist():
        sign = -1 if rng.random() < noise else 1
        order = sorted(range(len(values)), key=lambda k: (-sign * values[k], rng.random()))
        found.append(order if max(values) > min(values) else None)
    return found


def draw_rankings(run, cfg):
    """This step's rankings as K Sequences: the first holds the best answer to every prompt."""
    problems, pairs = preferences.step_pairs(run, cfg.prompts)
    if pairs is not None:
        return [pairs.chosen, pairs.rejected]
    rollout = run.sample(problems, cfg.group_size, temperature=cfg.temperature, purpose="rankings")
    reward = run.grade(problems, rollout).view(-1, cfg.group_size)
    orders = rank(reward, run.rng("ranks"), run.task.noise)
    rows = [[p * cfg.group_size + k for k in order] for p, order in enumerate(orders) if order]
    order = torch.tensor(rows, dtype=torch.long, device=reward.device).view(-1, cfg.group_size)
    return [rollout[place] for place in order.unbind(1)]


def train(run, cfg):
    """answers -> rankings -> scores -> loss -> update.  Yields metrics per step."""
    model = scorers.scorer(run)
    while True:
        places = draw_rankings(run, cfg)
        count, meter = len(places[0]), Meter("loss", "accuracy")
        for i in run.micro_batches(range(count), *places):
            scores = final_scores(model.module, [place[i] for place in places])
            value, stats = loss(scores, count=count)                        # (b, K)
            value.backward()
            meter.add(**stats)
        rate = cfg.rate(cfg.lr, run.step)
        norm = model.step(rate, cfg.max_grad_norm, cfg.weight_decay) if count else 0.0
        yield {**meter.means(), "rankings": count, "grad_norm": norm, "learning_rate": rate}
