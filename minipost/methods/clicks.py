"""Clicks: a reward model from what users do, not from what they say (survey sec. 3.1.2).

A user sees the G answers to a prompt in a list and looks at place k with the chance p_k = k^-eta.
What she looks at she may click, and a click counts where she stays.  So what stands high is clicked
often, good or not.  Counterfactual learning to rank (Joachims, Swaminathan & Schnabel 2016,
arxiv.org/abs/1608.04468) divides each click by the chance that its place was looked at, its
propensity:

    L = (1/B) sum over clicks i of  w_i sum_(j != i) log(1 + exp(s_j - s_i)),       w_i = 1 / p_k(i)

    dL/ds_i = (1/B) sum_(j != i) [ w_j sigmoid(s_i - s_j) - w_i sigmoid(s_j - s_i) ]

with w_i = 0 without a click.  In the mean over users w_i is the chance of a click that counts on
an answer that is looked at, wherever it stands; so the mean step is that on the answers' own worth.
`--correct none` takes w_i = 1: it learns the list's order too.

The list shows the policy's likeliest answers first.  The users are simulated (`browse`), by the
task's hidden reward: an answer attracts by the share of its siblings that it is better than, one
that attracts nobody is clicked in a tenth of the cases, and who clicks stays the longer the better
it is.  Clicks with less than `--dwell` seconds do not count.

Where we differ: the paper bounds the rank of a clicked answer by hinges, in an SVM; we bound it by
logistic losses.  Its propensities are estimated from swaps, ours are known.
"""

from dataclasses import dataclass
from math import exp
from typing import Literal

import torch
from torch.nn.functional import softplus

from minipost.errors import Descent, Schedule
from minipost.measure import scorers
from minipost.measure.meter import Meter
from minipost.ops import row_sums, shapes
from minipost.rollout import final_scores
from minipost.run import REWARD_MODEL

TASK = "wording"
METRIC = "pair accuracy"
LARGE_LR = 1e-5
SCORED = False
EXPORTS = {REWARD_MODEL: "model"}
TRACE = ("loss", "clicks", "top")
measure = scorers.measure
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="click_ranking", factor=1.0,
              learner=REWARD_MODEL)]
STRAY = 0.1             # chance of a click on an answer that attracts nobody
STAY = 10.0, 50.0       # mean seconds on such an answer, and how many more on the best


@dataclass(frozen=True)
class Config(Descent):
    """A reward model from clicks of simulated users on lists of answers."""

    steps: int = 250            # gradient steps
    prompts: int = 32           # lists per step (B), each to another prompt and user
    group_size: int = 4         # answers in a list (G)
    temperature: float = 1.0    # sampling temperature of the answers (tau)
    shown: Literal["likeliest", "random"] = "likeliest"  # first: the policy's likeliest, or any
    eta: float = 1.0            # how much less often each further place is looked at (eta)
    dwell: float = 30.0         # seconds that a user must stay for a click to count
    correct: Literal["propensity", "none"] = "propensity"  # what a click is divided by
    lr: float = 1e-3            # peak learning rate; it ends at zero
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 20      # steps over which the learning rate climbs to its peak
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2"}


@shapes(scores="B K", weights="B K")
def loss(scores, weights, *, count):
    """scores, weights (b, K), 0 where nobody clicked; count = B  ->  scalar loss, metrics"""
    behind = scores[:, None, :] - scores[:, :, None]                        # (b, i, j): s_j - s_i
    other = ~torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    value = (weights[:, :, None] * softplus(behind))[:, other].sum() / count
    return value, {"loss": value.detach()}


def loss_grad(scores, weights, *, count):
    """The derivative of `loss`: {"scores": (b, K)}."""
    # A term j = i would add w_i / 2 to both sums, which cancels.
    pushed = weights[:, :, None] * torch.sigmoid(scores[:, None, :] - scores[:, :, None])
    return {"scores": (pushed.sum(1) - pushed.sum(2)) / count}


# ---- the users

def attraction(reward):
    """The share of its siblings that an answer is better than; a tie is half.  (P, G) -> (P, G)"""
    lead = reward[:, :, None] - reward[:, None, :]
    better = (lead > 0).to(reward) + 0.5 * (lead == 0)                      # 0.5 of itself
    return (better.sum(2) - 0.5) / (reward.shape[1] - 1)


def places(rollout, cfg, rng):
    """Where each answer stands in its list, from 0 on.  (P, G)"""
    if cfg.shown == "likeliest":
        key = row_sums(rollout.logp, rollout.mask)
    else:
        key = torch.tensor([rng.random() for _ in range(len(rollout))])
    order = key.view(-1, cfg.group_size).argsort(dim=1, descending=True, stable=True)
    return order.argsort(1)


def propensity(place, eta):
    """The chance that a place is looked at.  (P, G) -> (P, G)"""
    return (1.0 + place).double() ** -eta


def weigh(clicked, place, cfg):
    """The weight of each click.  (P, G), (P, G) -> (P, G)"""
    return clicked / propensity(place, cfg.eta) if cfg.correct == "propensity" else clicked


def browse(run, reward, place, cfg):
    """One user goes through each list: the weight of every answer.  (P, G), (P, G) -> (P, G)"""
    rng, seen, attracts = run.rng("users"), propensity(place, cfg.eta), attraction(reward)
    clicked = torch.zeros(reward.shape, dtype=torch.float64)
    for p, g in torch.cartesian_prod(*map(torch.arange, reward.shape)).tolist():
        worth = float(attracts[p, g])
        if rng.random() < float(seen[p, g]) and rng.random() < STRAY + (1 - STRAY) * worth:
            clicked[p, g] = rng.expovariate(1 / (STAY[0] + STAY[1] * worth)) >= cfg.dwell
    return weigh(clicked, place.cpu(), cfg)


def chance(attracts, dwell):
    """That an answer which is looked at gets a click that counts."""
    return (STRAY + (1 - STRAY) * attracts) * exp(-dwell / (STAY[0] + STAY[1] * attracts))


def train(run, cfg, browse=browse):
    """answers -> lists -> clicks -> weights -> loss -> update.  Yields metrics per step."""
    model = scorers.scorer(run)
    while True:
        problems = run.problems(cfg.prompts)
        rollout = run.sample(problems, cfg.group_size, temperature=cfg.temperature,
                             purpose="lists")
        reward = run.grade(problems, rollout).view(-1, cfg.group_size)      # (P, G)
        place = places(rollout, cfg, run.rng("lists"))
        weights = browse(run, reward, place, cfg).to(reward)
        sides, meter = [rollout[k :: cfg.group_size] for k in range(cfg.group_size)], Meter("loss")
        for i in run.micro_batches(range(len(problems)), *sides):
            scores = final_scores(model.module, [side[i] for side in sides])
            value, stats = loss(scores, weights[i], count=len(problems))
            value.backward()
            meter.add(**stats)
        rate, clicked = cfg.rate(cfg.lr, run.step), weights > 0
        norm = model.step(rate, cfg.max_grad_norm, cfg.weight_decay) if clicked.any() else 0.0
        yield {**meter.means(), "clicks": float(clicked.sum()) / len(problems),
               "top": float((clicked & (place == 0)).sum()) / max(1, int(clicked.sum())),
               "grad_norm": norm, "learning_rate": rate}
