"""SAPO: a gate that is 1 at ratio 1, closes smoothly, and sooner for wrong answers."""

import math

import pytest
import torch
from fakes import f64, old_and_new
from hypothesis import given
from hypothesis import strategies as st

from minipost.methods import sapo


def slopes(*given, **options):
    """The gradient by autograd, which must be the one by hand.  (B, T)"""
    logp = given[0].clone().requires_grad_()
    found, = torch.autograd.grad(sapo.loss(logp, *given[1:], **options)[0], logp)
    assert torch.allclose(found, sapo.loss_grad(*given, **options)["logp"], atol=1e-12)
    return found


def weight(gap, adv, **options):
    """What a token of this log-ratio has in the gradient, times its advantage."""
    logp = f64([[gap]])
    found = slopes(logp, torch.zeros_like(logp), f64([adv]), torch.ones_like(logp).bool(), count=1,
                   **options)
    return float(-found / adv)


@given(st.floats(-3, 3), st.floats(0.1, 5), st.sampled_from([-2.0, 0.5]))
def test_the_weight_is_the_ratio_times_sech_squared(gap, tau, adv):
    """With the temperature of the advantage's sign; the other one has no part."""
    ratio = math.exp(gap)
    expected = ratio / math.cosh(tau / 2 * (ratio - 1)) ** 2
    own = dict(tau_pos=tau, tau_neg=9.0) if adv > 0 else dict(tau_pos=9.0, tau_neg=tau)
    assert weight(gap, adv, **own) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_at_ratio_one_it_is_the_policy_gradient_at_any_temperature():
    """Which is what 4/tau is for."""
    logp, _, adv, mask = old_and_new(5, 4)
    plain = -adv[:, None] * mask / (5 * mask.sum(1, keepdim=True))
    for tau in (0.1, 1.0, 30.0):
        assert torch.allclose(slopes(logp, logp, adv, mask, tau_pos=tau, tau_neg=2 * tau, count=5),
                              plain)
        assert float(sapo.loss(logp, logp, adv, mask, tau_pos=tau, tau_neg=tau, count=5)[1][
            "closed"]) == pytest.approx(0)


def test_as_the_temperature_vanishes_no_ratio_is_held_back():
    logp, old, adv, mask = old_and_new(5, 4, seed=1)
    free = -((logp - old).exp() * adv[:, None] * mask) / (5 * mask.sum(1, keepdim=True))
    found = slopes(logp, old, adv, mask, tau_pos=1e-5, tau_neg=1e-5, count=5)
    assert torch.allclose(found, free, rtol=1e-6)


def test_the_gate_is_as_wide_on_both_sides_and_narrower_for_wrong_answers():
    up, down = (weight(math.log(1 + side * 0.6), 1.0, tau_pos=3.0, tau_neg=9.0) / (1 + side * 0.6)
                for side in (1, -1))
    assert up == pytest.approx(down)
    usual = dict(tau_pos=1.0, tau_neg=1.05)
    assert weight(1.0, -1.0, **usual) < weight(1.0, 1.0, **usual) < math.e


def test_a_ratio_beyond_all_bounds_teaches_nothing_and_breaks_nothing():
    for gap in (30.0, 1000.0):
        assert weight(gap, 1.0, tau_pos=1.0, tau_neg=1.05) == 0
    logp = torch.full((1, 1), 200.0)                        # exp of it is infinite in float32
    found = sapo.loss_grad(logp, torch.zeros(1, 1), torch.ones(1), logp > 0, tau_pos=1.0,
                           tau_neg=1.05, count=1)["logp"]
    assert not found.any()
