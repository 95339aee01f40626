"""Prefix tuning against plain attention, its derivative by hand, peft, and every decoder."""

import copy
import json
import math

import pytest
import torch
from conftest import tiny_model
from fakes import sequences, tiny

import minipost
from minipost import checkpoint, train
from minipost.engine import tree
from minipost.engine.decode_cuda import StaticDecoder
from minipost.engine.functions import attention
from minipost.engine.lora import own, trained
from minipost.engine.packed import Packed
from minipost.engine.prefix import STD, Prefix, attach, attentions, length_of, put, turned
from minipost.errors import MinipostError
from minipost.gpt import RewardModel, ValueHead
from minipost.layout import lora_file, prefix_file
from minipost.methods.trpo import product_hessian, product_jacobian
from minipost.optim import Learner
from minipost.rollout import generate, logprobs


def prefixed(length=3, model=None, learnt=True):
    """A model whose prefix has learnt something."""
    model = attach(tiny() if model is None else model, length)
    generator = torch.Generator().manual_seed(7)
    for p in trained(model) if learnt else ():
        p.data += 0.5 * torch.randn(p.shape, generator=generator)
    return model


def plain(model, seqs):
    """Log-probs of all that follows, in plain operations."""
    logits = model.head(model.hidden(seqs.inputs, explicit=True))
    return logits.log_softmax(-1).gather(2, seqs.targets[..., None])[..., 0]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_equation_and_its_derivative_by_hand():
    """One head: the softmax over prefix and text, and dP, dR of the docstring."""
    q, k, v, do = (random(1, 1, 5, 4, seed=seed) for seed in range(4))
    prefix = Prefix(random(3, 1, 4, seed=5), random(3, 1, 4, seed=6))
    o = attention(q, k, v, prefix=prefix)
    keys, values = (torch.cat([of[:, 0], x[0, 0]]) for of, x in
                    ((prefix.keys, k), (prefix.values, v)))
    sees = torch.ones(5, 8).tril(3).bool()
    a = (q[0, 0] @ keys.t() / 2).masked_fill(~sees, -math.inf).softmax(-1)     # (T, N + T)
    assert torch.allclose(o[0, 0], a @ values)
    dkeys, dvalues = torch.autograd.grad((o * do).sum(), [prefix.keys, prefix.values])
    with torch.no_grad():
        do, o, q = do[0, 0], o[0, 0], q[0, 0]
        assert torch.allclose(dvalues[:, 0], a[:, :3].t() @ do)
        lead = torch.einsum("td,jtd->tj", do, prefix.values - o)
        assert torch.allclose(dkeys[:, 0], (a[:, :3] * lead).t() @ q / 2)


def test_a_prefix_that_no_query_likes_changes_nothing():
    """Keys far below all others get no weight, whatever the values are."""
    q, k, v = random(1, 1, 5, 4).abs(), random(1, 1, 5, 4, seed=1), random(1, 1, 5, 4, seed=2)
    prefix = Prefix(torch.full((3, 1, 4), -1e6).double(), random(3, 1, 4, seed=6))
    assert torch.allclose(attention(q, k, v, prefix=prefix), attention(q, k, v))


@pytest.mark.parametrize("kv", [2, 4, 1])
@pytest.mark.parametrize("shared", [False, True])
def test_training_reads_it_as_plain_operations_do(kv, shared):
    model, seqs = prefixed(model=tiny(kv=kv)), sequences(6)
    if shared:  # one prompt for all rows, so that the packed list reads it once
        seqs.tokens[:, :2], seqs.mask[:] = seqs.tokens[:1, :2], True
    by_hand = torch.autograd.grad(logprobs(model, seqs).sum(), trained(model))
    theirs = torch.autograd.grad((plain(model, seqs) * seqs.mask).sum(), trained(model))
    assert torch.allclose(logprobs(model, seqs), plain(model, seqs) * seqs.mask, atol=1e-11)
    for ours, other in zip(by_hand, theirs):
        assert other.abs().max() > 1e-3 and torch.allclose(ours, other, atol=1e-11)
    assert (logprobs(model, seqs) - logprobs(tiny(kv=kv), seqs)).abs().max() > 1e-2


def test_packed_rows_see_it():
    model, tokens = prefixed(), torch.tensor([[1, 4, 5, 6, 7], [1, 4, 5, 8, 9], [1, 4, 5, 9, 3]])
    packed = Packed(tokens, torch.full((3,), 3), torch.full((3,), 5))
    assert packed.which.tolist() == [0, 0, 0]
    packed.rotated_by(*model.turns(5))
    found = model.through(packed.tokens, packed)[packed.places]
    assert torch.allclose(found, model.hidden(tokens, explicit=True), atol=1e-12)


def test_the_keys_and_values_of_a_text_are_a_prefix_of_what_follows():
    """A text behind three tokens, and with what these gave as its prefix, turned back by three."""
    model, bare, kept = tiny(), tiny(), []
    before, tokens = torch.tensor([[1, 8, 3]]), torch.tensor([[1, 4, 5, 6, 7]])
    whole = bare.hidden(torch.cat([before, tokens], 1), explicit=True)
    bare.hidden(before, keep=kept)
    put(model, [Prefix(turned(bare, attention, keys[0].transpose(0, 1), -1),
                       values[0].transpose(0, 1))
                for attention, (keys, values) in zip(attentions(bare), kept)])
    assert torch.allclose(model.hidden(tokens, explicit=True), whole[:, 3:], atol=1e-12)
    assert torch.allclose(model.hidden(tokens), whole[:, 3:], atol=1e-12)


def test_at_first_it_is_near_zero_and_the_same_for_a_seed():
    one, two, other = (torch.cat([p.flatten() for p in trained(attach(tiny(), 9, seed))])
                       for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert abs(one.std() - STD) < 0.003 and len({*one.tolist()}) == len(one)


def test_nothing_but_the_prefix_learns_and_copies_share_the_rest():
    model, seqs = prefixed(learnt=False), sequences(5)
    assert len(trained(model)) == 4 and sum(p.numel() for p in trained(model)) == 2 * 2 * 3 * 2 * 4
    critic = ValueHead(copy.deepcopy(model))
    assert critic.trunk.embed_tokens.weight is model.embed_tokens.weight
    assert {name.split(".")[-1] for name in own(critic)} == {"keys", "values", "weight"}
    assert len(own(critic)) == 5
    before = logprobs(critic.trunk, seqs).detach()
    learner = Learner(model, optimizer="muon")
    for _ in range(3):
        logprobs(model, seqs).sum().backward()
        learner.step(0.1)
    assert (logprobs(model, seqs) - before).abs().max() > 1e-2
    assert torch.equal(logprobs(critic.trunk, seqs), before)
    assert torch.equal(model.layers[1].mlp.down_proj.weight, tiny().layers[1].mlp.down_proj.weight)


def test_fisher_products_of_a_prefix():
    learner, seqs = Learner(prefixed()), sequences(4)
    vector = random(len(learner.flat))
    assert torch.allclose(product_jacobian(learner, seqs, 1.0, vector),
                          product_hessian(learner, seqs, 1.0, vector), atol=1e-9)


# ---- sampling

@torch.no_grad()
def greedy(model, prompts, steps):
    """Ids and log-probs by whole passes."""
    found, logp = [], []
    for ids in prompts:
        ids, mine = list(ids), []
        for _ in range(steps):
            row = model(torch.tensor([ids]), explicit=True)[0, -1].log_softmax(-1)
            ids.append(int(row.argmax()))
            mine.append(float(row.max()))
        found.append(ids[-steps:])
        logp.append(mine)
    return found, torch.tensor(logp, dtype=torch.float64)


PROMPTS = [[1, 4, 5], [1, 3], [1, 3, 8, 9, 7], [1, 3, 8, 2]]


@pytest.mark.parametrize("long, kv", [(99, 2), (2, 2), (2, 1)])
def test_the_tree_answers_as_whole_passes_do(monkeypatch, long, kv):
    """Prompts in the cache of each row, and prompts that rows share."""
    monkeypatch.setattr(tree, "LONG", long)
    monkeypatch.setattr(tree, "MANY", 2)
    model = prefixed(model=tiny(kv=kv))
    with torch.no_grad():
        decoder = tree.Tree(model, PROMPTS, 6, group_size=2)
        assert (decoder.shared is not None) == (long == 2)
        found, logp = greedy(model, PROMPTS, 6)
        for step in range(6):
            rows = decoder.logits().log_softmax(-1)[decoder.node]
            token = rows.argmax(1)
            assert token.view(4, 2).tolist() == [[ids[step]] * 2 for ids in found]
            assert torch.allclose(rows.amax(1).view(4, 2)[:, 0], logp[:, step], atol=1e-11)
            decoder.grow(torch.arange(8), token)


def test_the_decoder_of_a_gpu_answers_as_whole_passes_do():
    model, lengths = prefixed(), torch.tensor([len(ids) for ids in PROMPTS])
    read = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in PROMPTS], True)

    def choose(logits, uniform):
        logp, token = logits.log_softmax(-1).max(1)
        return token, logp, ~logits.isfinite().all()

    with torch.no_grad():
        decoder = StaticDecoder(model, read, lengths, 6, torch.arange(4), choose=choose,
                                uniform=None, stop=torch.zeros(11, dtype=torch.bool), pad=0)
        decoder.run()
    found, logp = greedy(model, PROMPTS, 6)
    assert decoder.response.tolist() == found
    assert torch.allclose(decoder.logp.double(), logp, atol=1e-5)


def test_the_sampler_and_training_agree():
    model = prefixed()
    rollout = generate(model, PROMPTS, 3, max_new_tokens=9, eos={2}, pad=0, seed=(5,))
    assert torch.allclose(rollout.logp.double(), logprobs(model, rollout).detach(), atol=1e-5)


# ---- the directory

def test_a_prefix_is_saved_and_opened_and_goes_on(tmp_path, words):
    checkpoint.create(tmp_path / "base", tiny_model(True), words)
    model = prefixed(model=checkpoint.load(tmp_path / "base")[0])
    checkpoint.save(tmp_path / "p", model, tmp_path / "base", end=5)
    held = {path.name for path in (tmp_path / "p").iterdir()}
    assert held == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
                    "tokenizer_config.json", "generation_config.json"}
    found, vocabulary = checkpoint.load(tmp_path / "p")
    assert 5 in vocabulary.eos and length_of(found) == 3
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(found(tokens), model(tokens), atol=1e-5)
    assert len(trained(attach(found, 0))) == 4
    checkpoint.save(tmp_path / "again", found, tmp_path / "p")
    assert torch.allclose(checkpoint.load(tmp_path / "again")[0](tokens), model(tokens), atol=1e-5)
    with pytest.raises(MinipostError, match="--prefix 5: the model has a prefix of 3 already"):
        attach(checkpoint.load(tmp_path / "p")[0], 5)
    with pytest.raises(MinipostError, match="cannot be added to the weights"):
        checkpoint.save(tmp_path / "whole", model, tmp_path / "base", merge=True)
    with pytest.raises(MinipostError, match="would leave them out"):
        checkpoint.weights(found)


def test_a_reward_model_with_a_prefix(tmp_path, tiny):
    policy, words = checkpoint.load(tiny)
    model = RewardModel(prefixed(model=policy))
    model.score.weight.data.normal_()
    checkpoint.save(tmp_path / "r", model, tiny)
    found = checkpoint.load_reward_model(tmp_path / "r", words)
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(found(tokens), model(tokens), atol=1e-5)
    with pytest.raises(MinipostError, match="task_type is 'SEQ_CLS'; expected CAUSAL_LM"):
        checkpoint.load(tmp_path / "r")


def test_what_is_no_prefix_of_the_model_is_refused(tmp_path, tiny):
    checkpoint.save(tmp_path / "p", prefixed(model=checkpoint.load(tiny)[0]), tiny)
    path = tmp_path / "p" / lora_file.CONFIG
    good = json.loads(path.read_text())
    for key, value, said in [
            ("num_virtual_tokens", True, "expected a whole number from 1"),
            ("num_virtual_tokens", 4, "has shape"), ("prefix_projection", True, "and false"),
            ("task_type", "SEQ_CLS", "expected CAUSAL_LM"),
            ("peft_type", "PROMPT_TUNING", "minipost opens LORA")]:
        path.write_text(json.dumps({**good, key: value}))
        with pytest.raises(MinipostError, match=said):
            checkpoint.load(tmp_path / "p")
    path.write_text(json.dumps({**good, "task_type": None}))
    with pytest.raises(MinipostError, match="score.weight is missing"):
        checkpoint.load_reward_model(tmp_path / "p", checkpoint.load(tiny)[1])
    path.write_text(json.dumps(good))
    prefix_file.write_tensors(tmp_path / "p" / lora_file.WEIGHTS,
                              {"other": torch.zeros(2)}, format="pt")
    with pytest.raises(MinipostError, match="is missing, or belongs to nothing here"):
        checkpoint.load(tmp_path / "p")


@pytest.mark.filterwarnings("ignore")
def test_peft_reads_it_alike(tmp_path, tiny):
    peft = pytest.importorskip("peft", reason="the extra 'interop' installs peft")
    transformers = pytest.importorskip("transformers")
    model = prefixed(model=checkpoint.load(tiny)[0])
    checkpoint.save(tmp_path / "p", model, tiny)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "p")).eval()
    tokens = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() <= 1e-5


def test_turned_on_and_back_is_as_it_was():
    model = tiny()
    layer, keys = attentions(model)[0], random(3, 2, 4)
    assert torch.allclose(turned(model, layer, turned(model, layer, keys, 1), -1), keys)
    assert not torch.allclose(turned(model, layer, keys, 1), keys)


def test_a_window_would_not_see_it():
    model = tiny()
    model.layers[1].self_attn.window = 4
    with pytest.raises(MinipostError, match="layers with a sliding window"):
        attach(model, 3)


@pytest.mark.parametrize("flags, other", [(("--lora", "4"), "--lora"), (("--merge",), "--merge"),
                                          (("--sampler", "vllm"), "--sampler vllm"),
                                          (("--shard",), "--prefix")])
def test_it_says_what_it_does_not_go_with(flags, other):
    with pytest.raises(MinipostError, match=f"with {other}: is not supported"):
        train.settings_of(["--algo", "grpo", "--prefix", "4", *flags])


def test_a_run_trains_a_prefix_that_answers(command, tmp_path, rows, capsys):
    from minipost import evaluate
    out = tmp_path / "run"
    assert train.main(command("sft", "--steps", 2, "--prefix", 4, "--out", out,
                              "--batch-size", 4)) == 0
    said = capsys.readouterr().out
    assert "in a prefix of 4, which alone learns" in said
    assert "defaults for a prefix, a hundred times the rates: --lr 0.1" in said
    assert evaluate.main(["--model", str(out / "model"), "--data", str(rows), "--n", "4",
                          "--max-new-tokens", "6"]) == 0
    run = minipost.open(out / "model", data=str(rows))
    assert len(trained(run.policy.module)) == 2 * len(attentions(run.policy.module))
    with pytest.raises(MinipostError, match="which learn alone; leave out lora"):
        minipost.open(out / "model", data=str(rows), lora=2)
    for given in ({"merge": True}, {"sampler": "vllm"}):
        with pytest.raises(MinipostError, match="is not supported; leave out (merge|sampler)"):
            minipost.open(out / "model", data=str(rows), **given)
    capsys.readouterr()
    assert train.main(["--algo", "sft", "--model", str(out / "model"), "--data", str(rows),
                       "--out", str(tmp_path / "parts"), "--steps", "1", "--shard"]) == 1
    assert "prefix or bottlenecks, with which --shard is not supported" in capsys.readouterr().err
