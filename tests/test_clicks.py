"""Clicks: the bias of places, its correction, and the ranking loss they weigh."""

import math
import random

import pytest
import torch
from fakes import Echo, f64, make_run, randn
from hypothesis import given
from hypothesis import strategies as st

from minipost.methods import clicks, reward

Config = clicks.Config


def test_with_two_answers_and_one_click_it_is_bradley_terry():
    """The clicked answer is the chosen one."""
    scores, weights = randn(0, 5, 2), torch.zeros(5, 2, dtype=torch.float64)
    weights[:, 0] = 1.0
    sides = scores.unbind(1)
    assert torch.allclose(clicks.loss(scores, weights, count=5)[0],
                          reward.loss(*sides, margin=0.0, center=0.0, count=5)[0])
    hand = reward.loss_grad(*sides, margin=0.0, center=0.0, count=5)
    assert torch.allclose(clicks.loss_grad(scores, weights, count=5)["scores"],
                          torch.stack([hand["score_w"], hand["score_l"]], 1))


def test_the_loss_bounds_the_rank_of_a_clicked_answer():
    """sum of log2(1 + exp(s_j - s_i)) is at least the number of answers that stand above it."""
    scores = randn(1, 40, 5)
    for i in range(5):
        weights = torch.zeros(40, 5, dtype=torch.float64)
        weights[:, i] = 1.0
        above = (scores > scores[:, [i]]).sum()
        assert clicks.loss(scores, weights, count=1)[0] / math.log(2) >= above


@given(st.integers(0, 1000))
def test_only_differences_count_and_equal_weights_pull_together(seed):
    scores, weights = randn(seed, 3, 4), randn(seed + 1, 3, 4).abs()
    value = clicks.loss(scores, weights, count=3)[0]
    assert torch.allclose(value, clicks.loss(scores + 7, weights, count=3)[0])
    assert torch.allclose(clicks.loss_grad(scores, weights, count=3)["scores"].sum(1),
                          torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert not clicks.loss_grad(torch.zeros(3, 4), torch.ones(3, 4), count=3)["scores"].any()


@pytest.mark.parametrize("shown", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize("eta", [0.0, 1.0, 2.0])
def test_the_mean_weight_is_the_answers_own_wherever_it_stands(shown, eta):
    """By counting: looked at or not, and clicked for so long or not."""
    reward_, place = f64([[0.1, 0.5, 0.3]]), torch.tensor([shown])
    cfg = Config(eta=eta)
    own = [clicks.chance(worth, cfg.dwell) for worth in (0.0, 1.0, 0.5)]
    seen = [(k + 1) ** -eta for k in shown]
    for correct in ("propensity", "none"):
        cfg = Config(eta=eta, correct=correct)
        mean = torch.zeros(1, 3, dtype=torch.float64)
        for g in range(3):
            clicked = torch.zeros(1, 3, dtype=torch.float64)
            clicked[0, g] = 1.0
            mean += seen[g] * own[g] * clicks.weigh(clicked, place, cfg)
        expected = own if correct == "propensity" else [a * b for a, b in zip(own, seen)]
        assert mean[0].tolist() == pytest.approx(expected)
    assert clicks.attraction(reward_).tolist() == [[0.0, 1.0, 0.5]]


def test_simulated_users_click_as_often_as_their_law_says():
    """4000 users, of one list or of a thousand; within four standard errors."""
    run, n = make_run(), 4000
    for dwell, users in ((0.0, 4), (30.0, 4), (30.0, n)):
        cfg = Config(dwell=dwell, eta=1.0, users=users)
        lists = n // users, 2
        reward_, place = f64([[0.0, 1.0]]).expand(lists), torch.tensor([[1, 0]]).expand(lists)
        found = clicks.browse(run, reward_, place, cfg).mean(0)
        for share, worth, seen in zip(found.tolist(), (0.0, 1.0), (0.5, 1.0)):
            p = seen * clicks.chance(worth, dwell)
            assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / n)


def test_ties_attract_alike():
    assert clicks.attraction(f64([[2.0, 2.0, 2.0], [1.0, 1.0, 0.0]])).tolist() == [
        [0.5, 0.5, 0.5], [0.75, 0.75, 0.0]]


def test_the_likeliest_answer_stands_first():
    run = make_run()
    rollout = run.sample(run.problems(6), 3, temperature=1.0)
    place = clicks.places(rollout, Config(group_size=3), random.Random(0))
    logp = rollout.logp.sum(1).view(6, 3)
    assert sorted(place[0].tolist()) == [0, 1, 2]
    assert torch.equal(logp.gather(1, place.argsort(1)), logp.sort(1, descending=True)[0])
    mixed = clicks.places(rollout, Config(group_size=3, shown="random"), random.Random(0))
    assert not torch.equal(mixed, place)


def test_a_step_without_a_click_moves_nothing():
    run = make_run(Echo())
    cfg = Config(prompts=2, group_size=2, dwell=1e6)
    metrics = next(clicks.train(run, cfg))
    assert metrics["clicks"] == metrics["grad_norm"] == metrics["loss"] == 0
