"""A2C: its loss piece by piece, and the critic's returns."""

import pytest
import torch
from fakes import f64, randn, stretches
from hypothesis import given
from hypothesis import strategies as st

from minipost.methods import a2c, reinforce

seeds = st.integers(0, 10_000)


@given(seeds)
def test_without_critic_and_bonus_a2c_is_reinforce(seed):
    logp, value, mask = stretches(seed)
    adv, ret, entropy = randn(seed + 5, 5), randn(seed + 6, 5, 7), randn(seed + 7, 5, 7)
    found = a2c.loss_grad(logp, entropy, value, adv[:, None].expand(5, 7), ret, mask,
                          value_weight=1.0, entropy_weight=0.0, count=7)
    assert torch.equal(found["logp"], reinforce.loss_grad(logp, adv, mask, count=7)["logp"])
    assert not found["entropy"].any()
    assert torch.allclose(found["value"][mask], (value - ret)[mask] / 7)
    plain = reinforce.loss(logp, adv, mask, count=7)[0]
    perfect = a2c.loss(logp, entropy, ret, adv[:, None].expand(5, 7), ret, mask,
                       value_weight=1.0, entropy_weight=0.0, count=7)[0]
    assert torch.allclose(perfect, plain)


def test_a2c_piece_by_piece():
    """One token, whose every term has a value and a sign of its own."""
    one = torch.ones(1, 1, dtype=torch.bool)
    logp, entropy, value, adv, ret = (f64([[x]]) for x in (-0.5, 0.8, 0.1, 2.0, 0.6))
    found, stats = a2c.loss(logp, entropy, value, adv, ret, one, value_weight=0.4,
                            entropy_weight=0.25, count=2)
    assert float(stats["value_loss"]) == pytest.approx(0.5 * 0.25 / 2)
    assert float(found) == pytest.approx((1.0 + 0.4 * 0.5 * 0.25 - 0.25 * 0.8) / 2)


@given(seeds)
def test_returns_of_the_critic_are_not_whitened(seed):
    _, value, mask = stretches(seed)
    reward = 5 + randn(seed + 5, 5)
    adv, ret = a2c.advantages(reward, value, mask, 1.0, 1.0)
    assert torch.allclose(ret[mask], reward[:, None].expand(5, 7)[mask])    # lambda 1: the score
    gap = (reward[:, None] - value)[mask]
    assert torch.allclose(adv[mask], (gap - gap.mean()) / gap.std(correction=0), atol=1e-5)
