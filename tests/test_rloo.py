"""RLOO: the mean of an answer's siblings as baseline."""

import pytest
import torch
from fakes import expected, f64, mean_slope, randn
from hypothesis import example, given
from hypothesis import strategies as st
from torch.func import jacrev

from minipost import ops

rewards = st.lists(st.floats(-3, 3, width=32), min_size=8, max_size=8)


@pytest.mark.parametrize("group", [2, 3])
def test_rloo_is_unbiased_and_a_group_mean_shrinks_the_gradient(group):
    table, reward = randn(0, 4, 3), randn(1, 9)
    truth = jacrev(lambda x: expected(reward, x))(table)
    left_out = mean_slope(table, lambda rows: ops.leave_one_out(reward[rows], group), group)
    centred = mean_slope(table, lambda rows: ops.group_centred(reward[rows], group).flatten(),
                         group)
    assert truth.norm() > 0.1
    assert torch.allclose(left_out, truth, atol=1e-12)
    assert torch.allclose(centred, truth * (group - 1) / group, atol=1e-12)


@given(rewards, st.sampled_from([2, 4, 8]))
def test_leaving_one_out_by_a_loop(values, group):
    adv = ops.leave_one_out(f64(values), group)
    for i, mine in enumerate(values):
        start = i - i % group
        others = [values[j] for j in range(start, start + group) if j != i]
        assert float(adv[i]) == pytest.approx(mine - sum(others) / len(others), abs=1e-9)


@given(rewards, st.floats(-5, 5), st.floats(0.1, 4))
def test_leave_one_out_symmetries(values, shift, scale):
    """Zero-sum, blind to shifts, proportional to scale, odd, and Dr. GRPO's but for G/(G-1)."""
    r = f64(values)
    adv = ops.leave_one_out(r, 4)
    assert adv.view(2, 4).sum(1).abs().max() < 1e-9
    assert torch.allclose(ops.leave_one_out(r + shift, 4), adv, atol=1e-9)
    assert torch.allclose(ops.leave_one_out(r * scale, 4), adv * scale, atol=1e-9)
    assert torch.equal(ops.leave_one_out(-r, 4), -adv)
    assert torch.allclose(ops.group_centred(r, 4).flatten() * 4 / 3, adv)


@given(st.floats(-1e5, 1e5, width=32))
@example(0.7)                                               # whose mean over 7 rounds to another
def test_siblings_that_tie_have_advantage_exactly_zero(value):
    assert not ops.leave_one_out(torch.full((14,), value), 7).any()
    one_group = torch.tensor([value, value, value, 0.0, 1.0, 5.0])
    assert ops.leave_one_out(one_group, 3).ne(0).tolist() == [False] * 3 + [True] * 3
