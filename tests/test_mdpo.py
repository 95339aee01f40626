"""mDPO: a set of answers counts by the mean of its log-ratios."""

import torch
from fakes import log_probs
from hypothesis import given
from hypothesis import strategies as st

from minipost.methods import mdpo, reward
from minipost.ops import row_sums


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_mdpo_is_bradley_terry_on_the_mean_log_ratios_of_sets(seed, size):
    found = log_probs(dict.fromkeys(("logp", "logp_ref", "mask"), (6 * size, 5)), seed)
    ratio = row_sums(found["logp"] - found["logp_ref"], found["mask"])
    means = torch.stack([part.mean() for part in ratio.split(size)])        # better, worse, ...
    value = mdpo.loss(**found, beta=0.4, group_size=size, count=3)[0]
    scores = 0.4 * means[::2], 0.4 * means[1::2]
    assert torch.allclose(value, reward.loss(*scores, margin=0.0, center=0.0, count=3)[0])


@given(st.integers(0, 10_000), st.integers(2, 4))
def test_a_set_of_one_answer_said_again_and_again_is_that_answer(seed, size):
    found = log_probs(dict.fromkeys(("logp", "logp_ref", "mask"), (6, 5)), seed)
    again = {name: x.repeat_interleave(size, 0) for name, x in found.items()}
    one = mdpo.loss(**found, beta=0.4, group_size=1, count=3)[0]
    assert torch.allclose(mdpo.loss(**again, beta=0.4, group_size=size, count=3)[0], one)
