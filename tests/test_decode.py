"""Decoding against the whole forward pass, by the CPU's decoder and by the GPU's.

The GPU's step is ordinary code, so all but its recording runs on the CPU here.
"""

from contextlib import nullcontext

import pytest
import torch
from fakes import BOS, EOS, PAD, tiny

from minipost.engine import decode, decode_cuda
from minipost.engine.decode import Norm, turn
from minipost.engine.decode_cuda import StaticDecoder
from minipost.engine.functions import HAS_ONEDNN, rotary_table, rotate
from minipost.engine.tree import Tree
from minipost.errors import MinipostError
from minipost.gpt import RMSNorm
from minipost.rollout import generate, logprobs


def test_the_norm_of_a_step_is_rmsnorm():
    norm = RMSNorm(8, 1e-2).double()
    norm.weight.data = torch.linspace(-1, 2, 8, dtype=torch.float64)
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 10
    assert torch.allclose(Norm(norm)(x, torch.empty_like(x)), norm(x), atol=1e-14)


def test_the_norm_of_a_step_in_bfloat16_has_a_scale_in_float32():
    """A length of eight bits would be off by up to 0.4%, in all of a row alike."""
    norm = RMSNorm(64, 1e-5).bfloat16()
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    off = Norm(norm)(x, torch.empty_like(x)).float() / norm(x).float()
    assert (off.nanmean(1) - 1).abs().mean() < 1e-3


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


# ---- the step that a GPU records

PROMPTS = [[BOS, 3, 4, 5], [BOS, 6], [BOS, 7, 8, 9, 10, 3, 5], [BOS]]


@pytest.fixture
def static(monkeypatch):
    """Let the CPU decode as a GPU does.  Returns a function that sets its constants."""
    monkeypatch.setattr(decode_cuda, "DEVICES", ("cpu", "cuda"))
    return lambda **values: [monkeypatch.setattr(decode_cuda, name, value)
                             for name, value in values.items()]


def forced(decoder, tokens):
    """The logits of a StaticDecoder that is made to draw these tokens (N, B).  (N, B, V)"""
    seen, given = [], iter(tokens)

    def choose(logits, uniform):
        seen.append(logits.clone())
        token = next(given)
        return token, torch.zeros(len(token)), torch.tensor(False)

    decoder.choose = choose
    assert decoder.run() == len(tokens)
    return torch.stack(seen)


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("span, align", [(256, 16), (3, 1), (1, 4)])
def test_the_static_step_equals_the_full_forward_and_the_decoder(static, kv, tied, span, align):
    """Ragged prompts, copies, grouped heads, and spans that end within a response."""
    static(SPAN=span, ALIGN=align)
    model, generator = tiny(kv=kv, tied=tied), torch.Generator().manual_seed(1)
    lengths = torch.tensor([len(p) for p in PROMPTS])
    padded = torch.tensor([p + [PAD] * (7 - len(p)) for p in PROMPTS])
    tokens = torch.randint(3, 11, (8, 8), generator=generator)              # (N, B)
    with torch.no_grad():
        static_decoder = StaticDecoder(model, padded, lengths, 8, torch.arange(8) // 2,
                                       choose=None, uniform=None,
                                       stop=torch.zeros(11, dtype=torch.bool), pad=PAD)
        logits = forced(static_decoder, tokens)
        assert torch.equal(static_decoder.response, tokens.t())
        tree = Tree(model, PROMPTS, 8, 2)
        for t in range(8):
            assert torch.allclose(logits[t], tree.logits()[tree.node], atol=1e-12)
            for row in range(8):
                ids = PROMPTS[row // 2] + tokens[:t, row].tolist()
                whole = model(torch.tensor([ids]))[0, -1]
                assert torch.allclose(logits[t, row], whole, atol=1e-12)
            tree.grow(torch.arange(8), tokens[t])


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("constants", [{}, dict(SPAN=3, LOOK=1, MANY=1), dict(SPAN=2, LOOK=2)])
def test_both_decoders_sample_the_same(static, monkeypatch, temperature, constants):
    """Whenever the host looks, rows leave or a span ends: the same tokens and log-probs."""
    model, sizes, select = tiny(), [], StaticDecoder.select
    monkeypatch.setattr(StaticDecoder, "select",
                        lambda self, rows: sizes.append(len(rows)) or select(self, rows))
    options = dict(max_new_tokens=20, eos={EOS, 5, 99}, pad=PAD, temperature=temperature, seed=(3,))
    monkeypatch.setattr(decode_cuda, "DEVICES", ())
    eager = generate(model, PROMPTS, 5, **options)
    static(**constants)
    monkeypatch.setattr(decode_cuda, "DEVICES", ("cpu",))
    same = generate(model, PROMPTS, 5, **options)
    for name in ("tokens", "mask", "prompt", "finished"):
        assert torch.equal(getattr(same, name), getattr(eager, name)), name
    assert (same.logp - eager.logp).abs().max() < 1e-6                      # recorded in float32
    if temperature:
        assert (same.logp - logprobs(model, same, temperature)).abs().max() < 1e-6
    assert bool(sizes) == bool(constants)                                   # rows left the cache


def test_sampling_ends_at_the_look_behind_the_last_end(static, monkeypatch):
    """LOOK steps are drawn at most for nothing, and what they drew is no response."""
    static(LOOK=4)
    drawn, run = [], StaticDecoder.run
    monkeypatch.setattr(StaticDecoder, "run", lambda self: drawn.append(run(self)) or drawn[-1])
    rollout = generate(tiny(), PROMPTS, 2, max_new_tokens=40, eos=set(range(11)), pad=PAD)
    assert drawn == [4] and rollout.lengths.tolist() == [1] * 8 and rollout.finished.all()
    assert generate(tiny(), PROMPTS, 2, max_new_tokens=6, eos={99}, pad=PAD).lengths.tolist() == [
        6] * 8


def test_logits_that_are_not_finite_are_said_by_the_static_step_too(static):
    model = tiny()
    model.norm.weight.data[0] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(MinipostError, match="logits are not finite"):
            generate(model, PROMPTS, 2, max_new_tokens=3, eos={EOS}, pad=PAD,
                     temperature=temperature)


def test_the_static_step_keeps_every_tensor_where_it_is(static, monkeypatch):
    """A graph replays addresses: what a step reads of the step before must not move."""
    def addresses(decoder):
        tensors = {name: x for name, x in vars(decoder).items() if isinstance(x, torch.Tensor)}
        assert len(tensors) > 10
        stores = [store for layer in decoder.cache for store in layer]
        return [(x.data_ptr(), x.shape) for x in [*tensors.values(), *stores]]

    seen, step = [], StaticDecoder.step

    def watched(decoder):
        before = addresses(decoder)
        step(decoder)
        seen.append(addresses(decoder) == before)

    monkeypatch.setattr(StaticDecoder, "step", watched)
    generate(tiny(), PROMPTS, 2, max_new_tokens=6, eos={99}, pad=PAD)
    assert seen == [True] * 6


def test_the_static_step_decodes_in_bfloat16(static):
    model = tiny().to(torch.bfloat16)
    rollout = generate(model, PROMPTS, 4, max_new_tokens=8, eos={EOS}, pad=PAD)
    with torch.no_grad():
        trained = logprobs(model, rollout)
    assert (rollout.logp - trained).abs().max() < 0.2


# ---- its recording, with PyTorch's graphs replaced by one that tells what it is asked

@pytest.fixture
def told(monkeypatch):
    """What the functions of torch.cuda are asked, in order."""
    said = []

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            said.append(("begin", pool, capture_error_mode))

        capture_end = lambda self: said.append("end")
        replay = lambda self: said.append("replay")
        pool = lambda self: "its pool"

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**28 + 10, 2**40))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append("empty"))
    monkeypatch.setattr(decode_cuda, "aside", lambda device: nullcontext())
    monkeypatch.setattr(decode_cuda, "LATEST", {})
    monkeypatch.setattr(decode_cuda, "FAILED", [])
    return said


def test_a_step_is_run_then_recorded_then_replayed(told):
    """Each call is one step.  A recording needs memory, and takes the pool of the one before."""
    first = decode_cuda.Recorded(lambda: told.append("act"), "gpu", room=10)
    for _ in range(3):
        first()
    begin = ("begin", None, "thread_local")
    assert told == ["act", begin, "act", "end", "replay", "replay"]
    told.clear()
    second = decode_cuda.Recorded(lambda: told.append("act"), "gpu", room=11)
    second()
    second()
    assert told == ["act", "empty", ("begin", "its pool", "thread_local"), "act", "end", "replay"]


def test_a_recording_that_fails_names_the_switch(told, monkeypatch):
    def act():
        told.append("act")
        if ("begin", None, "thread_local") in told:
            raise RuntimeError("operation not permitted when stream is capturing")

    recorded = decode_cuda.Recorded(act, "gpu", room=0)
    recorded()
    with pytest.raises(MinipostError, match="MINIPOST_CUDA_GRAPHS=0.*not permitted when"):
        recorded()
    assert told[-1] == "end" and len(decode_cuda.FAILED) == 1 and not decode_cuda.LATEST


def test_the_switch_leaves_the_step_unrecorded(monkeypatch):
    class Rows(list):
        device = torch.device("cuda", 0)

    class Decoder(StaticDecoder):
        def __init__(self):
            self.rows, self.model = Rows([0, 1]), tiny()

    decoder = Decoder()
    assert isinstance(decoder.recorded(), decode_cuda.Recorded)
    monkeypatch.setenv(decode_cuda.SWITCH, "0")
    assert decoder.recorded() == decoder.step


@pytest.mark.skipif(not HAS_ONEDNN, reason="matrices are packed on CPUs with AVX-512 only")
@pytest.mark.parametrize("tied", [True, False])
def test_packed_matrices_change_nothing_but_rounding(monkeypatch, tied):
    """In float32, their only type, also as rows leave."""
    options = dict(max_new_tokens=6, eos={2}, pad=PAD, seed=(3,))
    model = tiny(tied=tied).float()
    plain = generate(model, PROMPTS, 3, **options)
    made, whole = [], decode.pack
    monkeypatch.setattr(decode, "LARGE", 1)
    monkeypatch.setattr(decode, "pack", lambda *given: made.append(given) or whole(*given))
    packed = generate(model, PROMPTS, 3, **options)
    assert len(made) == 4 * 2 + 1  # four matrices of each layer, and the head
    assert torch.equal(packed.tokens, plain.tokens)
    assert torch.allclose(packed.logp, plain.logp, atol=1e-5)
