"""Clicks: a reward model from what users do, not from what they say (survey sec. 3.1.2).

Users see the G answers to a prompt in a list and look at place k with the chance p_k = k^-eta.
What they look at they may click, and a click counts where they stay.  So what stands high is
clicked often, good or not.  Counterfactual learning to rank (Joachims, Swaminathan & Schnabel 2016,
arxiv.org/abs/1608.04468) divides each click by the chance that its place was looked at, its
propensity:

    L = (1/B) sum over clicks i of  w_i sum_(j != i) log(1 + exp(s_j - s_i)),       w_i = 1 / p_k(i)

    dL/ds_i = (1/B) sum_(j != i) [ w_j sigmoid(s_i - s_j) - w_i sigmoid(s_j - s_i) ]

summed over the users of a list and divided by their number.  In the mean a weight is the chance of
a click that counts on an answer that is looked at, wherever it stands; so the mean step is that on
the answers' own worth.
`--correct none` takes w_i = 1: it learns the list's order too.

The list shows the policy's likeliest answers first.  The users are simulated (`browse`), by the
task's hidden reward: an answer attracts by the share of its siblings that it is better than, one
that attracts nobody is clicked in a tenth of the cases, and who clicks stays the longer the better
it is.  Clicks with less than `--dwell` seconds do not count.

Where we differ: the paper bounds the rank of a clicked answer by hinges, in an SVM; here logistic
losses stand in their place.  Its propensities are estimated from swaps, ours are known.
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
COMPARES = True
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
    prompts: int = 32           # lists per step (B), each of answers to another prompt
    group_size: int = 4         # answers in a list (G)
    users: int = 32             # users who see each list
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
    """scores, weights (b, K), 0 where nobody clicks; count = B  ->  scalar loss, metrics"""
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
    """The weights of answers, from the share of users who clicked.  (P, G), (P, G) -> (P, G)"""
    return clicked / propensity(place, cfg.eta) if cfg.correct == "propensity" else clicked


def browse(run, reward, place, cfg):
    """The share of users whose click on an answer counts.  (P, G), (P, G) -> (P, G)"""
    rng, clicked = run.rng("users"), torch.zeros(reward.shape, dtype=torch.float64)
    seen, attracts = propensity(place, cfg.eta).tolist(), attraction(reward).tolist()
    for p, g in torch.cartesian_prod(*map(torch.arange, reward.shape)).tolist():
        worth = attracts[p][g]
        for _ in range(cfg.users):
            if rng.random() < seen[p][g] and rng.random() < STRAY + (1 - STRAY) * worth and \
                    rng.expovariate(1 / (STAY[0] + STAY[1] * worth)) >= cfg.dwell:
                clicked[p, g] += 1 / cfg.users
    return clicked


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
        clicked = browse(run, reward, place.cpu(), cfg)                     # (P, G)
        weights = weigh(clicked, place.cpu(), cfg).to(reward)
        sides, meter = [rollout[k :: cfg.group_size] for k in range(cfg.group_size)], Meter("loss")
        for i in run.micro_batches(range(len(problems)), *sides):
            scores = final_scores(model.module, [side[i] for side in sides])
            value, stats = loss(scores, weights[i], count=len(problems))
            value.backward()
            meter.add(**stats)
        rate, clicks = cfg.rate(cfg.lr, run.step), float(clicked.sum())
        norm = model.step(rate, cfg.max_grad_norm, cfg.weight_decay) if clicks else 0.0
        yield {**meter.means(), "clicks": clicks / len(problems),
               "top": float(clicked[place.cpu() == 0].sum()) / clicks if clicks else 0.0,
               "grad_norm": norm, "learning_rate": rate}
