"""Decoding against the whole forward pass."""

import pytest
import torch
from fakes import PAD, tiny

from minipost.decode import Decoder, Norm, turn
from minipost.functions import rotary_table, rotate
from minipost.gpt import RMSNorm


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_cached_decoding_equals_the_full_forward(kv, tied):
    """Ragged prompts, copies, steps and dropped rows give the logits of the whole sequences."""
    model = tiny(kv=kv, tied=tied)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1, 11, (n,), generator=generator).tolist() for n in (5, 2, 7)]
    padded = torch.tensor([p + [PAD] * (7 - len(p)) for p in prompts])
    lengths = torch.tensor([len(p) for p in prompts])
    with torch.no_grad():
        decoder = Decoder(model, padded, lengths, max_new_tokens=6, group_size=2)
        rows = [list(p) for p in prompts for _ in range(2)]
        for t in range(6):
            for row, ids in enumerate(rows):
                whole = model(torch.tensor([ids]))[0, -1]
                assert torch.allclose(decoder.logits()[row], whole, atol=1e-12)
            if t == 2:
                keep = torch.tensor([0, 3, 5])
                decoder.select(keep)
                rows = [rows[i] for i in keep.tolist()]
            if t == 5:
                break
            token = torch.randint(1, 11, (len(rows),), generator=generator)
            for ids, new in zip(rows, token.tolist()):
                ids.append(new)
            decoder.step(token)


def test_the_norm_of_a_step_is_rmsnorm():
    norm = RMSNorm(8, 1e-2).double()
    norm.weight.data = torch.linspace(-1, 2, 8, dtype=torch.float64)
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 10
    assert torch.allclose(Norm(norm)(x, torch.empty_like(x)), norm(x), atol=1e-14)


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-15), (torch.bfloat16, 0.02)])
def test_pairs_side_by_side_turn_as_halves_do(dtype, error):
    """Once permuted, a rotation is one complex product, in place."""
    cos, sin = rotary_table(tiny().config, torch.float64, "cpu", 7)
    width = cos.shape[1]
    x = torch.randn(7, 3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.arange(width).view(2, -1).t().flatten()
    rotation = torch.complex(cos[:, : width // 2], sin[:, width // 2 :])
    pairs = x[..., order].to(dtype)
    turn(pairs, rotation[:, None])
    right = rotate(x, cos[:, None], sin[:, None])[..., order]
    assert (pairs.double() - right).abs().max() <= error
