"""Weights in 8 and 4 bits: the levels of the paper, the bounds of rounding, and training beside."""

import copy

import pytest
import torch
from conftest import tiny_model
from fakes import sequences, tiny

from minipost import checkpoint, train
from minipost.engine.coded import BLOCK, Coded, code, count, decode, encode, levels
from minipost.engine.lora import Fixed, adapt, adapters, linears, merged, own, trained
from minipost.errors import MinipostError
from minipost.gpt import GPT, GPTConfig, ValueHead
from minipost.methods.trpo import product_hessian, product_jacobian
from minipost.optim import Learner
from minipost.rollout import generate, logprobs
from scripts import bench_bits

# Dettmers et al. 2023, appendix E.
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0]


def coded(bits=4, rank=3, model=None):
    """A coded model whose adapters have learnt something."""
    model = adapt(code(tiny() if model is None else model, bits), rank)
    generator = torch.Generator().manual_seed(7)
    for _, _, adapter in adapters(model):
        adapter.b.data.copy_(0.3 * torch.randn(adapter.b.shape, generator=generator))
    return model


def uncoded(model):
    """The same with whole matrices in place of codes, and its adapters."""
    found = copy.deepcopy(model)
    for _, linear, _ in linears(found):
        linear.become(linear.weight)
    return found


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_the_levels_are_those_of_the_paper():
    assert torch.allclose(levels(4), torch.tensor(NF4, dtype=torch.float64), atol=1e-6)
    assert len(levels(8)) == 255 and levels(8)[127] == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_a_number_gets_the_nearest_level(bits):
    x = random(5, 77)
    codes, scales = encode(x, bits, 64)
    found = decode(codes, scales, bits, x.numel()).view_as(x)
    assert codes.dtype == torch.uint8 and len(codes) == 7 * 64 * bits // 8 and len(scales) == 7
    flat = torch.nn.functional.pad(x.flatten(), (0, 63)).view(7, 64)
    nearest = (flat[..., None] / flat.abs().amax(1)[:, None, None] - levels(bits)).abs().amin(-1)
    error = torch.nn.functional.pad((found - x).abs().flatten(), (0, 63)).view(7, 64)
    assert torch.allclose(error, nearest * flat.abs().amax(1, keepdim=True), atol=1e-15)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_on_the_levels_stays_and_zeros_too(bits):
    x = levels(bits).repeat(12)[:192]
    x[63], x[127], x[191] = 1, -1, 1
    assert torch.equal(decode(*encode(x, bits, 64), bits, 192), x)
    zeros = torch.zeros(100)
    assert torch.equal(decode(*encode(zeros, bits, 64), bits, 100), zeros)


@pytest.mark.parametrize("bits, most", [(4, 4.13), (8, 8.13)])
def test_bits_of_a_weight_and_how_near_it_comes(bits, most):
    linear = torch.nn.Linear(512, 256, bias=False)
    linear.adapter = None
    torch.nn.init.normal_(linear.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    one = Coded(linear, bits)
    held = sum(8 * p.numel() * p.element_size() for p in one.parameters())
    assert bits < held / linear.weight.numel() <= most
    error = (one.weight - linear.weight).norm() / linear.weight.norm()
    assert (0.05 < error < 0.11) if bits == 4 else (0.003 < error < 0.008)
    plain = decode(*encode(linear.weight.detach(), bits, BLOCK), bits, linear.weight.numel())
    again = (plain.view_as(linear.weight) - linear.weight).norm() / linear.weight.norm()
    assert abs(error - again) < 0.05 * again  # what it costs to code the scales too


@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_is_never_negative_however_large_another_is(bits):
    """Small rows beside one large weight keep their signs, and roughly their size."""
    linear = torch.nn.Linear(64, 256, bias=False)
    linear.adapter = None
    generator = torch.Generator().manual_seed(0)
    deviation = torch.tensor([0.001, 0.02]).repeat_interleave(128)[:, None]
    linear.weight.data = deviation * torch.randn(256, 64, generator=generator)
    linear.weight.data[200, 5] = 1.5
    linear.weight.data[7] = 0
    one = Coded(linear, bits)
    scales = linear.weight.detach().abs().amax(1)
    assert (one.scales() >= scales[scales > 0].min() / 2).all()
    found, small = one.weight, torch.arange(256) < 128
    assert not found[7].any()
    cosine = torch.cosine_similarity(found, linear.weight.detach())
    small[7] = False
    assert cosine[small].min() > 0.97
    ratio = (found.norm(dim=1) / linear.weight.norm(dim=1))[small]
    assert 0.4 < ratio.min() and ratio.max() < 2.5
    zero = torch.nn.Linear(64, 4, bias=False)
    zero.adapter = None
    torch.nn.init.zeros_(zero.weight)
    assert not Coded(zero, bits).weight.any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("recompute", [False, True])
def test_training_is_that_beside_the_matrices_that_the_codes_stand_for(bits, recompute):
    from minipost.engine.block import recompute as again
    model, seqs = coded(bits), sequences(6)
    plain = uncoded(model)
    if recompute:
        again(model)
    ours, theirs = (torch.autograd.grad(logprobs(each, seqs).sum(), trained(each))
                    for each in (model, plain))
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(ours, theirs))
    assert torch.allclose(logprobs(model, seqs), logprobs(plain, seqs), atol=1e-12)
    logits = model.head(model.hidden(seqs.inputs, explicit=True))
    logp = logits.log_softmax(-1).gather(2, seqs.targets[..., None])[..., 0]
    assert torch.allclose(logp * seqs.mask, logprobs(plain, seqs), atol=1e-11)
    bare = adapt(tiny(), 3)
    assert (logprobs(bare, seqs) - logprobs(plain, seqs)).abs().max() > 1e-3


def test_the_way_back_keeps_no_matrix():
    """Of what a pass keeps, nothing has the shape of a matrix of the layers."""
    shapes = {tuple(linear.weight.shape) for _, linear, _ in linears(tiny())}
    kept = {}
    for name, model in (("coded", coded()), ("plain", adapt(tiny(), 3))):
        found = kept.setdefault(name, [])
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x, found=found: (found.append(tuple(x.shape)), x)[1], lambda x: x):
            logprobs(model, sequences(6))
    assert len(shapes & {*kept["plain"]}) == 4 and not shapes & {*kept["coded"]}


def test_finding_the_adapters_makes_no_matrix(monkeypatch):
    model, plain = coded(), tiny()
    monkeypatch.setattr(Coded, "weight", property(lambda self: pytest.fail("decoded")))
    assert [rows for _, _, rows in linears(model)] == [rows for _, _, rows in linears(plain)]
    assert all(sum(rows) == len(linear.weight) for _, linear, rows in linears(plain))
    assert len(adapters(model)) == 8


def test_copies_share_the_codes_and_only_adapters_learn():
    model = coded()
    critic = ValueHead(copy.deepcopy(model))
    one, other = (each.layers[0].mlp.down_proj for each in (model, critic.trunk))
    assert isinstance(one, Coded) and one.codes is other.codes and one.adapter is not other.adapter
    assert {name.split(".")[-1] for name in own(critic)} == {"a", "b", "weight"}
    assert count(model) == sum(p.numel() for p in tiny().parameters()) + sum(
        p.numel() for p in trained(model))
    before = one.weight.clone()
    learner = Learner(model)
    logprobs(model, sequences(4)).sum().backward()
    learner.step(0.1)
    assert torch.equal(one.weight, before)


def test_fisher_products_beside_codes():
    learner, seqs = Learner(coded()), sequences(4)
    vector = random(len(learner.flat))
    assert torch.allclose(product_jacobian(learner, seqs, 1.0, vector),
                          product_hessian(learner, seqs, 1.0, vector), atol=1e-9)


def test_the_sampler_answers_as_training_reads():
    model = coded()
    rollout = generate(model, [[1, 4, 5], [1, 3]], 3, max_new_tokens=9, eos={2}, pad=0, seed=(5,))
    assert torch.allclose(rollout.logp.double(), logprobs(model, rollout).detach(), atol=1e-5)
    assert torch.allclose(logprobs(merged(model), rollout), logprobs(model, rollout), atol=1e-11)


def test_what_is_saved_is_the_adapter(tmp_path, words):
    checkpoint.create(tmp_path / "base", tiny_model(True), words)
    model = coded(model=checkpoint.load(tmp_path / "base")[0])
    checkpoint.save(tmp_path / "a", model, tmp_path / "base")
    whole = adapt(checkpoint.load(tmp_path / "base")[0], 3)
    for (_, _, theirs), (_, _, ours) in zip(adapters(whole), adapters(model)):
        theirs.load_state_dict(ours.state_dict())
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(checkpoint.load(tmp_path / "a")[0](tokens), whole(tokens), atol=1e-5)
    with pytest.raises(MinipostError, match="belongs to them as they were"):
        checkpoint.save(tmp_path / "w", model, tmp_path / "base", merge=True)


def test_the_bench_counts_what_a_run_holds():
    shape = GPTConfig(64, hidden_size=256, intermediate_size=512, num_hidden_layers=2, head_dim=64)
    whole, model = GPT(shape).bfloat16(), adapt(code(GPT(shape).bfloat16(), 4), 16)
    layers = sum(p.numel() * p.element_size() for p in model.parameters() if type(p) is Fixed)
    learns = sum(p.numel() for p in trained(model))
    found = bench_bits.held(whole, 4) - 18 * learns         # weight, gradient, moments, copy
    assert found <= layers < 1.02 * found                   # blocks that are not whole
    assert bench_bits.held(whole, 0) - 18 * learns == 2 * sum(p.numel() for p in whole.parameters())
    assert bench_bits.error(code(tiny_model(True), 4), tiny_model(True)) < 0.12
    rows = bench_bits.memory()
    assert [len(row) for row in rows] == [4] * 4 and float(rows[3][3]) < float(rows[3][1]) / 2


@pytest.mark.parametrize("flags, said", [
    (("--base-bits", "5", "--lora", "4"), "base_bits is 5; expected 8, 4, or 0"),
    (("--base-bits", "4"), "goes with --lora"),
    (("--base-bits", "4", "--lora", "4", "--merge"), "without --merge")])
def test_what_does_not_go_together(flags, said):
    with pytest.raises(MinipostError, match=said):
        train.settings_of(["--algo", "sft", *flags])


def test_a_run_beside_four_bits(command, capsys):
    assert train.main(command("sft", "--steps", 2, "--lora", 2, "--base-bits", 4,
                              "--batch-size", 4)) == 0
    assert "which alone learn, the layers' weights in 4 bits" in capsys.readouterr().out
