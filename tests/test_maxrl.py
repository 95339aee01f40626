"""MaxRL: its mean step is a series of pass@k, and that of the log of the chance in the end."""

import itertools

import pytest
import torch
from fakes import expected, f64, mean_slope, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev

from minipost.methods import maxrl
from minipost.methods.rloo import leave_one_out

RIGHT = f64([0, 0, 1, 0, 0, 0, 1, 0, 0])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_mean_step_is_the_series_of_pass_at_k_up_to_one_less_than_the_group(size):
    """By listing all groups of answers, against the sum of (1/k) grad pass@k."""
    table = randn(4, 4, 3)

    def series(table):
        p = expected(RIGHT, table)
        return sum((1 - (1 - p) ** k) / k for k in range(1, size))

    found = mean_slope(table, lambda rows: maxrl.over_mean(RIGHT[rows], size), size)
    assert torch.allclose(found, jacrev(series)(table), atol=1e-12)


@given(st.integers(0, 10_000))
@settings(max_examples=5)
def test_without_the_baseline_it_goes_as_far_as_the_group(seed):
    """The paper's theorem 2, and what the baseline takes away: grad pass@G / G."""
    table, size = randn(seed, 4, 3), 3

    def bare(rows):
        return RIGHT[rows] / RIGHT[rows].mean().clamp(min=1e-9)

    def last(table):
        return (1 - (1 - expected(RIGHT, table)) ** size) / size

    with_it = mean_slope(table, lambda rows: maxrl.over_mean(RIGHT[rows], size), size)
    assert torch.allclose(mean_slope(table, bare, size) - with_it, jacrev(last)(table), atol=1e-12)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
def test_many_answers_make_the_log_likelihood(p):
    """grad log p = grad p / p; the factor of grad p is (1 - (1-p)^(G-1)) / p, and 1 for two."""
    for size in (2, 8, 2000):
        factor = sum((1 - p) ** (k - 1) for k in range(1, size))
        assert factor == pytest.approx((1 - (1 - p) ** (size - 1)) / p)
        assert size > 2 or factor == 1
    assert factor == pytest.approx(1 / p, rel=1e-3)


@given(st.lists(st.booleans(), min_size=8, max_size=8))
def test_advantages_of_a_group(values):
    r = f64([float(v) for v in values])
    adv = maxrl.over_mean(r, 4)
    for k in range(8):
        group = values[k - k % 4 : k - k % 4 + 4]
        mean = sum(group) / 4
        assert float(adv[k]) == pytest.approx((values[k] - mean) / mean if mean else 0.0)
        assert adv[k] != 0 or len(set(group)) == 1
    pairs = maxrl.over_mean(r, 2)
    assert torch.allclose(pairs, leave_one_out(r, 2))       # two answers make RLOO


def test_answers_without_a_reward_are_not_counted():
    r = f64([1.0, float("nan"), 0.0, 0.0, float("nan"), float("nan")])
    adv = maxrl.over_mean(r, 3)
    assert adv.tolist() == [1.0, 0.0, -1.0, 0.0, 0.0, 0.0]
    assert not any(maxrl.over_mean(f64(ends), 2).any() for ends in itertools.product([0.0], [0.0]))
