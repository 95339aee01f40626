"""Formulas of the survey that are not the method as printed, and ours beside them: see errata.md.

The survey is arXiv:2502.21321, version 2.  Each test states what the method's own paper proves or wants,
shows that the printed formula breaks it by more than rounding, and that the function that we ship keeps it.
"""

import itertools
import math

import torch
from hypothesis import given, settings, strategies as st
from test_oreo import levels, tree
from torch.func import jacrev

from minipost.methods import dpo, oreo, orpo, plackett_luce, ppo
from minipost.proof.estimates import split
from minipost.proof.oracle import World, mean_reward

settings.register_profile("minipost", deadline=None, max_examples=25)
settings.load_profile("minipost")

seeds = st.integers(0, 10_000)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- 3.2.6, DPO: L = E[ sigmoid(beta h_w - beta h_l) ], without -log

@given(seeds)
def test_the_printed_dpo_loss_prefers_the_loser_and_ours_the_winner(seed):
    """Descending it should raise the chosen answer and lower the rejected one."""
    logp = -randn(seed, 2, 3, 4).abs()                      # chosen and rejected
    logp_ref, mask = -randn(seed + 1, 2, 3, 4).abs(), torch.ones(3, 4, dtype=torch.bool)

    def printed(x):
        return torch.sigmoid(0.4 * ((x - logp_ref).sum(2)[0] - (x - logp_ref).sum(2)[1])).mean()

    def ours(x):
        return dpo.loss(x[0], x[1], *logp_ref, mask, mask, beta=0.4, count=3)[0]

    theirs, mine = (-jacrev(f)(logp) for f in (printed, ours))              # where a step goes
    assert (theirs[0] < 0).all() and (theirs[1] > 0).all()
    assert (mine[0] > 0).all() and (mine[1] < 0).all()


# ---- 3.2.1, ORPO: log sigmoid(log pi(y_w) / pi(y_l)), without odds and without the likelihood of y_w

@given(seeds, st.floats(0.5, 6.0))
def test_the_printed_orpo_lets_both_answers_sink_and_ours_holds_the_chosen_one_up(seed, fall):
    """Both mean log-probs `fall` nats lower should cost something."""
    chosen, rejected = -randn(seed, 2, 3, 4).abs() - 0.05
    mask = torch.ones(3, 4, dtype=torch.bool)

    def printed(w, l):
        return -torch.nn.functional.logsigmoid(w.mean(1) - l.mean(1)).mean()

    def ours(w, l):
        return orpo.loss(w, l, mask, mask, lam=0.5, count=3)[0]

    assert torch.allclose(printed(chosen - fall, rejected - fall), printed(chosen, rejected))
    assert ours(chosen - fall, rejected - fall) > ours(chosen, rejected) + 0.3 * fall


def test_odds_are_not_likelihoods_where_answers_are_likely():
    """0.9 against 0.8 is a ratio of 1.1 and odds of 9 against 4: the step is larger as P nears 1."""
    p_w, p_l = math.log(0.9), math.log(0.8)
    lead = orpo.log_odds(torch.tensor([p_w, p_l], dtype=torch.float64))
    assert math.isclose(float(lead[0] - lead[1]), math.log(9 / 4), rel_tol=1e-12)
    assert not math.isclose(float(lead[0] - lead[1]), p_w - p_l, rel_tol=0.5)


# ---- 3.2.2, PPO: the ratio is taken to the reference

def test_the_printed_ppo_ratio_is_no_policy_gradient_after_the_first_rollout_and_ours_is():
    """At the policy that sampled, E[A grad ratio] should be the gradient of the expected reward."""
    world = World(4, 2)
    chance = world.log_chance(world.policy).detach().exp().flatten() / 2
    adv = (world.reward.flatten() - 0.5)[:, None].expand(world.seqs.mask.shape)
    gradient = world.slope(world.policy, mean_reward(world.log_chance(world.policy), world.reward))
    held, reference = (world.token_logp(m).detach().flatten(0, 1) for m in (world.policy,
                                                                            world.reference))

    def rest(denominator):
        """The share of the mean step that does not point along the gradient."""
        logp, zero = world.token_logp(world.policy).flatten(0, 1), torch.zeros_like(held)
        value, _ = ppo.loss(logp, zero, denominator, zero, chance[:, None] * adv, zero, world.seqs.mask,
                            clip=1e6, value_clip=1.0, count=1)
        return split(world.slope(world.policy, -value), gradient)

    size, off = rest(held)
    assert abs(size - 1) < 1e-9 and off < 1e-9
    assert rest(reference)[1] > 0.1
    clipped = (reference - held).exp().sub(1).abs() > 0.2   # and most of it would not even be let through
    assert clipped[world.seqs.mask].double().mean() > 0.3


# ---- 3.2.7, OREO: V(s_t) - R + beta log-ratio_t, without the log-ratios of later actions

@given(st.integers(0, 1000), st.floats(0.05, 2.0))
def test_the_printed_oreo_residual_is_not_zero_at_the_optimum_and_ours_is(seed, beta):
    """At the exact soft optimum of a tree nothing should be left to learn, on any trajectory."""
    found = tree(seed, beta)
    printed = found["value"] + beta * (found["logp"] - found["logp_ref"]) - found["reward"][:, None]
    assert printed.abs().max() > 0.01
    for starts in levels(found["mask"], seed).values():
        ours = oreo.residuals(found["logp"], found["value"], found["logp"], found["value"],
                              found["logp_ref"], found["reward"], found["mask"], starts, beta)
        assert max(float(d.abs().max()) for d in ours) < 1e-10


# ---- 3.2.9, comparing several samples: every factor is divided by the sum over all of them

@given(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=4, unique=True))
def test_the_printed_ranking_says_the_same_of_every_order_and_ours_is_a_distribution(values):
    """Chances of all orders should add up to one, and the right order be the likeliest."""
    scores = torch.tensor(values, dtype=torch.float64)
    orders = list(itertools.permutations(range(len(values))))

    def printed(order):
        return (scores[list(order)] - scores.logsumexp(0)).exp().prod()

    def ours(order):
        return (-plackett_luce.loss(scores[list(order)][None], count=1)[0]).exp()

    theirs, mine = (torch.stack([f(order) for order in orders]) for f in (printed, ours))
    assert torch.allclose(theirs, theirs[:1]) and theirs.sum() < 0.9
    assert torch.allclose(mine.sum(), torch.ones_like(mine[0]))
    best = orders.index(tuple(scores.argsort(descending=True).tolist()))
    assert mine[best] == mine.max()
