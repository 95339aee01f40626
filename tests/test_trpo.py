"""TRPO: Fisher products, conjugate gradient, the step, the line search, and what they promise."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fakes import PAD, Echo, Letters, sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, hessian

from minipost.errors import MinipostError
from minipost.gpt import GPT, GPTConfig
from minipost.methods import trpo
from minipost.optim import Learner
from minipost.rollout import distribution, logprobs, pack
from minipost.run import Run


def small(vocab=6, tied=True, seed=0, dtype=torch.float64):
    """A GPT of some 150 weights, far from uniform: few enough to write its Fisher matrix down."""
    model = GPT(GPTConfig(vocab, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=1, head_dim=2,
                          max_position_embeddings=16, tie_word_embeddings=tied))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=generator))
            if p.dim() == 1:
                p.add_(1.0)
    return model.to(dtype)


def normal(n, seed):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explicit_fisher(learner, seqs, temperature=1.0):
    """sum_t E_p[grad logp grad logp'], every action of every state one by one.  (W, W)"""
    logp_all = distribution(learner.module, seqs, temperature)
    fisher = torch.zeros(len(learner.flat), len(learner.flat), dtype=torch.float64)
    for logp in logp_all.flatten():
        parts = torch.autograd.grad(logp, learner.params, retain_graph=True)
        score = torch.cat([part.flatten() for part in parts])
        fisher += logp.detach().exp() * torch.outer(score, score)
    return fisher


PRODUCTS = trpo.product_jacobian, trpo.product_hessian


# ---- Fisher products

@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("tied", [True, False])
def test_both_products_are_the_explicit_fisher_matrix(temperature, tied):
    learner, seqs = Learner(small(tied=tied)), sequences(3, seed=4, vocab=6)
    fisher = explicit_fisher(learner, seqs, temperature)
    assert fisher.norm() > 1
    for seed in range(3):
        v = normal(len(fisher), seed)
        for product in PRODUCTS:
            found = product(learner, seqs, temperature, v)
            assert torch.allclose(found, fisher @ v, rtol=1e-10, atol=1e-10), product.__name__
    assert not learner.grad.any()       # and nothing is left where the next step collects


@given(st.integers(0, 10_000), st.sampled_from(PRODUCTS), st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=10)
def test_products_are_linear_symmetric_and_positive(seed, product, a, b):
    learner, seqs = Learner(small(seed=1)), sequences(2, seed=seed, vocab=6)
    u, v = normal((2, len(learner.flat)), seed)
    fu, fv, both = (product(learner, seqs, 0.8, x) for x in (u, v, a * u + b * v))
    assert torch.allclose(both, a * fu + b * fv, atol=1e-9)
    assert float(u @ fv) == pytest.approx(float(v @ fu), abs=1e-9)
    assert u @ fu > 0 and v @ fv > 0


def test_fisher_is_the_second_derivative_of_both_kls():
    """At the old weights, where both KLs and their gradients are 0."""
    learner, seqs = Learner(small()), sequences(2, seed=1, vocab=6)
    params, policy = trpo.parameters(learner), trpo.Logits(learner.module, 0.7)
    old = distribution(learner.module, seqs, 0.7).detach()

    def forward_kl(weights, swap=False):
        named = {f"policy.{k}": x for k, x in trpo.as_parameters(weights, params).items()}
        new = functional_call(policy, named, (seqs,)).log_softmax(-1)
        p, q = (new, old) if swap else (old, new)
        return (p.exp() * (p - q)).sum()

    fisher = explicit_fisher(learner, seqs, 0.7)
    for kl in (forward_kl, partial(forward_kl, swap=True)):
        assert abs(kl(learner.flat)) < 1e-14
        assert grad(kl)(learner.flat).abs().max() < 1e-12
        assert torch.allclose(hessian(kl)(learner.flat), fisher, atol=1e-10)


def test_what_moves_all_logits_alike_has_no_fisher_information():
    """Why F needs damping: the same vector added to every row of the head changes no policy."""
    learner, seqs = Learner(small(tied=False)), sequences(3, vocab=6)
    params = trpo.parameters(learner)
    parts = {name: torch.zeros_like(p) for name, p in params.items()}
    parts["lm_head.weight"] += normal(4, 0)
    v = torch.cat([part.flatten() for part in parts.values()])
    for product in PRODUCTS:
        assert product(learner, seqs, 1.0, v).abs().max() < 1e-12 < 0.1 < v.norm()


def test_products_in_float32_on_many_rows():
    """Enough rows for the faster matrix products of gpt.product, whose derivatives are its own."""
    wide, seqs = small(), sequences(60, seed=2, vocab=6)
    narrow, v = copy.deepcopy(wide).float(), normal(sum(p.numel() for p in wide.parameters()), 0)
    assert seqs.inputs.numel() > 256
    exact = trpo.product_hessian(Learner(wide), seqs, 0.7, v)
    for product in PRODUCTS:
        found = product(Learner(narrow), seqs, 0.7, v.float())
        assert found.dtype == torch.float32
        assert (found - exact).norm() < 1e-4 * exact.norm()


# ---- conjugate gradient and the step

def positive(seed, n, highest=10.0):
    """A random symmetric matrix with eigenvalues from 1 to `highest`, and a vector."""
    basis = torch.linalg.qr(normal((n, n), seed))[0]
    values = torch.linspace(1.0, highest, n, dtype=torch.float64)
    return basis @ torch.diag(values) @ basis.T, normal(n, seed + 1)


def counted(matrix):
    """The product with a matrix, and a list that grows with every call."""
    calls = []

    def product(v):
        calls.append(v)
        return matrix @ v
    return product, calls


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_conjugate_gradient_solves_within_as_many_iterations_as_dimensions(seed, n):
    matrix, b = positive(seed, n)
    product, calls = counted(matrix)
    x, residual = trpo.conjugate_gradient(product, b, n, tolerance=0)
    assert torch.allclose(x, torch.linalg.solve(matrix, b), rtol=1e-9, atol=1e-11)
    assert len(calls) <= n


@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 4))
def test_conjugate_gradient_cut_short(seed, n, iterations):
    """The residual is b - A x, and x b > 0: a step gains to first order, however early it ends."""
    matrix, b = positive(seed, n, highest=1e3)
    product, calls = counted(matrix)
    x, residual = trpo.conjugate_gradient(product, b, iterations)
    assert torch.allclose(residual, b - matrix @ x, atol=1e-9)
    assert x @ b > 0 and len(calls) <= iterations
    # x is the best of its Krylov space: no step along a direction tried before improves it.
    for v in calls:
        assert abs(v @ residual) < 1e-8 * v.norm() * b.norm()


@given(st.integers(0, 10_000), st.sampled_from([1e-1, 1e-2, 1e-4, 1e-10]))
def test_conjugate_gradient_ends_as_soon_as_the_tolerance_allows(seed, tolerance):
    matrix, b = positive(seed, 8, highest=30.0)
    product, calls = counted(matrix)
    x, _ = trpo.conjugate_gradient(product, b, 50, tolerance)
    error = (b - matrix @ x).square().sum() / b.square().sum()
    assert error <= tolerance * (1 + 1e-6)
    before, _ = trpo.conjugate_gradient(lambda v: matrix @ v, b, len(calls) - 1, tolerance=0)
    assert (b - matrix @ before).square().sum() > tolerance * b.square().sum()


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(-150, 0))
def test_conjugate_gradient_stays_finite_however_long_it_goes_on(seed, n, digits):
    """The squares end in underflow; a curvature of 0 there must not be divided by."""
    matrix, b = positive(seed, n)
    small, scale = 1e-3 * matrix, 10.0**digits  # like a Fisher matrix, times which less is left
    x, residual = trpo.conjugate_gradient(lambda v: small @ v, b * scale, 300, tolerance=0)
    assert torch.isfinite(x).all() and torch.isfinite(residual).all()
    if digits > -100:
        assert torch.allclose(x / scale, torch.linalg.solve(small, b), rtol=1e-9, atol=1e-8)


def test_conjugate_gradient_ends_where_the_curvature_is_not_positive():
    """Without damping rounding can make it negative: x is then that of the steps before."""
    b = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    x, residual = trpo.conjugate_gradient(lambda v: -v, b, 5)
    assert torch.equal(x, torch.zeros_like(b)) and torch.equal(residual, b)
    matrix = torch.diag(torch.tensor([3.0, 1.0, -0.01], dtype=torch.float64))
    x, residual = trpo.conjugate_gradient(lambda v: matrix @ v, b, 5)
    assert torch.allclose(residual, b - matrix @ x) and x @ b > 0 and x @ matrix @ x > 0


@given(st.floats(0.01, 100), st.integers(0, 10_000), st.integers(1, 8))
def test_a_multiple_of_the_identity_takes_one_iteration(scale, seed, n):
    b = normal(n, seed)
    product, calls = counted(scale * torch.eye(n, dtype=torch.float64))
    x, residual = trpo.conjugate_gradient(product, b, 10)
    assert len(calls) == 1 and torch.allclose(x, b / scale, rtol=1e-14)


@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(1e-4, 1.0))
def test_a_full_step_costs_delta_of_the_quadratic(seed, iterations, delta):
    """Also where conjugate gradient was cut short; and it never goes against the gradient."""
    matrix, g = positive(seed, 8, highest=100.0)
    damped = matrix + 0.1 * torch.eye(8, dtype=torch.float64)
    step, error = trpo.full_step(lambda v: damped @ v, g, delta, iterations)
    assert float(step @ damped @ step / 2) == pytest.approx(delta, rel=1e-9)
    assert g @ step > 0
    x, _ = trpo.conjugate_gradient(lambda v: damped @ v, g, iterations)
    assert error == pytest.approx(float((damped @ x - g).norm() / g.norm()), abs=1e-9)


@given(st.integers(0, 10_000), st.floats(1e-4, 1.0))
def test_a_full_step_is_the_best_of_its_price(seed, delta):
    """The natural gradient, by a direct solve; no other step with s F s / 2 = delta gains more."""
    matrix, g = positive(seed, 6)
    step, error = trpo.full_step(lambda v: matrix @ v, g, delta, 6)
    x = torch.linalg.solve(matrix, g)
    assert error < 1e-4 and torch.allclose(step / step.norm(), x / x.norm(), atol=1e-4)
    assert float(g @ step) == pytest.approx(math.sqrt(2 * delta * float(g @ x)), rel=1e-6)
    for other in normal((20, 6), seed + 2):
        other = other * (2 * delta / (other @ matrix @ other)).sqrt()
        assert g @ other < g @ step


def surrogate(learner, seqs, adv, logp_old, temperature=1.0):
    count = int(seqs.mask.sum())
    logp = logprobs(learner.module, seqs, temperature)
    return -trpo.loss(logp, logp_old, adv, seqs.mask, count=count)[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_steps_keep_the_promise_of_the_model(seed):
    """As delta -> 0 the KL becomes s F s / 2 and the gain g s, with errors like sqrt(delta).

    Damping takes a little of delta for the gradient of a surrogate, which lies in the range of F.
    A random vector lies mostly in its null space, where damping takes nearly all: the control.
    """
    learner, seqs = Learner(small(seed=seed)), sequences(4, seed=seed, vocab=6)
    old, count, damping = learner.flat.clone(), int(seqs.mask.sum()), 0.01
    logp_all_old = distribution(learner.module, seqs).detach()
    logp_old = logprobs(learner.module, seqs).detach()
    adv = normal(4, seed)
    surrogate(learner, seqs, adv, logp_old).backward()
    gradient = learner.grad.clone()

    def product(v):
        return trpo.product_jacobian(learner, seqs, 1.0, v) / count + damping * v

    @torch.no_grad()
    def kl_and_gain(step):
        learner.assign(old + step)
        new, now = distribution(learner.module, seqs), surrogate(learner, seqs, adv, logp_old)
        learner.assign(old)
        before = surrogate(learner, seqs, adv, logp_old)
        return float((logp_all_old.exp() * (logp_all_old - new)).sum() / count), float(now - before)

    unit, residual = trpo.full_step(product, gradient, 1.0, 60)
    price = float(unit @ (product(unit) - damping * unit)) / 2
    assert residual < 1e-4 and 0.75 < price < 1
    for delta in (1e-4, 1e-6, 1e-8):
        kl, gain = kl_and_gain(unit * math.sqrt(delta))
        assert abs(kl / (delta * price) - 1) < 15 * math.sqrt(delta)
        assert abs(gain / (float(gradient @ unit) * math.sqrt(delta)) - 1) < 15 * math.sqrt(delta)
    stray, _ = trpo.full_step(product, normal(len(gradient), seed), 1e-8, 60)
    assert 0 < kl_and_gain(stray)[0] < 0.1e-8


# ---- the line search

numbers = st.floats(-1, 1) | st.just(float("nan"))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), st.floats(0.1, 0.9))
def test_the_line_search_takes_the_first_that_qualifies_and_else_the_old(found, shrink):
    old, step, asked = normal(3, 0), normal(3, 1), []

    def evaluate(weights):
        asked.append(weights)
        return found[len(asked) - 1]

    weights, tries, gain, kl = trpo.line_search(evaluate, old, step, 0.3, shrink, len(found))
    good = [k for k, (gain, kl) in enumerate(found) if gain > 0 and kl <= 0.3]
    if good:
        assert (tries, gain, kl) == (good[0], *found[good[0]]) and weights is asked[-1]
        assert len(asked) == good[0] + 1
    else:
        assert weights is old and (tries, gain, kl) == (len(found), 0.0, 0.0)
        assert len(asked) == len(found)
    for k, weights in enumerate(asked):
        assert torch.allclose(weights - old, shrink**k * step, atol=1e-15)


def test_the_bounds_of_the_line_search_are_exact():
    old, step = torch.zeros(1), torch.ones(1)
    for gain, kl, taken in ((1e-300, 0.3, True), (0.0, 0.1, False), (-0.0, 0.1, False),
                            (1.0, math.nextafter(0.3, 1), False), (math.nan, 0.1, False),
                            (1.0, math.nan, False), (math.inf, 0.1, True)):
        weights, *_ = trpo.line_search(lambda w: (gain, kl), old, step, 0.3, 0.5, 1)
        assert (weights is not old) == taken, (gain, kl)


# ---- whole steps on a toy

CONFIG = trpo.Config(prompts=4, group_size=3, temperature=0.8, fisher=6, iterations=5, delta=0.02,
                     damping=0.01, shrink=0.6, tries=10)


def toy(task=None, dtype=torch.float64, seed=0):
    task = task or Echo()
    return Run(Learner(small(vocab=11, dtype=dtype)), Letters(), task, task.reward,
               max_new_tokens=3,
               seed=seed, micro_batch_size=5)


def step(run, cfg=CONFIG):
    """One step: its metrics, the weights before, and a copy of the module as it was."""
    old, before = copy.deepcopy(run.policy.module), run.policy.master.clone()
    return next(trpo.train(run, cfg)), before, old


@pytest.fixture
def sampled(monkeypatch):
    """The rollouts that runs sample from now on."""
    found, real = [], Run.sample

    def sample(*args, **kwargs):
        found.append(real(*args, **kwargs))
        return found[-1]
    monkeypatch.setattr(Run, "sample", sample)
    return found


def by_hand(run, rollout, group):
    """Each answer's reward less the mean of its group's.  (B,)"""
    r = run.grade(run.problems(len(rollout) // group), rollout).tolist()
    groups = [r[i : i + group] for i in range(0, len(r), group)]
    return torch.tensor([x - sum(g) / group for g in groups for x in g]).double()


@pytest.mark.parametrize("seed", range(4))
def test_an_accepted_step_keeps_the_bound_and_gains(sampled, seed):
    """Both computed anew here, over the whole rollout and the whole vocabulary."""
    run = toy(seed=seed)
    metrics, before, old = step(run)
    rollout, adv = sampled[0], by_hand(run, sampled[0], CONFIG.group_size)
    with torch.no_grad():
        p, q = (distribution(m, rollout, 0.8) for m in (old, run.policy.module))
    kl = (p.exp() * (p - q)).sum(-1).mean()
    chosen = rollout.targets[rollout.mask][:, None]
    assert (p.gather(1, chosen)[:, 0] - rollout.logp[rollout.mask]).abs().max() < 1e-5
    ratio = (q.gather(1, chosen) - p.gather(1, chosen)).exp()[:, 0]
    gain = ((ratio - 1) * adv.repeat_interleave(rollout.lengths)).mean()
    assert metrics["accepted"] == 1 and metrics["kl"] <= CONFIG.delta and metrics["surrogate"] > 0
    assert metrics["kl"] == pytest.approx(float(kl), rel=1e-9) and kl > CONFIG.delta / 20
    assert metrics["surrogate"] == pytest.approx(float(gain), rel=1e-5)     # rewards are float32
    assert torch.equal(run.policy.master, run.policy.flat)
    assert not torch.equal(run.policy.flat, before) and not run.policy.grad.any()


@pytest.mark.parametrize("answers", [1, 5, 12, 100])
def test_the_step_solves_for_the_fisher_matrix_of_the_rollout(monkeypatch, sampled, answers):
    """What conjugate gradient is given, against the explicit matrix and an explicit gradient."""
    given_, real = {}, trpo.full_step

    def full_step(product, gradient, delta, iterations):
        v = normal(len(gradient), 0)
        given_.update(gradient=gradient, v=v, image=product(v), delta=delta, n=iterations)
        given_["step"] = real(product, gradient, delta, iterations)[0]
        return real(product, gradient, delta, iterations)

    monkeypatch.setattr(trpo, "full_step", full_step)
    run = toy(seed=1)
    cfg = trpo.Config(prompts=4, group_size=3, temperature=0.8, fisher=answers, damping=1e-3,
                      delta=2.0,
                      iterations=9, tries=30, shrink=0.6)
    metrics, before, old = step(run, cfg)
    old, rollout = Learner(old), sampled[0]
    rows = run.rng("fisher").sample(range(12), min(answers, 12))
    fisher = explicit_fisher(old, rollout[rows], 0.8) / rollout.mask[rows].sum()
    assert (given_["delta"], given_["n"]) == (2.0, 9)
    assert torch.allclose(given_["image"], fisher @ given_["v"] + 1e-3 * given_["v"], atol=1e-10)
    adv = by_hand(run, rollout, 3).repeat_interleave(rollout.lengths)
    (logprobs(old.module, rollout, 0.8)[rollout.mask] * adv).mean().backward()
    assert torch.allclose(given_["gradient"], old.grad, atol=1e-6)
    moved = run.policy.flat - before
    assert metrics["backtracks"] > 0
    assert torch.allclose(moved, 0.6 ** metrics["backtracks"] * given_["step"], atol=1e-12)
    assert metrics["predicted"] == pytest.approx(float(given_["gradient"] @ moved), rel=1e-9)
    assert metrics["loss"] == pytest.approx(-float(adv.mean()), abs=1e-6)


line_search = trpo.line_search


def hopeless(evaluate, *others):
    """The line search, told after each real evaluation that nothing is gained."""
    def lie(weights):
        evaluate(weights)
        return 0.0, 0.0
    return line_search(lie, *others)


def too_dear(evaluate, *others):
    """The line search, told that each candidate is beyond the bound by the smallest number."""
    def lie(weights):
        evaluate(weights)
        return 1.0, math.nextafter(CONFIG.delta, 1)
    return line_search(lie, *others)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("search", [hopeless, too_dear])
def test_a_search_that_finds_nothing_restores_the_weights_bit_for_bit(monkeypatch, dtype, search):
    monkeypatch.setattr(trpo, "line_search", search)
    run = toy(dtype=dtype)
    flat = run.policy.flat.clone()
    metrics, before, _ = step(run)
    assert torch.equal(run.policy.master, before) and torch.equal(run.policy.flat, flat)
    assert (metrics["accepted"], metrics["backtracks"], metrics["kl"]) == (0.0, 10, 0.0)
    assert metrics["predicted"] == metrics["surrogate"] == 0.0


def test_a_step_that_is_too_long_is_shortened_or_not_taken():
    """A bound so wide that the quadratic says nothing about the KL."""
    long = dict(prompts=4, group_size=3, delta=3.0, fisher=1, damping=1e-3)
    run = toy()
    metrics, before, _ = step(run, trpo.Config(**long, tries=1))
    assert metrics["accepted"] == 0 and torch.equal(run.policy.flat, before)
    metrics, before, _ = step(run, trpo.Config(**long, tries=30))
    assert metrics["accepted"] == 1 and metrics["backtracks"] > 1 and metrics["kl"] <= 3.0
    assert not torch.equal(run.policy.flat, before)


def test_bfloat16_weights_follow_their_float32_copy():
    run = toy(dtype=torch.bfloat16)
    cfg = trpo.Config(prompts=4, group_size=3, fisher=6, delta=0.05, damping=0.01)
    metrics, before, _ = step(run, cfg)
    assert metrics["accepted"] == 1 and not torch.equal(run.policy.master, before)
    assert run.policy.master.dtype == torch.float32
    assert torch.equal(run.policy.flat, run.policy.master.to(torch.bfloat16))


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(monkeypatch):
    run, real = toy(), trpo.loss

    def broken(logp, *args, **kwargs):
        value, stats = real(logp, *args, **kwargs)
        return value * math.nan, stats

    monkeypatch.setattr(trpo, "loss", broken)
    metrics, before, _ = step(run)
    assert torch.equal(run.policy.flat, before) and math.isnan(metrics["grad_norm"])
    assert run.policy.skipped == 1 and metrics["accepted"] == 0
    with pytest.raises(MinipostError, match="not finite 5 steps in a row"):
        for _ in range(4):
            step(run)
    monkeypatch.setattr(trpo, "loss", real)
    assert step(run)[0]["accepted"] == 1


def test_rewards_that_all_tie_leave_the_weights_as_they_are():
    class Tied(Echo):
        def reward(self, prompts, completions, **columns):
            return [0.1] * len(prompts)

    run = toy(Tied())
    metrics, before, _ = step(run)
    assert torch.equal(run.policy.flat, before) and metrics["grad_norm"] == 0.0
    assert metrics["accepted"] == 0 and metrics["frac_reward_zero_std"] == 1.0


# ---- the surrogate

@given(st.integers(0, 10_000))
def test_at_ratio_one_the_surrogate_has_the_plain_policy_gradient(seed):
    logp, mask = -normal((3, 4), seed).abs(), normal((3, 4), seed + 1) > -0.5
    adv = normal(3, seed + 2)
    found = trpo.loss_grad(logp, logp, adv, mask, count=7)["logp"]
    assert torch.equal(found, -adv[:, None].expand(3, 4).where(mask, 0.0) / 7)
    value = trpo.loss(logp, logp, adv, mask, count=7)[0]
    assert float(value) == pytest.approx(float(-(adv[:, None] * mask).sum() / 7))


def test_the_surrogate_is_importance_sampling():
    """Its expectation under the old policy is the expected advantage under the new one."""
    old, new = normal((2, 5), 0).log_softmax(-1)
    adv, each = normal(5, 1), []
    for action in range(5):
        one = trpo.loss(new[action].view(1, 1), old[action].view(1, 1), adv[action].view(1),
                        torch.ones(1, 1, dtype=torch.bool), count=1)[0]
        each.append(-one * old[action].exp())
    assert float(sum(each)) == pytest.approx(float((new.exp() * adv).sum()))
    assert abs(sum(each)) > 0.05


@pytest.mark.parametrize("shrink", [1.0, 2.0])
def test_a_shrink_that_does_not_shrink_is_refused(shrink):
    with pytest.raises(MinipostError, match=f"shrink is {shrink}; expected less than 1"):
        trpo.Config(shrink=shrink)


# ---- what natural gradients are for

class Table(torch.nn.Module):
    """Free logits for every last token, those of token 0 held at 0, so that F is invertible.

    The logits are `mix` times the parameter: one policy class in many coordinates.
    """

    def __init__(self, weights, mix):
        super().__init__()
        self.states, self.mix = len(weights), mix
        self.u = torch.nn.Parameter(torch.linalg.solve(mix, weights.flatten()))
        self.config = SimpleNamespace(vocab_size=weights.shape[1] + 1)

    def hidden(self, tokens, explicit=False):
        return torch.nn.functional.one_hot(tokens, self.states).double()

    def hidden_at(self, tokens, where):
        return self.hidden(tokens)[where]

    @property
    def head_weight(self):
        free = (self.mix @ self.u).view(self.states, -1).t()
        return torch.cat([torch.zeros_like(free[:1]), free])

    def head(self, hidden):
        return hidden @ self.head_weight.t()


def logits_after(table, seqs, adv, damping, natural=True):
    """The table's logits after one step of its own coordinates."""
    learner, count = Learner(table), int(seqs.mask.sum())
    surrogate(learner, seqs, adv, logprobs(table, seqs).detach()).backward()

    def product(v):
        return trpo.product_jacobian(learner, seqs, 1.0, v) / count + damping * v

    gradient = learner.grad.clone()
    step = trpo.full_step(product, gradient, 0.05, 100)[0] if natural else gradient
    return table.mix @ (table.u.detach() + step)


@pytest.mark.parametrize("seed", range(5))
def test_the_natural_step_does_not_depend_on_the_coordinates(monkeypatch, seed):
    """Solved exactly and undamped; the plain gradient and a damped one do depend on them."""
    monkeypatch.setattr(trpo, "conjugate_gradient", partial(trpo.conjugate_gradient, tolerance=0))
    actions = torch.randint(4, (12,), generator=torch.Generator().manual_seed(seed)).tolist()
    seqs = pack([[k % 4] for k in range(12)], [[action] for action in actions], PAD)
    weights, adv = normal((4, 3), seed), normal(12, seed + 1)
    eye = torch.eye(12, dtype=torch.float64)
    mix = eye + 0.3 * normal((12, 12), seed + 2)
    for how, same in ((dict(damping=0.0), True), (dict(damping=0.3), False),
                      (dict(damping=0.0, natural=False), False)):
        plain = logits_after(Table(weights, eye), seqs, adv, **how)
        mixed = logits_after(Table(weights, mix), seqs, adv, **how)
        change, gap = (plain - weights.flatten()).norm(), (plain - mixed).norm()
        assert change > 0.01 and (gap < 1e-6 * change if same else gap > 0.1 * change), how


class World:
    """Three prompts, two tokens each out of three, a reward for each answer: all enumerable.

    `logits` maps the weights to the logits of 3 + 9 states, a prompt alone or with its first token.
    """

    def __init__(self, reward, logits, weights):
        self.reward, self.logits, self.weights = reward, logits, weights

    @classmethod
    def table(cls, seed):
        """Any rewards; a weight for each logit."""
        return cls(normal((3, 3, 3), seed), torch.eye(36).double(), 0.5 * normal(36, seed + 1))

    @classmethod
    def forgetful(cls):
        """The second token does not see the first, and both tokens must be 0, or 1 for more.

        It starts where each token would do best to give in to the other.
        """
        eye = torch.eye(9, dtype=torch.float64)
        later = eye.view(3, 1, 3, 9).expand(3, 3, 3, 9).reshape(27, 9)
        start = torch.tensor([[0.65, 0.3, 0.05]] * 3 + [[0.3, 0.65, 0.05]] * 3).double().log()
        reward = torch.tensor([1.0, 1.3, 0.0]).double().diag().expand(3, 3, 3)
        return cls(reward, torch.block_diag(eye, later), start.flatten())

    def policy(self, weights):
        """Log-probs of the next token in each state.  (12, 3)"""
        return (self.logits @ weights).view(12, 3).log_softmax(-1)

    def value(self):
        p = self.policy(self.weights).exp()
        return float((p[:3, :, None] * p[3:].view(3, 3, 3) * self.reward).sum() / 3)

    def step(self, delta, search=True):
        """One step of TRPO with exact advantages and Fisher matrix; returns its KL per token."""
        old, logp = self.weights, self.policy(self.weights)
        p = logp.exp()
        q = (p[3:].view(3, 3, 3) * self.reward).sum(-1)                     # (prompt, first token)
        q = torch.cat([q, self.reward.reshape(9, 3)])                       # (12, 3)
        adv = q - (p * q).sum(-1, keepdim=True)
        share = torch.cat([torch.ones(3), p[:3].flatten()])[:, None] / 6    # (12, 1), sums to 1

        def evaluate(weights):
            new = self.policy(weights)
            return float((share * new.exp() * adv).sum()), float((share * p * (logp - new)).sum())

        def product(direction):
            v = (self.logits @ direction).view(12, 3)
            image = share * p * (v - (p * v).sum(-1, keepdim=True))
            return self.logits.T @ image.flatten() + 1e-6 * direction

        gradient = self.logits.T @ (share * p * adv).flatten()
        if gradient.norm() < 1e-9:
            return 0.0                                                      # at an optimum
        step, _ = trpo.full_step(product, gradient, delta, 40)
        self.weights = old + step
        if search:
            self.weights, *_ = trpo.line_search(evaluate, old, step, delta, 0.6, 20)
        return evaluate(self.weights)[1]

    def values(self, steps, delta, search=True):
        """The expected reward before and after each of so many steps, each within delta."""
        found = [self.value()]
        for _ in range(steps):
            kl = self.step(delta, search)
            assert not search or kl <= delta
            found.append(self.value())
        return found


@pytest.mark.parametrize("seed", range(5))
def test_exact_steps_in_an_enumerable_world_never_lose(seed):
    world = World.table(seed)
    values = world.values(30, delta=0.03)
    best = float(world.reward.amax((1, 2)).mean())
    assert all(after > before - 1e-12 for before, after in zip(values, values[1:]))
    assert values[-1] > 0.97 * best + 0.03 * values[0] and best > values[0] + 0.5


def test_a_bound_and_a_line_search_are_what_keeps_them_from_losing():
    """Where two tokens depend on each other blindly, long unchecked steps lose; the control."""
    values = World.forgetful().values(30, delta=0.01)
    assert all(after > before - 1e-12 for before, after in zip(values, values[1:]))
    assert values[-1] > 1.25
    unchecked = World.forgetful().values(30, delta=2.0, search=False)
    assert min(after - before for before, after in zip(unchecked, unchecked[1:])) < -0.1
