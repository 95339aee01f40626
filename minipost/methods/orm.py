"""ORM: an outcome reward model, which says how likely an answer is right (survey sec. 3.1.3).

A score s(x, y) is read at the last real token of prompt and answer, and sigmoid(s) is the chance
that the answer is right (Cobbe et al. 2021, arxiv.org/abs/2110.14168, sec. 4.2).  With y = 1 for a
right answer and 0 for a wrong one, the loss is the binary cross-entropy

    L = (1/B) sum [ log(1 + exp s) - y s ]

    dL/ds = (sigmoid(s) - y) / B

Unlike scores from pairs, these have a zero of their own.  If exactly one of two answers is right,
it is the first with chance sigmoid(s_1 - s_2).  So pair accuracy and calibration mean the same as
for scores from pairs.

One number per answer says little about where the answer went wrong.  In countdown the last line
shows whether the target was met, and the model judges answers after a minute.  In six-term sums any
step may be the wrong one, and a minute is not enough.  methods/prm.py is told of every step and
judges those in less.

Where we differ from the paper: the score stands on the last token alone, not on every one.  There
is no language-model loss beside it.  Every step samples new answers, so none is seen twice.
"""

from dataclasses import dataclass

import torch

from minipost.errors import Descent, MinipostError, Schedule
from minipost.measure import scorers
from minipost.measure.meter import Meter
from minipost.ops import shapes
from minipost.rollout import final_score
from minipost.run import REWARD_MODEL

TASK = "countdown"
METRIC = "pair accuracy"
LARGE_LR = 1e-5
SCORED = False
EXPORTS = {REWARD_MODEL: "model"}
measure = scorers.measure
PROOF = [dict(config=dict(prompts=1, group_size=1), rows=1, loss="outcome_entropy", factor=1.0,
              learner=REWARD_MODEL)]


@dataclass(frozen=True)
class Config(Descent):
    """A verifier of whole answers, from samples that a task's reward calls right or wrong."""

    steps: int = 160            # gradient steps
    prompts: int = 32           # prompts per step
    group_size: int = 4         # answers to each prompt (B = prompts * group_size)
    temperature: float = 1.3    # sampling temperature of the answers (tau)
    lr: float = 5e-4            # peak learning rate (eta); it ends at zero
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 20      # steps over which the learning rate climbs to its peak
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm


@shapes(score="B", right="B")
def loss(score, right, *, count):
    """score, right (b,), right within 0..1; count = B  ->  scalar loss, metrics that add up"""
    value = -(torch.nn.functional.logsigmoid(-score) + right * score).sum() / count
    hit = ((score > 0) == (right > 0.5)).to(score)
    return value, {"loss": value.detach(), "accuracy": hit.where(score != 0, 0.5).sum() / count}


def loss_grad(score, right, *, count):
    """The derivative of `loss`: {"score": (b,)}."""
    return {"score": (torch.sigmoid(score) - right) / count}


def outcomes(run, problems, rollout):
    """The reward of every row, which must be a chance that it is right.  (B,)"""
    right = run.grade(problems, rollout)
    odd = right[(right < 0) | (right > 1)]
    if len(odd):
        raise MinipostError(f"the reward of an answer is {float(odd[0]):g}; an outcome reward "
                            "model needs rewards within 0..1, wrong to right")
    return right


def train(run, cfg):
    """answers -> outcomes -> scores -> loss -> update.  Yields metrics per step."""
    model = scorers.scorer(run)
    while True:
        problems = run.problems(cfg.prompts)
        rollout = run.sample(problems, cfg.group_size, temperature=cfg.temperature)
        right = outcomes(run, problems, rollout)                            # (B,)
        meter = Meter("loss", "accuracy")
        for i in run.micro_batches(range(len(rollout)), rollout):
            value, stats = loss(final_score(model.module, rollout[i]), right[i],
                                count=len(rollout))
            value.backward()
            meter.add(**stats)
        rate = cfg.rate(cfg.lr, run.step)
        norm = model.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), "right": float(right.mean()), "grad_norm": norm,
               "learning_rate": rate}
