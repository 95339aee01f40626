"""The reward model: Bradley-Terry on scores."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minipost.methods import reward

numbers = st.lists(st.floats(-5, 5), min_size=4, max_size=4).map(
    lambda values: torch.tensor(values, dtype=torch.float64))


@given(numbers, numbers, st.floats(0.5, 3))
def test_pairs_fix_scores_up_to_a_shift_unless_centred(chosen, rejected, shift):
    def value(c, by):
        return reward.loss(chosen + by, rejected + by, margin=0.2, center=c, count=4)[0]

    assert torch.allclose(value(0.0, shift), value(0.0, 0.0))
    by = shift if (chosen + rejected).sum() >= 0 else -shift
    assert value(0.1, by) > value(0.1, 0.0) + 0.09 * 4 * shift**2


@given(numbers, numbers, st.floats(-2, 2))
def test_bradley_terry_swapped_equal_and_with_a_margin(chosen, rejected, margin):
    def value(better, worse, m=0.0):
        return reward.loss(better, worse, margin=m, center=0.0, count=4)[0]

    lead = chosen - rejected
    assert torch.allclose(value(chosen, rejected) - value(rejected, chosen), -lead.mean())
    assert float(value(chosen, chosen)) == pytest.approx(math.log(2))
    assert torch.allclose(value(chosen, rejected, margin), value(chosen - margin, rejected))
    chance = 1 / (1 + (-lead).exp())
    assert torch.allclose(value(chosen, rejected), -chance.log().mean())
