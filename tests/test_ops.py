"""Primitives against enumeration, autograd and central differences, in float64."""

import math

import pytest
import torch
from fakes import FIRST, expected, logp_of, randn, stretches
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

from minipost import ops
from minipost.ops import group_centred, group_normalised


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


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(1.0, 3.0))
def test_truncated_surrogate_and_its_gradient(gap, adv, cap):
    """Its slope is min(rho, C) A on both sides of C, and it has no jump there."""
    new, old, a = (torch.tensor([[x]], dtype=torch.float64) for x in (gap - 2, -2.0, adv))
    hand = ops.truncated_surrogate_grad(new, old, a, cap)
    assert float(hand) == pytest.approx(min(math.exp(gap), cap) * adv)
    found = central(lambda x: ops.truncated_surrogate(x, old, a, cap).sum(), new)
    assert torch.allclose(found, hand, atol=1e-5)
    edge = torch.tensor([math.log(cap) - 1e-9, math.log(cap) + 1e-9], dtype=torch.float64)
    below, above = ops.truncated_surrogate(edge, 0.0 * edge, torch.ones(2).double(), cap)
    assert float(above - below) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("gap", [-800.0, 800.0])
def test_a_truncated_ratio_of_any_size_has_a_finite_slope(gap):
    new = torch.tensor([gap], requires_grad=True)
    slope, = torch.autograd.grad(ops.truncated_surrogate(new, torch.zeros(1), 1.0, 2.0).sum(), new)
    assert float(slope) == pytest.approx(2.0 if gap > 0 else 0.0)


@given(st.integers(0, 10_000))
def test_ratios_give_the_gradient_of_a_policy_from_the_samples_of_another(seed):
    """One token: E_mu[rho A dlogp] = d E_pi[A].  Without ratios, or with a low cap, it is not."""
    z, mu = logits(seed, rows=1)[0], torch.log_softmax(logits(seed + 1, rows=1)[0], -1)
    adv = logits(seed + 2, rows=1)[0]
    truth = jacrev(lambda x: (torch.log_softmax(x, -1).exp() * adv).sum())(z)

    def mean(slope):
        logp = torch.log_softmax(z, -1)
        rows = logp[None].expand(len(z), -1)
        return (mu.exp()[:, None] * slope(logp)[:, None]
                * ops.pick_grad(rows, torch.arange(len(z)))).sum(0)

    cap = 1.01 * float((torch.log_softmax(z, -1) - mu).exp().max())
    assert torch.allclose(mean(lambda p: ops.truncated_surrogate_grad(p, mu, adv, cap)), truth)
    for other in (lambda p: adv, lambda p: ops.truncated_surrogate_grad(p, mu, adv, 1.0)):
        assert not torch.allclose(mean(other), truth, rtol=1e-3)


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


eight_rewards = st.lists(st.floats(-3, 3, width=32), min_size=8, max_size=8)


@given(values=eight_rewards, shift=st.floats(-5, 5), scale=st.floats(0.5, 4))
def test_group_advantages(values, shift, scale):
    """Zero-sum, blind to shifts, odd under a flip, blind to scale as far as eps allows."""
    r = torch.tensor(values, dtype=torch.float64)
    adv = group_normalised(r, 4)
    assert adv.view(2, 4).sum(1).abs().max() < 1e-9
    assert torch.allclose(group_normalised(r + shift, 4), adv, atol=1e-6)
    assert torch.allclose(group_normalised(-r, 4), -adv)
    if r.view(2, 4).std(1).min() > 0.1:
        assert torch.allclose(group_normalised(r * scale, 4), adv, rtol=2e-3)
        expected = (r[0] - r[:4].mean()) / (r[:4].std() + 1e-4)
        assert adv[0] == pytest.approx(float(expected))
        exact = ((r.view(2, 4) - r.view(2, 4).mean(1, keepdim=True))        # where eps is nothing
                 / r.view(2, 4).std(1, keepdim=True)).flatten()
        assert torch.allclose(group_normalised(r * 1e6, 4), exact, atol=1e-8)


@given(st.floats(-1e5, 1e5, width=32), st.sampled_from([group_centred, group_normalised]))
def test_a_tied_group_has_advantage_exactly_zero(value, advantages):
    assert not advantages(torch.full((6,), value), 3).any()


seeds = st.integers(0, 10_000)


@given(seeds, st.floats(0, 1), st.floats(0.1, 1))
def test_the_true_value_leaves_an_expected_advantage_of_zero(seed, lam, gamma):
    table, reward = randn(seed, 4, 3), randn(seed + 1, 9)
    logp = logp_of(table).exp()
    after = (logp[:, 1] * reward).view(3, 3).sum(1)                         # E[r | first token]
    value = torch.stack([(gamma * expected(reward, table)).expand(9), after[FIRST]], 1)
    mask = torch.ones(9, 2, dtype=torch.bool)
    adv = ops.gae(ops.at_last(reward, mask), value, mask, gamma, lam)
    assert (logp.prod(1) * adv[:, 0]).sum().abs() < 1e-12
    assert (logp[:, 1] * adv[:, 1]).view(3, 3).sum(1).abs().max() < 1e-12
    off = ops.gae(ops.at_last(reward, mask), value + 0.1, mask, gamma, lam)
    assert (logp[:, 1] * off[:, 1]).view(3, 3).sum(1).abs().min() > 0.05


def by_row(x, mask):
    """The chosen entries of each row, as lists."""
    return [row[chosen].tolist() for row, chosen in zip(x, mask)]


def gae_by_sums(reward, value, mask, gamma, lam):
    """A_t = sum_k (gamma lam)^k delta_(t+k), answer by answer."""
    found = []
    for r, v in zip(by_row(reward, mask), by_row(value, mask)):
        v = [*v, 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        found.append([sum((gamma * lam) ** k * d for k, d in enumerate(delta[t:]))
                      for t in range(len(r))])
    return found


factors = st.floats(0, 1)


@given(seeds, factors, factors)
def test_gae_equals_its_sum_and_is_zero_off_the_mask(seed, gamma, lam):
    reward, value, mask = stretches(seed)
    adv = ops.gae(reward, value, mask, gamma, lam)
    assert not adv[~mask].any()
    for mine, expected_ in zip(by_row(adv, mask), gae_by_sums(reward, value, mask, gamma, lam)):
        assert mine == pytest.approx(expected_, abs=1e-12)


@given(seeds, factors)
def test_gae_at_both_ends_of_lambda(seed, gamma):
    reward, value, mask = stretches(seed)
    whole = by_row(ops.gae(reward, value, mask, gamma, 1.0), mask)
    one_step = by_row(ops.gae(reward, value, mask, gamma, 0.0), mask)
    for k, (r, v) in enumerate(zip(by_row(reward, mask), by_row(value, mask))):
        for t in range(len(r)):
            ret = sum(gamma**j * x for j, x in enumerate(r[t:]))
            assert whole[k][t] == pytest.approx(ret - v[t], abs=1e-12)
            ahead = v[t + 1] if t + 1 < len(v) else 0.0
            assert one_step[k][t] == pytest.approx(r[t] + gamma * ahead - v[t], abs=1e-12)


@given(seeds, factors, factors, st.floats(-3, 3))
def test_gae_is_linear_and_blind_to_padding(seed, gamma, lam, factor):
    (reward, value, mask), other = stretches(seed), randn(seed + 9, 5, 7)
    zero = torch.zeros_like(value)
    adv = ops.gae(reward, value, mask, gamma, lam)
    both = ops.gae(reward + factor * other, value, mask, gamma, lam)
    assert torch.allclose(both, adv + factor * ops.gae(other, zero, mask, gamma, lam), atol=1e-12)

    def wide(x, fill):
        return torch.nn.functional.pad(x, (2, 3), value=fill)

    padded = ops.gae(wide(reward, 5.0), wide(value, -4.0), wide(mask, False), gamma, lam)
    assert torch.equal(padded, wide(adv, 0.0))
    nan = float("nan")
    spoilt = ops.gae(reward.where(mask, nan), value.where(mask, nan), mask, gamma, lam)
    assert torch.equal(spoilt, adv)


@given(seeds, factors)
def test_shaping_by_a_potential_changes_no_advantage(seed, lam):
    """Ng et al. 1999: r_t + F(s_(t+1)) - F(s_t), F being 0 after the end, with V - F for V.

    Where the critic does not follow, at lambda 1 it is a baseline: the state's F, whatever is
    done.
    """
    reward, value, mask = stretches(seed)
    potential = 3 * randn(seed + 7, 5, 7).where(mask, 0.0)
    ahead = torch.nn.functional.pad(potential, (0, 1))[:, 1:]
    shaped = reward + ahead - potential
    adv = ops.gae(reward, value, mask, 1.0, lam)
    assert torch.allclose(ops.gae(shaped, value - potential, mask, 1.0, lam), adv, atol=1e-12)
    lagging = ops.gae(shaped, value, mask, 1.0, 1.0)
    assert torch.allclose(lagging, ops.gae(reward, value + potential, mask, 1.0, 1.0), atol=1e-12)


@given(seeds, st.floats(0.1, 5), st.floats(-5, 5))
def test_whitening(seed, scale, shift):
    x, _, mask = stretches(seed)
    white = ops.whiten(x, mask)
    assert not white[~mask].any()
    assert white[mask].mean().abs() < 1e-12
    assert float(white[mask].var(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(ops.whiten(scale * x + shift, mask), white, atol=1e-4)
    assert torch.allclose(ops.whiten(-x, mask), -white)
    assert torch.equal(ops.whiten(x.where(mask, float("nan")), mask), white)


@given(seeds)
def test_the_last_chosen_token(seed):
    _, _, mask = stretches(seed)
    x = 1 + torch.arange(5, dtype=torch.float64)
    placed = ops.at_last(x, mask)
    for k in range(5):
        last = max(t for t in range(7) if mask[k, t])
        assert placed[k].nonzero().tolist() == [[last]] and placed[k, last] == x[k]


def test_explained_variance():
    _, noise, mask = stretches(3)
    ret = randn(4, 5, 7)
    nan = ret.where(mask, float("nan"))
    assert ops.explained_variance(nan + 3.0, ret, mask) == pytest.approx(1)     # but for a constant
    assert ops.explained_variance(torch.zeros_like(ret), nan, mask) == pytest.approx(0)
    assert ops.explained_variance(2 * ret, ret, mask) == pytest.approx(0)
    assert ops.explained_variance(-ret, ret, mask) == pytest.approx(-3)
    assert ops.explained_variance(noise, torch.full_like(ret, 0.1), mask) == 0.0
