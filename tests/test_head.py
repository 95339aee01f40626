"""Log-probs, entropy and KL in pieces equal the whole computation, and never hold (N, V)."""

import pytest
import torch
from fakes import Largest, sequences, tiny

from minipost.engine import head
from minipost.errors import MinipostError
from minipost.gpt import AND_BACK, GPT, GPTConfig
from minipost.rollout import Sequences, logprobs, readings
from minipost.run import rows_at_once

UNUSED = torch.zeros(11, dtype=torch.bool).index_fill(0, torch.tensor([4, 9]), True)


def untied():
    model = GPT(GPTConfig(11, 8, 12, 1, 2, 1, 4, 32, tie_word_embeddings=False)).double()
    return model.initialise(3)


@pytest.fixture
def in_pieces(monkeypatch):
    def of(rows):
        monkeypatch.setattr(head, "WHOLE", 0)
        monkeypatch.setattr(head, "LEAST_ROWS", rows)
    return of


def everything(model, seqs, temperature, reference, weights):
    """Each reading, and the gradient of their weighted sum."""
    model.zero_grad(set_to_none=True)
    seen = readings(model, seqs, temperature, reference, entropy=True)
    sum((w * x).sum() for w, x in zip(weights, seen[:3])).backward()
    assert not seen.logp_ref.requires_grad
    return [x.detach() for x in seen], [p.grad for p in model.parameters()]


@pytest.mark.parametrize("tied", [True, False])
def test_large_matrices_add_to_the_gradient_that_they_have(tied, monkeypatch):
    """Three passes, of which the last two find the gradient of the first."""
    monkeypatch.setattr(head, "LEAST_ROWS", 1)
    found, config = [], GPTConfig(211, 8, 12, 1, 2, 1, 4, 32, tie_word_embeddings=tied)
    for most in (2**23, 0):
        monkeypatch.setattr(head, "WHOLE", most)
        model = GPT(config).double().initialise(3)
        for seed in (0, 1, 2):
            reading = readings(model, sequences(4, seed=seed), 0.7, None, entropy=True)
            with Largest() as seen:
                (reading.logp + 0.3 * reading.entropy).sum().backward()
            assert (seen.most < 211 * 8) == (most == 0 and seed > 0)
        found.append([p.grad for p in model.parameters()])
    for one, two in zip(*found, strict=True):
        assert two.layout == torch.strided
        torch.testing.assert_close(one, two)
    slope, = torch.autograd.grad(model.hidden(torch.tensor([[1, 2]]), explicit=True).sum(),
                                 model.embed_tokens.weight, create_graph=True)
    assert slope.layout == torch.strided and slope.requires_grad


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("make", [tiny, untied])
def test_pieces_equal_the_whole_in_value_and_gradient(in_pieces, make, temperature, rows):
    model, reference, seqs = make(), tiny(seed=1), sequences(6)
    seqs = Sequences(seqs.tokens.where(~UNUSED[seqs.tokens], 3), seqs.mask)
    model.unused = reference.unused = UNUSED
    weights = torch.randn(3, *seqs.mask.shape, dtype=torch.float64,
                          generator=torch.Generator().manual_seed(2))
    whole = everything(model, seqs, temperature, reference, weights)
    in_pieces(rows)
    found = everything(model, seqs, temperature, reference, weights)
    for one, other in zip(whole, found):
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(one, other))
    assert torch.allclose(logprobs(model, seqs, temperature), whole[0][0], atol=1e-12)
    assert min(x.abs().max() for x in whole[0]) > 0.01
    assert readings(model, seqs).kl is None and readings(
        model, seqs, reference=reference, kl=False).kl is None


def test_no_tensor_is_as_large_as_all_logits(in_pieces):
    """64 rows of 400 logits: the largest tensor, forwards and backwards, is the head itself."""
    size = 400
    model, reference = (GPT(GPTConfig(size, 8, 12, 1, 2, 1, 4, 64)).initialise(k) for k in (0, 1))
    tokens = torch.randint(size, (2, 41), generator=torch.Generator().manual_seed(0))
    seqs = Sequences(tokens, torch.arange(40).expand(2, 40) >= 8)

    def largest():
        with Largest() as seen:
            found = readings(model, seqs, 1.0, reference, entropy=True)
            sum(x.sum() for x in found[:3]).backward()
        return seen.most

    assert largest() >= 64 * size
    in_pieces(5)
    assert largest() <= 8 * size


def test_there_is_no_second_derivative_in_pieces():
    hidden = torch.ones(2, 3, requires_grad=True)
    logp = head.Readings.apply(hidden, torch.ones(4, 3), torch.tensor([0, 1]), None, 1.0, None,
                               False)[0]
    with pytest.raises(MinipostError, match="no second derivative"):
        torch.autograd.grad(logp.sum(), hidden, create_graph=True)


def test_a_pass_has_more_tokens_where_logits_come_in_pieces():
    """A large vocabulary no longer limits it; a small one counts as before."""
    small, large = (GPT(GPTConfig(size, 64, 64, 2, 2, 2, 32, 64)) for size in (100, 152_000))
    memory = 2**29
    assert small.tokens_within(memory) == memory // (AND_BACK * small.bytes_per_token + 2400)
    whole = large.tokens_within(memory, whole=True)
    assert whole == memory // (AND_BACK * large.bytes_per_token + 24 * 152_000)
    assert large.tokens_within(memory) > 10 * whole


def test_sampling_counts_the_logits_of_a_large_vocabulary():
    small, large = (GPT(GPTConfig(size, 8, 8, 1, 1, 1, 8, 64)) for size in (100, 152_000))
    assert rows_at_once(small, 64) == 1024
    assert rows_at_once(large, 64) == 2**30 // (2 * 8 * 64 * 4 + 20 * 152_000)
