"""The network's pieces by their definitions."""

import pytest
import torch
from torch.func import jvp

from minipost.engine.functions import (
    HAS_ONEDNN,
    attention,
    even,
    product,
    rotary_table,
    rotate,
    turn,
)
from minipost.gpt import GPTConfig, RMSNorm

CONFIG = GPTConfig(11, head_dim=6, max_position_embeddings=40)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_fused_attention_is_the_explicit_one(kv, biased):
    """Value and gradient in float64."""
    inputs = draw(2, 4, 5, 6), draw(2, kv, 7 if biased else 5, 6, seed=1), \
        draw(2, kv, 7 if biased else 5, 6, seed=2)
    bias = draw(2, 1, 5, 7, seed=3).detach() if biased else None
    fused, plain = attention(*inputs, bias), attention(*inputs, bias, explicit=True)
    assert torch.allclose(fused, plain, atol=1e-13)
    weight = draw(*fused.shape, seed=7).detach()
    for ours, theirs in zip(torch.autograd.grad((fused * weight).sum(), inputs),
                            torch.autograd.grad((plain * weight).sum(), inputs)):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_turning_leaves_the_values_as_they_are():
    qkv = draw(3, 5, 4, 6)
    cos, sin = (table[:5, None] for table in rotary_table(CONFIG, torch.float64, "cpu"))
    turned = turn(qkv, cos, sin, 3)
    assert torch.allclose(turned[..., :3, :], rotate(qkv[..., :3, :], cos, sin))
    assert torch.equal(turned[..., 3:, :], qkv[..., 3:, :])


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    config = GPTConfig(4, head_dim=8, max_position_embeddings=40)
    cos, sin = rotary_table(config, torch.float64, "cpu")
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = rotate(q.expand(40, 8), cos, sin)
    assert torch.allclose(turned.norm(dim=-1), q.norm().expand(40))
    scores = turned @ rotate(k.expand(40, 8), cos, sin).T
    for distance in (0, 3, 7):
        line = torch.diagonal(scores, -distance)
        assert torch.allclose(line, line[:1].expand_as(line))
    assert (scores[3, 0] - scores[0, 0]).abs() > 1e-3
    # By the definition: pair (i, i + E/2) turns by position * theta^(-2i/E).
    angle = 5 * 10000.0 ** (-2 * 1 / 8)
    expected = q[1] * torch.cos(torch.tensor(angle)) - q[5] * torch.sin(torch.tensor(angle))
    assert turned[5, 1] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.skipif(not HAS_ONEDNN, reason="oneDNN's product is used on CPUs with AVX-512 only")
def test_the_fast_product_and_its_derivatives_are_those_of_linear():
    """Value, gradient, second gradient and forward mode, in float32, its only type."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 40, 24), (30, 24), (8, 40, 30), (8, 40, 24), (30, 24)]
    x, w, g, dx, dw = (torch.randn(s, generator=generator) for s in shapes)
    x.requires_grad_(), w.requires_grad_()

    def derivatives(f):
        y = f(x, w)
        first = torch.autograd.grad(y, (x, w), g, retain_graph=True)
        gx, gw = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
        second = torch.autograd.grad(gx.square().sum() + gw.square().sum(), (x, w))
        return [y, *first, *second, jvp(f, (x.detach(), w.detach()), (dx, dw))[1]]

    pairs = list(zip(derivatives(product), derivatives(torch.nn.functional.linear)))
    for fast, plain in pairs:
        assert (fast - plain).abs().max() <= 1e-5 * plain.abs().max()
    names, node = [], product(x, w).grad_fn
    while node is not None and node.next_functions:
        names.append(type(node).__name__)
        node = node.next_functions[0][0]
    assert any("Product" in name for name in names)


def test_few_numbers_of_rows():
    for rows in range(1, 5000):
        assert rows <= even(rows) <= max(64, rows + 63, rows * 1.125)
    assert len({even(rows) for rows in range(512, 1024)}) == 9
    assert all(even(rows) == rows for rows in (64, 320, 1024, 1152, 4096))


def test_rmsnorm_by_its_definition():
    norm = RMSNorm(5, eps=0.1).double()
    x = torch.arange(1.0, 11.0, dtype=torch.float64).view(2, 5)
    torch.nn.init.constant_(norm.weight, 3.0)
    expected = [[3 * v / (sum(u * u for u in row) / 5 + 0.1) ** 0.5 for v in row]
                for row in x.tolist()]
    assert torch.allclose(norm(x), torch.tensor(expected, dtype=torch.float64))
