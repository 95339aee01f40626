"""The nano-GPT: its cache, its attention paths, its derivatives."""

import copy

import pytest
import torch
from fakes import BOS, PAD, sequences, tiny
from torch.func import functional_call, jvp

from minipost import ops
from minipost.engine.functions import rotary_table
from minipost.errors import MinipostError
from minipost.gpt import GPT, GPTConfig, ValueHead
from minipost.methods import distill, trpo
from minipost.optim import Learner
from minipost.rollout import Sequences, distribution, generate


def test_explicit_attention_equals_the_fused_one():
    model, seqs = tiny(), sequences(4)
    with torch.no_grad():
        assert torch.allclose(model(seqs.tokens), model(seqs.tokens, explicit=True), atol=1e-12)


def test_no_token_sees_what_comes_after_it():
    model, tokens = tiny(), sequences(3).tokens
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-12)
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def test_double_backward_and_forward_mode_agree_with_differences():
    """What Fisher-vector products need: (d/dtheta)(grad . v), and the Jacobian times v."""
    model, seqs = tiny(), sequences(2)
    params = {k: v.detach() for k, v in model.named_parameters()}
    generator = torch.Generator().manual_seed(3)
    v = {k: 0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
         for k, p in params.items()}

    def out(p):
        return functional_call(model, p, (seqs.tokens, True))

    def moved(h):
        return {k: p + h * v[k] for k, p in params.items()}

    h = 1e-5
    forward = jvp(out, (params,), (v,))[1]
    assert torch.allclose(forward, (out(moved(h)) - out(moved(-h))) / (2 * h), atol=1e-6)

    def grad(p):
        p = {k: x.clone().requires_grad_() for k, x in p.items()}
        return torch.autograd.grad(out(p).logsumexp(-1).sum(), list(p.values()))

    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    first = torch.autograd.grad(
        out(leaves).logsumexp(-1).sum(), list(leaves.values()), create_graph=True)
    dot = sum((g * v[k]).sum() for g, k in zip(first, leaves))
    second = torch.autograd.grad(dot, list(leaves.values()))
    for a, plus, minus in zip(second, grad(moved(h)), grad(moved(-h))):
        assert torch.allclose(a, (plus - minus) / (2 * h), atol=1e-4)


def test_a_fresh_scalar_head_gives_zero_and_then_reads_every_position():
    head = ValueHead(tiny()).double()
    tokens = sequences(3).tokens
    assert head(tokens).shape == tokens.shape and not head(tokens).any()
    torch.nn.init.ones_(head.score.weight)
    assert torch.allclose(head(tokens), head.trunk.hidden(tokens).sum(-1))


def test_bfloat16_stays_near_float32():
    config = GPTConfig(50, hidden_size=32, intermediate_size=64, head_dim=8)
    model = GPT(config).initialise(0)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        exact = model(tokens)
        rough = model.to(torch.bfloat16)(tokens)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


UNUSED = torch.zeros(11, dtype=torch.bool).index_fill(0, torch.tensor([4, 9, 10]), True)


def with_unused(seed=0):
    model = tiny(seed=seed)
    model.unused = UNUSED
    return model


def test_ids_that_no_token_has_get_no_probability():
    """As if the rows were not there, in sampling and in training; and the file keeps them."""
    model, seqs = with_unused(), sequences(6)
    seqs = Sequences(seqs.tokens.where(~UNUSED[seqs.tokens], 3), seqs.mask)
    found = distribution(model, seqs, 0.7)
    cut = (model.hidden(seqs.inputs)[seqs.mask] @ model.embed_tokens.weight[~UNUSED].T) / 0.7
    assert torch.allclose(found[:, ~UNUSED], cut.log_softmax(-1), atol=1e-12)
    assert (found[:, UNUSED].exp() == 0).all()
    for temperature in (0.0, 1.0, 30.0):
        rollout = generate(model, [[BOS, 3]] * 3, 20, max_new_tokens=6, eos={2}, pad=PAD,
                           temperature=temperature)
        assert not UNUSED[rollout.tokens].any()
    assert model.state_dict().keys() == tiny().state_dict().keys()
    assert torch.equal(copy.deepcopy(model).unused, UNUSED)


def quantities(logp_all, logq_all):
    """Everything that reads a whole distribution."""
    yield ops.entropy(logp_all)
    yield ops.kl_exact(logp_all, logq_all)
    yield ops.kl_exact(logq_all, logp_all)
    yield distill.forward_kl(logq_all, logp_all)
    yield distill.forward_kl(distill.certain(SEEN, logp_all), logp_all)
    for mix in (0.0, 0.3, 1.0):
        yield distill.loss(logp_all, logq_all, mix=mix, count=1)[0][None]
    yield ops.kl_exact_grad(logp_all, logq_all).square()


SEEN = sequences(6)
SEEN = Sequences(SEEN.tokens.where(~UNUSED[SEEN.tokens], 3), SEEN.mask)


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_unused_ids_leave_every_quantity_and_its_gradient_finite(temperature):
    model, other = with_unused(), with_unused(seed=1)
    for k in range(9):
        model.zero_grad()
        logp_all, logq_all = (distribution(each, SEEN, temperature) for each in (model, other))
        found = list(quantities(logp_all, logq_all.detach()))[k]
        found.sum().backward()
        assert found.isfinite().all(), k
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), k


def test_unused_ids_in_the_products_of_the_natural_gradient():
    learner = Learner(with_unused())
    vector = torch.randn(len(learner.flat), generator=torch.Generator().manual_seed(2),
                         dtype=torch.float64)
    forward = trpo.product_jacobian(learner, SEEN, 0.9, vector)
    assert forward.isfinite().all()
    assert torch.allclose(forward, trpo.product_hessian(learner, SEEN, 0.9, vector), atol=1e-9)


def test_a_table_of_rotations_that_grows_has_the_same_numbers():
    """A context of 10^8 costs nothing; longer sequences read the very rows of a longer table."""
    config = GPTConfig(11, hidden_size=16, num_attention_heads=4, head_dim=4,
                       max_position_embeddings=10**8)
    whole = rotary_table(config, torch.float32, "cpu", 5000)
    for length in (1, 7, 100, 4096):
        part = rotary_table(config, torch.float32, "cpu", length)
        assert all(torch.equal(a, b[:length]) for a, b in zip(part, whole))
    model, small = GPT(config).initialise(0), GPT(GPTConfig(
        11, hidden_size=16, num_attention_heads=4, head_dim=4)).initialise(0)
    assert len(model.rotary(3)[0]) == 512 and len(model.rotary(1500)[0]) == 2048
    tokens = torch.arange(11)[None]
    assert torch.equal(model(tokens), small(tokens))


def test_too_long_a_sequence_is_refused():
    with pytest.raises(MinipostError, match="65 tokens does not fit .* context of 64"):
        tiny().hidden(torch.full((1, 65), BOS))


def test_the_same_seed_gives_the_same_fresh_model():
    a, b, c = (GPT(GPTConfig(20)).initialise(s) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.embed_tokens.weight, c.embed_tokens.weight)
