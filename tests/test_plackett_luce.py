"""Plackett-Luce: a distribution over orders, and the rankings that are drawn."""

import itertools
import math
import random
from functools import partial

import pytest
import torch
from fakes import Echo, Letters, Steps, make_run
from hypothesis import given
from hypothesis import strategies as st

from minipost.methods import plackett_luce, reward

make = partial(make_run, usual=Steps, max_new_tokens=5)
numbers = st.lists(st.floats(-5, 5), min_size=4, max_size=4).map(
    lambda values: torch.tensor(values, dtype=torch.float64))


@given(numbers, numbers)
def test_plackett_luce_of_two_is_bradley_terry(chosen, rejected):
    plain = dict(margin=0.0, center=0.0, count=3)
    ranked = torch.stack([chosen, rejected], 1)
    one, two = plackett_luce.loss(ranked, count=3), reward.loss(chosen, rejected, **plain)
    assert torch.allclose(one[0], two[0])
    assert float(one[1]["accuracy"]) == pytest.approx(float(two[1]["accuracy"]))
    hand = reward.loss_grad(chosen, rejected, **plain)
    assert torch.allclose(plackett_luce.loss_grad(ranked, count=3)["scores"],
                          torch.stack([hand["score_w"], hand["score_l"]], 1))


@given(numbers, st.integers(2, 4), st.floats(-9, 9))
def test_plackett_luce_is_a_distribution_over_orders(scores, k, shift):
    """Each order's probability is a product of choices among what is left; together they are 1."""
    scores, total = scores[:k], 0.0
    for order in itertools.permutations(range(k)):
        row = scores[list(order)]
        expected = math.prod(float(row[i].exp() / row[i:].exp().sum()) for i in range(k))
        chance = float((-plackett_luce.loss(row[None], count=1)[0]).exp())
        assert chance == pytest.approx(expected)
        assert chance == pytest.approx(
            float((-plackett_luce.loss(row[None] + shift, count=1)[0]).exp()))
        total += chance
    assert total == pytest.approx(1)


def test_accuracy_of_a_ranking_is_the_share_of_its_pairs_in_order():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])       # 2 of 3, and 2.5 of 3
    assert float(plackett_luce.loss(scores, count=2)[1]["accuracy"]) == pytest.approx(4.5 / 6)


def test_rankings_are_best_first_with_ties_by_chance():
    values = torch.tensor([[0.1, 0.9, 0.5, 0.3], [0.2, 0.2, 0.7, 0.2], [0.4, 0.4, 0.4, 0.4]])
    orders = [plackett_luce.rank(values, random.Random(seed)) for seed in range(300)]
    assert {tuple(first) for first, _, _ in orders} == {(1, 2, 3, 0)}
    assert {third for _, _, third in orders} == {None}
    ties = [tuple(second) for _, second, _ in orders]
    assert {order[0] for order in ties} == {2}
    assert all(ties.count(order) > 20 for order in set(ties)) and len(set(ties)) == 6
    turned = [plackett_luce.rank(values[:1], random.Random(s), 0.3)[0] for s in range(2000)]
    assert {tuple(order) for order in turned} == {(1, 2, 3, 0), (0, 3, 2, 1)}
    assert turned.count([0, 3, 2, 1]) / 2000 == pytest.approx(0.3, abs=0.04)


def test_drawn_rankings_hold_the_same_prompts_in_the_order_of_their_reward():
    run = make()
    places = plackett_luce.draw_rankings(run, plackett_luce.Config(prompts=30))
    assert len(places) == 4 and len(places[0]) >= 10
    letters = [Letters().decode([i]) for i in places[0].tokens[:, 1].tolist()]
    values = []
    for place in places:
        assert place.tokens[:, 1].tolist() == places[0].tokens[:, 1].tolist()
        texts = [Letters().decode(t[m].tolist()) for t, m in zip(place.targets, place.mask)]
        values.append(Echo().reward(None, texts, letters))
    for row in zip(*values):
        assert list(row) == sorted(row, reverse=True) and row[0] > row[-1]
