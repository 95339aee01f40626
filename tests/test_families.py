"""Families of models: each path of the engine against the plain forward pass, and config.json."""

import dataclasses
import json

import pytest
import torch
from conftest import tiny_model
from fakes import BOS, PAD, sequences, tiny
from test_decode import forced, static  # noqa: F401

from minipost import checkpoint
from minipost.engine import packed, tree
from minipost.engine.block import NormTurn, Project, block
from minipost.engine.decode_cuda import StaticDecoder
from minipost.engine.functions import rotary_table
from minipost.engine.packed import Padded
from minipost.engine.rotary import Rope
from minipost.engine.tree import Tree
from minipost.errors import MinipostError
from minipost.families import FAMILIES, Family
from minipost.gpt import GPT, RewardModel
from minipost.rollout import final_score, pack

LLAMA3 = Rope("llama3", 4.0, 16, 1.0, 4.0)
YARN = Rope("yarn", 4.0, 16, attention=1.1)
KINDS = {
    "biases": Family(qkv_bias=True),
    "norms": Family(qk_norm=True),
    "window": Family(windows=(3, 3)),
    "one window": Family(windows=(None, 2)),
    "unrotated": Family(unrotated=(1,)),
    "llama3": Family(rope=LLAMA3),
    "all": Family(True, True, (3, 5), (1,), YARN),
}
PROMPTS = [[BOS, 3, 4, 5], [BOS, 6], [BOS, 7, 8, 9, 10, 3, 5], [BOS]]


def model_of(family, kv=2, seed=0):
    """tiny() of another family, in float64."""
    config = dataclasses.replace(tiny(kv=kv).config, family=family)
    model = GPT(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.4)
            p.add_(1.0 if p.dim() == 1 else 0.0)
    return model


def plain(model, ids):
    """Final logits of one row, in plain operations."""
    return model(torch.tensor([ids]), explicit=True)[0, -1]


families = pytest.mark.parametrize("family", KINDS.values(), ids=KINDS)


@families
@pytest.mark.parametrize("kv", [1, 4])
def test_a_layer_by_hand_is_the_layer_of_every_family(family, kv):
    """Its value, and the gradients by its input and all of its weights."""
    model = model_of(family, kv)
    table = rotary_table(model.config, torch.float64, "cpu", 9)
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1),
                    dtype=torch.float64).requires_grad_()
    for layer in model.layers:
        inputs = [x, *layer.parameters()]
        value = block(layer, x, Padded(*table))
        right = layer(x, Padded(*table, explicit=True))
        assert torch.allclose(value, right, atol=1e-12)
        weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(2),
                             dtype=torch.float64)
        for ours, theirs in zip(torch.autograd.grad(value, inputs, weight),
                                torch.autograd.grad(right, inputs, weight)):
            assert torch.allclose(ours, theirs, atol=1e-10) and ours.any()


def test_the_steps_of_families_against_differences():
    def draw(*shape, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    cos, sin = (part[:, None] for part in rotary_table(
        model_of(Family(rope=YARN)).config, torch.float64, "cpu", 5))
    for turned in (0, 2):
        assert torch.autograd.gradcheck(
            lambda x, w, m, b: Project.apply(x, w, 0.3, m, cos, sin, turned, b),
            (draw(2, 5, 6), draw(6, seed=1), draw(12, 6, seed=2), draw(12, seed=3)),
            fast_mode=True)
        assert torch.autograd.gradcheck(
            lambda x, q, k: NormTurn.apply(x, q, k, 0.3, cos, sin, turned, [1, 1, 1]),
            (draw(2, 5, 3, 4), draw(4, seed=1), draw(4, seed=2)), fast_mode=True)


@families
@pytest.mark.parametrize("saving", [0.0, 2.0])
def test_packed_rows_of_every_family(monkeypatch, family, saving):
    """Hidden states and gradients, with prompts that are shared and longer than the window."""
    monkeypatch.setattr(packed, "SAVING", (saving, saving))
    model = model_of(family)
    prompts = [[BOS, *range(3, 10)]] * 3 + [[BOS, 4]] * 2
    seqs = pack(prompts, [[5, 6, 7, 8, 9], [5, 6], [3] * 7, [4, 4, 4, 8, 8, 5], [9]], PAD)
    found = model.hidden_at(seqs.inputs, seqs.mask)
    right = model.hidden(seqs.inputs, explicit=True)[seqs.mask]
    assert torch.allclose(found, right, atol=1e-12)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3),
                         dtype=torch.float64)
    parameters = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad((found * weight).sum(), parameters),
                            torch.autograd.grad((right * weight).sum(), parameters)):
        assert torch.allclose(ours, theirs, atol=1e-10)


@families
@pytest.mark.parametrize("how", ["shared", "packed", "small"])
@torch.no_grad()
def test_the_tree_of_every_family(monkeypatch, family, how):
    """Siblings that part, prompts that are read together, prompts packed, the cache widened."""
    monkeypatch.setattr(tree, "SAVING", 0.0)
    if how == "shared":
        monkeypatch.setattr(tree, "LONG", 1)
        monkeypatch.setattr(tree, "MANY", 1)
    if how == "small":
        monkeypatch.setattr(tree, "COLUMNS", 1)
        monkeypatch.setattr(tree, "PAIRS", 1)
    model, generator = model_of(family), torch.Generator().manual_seed(1)
    prompts = [*PROMPTS, [BOS, 3, 4, 5, 6]]
    found, rows = Tree(model, prompts, 9, 3), [list(ids) for ids in prompts for _ in range(3)]
    for _ in range(9):
        whole = torch.stack([plain(model, ids) for ids in rows])
        assert torch.allclose(found.logits()[found.node], whole, atol=1e-11)
        token = torch.randint(3, 6, (len(rows),), generator=generator)
        found.grow(torch.arange(len(rows)), token)
        rows = [ids + [new] for ids, new in zip(rows, token.tolist())]


@families
@pytest.mark.parametrize("span, align", [(256, 16), (3, 1)])
@torch.no_grad()
def test_the_static_step_of_every_family(static, family, span, align):  # noqa: F811
    static(SPAN=span, ALIGN=align)
    model = model_of(family)
    lengths = torch.tensor([len(p) for p in PROMPTS])
    padded = torch.tensor([p + [PAD] * (7 - len(p)) for p in PROMPTS])
    tokens = torch.randint(3, 11, (8, 8), generator=torch.Generator().manual_seed(1))
    decoder = StaticDecoder(model, padded, lengths, 8, torch.arange(8) // 2, choose=None,
                            uniform=None, stop=torch.zeros(11, dtype=torch.bool), pad=PAD)
    logits = forced(decoder, tokens)
    for t in range(8):
        for row in range(8):
            whole = plain(model, PROMPTS[row // 2] + tokens[:t, row].tolist())
            assert torch.allclose(logits[t, row], whole, atol=1e-11)


def test_a_window_hides_what_lies_before_it():
    """One layer, so that nothing comes through the layer below."""
    config = dataclasses.replace(tiny().config, num_hidden_layers=1, family=Family(windows=(3,)))
    model, tokens = GPT(config).initialise(0).double(), sequences(3).tokens
    changed = tokens.clone()
    changed[:, 0] = 9
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, 3:], after[:, 3:])
    assert (before[:, 2] != after[:, 2]).any()


def test_layers_that_do_not_rotate_do_not_know_where_a_token_stands():
    """One layer, whose last token reads the others in any order."""
    config = dataclasses.replace(tiny().config, num_hidden_layers=1)
    for family, same in ((Family(unrotated=(0,)), True), (Family(), False)):
        model = GPT(dataclasses.replace(config, family=family)).double().initialise(0)
        for p in model.parameters():
            p.data *= 20
        a, b = (model(torch.tensor([ids]))[0, -1] for ids in ([3, 4, 5, 6], [5, 3, 4, 6]))
        assert torch.allclose(a, b, atol=1e-9) == same


# ---- config.json

def write(directory, words, raw, model=None):
    """A directory of a tiny model with this config.json."""
    checkpoint.create(directory, model or tiny_model(), words)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **raw}))
    return directory


def refused(directory):
    with pytest.raises(MinipostError) as error:
        checkpoint.load(directory)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{directory}/config.json: ")


def test_other_families_are_refused_with_the_list(tmp_path, words):
    assert refused(write(tmp_path, words, {"model_type": "gemma3_text"})) == (
        "model_type is 'gemma3_text'; minipost opens llama, mistral, qwen2, qwen3 and smollm3")


@pytest.mark.parametrize("kind, raw, said", [
    ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2}},
     "rotary scaling of type 'longrope' is not supported; minipost knows default, linear, "
     "dynamic, llama3 and yarn"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor is None; expected a number"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2}},
     "rope_parameters says {'rope_type': 'default'} but rope_scaling"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "yarn", "rope_type": "linear"}},
     "rope_scaling has the type 'yarn' and the rope_type 'linear'"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2, "mscale": 1}},
     "rope_parameters of type 'yarn' has the key 'mscale'"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4,
                                   "high_freq_factor": 4}}, "high_freq_factor is 4.0; expected"),
    ("llama", {"rope_theta": 1, "rope_parameters": {"rope_type": "yarn", "factor": 2}},
     "rope_theta is 1.0; yarn needs more than 1"),
    ("llama", {"sliding_window": 4}, "sliding_window is 4; minipost's model of this family"),
    ("mistral", {"sliding_window": 0}, "sliding_window is 0; expected a whole number"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full"] * 2},
     "layer_types is ['full', 'full']; expected 2 of sliding_attention, full_attention"),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers is -1"),
    ("qwen3", {"attention_bias": True}, "attention_bias is true; minipost's layers have no such"),
    ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers is [1]; expected 2 numbers, each 0 or 1"),
    ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers is [1, 2]; expected 2 numbers"),
    ("qwen2", {}, "architectures is ['LlamaForCausalLM']; minipost opens Qwen2's"),
])
def test_what_a_family_does_not_have_is_said(tmp_path, words, kind, raw, said):
    row = FAMILIES[kind]
    kinds = {} if raw == {} else {"architectures": [f"{row.name}ForCausalLM"]}
    assert refused(write(tmp_path, words, {"model_type": kind, **kinds, **raw})).startswith(said)


def test_a_tensor_of_a_family_that_is_missing_is_named(tmp_path, words):
    raw = {"model_type": "qwen2", "architectures": None}
    assert refused(write(tmp_path, words, raw)).endswith(
        "the tensor model.layers.0.self_attn.q_proj.bias is missing")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path, words, name):
    write(tmp_path, words, {})
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    said = refused(tmp_path)
    assert said.startswith(f"{tmp_path}: has its weights in {name}, which is a program")
    assert said.endswith("AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)")


def test_a_new_model_is_a_llama(tmp_path, words):
    model = model_of(Family(qk_norm=True))
    with pytest.raises(MinipostError, match="a new model is a Llama"):
        checkpoint.create(tmp_path, model, words)


@pytest.mark.parametrize("said, context", [
    ({"rope_type": "linear", "factor": 4}, 64),
    ({"rope_type": "linear", "factor": 4, "original_max_position_embeddings": 32}, 128),
    ({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64}, 256),
    ({"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 16}, 64),
    ({"rope_type": "dynamic", "factor": 4}, 64),
    ({"rope_type": "llama3", "factor": 32, "original_max_position_embeddings": 16,
      "low_freq_factor": 1, "high_freq_factor": 4}, 64),
])
def test_the_context_of_a_rule(tmp_path, words, said, context):
    model, _ = checkpoint.load(write(tmp_path, words, {"rope_parameters": said}))
    assert model.context == context
    with pytest.raises(MinipostError, match="does not fit the model's context"):
        model(torch.full((1, context + 1), 3))


def test_a_reward_model_of_every_family_scores_as_its_plain_pass():
    for family in KINDS.values():
        model = RewardModel(model_of(family)).double()
        torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
        seqs = sequences(5)
        right = model(seqs.tokens, explicit=True).gather(1, seqs.spans()[1][:, None])[:, 0]
        assert torch.allclose(final_score(model, seqs), right, atol=1e-12)
