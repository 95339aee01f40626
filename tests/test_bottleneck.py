"""Bottleneck adapters against plain operations, in training, in every decoder and on disk."""

import copy
import json

import pytest
import torch
from conftest import tiny_model
from fakes import sequences, tiny
from test_prefix import PROMPTS, greedy, plain, random

import minipost
from minipost import checkpoint, train
from minipost.engine import tree
from minipost.engine.block import recompute
from minipost.engine.bottleneck import Bottleneck, attach, bottlenecks, width_of
from minipost.engine.decode_cuda import StaticDecoder
from minipost.engine.lora import own, trained
from minipost.errors import MinipostError
from minipost.gpt import RewardModel, ValueHead
from minipost.layout import lora_file
from minipost.methods.trpo import product_hessian, product_jacobian
from minipost.optim import Learner
from minipost.rollout import generate, logprobs


def bent(width=3, model=None, learnt=True):
    """A model whose bottlenecks have learnt something."""
    model = attach(tiny() if model is None else model, width)
    generator = torch.Generator().manual_seed(7)
    for p in trained(model) if learnt else ():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return model


def test_the_equation():
    one = bottlenecks(bent())[0]
    f = random(5, 16)
    inner = 0.5 * (low := f @ one.down.t() + one.inner) * (1 + torch.erf(low / 2**0.5))
    assert torch.allclose(one(f), f + inner @ one.up.t() + one.outer)


def test_at_first_nothing_changes_and_nothing_else_learns():
    plain, seqs = tiny(), sequences(5)
    model = bent(model=copy.deepcopy(plain), learnt=False)
    assert torch.allclose(logprobs(model, seqs), logprobs(plain, seqs), atol=1e-12)
    assert len(bottlenecks(model)) == 4
    assert sum(p.numel() for p in trained(model)) == 4 * (2 * 3 * 16 + 3 + 16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    learner = Learner(model, optimizer="muon")
    for _ in range(3):
        logprobs(model, seqs).sum().backward()
        learner.step(0.1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert len(moved) == 16 and all(".after_" in name for name in moved)
    assert (logprobs(model, seqs) - logprobs(plain, seqs)).abs().max() > 1e-3


@pytest.mark.parametrize("again", [False, True])
def test_training_reads_it_as_plain_operations_do(again):
    model, seqs = bent(), sequences(6)
    if again:
        recompute(model)
    by_hand = torch.autograd.grad(logprobs(model, seqs).sum(), trained(model))
    theirs = torch.autograd.grad((plain(model, seqs) * seqs.mask).sum(), trained(model))
    assert torch.allclose(logprobs(model, seqs), plain(model, seqs) * seqs.mask, atol=1e-11)
    for ours, other in zip(by_hand, theirs):
        assert other.abs().max() > 1e-4 and torch.allclose(ours, other, atol=1e-11)


def test_a_trunk_that_learns_too_gets_its_derivative():
    """A step that leaves out its x gives no derivative by it."""
    model, seqs = bent(), sequences(6)
    for part in model.modules():
        for name, p in part.named_parameters(recurse=False):
            setattr(part, name, torch.nn.Parameter(p.data))
    by_hand = torch.autograd.grad(logprobs(model, seqs).sum(), list(model.parameters()))
    theirs = torch.autograd.grad((plain(model, seqs) * seqs.mask).sum(), list(model.parameters()))
    assert all(torch.allclose(ours.to_dense(), other, atol=1e-10)
               for ours, other in zip(by_hand, theirs))


def test_fisher_products_of_bottlenecks():
    learner, seqs = Learner(bent()), sequences(4)
    vector = random(len(learner.flat))
    assert torch.allclose(product_jacobian(learner, seqs, 1.0, vector),
                          product_hessian(learner, seqs, 1.0, vector), atol=1e-9)


def test_copies_share_the_rest():
    model = bent()
    critic = ValueHead(copy.deepcopy(model))
    assert critic.trunk.embed_tokens.weight is model.embed_tokens.weight
    assert len(own(critic)) == 17 and bottlenecks(critic)[0].up is not bottlenecks(model)[0].up


def test_the_decoders_answer_as_whole_passes_do():
    model, lengths = bent(), torch.tensor([len(ids) for ids in PROMPTS])
    read = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in PROMPTS], True)
    found, logp = greedy(model, PROMPTS, 6)

    def choose(logits, uniform):
        best, token = logits.log_softmax(-1).max(1)
        return token, best, ~logits.isfinite().all()

    with torch.no_grad():
        static = StaticDecoder(model, read, lengths, 6, torch.arange(4), choose=choose,
                               uniform=None, stop=torch.zeros(11, dtype=torch.bool), pad=0)
        static.run()
        decoder = tree.Tree(model, PROMPTS, 6)
        for step in range(6):
            rows = decoder.logits().log_softmax(-1)[decoder.node]
            assert rows.argmax(1).tolist() == [ids[step] for ids in found]
            assert torch.allclose(rows.amax(1), logp[:, step], atol=1e-11)
            decoder.grow(torch.arange(4), rows.argmax(1))
    assert static.response.tolist() == found
    assert torch.allclose(static.logp.double(), logp, atol=1e-5)
    rollout = generate(model, PROMPTS, 3, max_new_tokens=9, eos={2}, pad=0, seed=(5,))
    assert torch.allclose(rollout.logp.double(), logprobs(model, rollout).detach(), atol=1e-5)


def test_they_are_saved_and_opened_and_go_on(tmp_path, words):
    checkpoint.create(tmp_path / "base", tiny_model(True), words)
    model = bent(model=checkpoint.load(tmp_path / "base")[0])
    checkpoint.save(tmp_path / "p", model, tmp_path / "base", end=5)
    found, _ = checkpoint.load(tmp_path / "p")
    tokens = torch.arange(20).view(2, 10)
    assert width_of(found) == 3 and torch.allclose(found(tokens), model(tokens), atol=1e-5)
    assert len(trained(attach(found, 0))) == len(trained(model))
    checkpoint.save(tmp_path / "again", found, tmp_path / "p")
    assert torch.allclose(checkpoint.load(tmp_path / "again")[0](tokens), model(tokens), atol=1e-5)
    with pytest.raises(MinipostError, match="--bottleneck 5: the model has some of width 3"):
        attach(checkpoint.load(tmp_path / "p")[0], 5)
    with pytest.raises(MinipostError, match="cannot be added to the weights"):
        checkpoint.save(tmp_path / "whole", model, tmp_path / "base", merge=True)
    with pytest.raises(MinipostError, match="would leave them out"):
        checkpoint.weights(found)
    path = tmp_path / "p" / lora_file.CONFIG
    good = json.loads(path.read_text())
    for key, value, said in [("width", 0, "expected a whole number from 1"),
                             ("width", 4, "has shape"), ("task_type", "SEQ_CLS", "and CAUSAL_LM")]:
        path.write_text(json.dumps({**good, key: value}))
        with pytest.raises(MinipostError, match=said):
            checkpoint.load(tmp_path / "p")


def test_a_reward_model_with_bottlenecks(tmp_path, tiny):
    policy, words = checkpoint.load(tiny)
    model = RewardModel(bent(model=policy))
    model.score.weight.data.normal_()
    checkpoint.save(tmp_path / "r", model, tiny)
    found = checkpoint.load_reward_model(tmp_path / "r", words)
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(found(tokens), model(tokens), atol=1e-5)


@pytest.mark.parametrize("flags, other", [
    (("--lora", "4"), "--lora"), (("--merge",), "--merge"), (("--prefix", "2"), "--bottleneck"),
    (("--sampler", "vllm"), "--sampler vllm"), (("--shard",), "--bottleneck")])
def test_it_says_what_it_does_not_go_with(flags, other):
    with pytest.raises(MinipostError, match=f"with {other}: is not supported"):
        train.settings_of(["--algo", "grpo", "--bottleneck", "4", *flags])


def test_a_run_trains_bottlenecks_that_answer(command, tmp_path, rows, capsys):
    from minipost import evaluate
    out = tmp_path / "run"
    assert train.main(command("sft", "--steps", 2, "--bottleneck", 4, "--out", out,
                              "--batch-size", 4)) == 0
    said = capsys.readouterr().out
    assert "in bottlenecks of width 4, which alone learn" in said
    assert "defaults for adapters, ten times the rates: --lr 0.01" in said
    assert evaluate.main(["--model", str(out / "model"), "--data", str(rows), "--n", "4",
                          "--max-new-tokens", "6"]) == 0
    for given in ({"lora": 2}, {"prefix": 2}):
        with pytest.raises(MinipostError, match="has a prefix or bottlenecks, which learn alone"):
            minipost.open(out / "model", data=str(rows), **given)
    run = minipost.open(out / "model", data=str(rows))
    assert isinstance(bottlenecks(run.policy.module)[0], Bottleneck)
    assert len(trained(run.policy.module)) == 4 * len(bottlenecks(run.policy.module))
