"""REINFORCE: unbiased whatever the baseline, which is a moving average."""

import pytest
import torch
from fakes import SIZE, apart, expected, mean_slope, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev

from minipost.methods import reinforce

seeds = st.integers(0, 10_000)


@given(seeds, st.floats(-3, 3))
@settings(max_examples=10)
def test_reinforce_is_unbiased_whatever_the_baseline(seed, baseline):
    table, reward = randn(seed, 4, 3), randn(seed + 1, 9)
    truth = jacrev(lambda x: expected(reward, x))(table)
    found = mean_slope(table, lambda rows: reward[rows] - baseline)
    assert torch.allclose(found, truth, atol=1e-12) and truth.norm() > 1e-3


def test_the_moving_average_uses_earlier_steps_only_and_is_carried_on():
    run, cfg = apart(0), reinforce.Config(**SIZE, momentum=0.75)
    run.carried.clear()
    learn, baseline = reinforce.train(run, cfg), 0.0
    for run.step in range(4):
        metrics = next(learn)
        assert metrics["baseline"] == pytest.approx(baseline)
        baseline = 0.75 * baseline + 0.25 * metrics["reward"]
        if run.step == 2:
            learn = reinforce.train(run, cfg)       # as after a resume: the run alone remembers
    assert run.carried == {"baseline": pytest.approx(baseline)} and baseline > 0
