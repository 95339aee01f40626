"""The formulas of memory: what autograd keeps of a token, what a Learner holds of a parameter."""

import copy
import json
from argparse import Namespace

import pytest
import torch
from fakes import Echo, make_run

from minipost.engine.block import recompute
from minipost.engine.functions import even
from minipost.families import Family
from minipost.gpt import GPT, GPTConfig
from minipost.methods import grpo
from minipost.optim import Learner
from minipost.rollout import Sequences
from scripts import bench_memory
from scripts.bench_memory import SHAPES, Way, adapters, held, model_of, parameters, per_parameter

SHAPED = {
    "as many keys as queries": GPTConfig(64, 64, 176, 4, 4, 4, 16, 512),
    "grouped": GPTConfig(64, 56, 304, 6, 14, 2, 4, 512),
    "wide heads": GPTConfig(64, 32, 96, 4, 4, 2, 24, 512),
    "qwen3": GPTConfig(64, 64, 176, 4, 4, 2, 16, 512, family=Family(qk_norm=True)),
    "qwen2": GPTConfig(64, 64, 176, 4, 4, 2, 16, 512, family=Family(qkv_bias=True)),
}


def storages(tensors):
    """{address: bytes} of the memory behind tensors, each once."""
    return {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}


def kept(model):
    """Bytes that autograd keeps of a pass over rows without a common prompt, and its tokens."""
    tokens = torch.randint(3, 64, (8, 97), generator=torch.Generator().manual_seed(0))
    seqs, saved = Sequences(tokens, torch.ones(8, 96, dtype=torch.bool)), []

    def keep(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.hidden_at(seqs.inputs, seqs.mask)
    own = storages([*model.parameters(), *model.buffers()])
    assert out.requires_grad
    return (sum(size for at, size in storages(saved).items() if at not in own),
            even(8 * 96 + 1))


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_takes_what_autograd_keeps_of_it(name, dtype):
    """Within 10%: beside the layers there are the last norm, the ids and the places of tokens."""
    model = GPT(SHAPED[name]).initialise(0).to(dtype)
    found, tokens = kept(model)
    assert 0.9 < model.bytes_per_token * tokens / found < 1.02
    alone = model.config.hidden_size * model.embed_tokens.weight.element_size()
    layer = model.bytes_per_token / len(model.layers)
    found, _ = kept(recompute(copy.deepcopy(model)))
    assert len(model.layers) * alone * tokens < found
    again = recompute(model).bytes_per_token
    assert again == len(model.layers) * alone + layer
    # On the way back one layer at a time is computed again.
    assert found + layer * tokens < 1.6 * again * tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_parameter_takes_what_a_learner_holds(dtype):
    model = GPT(SHAPED["grouped"]).to(getattr(torch, dtype))
    count = parameters(model)
    learner = Learner(model)
    each = [learner.flat, learner.master, learner.grad, learner.m, learner.v,
            *model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert sum(storages(each).values()) == count * sum(per_parameter(dtype).values())
    assert held(model, Way(dtype, reference=False)) == count * sum(per_parameter(dtype).values())


def test_a_kl_takes_a_copy_of_the_weights():
    run = make_run(Echo())
    run.policy.module.float()
    next(grpo.train(run, grpo.Config(steps=1, prompts=2, group_size=2, beta=0.1)))
    model = model_of(run.policy.module.config)
    more = sum(storages(run.reference().float().parameters()).values())
    assert held(model, Way()) - held(model, Way(reference=False)) == more == 4 * parameters(model)


def test_the_shapes_are_those_of_the_models():
    """Numbers of parameters as the model cards give them."""
    cards = {"0.5B": 0.49e9, "1.5B": 1.54e9, "3B": 3.09e9, "7B": 7.61e9}
    for name, count in cards.items():
        assert abs(parameters(model_of(SHAPES[name])) - count) < 0.006e9, name
    assert parameters(model_of(SHAPES["0.5B"])) == 494_032_768


def test_adapters_are_on_every_matrix_of_the_layers():
    config = SHAPED["grouped"]
    d, inner, rank = config.hidden_size, config.intermediate_size, 3
    q, kv = config.num_attention_heads * config.head_dim, 2 * config.head_dim
    pairs = [(d, q), (d, kv), (d, kv), (q, d), (d, inner), (d, inner), (inner, d)]
    assert adapters(model_of(config), rank) == 6 * rank * sum(a + b for a, b in pairs)


def test_lora_holds_the_weights_once_and_shards_divide():
    model = model_of(SHAPES["1.5B"], "bfloat16")
    count, small = parameters(model), adapters(model, 16)
    assert small < 0.02 * count
    assert held(model, Way("bfloat16", lora=16)) == 2 * count + 18 * small
    whole = held(model, Way("bfloat16"))
    for n in (2, 8):
        part = held(model, Way("bfloat16", shards=n))
        assert part == whole / n + bench_memory.unsharded(model, Way("bfloat16", shards=n))
    layer = sum(p.numel() for p in model.layers[0].parameters())
    assert bench_memory.unsharded(model, Way("bfloat16")) == \
        2 * 2 * (2 * layer + 1536 * 151_936)


def test_the_first_way_that_fits_is_named():
    found = {name: bench_memory.fitting(config)[0] for name, config in SHAPES.items()}
    assert found["0.5B"] == found["1.5B"] == Way()
    assert found["3B"] == Way(reference=False) and found["7B"].lora == 16
    assert Way("bfloat16", shards=8).flags() == "--dtype bfloat16 --shard on 8 GPUs"
    for name, row in zip(SHAPES, bench_memory.rows()):
        assert row[0] == name and int(row[-1].replace(",", "")) > 10_000
        assert len(row) == 12


def test_a_step_is_measured(tmp_path, monkeypatch):
    bench_memory.create(tmp_path / "tiny", bench_memory.TRIAL["tiny"])
    for kind in ("sft", "grpo"):
        args = Namespace(kind=kind, model=tmp_path / "tiny", out=tmp_path / "out.json")
        bench_memory.step(args)
        found = json.loads(args.out.read_text())
        assert found["updates"] == 2 and found["tokens"] > 64 and found["taken"] > 0
        # 32 answers of 64 tokens to prompts of 32, 16 rows at once; what is last is not read
        assert 16 * 64 < found["tokens"] <= 16 * 95
        assert found["held"] == held(model_of(bench_memory.TRIAL["tiny"]),
                                     Way(reference=kind == "grpo"))
