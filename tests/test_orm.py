"""The outcome reward model: its loss is a binary cross-entropy."""

import torch
from fakes import scores
from hypothesis import given
from hypothesis import strategies as st

from minipost.methods import orm


@given(st.integers(0, 10_000))
def test_orm_is_binary_cross_entropy(seed):
    found = scores(dict(score=(5,), right=(5,)), seed)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        found["score"], found["right"], reduction="sum")
    assert torch.allclose(orm.loss(**found, count=7)[0], expected / 7)
