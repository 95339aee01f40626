"""Minimum risk training: what it is with every answer at hand, and what repeats count."""

import pytest
import torch
from fakes import Echo, expected, f64, logp_of, randn, rollout_of, toy
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

from minipost.methods import minimum_risk
from minipost.ops import group_centred

seeds = st.integers(0, 10_000)
MASK, ALL = torch.ones(9, 2, dtype=torch.bool), torch.ones(9, dtype=torch.bool)


def risk(logp, reward, first=ALL, **options):
    options = {"alpha": 1.0, "group_size": len(logp), "count": 1, **options}
    return minimum_risk.loss(logp, reward, first, MASK[: len(logp)], **options)[0]


@given(seeds)
def test_with_all_answers_as_candidates_it_is_the_expected_reward(seed):
    """Value and gradient, without sampling noise, if alpha is 1; else those of a sharpened law."""
    table, reward = randn(seed, 4, 3), randn(seed + 1, 9)
    assert torch.allclose(risk(logp_of(table), reward), -expected(reward, table))
    ours = jacrev(lambda x: risk(logp_of(x), reward))(table)
    assert torch.allclose(ours, -jacrev(lambda x: expected(reward, x))(table), atol=1e-12)
    q = (0.3 * logp_of(table).sum(1)).softmax(0)
    assert torch.allclose(risk(logp_of(table), reward, alpha=0.3), -q @ reward)


@given(seeds, st.sampled_from([2, 3, 4]))
def test_as_alpha_vanishes_an_answer_counts_by_its_lead_over_the_mean(seed, size):
    """That is Dr. GRPO's advantage, times alpha / G."""
    logp, reward = -randn(seed, 2 * size, 2).abs(), randn(seed + 1, 2 * size)
    mask = torch.ones(2 * size, 2, dtype=torch.bool)
    pull = minimum_risk.pull(logp, reward, torch.ones(2 * size, dtype=torch.bool), mask, 1e-7, size)
    assert torch.allclose(pull * size / 1e-7, group_centred(reward, size).flatten(), atol=1e-5)


@given(seeds, st.floats(-5, 5), st.floats(-9, 9))
def test_symmetries(seed, shift, likelier):
    """Blind to a shift of the rewards and of all chances; what is pulled sums to zero."""
    logp, reward, first = -randn(seed, 6, 2).abs(), randn(seed + 1, 6), randn(seed + 2, 6) > 0
    first[[0, 3]] = True

    def pull(logp, reward):
        return minimum_risk.pull(logp, reward, first, MASK[:6], 0.8, 3)

    found = pull(logp, reward)
    assert torch.allclose(found.view(2, 3).sum(1), torch.zeros(2).double(), atol=1e-12)
    assert torch.allclose(pull(logp, reward + shift), found, atol=1e-9)
    assert torch.allclose(pull(logp + likelier, reward), found, atol=1e-9)
    assert not found[~first].any()


def test_an_answer_that_is_drawn_twice_is_one_candidate():
    a, b = [4, 5], [6]
    rollout = rollout_of([[1, 3]] * 4, [a, b, a, a])
    same = torch.zeros(4, dtype=torch.long)
    object.__setattr__(rollout, "prompt", same)
    reward = f64([1.0, 0.0, 1.0, 1.0])
    assert minimum_risk.candidates(rollout, reward).tolist() == [True, True, False, False]
    none = f64([1.0, float("nan"), 1.0, 1.0])
    assert minimum_risk.candidates(rollout, none).tolist() == [True, False, False, False]
    object.__setattr__(rollout, "prompt", torch.tensor([0, 0, 1, 1]))
    assert minimum_risk.candidates(rollout, reward).tolist() == [True, True, True, False]
    logp = -randn(3, 4, 2).abs()[[0, 1, 0, 0]]
    first = torch.tensor([True, True, False, False])
    assert risk(logp, reward, first) == pytest.approx(float(risk(logp[:2], reward[:2], ALL[:2])))
    assert risk(logp, reward, ALL[:4]) < risk(logp, reward, first) - 0.01       # if each counted


def test_an_answer_that_has_a_reward_only_where_it_is_drawn_again_is_a_candidate(monkeypatch):
    """A, A, B, B with rewards None, 1, None, 0; and a problem whose answers have none."""
    none, kept = float("nan"), []
    run = toy(Echo())
    asked = [[1, 3]] * 4 + [[1, 5]] * 4
    drawn = rollout_of(asked, [[4, 2], [4, 2], [5, 2], [5, 2]] * 2)
    object.__setattr__(drawn, "prompt", torch.tensor([0] * 4 + [1] * 4))
    reward = torch.tensor([none, 1, none, 0, none, none, none, none])
    assert minimum_risk.candidates(drawn, reward).tolist() == [False, True, False, True] + 4 * [
        False]
    monkeypatch.setattr(run, "rollout", lambda *args, **options: drawn)
    monkeypatch.setattr(run, "score", lambda *args, **options: reward)
    monkeypatch.setattr(run, "keep", lambda *args: kept.append(args[-1]))
    before = run.policy.flat.clone()
    metrics = next(minimum_risk.train(run, minimum_risk.Config(prompts=2, group_size=4, alpha=1.0)))
    assert metrics["grad_norm"] > 0 and run.policy.flat.isfinite().all()
    assert not torch.equal(run.policy.flat, before) and metrics["candidates"] == 1.0
    assert kept[0].isfinite().all() and not kept[0][[0, 2, 4, 5, 6, 7]].any()
    assert kept[0][1] > 0 > kept[0][3]
