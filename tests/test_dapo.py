"""DAPO: the higher clip and the penalty of length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minipost.methods import dapo, grpo


def test_dapo_clips_higher_than_grpo_where_the_advantage_is_positive():
    """At ratio 1.25 GRPO's gain has stopped and DAPO's has not; at 0.75 both have."""
    old = torch.zeros(2, 1, dtype=torch.float64)
    logp = torch.tensor([[1.25], [0.75]], dtype=torch.float64).log()
    common = dict(logp=logp, logp_old=old, adv=torch.tensor([1.0, -1.0], dtype=torch.float64),
                  mask=torch.ones(2, 1, dtype=torch.bool), count=2)
    assert not grpo.loss_grad(**common, kl=old, clip=0.2, beta=0.0)["logp"].any()
    assert dapo.loss_grad(**common, clip_low=0.2, clip_high=0.28)["logp"].flatten().tolist() == [
        pytest.approx(-1.25 / 2), 0.0]


@given(st.integers(0, 40), st.integers(1, 20))
def test_soft_overlong_penalty(length, buffer):
    """Continuous, monotone, 0 up to longest - buffer, -1 at longest and beyond."""
    lengths = torch.arange(0, 41)
    penalty = dapo.soft_overlong(lengths, 40, buffer)
    assert penalty.min() == -1 and penalty.max() == 0 and penalty[-1] == -1
    assert penalty[40 - buffer] == 0 and (penalty.diff() <= 0).all()
    assert penalty.diff().abs().max() <= 1 / buffer + 1e-6
    expected = min(0.0, max(-1.0, (40 - buffer - length) / buffer))
    assert float(penalty[length]) == pytest.approx(expected, abs=1e-6)
