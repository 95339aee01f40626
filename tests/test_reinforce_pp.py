"""REINFORCE++: at ratio one the policy gradient of whitened returns."""

import torch
from fakes import randn, stretches
from hypothesis import given
from hypothesis import strategies as st

from minipost import ops
from minipost.methods import reinforce_pp

seeds = st.integers(0, 10_000)


@given(seeds)
def test_at_ratio_one_reinforce_pp_is_the_policy_gradient_of_whitened_returns(seed):
    ratio, logp, mask = stretches(seed)
    ret = reinforce_pp.returns(randn(seed + 5, 5), ratio, mask, 0.3)
    adv = ops.whiten(ret, mask)
    hand = reinforce_pp.loss_grad(logp, logp, adv, mask, clip=0.2, count=7)["logp"]
    assert torch.allclose(hand[mask], -(ret - ret[mask].mean())[mask] / ret[mask].std(correction=0)
                          / 7, rtol=1e-4)
    stopped = reinforce_pp.loss_grad(logp + 0.5 * adv.sign(), logp, adv, mask, clip=0.2, count=7)
    assert not stopped["logp"].any()            # every ratio is beyond the clip on its gain's side
