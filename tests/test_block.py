"""A layer by hand against the layer's own forward, and each of its steps against differences."""

import copy

import pytest
import torch
from fakes import sequences, tiny
from torch.autograd import gradcheck

from minipost.engine.block import Add, AddMLP, Project, block, recompute
from minipost.engine.functions import rotary_table
from minipost.engine.packed import Padded
from minipost.errors import MinipostError
from minipost.gpt import Block, GPTConfig
from minipost.rollout import logprobs


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


COS, SIN = rotary_table(GPTConfig(11, head_dim=4), torch.float64, "cpu", 5)
PICK = torch.tensor([[True, False, True, True, False], [False, True, False, False, True]])


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("pick", [None, PICK])
def test_a_layer_by_hand_is_the_layer(kv, pick):
    """Its value, and the gradients by its input and all of its weights."""
    layer, x = tiny(kv=kv).layers[0], draw(2, 5, 16)
    inputs = [x, *layer.parameters()]
    value = block(layer, x, Padded(COS, SIN), pick)
    plain = layer(x, Padded(COS, SIN, explicit=True), pick)
    assert value.shape == plain.shape and torch.allclose(value, plain, atol=1e-12)
    ones = torch.ones((), dtype=torch.float64).expand(value.shape)  # one number, not contiguous
    for weight in (draw(*value.shape, seed=7).detach(), ones):
        for ours, theirs in zip(torch.autograd.grad(value, inputs, weight, retain_graph=True),
                                torch.autograd.grad(plain, inputs, weight, retain_graph=True)):
            assert torch.allclose(ours, theirs, atol=1e-10)


def test_each_step_against_differences():
    x, weight = draw(2, 5, 6), draw(6, seed=1)
    assert gradcheck(lambda *given: Project.apply(given[0], given[1], 0.3, given[2], COS[:, None],
                                                  SIN[:, None], 2),
                     (x, weight, draw(12, 6, seed=2)), fast_mode=True)
    assert gradcheck(Add.apply, (x, draw(2, 5, 8, seed=3), draw(6, 8, seed=4)), fast_mode=True)
    assert gradcheck(lambda *given: AddMLP.apply(given[0], given[1], 0.3, given[2], given[3]),
                     (x, weight, draw(14, 6, seed=5), draw(6, 7, seed=6)), fast_mode=True)


def test_low_precision_is_normalised_in_float32():
    """The square of what a layer reads may overflow float16."""
    config = GPTConfig(11, hidden_size=16, intermediate_size=24, num_attention_heads=4,
                       num_key_value_heads=2, head_dim=4)
    torch.manual_seed(0)
    layer = Block(config).half()
    x = torch.full((1, 5, 16), 3e4, dtype=torch.float16).requires_grad_()
    cos, sin = rotary_table(config, torch.float16, "cpu", 5)
    value = block(layer, x, Padded(cos, sin))
    assert value.dtype == torch.float16 and value.isfinite().all()
    value.float().mean().backward()
    for p in (x, *layer.parameters()):
        assert p.grad.dtype == torch.float16 and p.grad.isfinite().all()


def test_a_second_derivative_is_refused():
    """It would be wrong: the norm's scale is kept as a constant."""
    model, tokens = tiny(), sequences(2).tokens
    with pytest.raises(MinipostError, match="no second derivative; ask the model with explicit"):
        torch.autograd.grad(model(tokens).square().sum(), list(model.parameters()),
                            create_graph=True)
    assert torch.autograd.grad(model(tokens, explicit=True).square().sum(),
                               list(model.parameters()), create_graph=True)


def test_layers_that_are_computed_again_give_the_same_gradient_and_keep_less():
    """Equal to the bit; of each layer its input alone is kept; a copy does the same."""
    seqs, found = sequences(6), []
    for model in (tiny(), recompute(tiny()), copy.deepcopy(recompute(tiny()))):
        kept = []

        def keep(x, kept=kept):
            kept.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            value = logprobs(model, seqs).sum()
        value.backward()
        found.append((sum(kept), [p.grad for p in model.parameters()], model.bytes_per_token))
    for kept, grads, size in found[1:]:
        assert kept < 0.6 * found[0][0] and size < found[0][2]
        assert all(torch.equal(a, b) for a, b in zip(grads, found[0][1]))
