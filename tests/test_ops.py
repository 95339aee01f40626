"""Primitives against enumeration, autograd and central differences, in float64."""

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch.func import jacrev

from minipost import ops


def logits(seed, rows=5, vocab=6, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)


def central(f, x, h=1e-6):
    """Central differences of a scalar function of a tensor."""
    grad = torch.zeros_like(x)
    for k in range(x.numel()):
        step = torch.zeros_like(x).view(-1)
        step[k] = h
        step = step.view_as(x)
        grad.view(-1)[k] = (f(x + step) - f(x - step)) / (2 * h)
    return grad


@given(st.integers(0, 10_000))
def test_kl_exact_and_its_gradient(seed):
    z, q = logits(seed), torch.log_softmax(logits(seed + 1), -1)
    p = torch.log_softmax(z, -1)
    assert torch.allclose(ops.kl_exact(p, q), torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)))
    assert (ops.kl_exact(p, q) > 0).all() and ops.kl_exact(p, p).abs().max() == 0

    def total(x):
        return ops.kl_exact(torch.log_softmax(x, -1), q).sum()

    hand = ops.kl_exact_grad(p, q)
    assert torch.allclose(hand, jacrev(total)(z), atol=1e-12)
    assert torch.allclose(hand, central(total, z), atol=1e-8)
    assert hand.sum(-1).abs().max() < 1e-12     # a constant on all logits changes nothing


@given(st.integers(0, 10_000))
def test_k3_is_unbiased_and_its_gradient_is_the_other_kl(seed):
    z = logits(seed)
    p, q = torch.log_softmax(z, -1), torch.log_softmax(logits(seed + 1), -1)
    assert (ops.kl_k3(p, q) >= 0).all()
    assert torch.allclose((p.exp() * ops.kl_k3(p, q)).sum(-1), ops.kl_exact(p, q))
    assert torch.allclose(ops.kl_k3_grad(p, q), jacrev(lambda x: ops.kl_k3(x, q).sum())(p))
    # E_p[ k3'(logp) dlogp/dz ] = p - q, the gradient of KL(q || p), and not that of KL(p || q).
    vocab = z.shape[1]
    mean = sum(
        p[:, y : y + 1].exp() * ops.kl_k3_grad(p[:, y : y + 1], q[:, y : y + 1])
        * ops.pick_grad(p, torch.full((len(z),), y))
        for y in range(vocab)
    )
    assert torch.allclose(mean, p.exp() - q.exp(), atol=1e-12)
    assert not torch.allclose(mean, ops.kl_exact_grad(p, q), atol=1e-3)


@given(st.integers(0, 10_000), st.floats(-30, 30))
def test_k3_is_zero_where_both_agree_and_nowhere_else(seed, gap):
    z = torch.log_softmax(logits(seed), -1)
    assert not ops.kl_k3(z, z).any() and not ops.kl_k3_grad(z, z).any()
    found = ops.kl_k3(z, z - gap)
    assert (found >= 0).all() and (abs(gap) < 1e-6 or (found > 0).all())
    # Near zero k3 is l^2 / 2, which the naive e^-l - 1 + l loses to rounding.
    small = torch.tensor(1e-6, dtype=torch.float64)
    for sign in (1, -1):
        found = float(ops.kl_k3(sign * small, 0 * small))
        assert found == pytest.approx(float(small.square() / 2), rel=1e-5, abs=0)


@given(st.integers(0, 10_000))
def test_the_log_ratio_is_an_unbiased_price_but_descends_nothing(seed):
    """E_p[log p/q] = KL(p || q), and E_p[grad log p/q] = E_p[score] = 0."""
    z = logits(seed)
    p, q = torch.log_softmax(z, -1), torch.log_softmax(logits(seed + 1), -1)
    price, score = 0.0, 0.0
    for y in range(z.shape[1]):
        ids = torch.full((len(z),), y)
        chance = ops.pick(p, ids).exp()
        price = price + chance * (ops.pick(p, ids) - ops.pick(q, ids))
        score = score + chance[:, None] * ops.pick_grad(p, ids)
    assert torch.allclose(price, ops.kl_exact(p, q))
    assert score.abs().max() < 1e-12 < 1e-3 < ops.kl_exact_grad(p, q).abs().max()


@pytest.mark.parametrize("gap", [-50.0, 50.0])
def test_k3_of_a_log_ratio_of_fifty_is_finite_and_right(gap):
    ratio, none = torch.tensor([gap]), torch.zeros(1)       # in float32
    assert float(ops.kl_k3(ratio, none)) == pytest.approx(math.expm1(-gap) + gap)
    assert float(ops.kl_k3_grad(ratio, none)) == pytest.approx(-math.expm1(-gap))


@given(st.integers(0, 10_000))
def test_pick_gradient(seed):
    z = logits(seed)
    ids = torch.arange(len(z)) % z.shape[1]

    def total(x):
        return ops.pick(torch.log_softmax(x, -1), ids).sum()

    hand = ops.pick_grad(torch.log_softmax(z, -1), ids)
    assert torch.allclose(hand, jacrev(total)(z), atol=1e-12)
    assert torch.allclose(hand, central(total, z), atol=1e-8)


@given(st.integers(0, 10_000))
def test_entropy_by_definition(seed):
    z = logits(seed)
    expected = torch.distributions.Categorical(logits=z).entropy()
    assert torch.allclose(ops.entropy(torch.log_softmax(z, -1)), expected)


@given(st.integers(0, 10_000), st.sampled_from([0.01, 1.5, 40.0, 1e4]))
def test_entropy_lies_between_certainty_and_log_v_and_its_gradient(seed, scale):
    """dH/dz = -p (log p + H): zero where all are alike, and where one is certain."""
    z = logits(seed, scale=scale)
    p = torch.log_softmax(z, -1)
    h, most = ops.entropy(p), float(torch.tensor(6.0).double().log())
    assert (h >= 0).all() and (h <= most + 1e-12).all()
    assert torch.allclose(ops.entropy(torch.log_softmax(0 * z, -1)), torch.full_like(h, most))
    slope = jacrev(lambda x: ops.entropy(torch.log_softmax(x, -1)).sum())(z)
    assert torch.allclose(slope, -p.exp() * (p + h[:, None]), atol=1e-12)
    assert slope.sum(-1).abs().max() < 1e-9
    if scale == 1.5:                            # where there is a slope: entropy grows along it
        assert (ops.entropy(torch.log_softmax(z + 0.01 * slope, -1)) > h).all()
        assert torch.allclose(slope, central(
            lambda x: ops.entropy(torch.log_softmax(x, -1)).sum(), z), atol=1e-8)


# Ratios on both sides of both clips, none on a kink: exp(0.3) > 1.28, exp(-0.3) < 0.8.
gaps = st.lists(st.sampled_from([-0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5]), min_size=1, max_size=9)


@given(gaps, st.sampled_from([-2.0, -0.5, 0.7, 1.5]))
def test_clipped_surrogate_and_its_gradient(gap, adv):
    old = -torch.linspace(0.5, 2, len(gap), dtype=torch.float64)
    logp = old + torch.tensor(gap, dtype=torch.float64)
    adv = torch.tensor(adv, dtype=torch.float64)
    gain = ops.clipped_surrogate(logp, old, adv, 0.2, 0.28)
    free = (logp - old).exp() * adv
    assert (gain <= free + 1e-12).all()         # pessimism
    assert torch.allclose(ops.clipped_surrogate(logp, old, adv, 1.0, 1e9), free)
    hand = ops.clipped_surrogate_grad(logp, old, adv, 0.2, 0.28)

    def total(x):
        return ops.clipped_surrogate(x, old, adv, 0.2, 0.28).sum()

    assert torch.allclose(hand, jacrev(total)(logp), atol=1e-12)
    assert torch.allclose(hand, central(total, logp), atol=1e-8)
    for k, step in enumerate(gap):              # by hand from the definition
        expected = 0.0 if (adv > 0 and step >= 0.3) or (adv < 0 and step <= -0.3) else free[k]
        assert hand[k] == pytest.approx(float(expected), abs=1e-12)


def test_masked_sum_ignores_whatever_stands_off_the_mask():
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]])
    total = ops.masked_sum(x, mask)
    assert total == 3.0
    assert torch.equal(torch.autograd.grad(total, x)[0], mask.float())


def test_spread_puts_values_back_in_order():
    mask = torch.tensor([[False, True, True], [True, False, False]])
    assert ops.spread(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[0, 1, 2], [3, 0, 0]]


rewards = st.lists(st.floats(-3, 3, width=32), min_size=6, max_size=6)


@given(rewards, st.floats(-5, 5))
def test_group_centred_is_zero_sum_and_blind_to_shifts(values, shift):
    r = torch.tensor(values, dtype=torch.float64)
    centred = ops.group_centred(r, 3)
    assert centred.shape == (2, 3)
    assert centred.sum(1).abs().max() < 1e-12
    assert torch.allclose(ops.group_centred(r + shift, 3), centred, atol=1e-12)
    assert torch.allclose(ops.group_centred(-r, 3), -centred, atol=1e-12)
    assert centred[0, 0] == pytest.approx(values[0] - sum(values[:3]) / 3, abs=1e-12)


@given(st.floats(-1e6, 1e6, width=32))
def test_group_centred_is_exactly_zero_for_ties(value):
    assert torch.equal(ops.group_centred(torch.full((7,), value), 7), torch.zeros(1, 7))
