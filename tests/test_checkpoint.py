"""A model directory survives the round trip, and a broken one is refused by name."""

import errno
import json
import os
import stat

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from minipost import checkpoint, files
from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.layout import tensor_file
from minipost.tokenizer import Tokenizer


def change(path, edit):
    """Rewrite a JSON file through edit(dict)."""
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def directory(tmp_path, words):
    """A fresh model directory, to be broken."""
    checkpoint.create(tmp_path / "model", tiny_model(), words)
    return tmp_path / "model"


def refused(directory, *parts):
    with pytest.raises(MinipostError) as error:
        checkpoint.load(directory)
    assert str(directory) in str(error.value)
    for part in parts:
        assert part in str(error.value)


def same(one, other):
    assert one.config == other.config
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# ---- round trips

@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv", [1, 2])
def test_round_trip_is_bit_equal(tmp_path, words, tied, kv):
    model = tiny_model(tied, num_key_value_heads=kv, rope_theta=5e5, rms_norm_eps=1e-6)
    checkpoint.create(tmp_path / "one", model, words)
    first, vocabulary = checkpoint.load(tmp_path / "one")
    same(first, model)
    checkpoint.save(tmp_path / "two", first, tmp_path / "one")
    second, again = checkpoint.load(tmp_path / "two")
    same(second, model)
    checkpoint.save(tmp_path / "three", second, tmp_path / "two")
    for file in (tmp_path / "two").iterdir():
        assert file.read_bytes() == (tmp_path / "three" / file.name).read_bytes()
    assert (vocabulary.before, vocabulary.eos, vocabulary.pad) == (
        again.before, again.eos, again.pad)
    assert len({*vocabulary.before, *vocabulary.eos, vocabulary.pad}) == 3
    tensors = load_file(tmp_path / "three" / "model.safetensors")
    assert ("lm_head.weight" in tensors) != tied


def test_unknown_keys_and_the_tokenizer_are_kept(directory, tmp_path):
    change(directory / "config.json", lambda raw: raw.update(mystery={"a": [1]}))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    model, _ = checkpoint.load(directory)
    checkpoint.save(tmp_path / "copy", model, directory)
    assert json.loads((tmp_path / "copy/config.json").read_text())["mystery"] == {"a": [1]}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "copy" / name).read_bytes() == (directory / name).read_bytes()


def test_bfloat16_export(directory, tmp_path):
    model, _ = checkpoint.load(directory)
    checkpoint.save(tmp_path / "half", model, directory, dtype="bfloat16")
    raw = json.loads((tmp_path / "half/config.json").read_text())
    assert raw["dtype"] == raw["torch_dtype"] == "bfloat16"
    tensors = load_file(tmp_path / "half/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    half, _ = checkpoint.load(tmp_path / "half", dtype="bfloat16")
    for mine, theirs in zip(model.parameters(), half.parameters()):
        assert torch.equal(mine.bfloat16(), theirs)


def test_the_rotary_base_stands_where_either_reader_looks_for_it(tmp_path, words):
    """transformers 4 knows one place and 5 the other; without it both silently take 10,000."""
    checkpoint.create(tmp_path / "m", tiny_model(rope_theta=5e5), words)
    config = tmp_path / "m" / "config.json"
    raw = json.loads(config.read_text())
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"] == 5e5
    for key in ("rope_theta", "rope_parameters"):
        config.write_text(json.dumps({k: v for k, v in raw.items() if k != key}))
        assert checkpoint.load(tmp_path / "m")[0].config.rope_theta == 5e5


def test_a_prompt_begins_with_bos_and_an_answer_ends_with_eos_and_nowhere_else(directory):
    _, vocabulary = checkpoint.load(directory)
    whole = vocabulary.prompt("7+5=?") + vocabulary.response(" 12")
    eos, = vocabulary.eos
    assert whole == [*vocabulary.before, *vocabulary.tokenizer.encode("7+5=?"),
                     *vocabulary.tokenizer.encode(" 12"), eos]
    assert whole.count(vocabulary.before[0]) == whole.count(eos) == 1


def test_files_have_the_usual_mode(directory):
    before = os.umask(0o027)
    try:
        model, _ = checkpoint.load(directory)
        checkpoint.save(directory, model, directory)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o640}


def test_run_state_round_trip(tmp_path):
    tensors = {"a/b": torch.randn(3, 2), "c": torch.arange(4)}
    facts = {"step": 3, "before": {"x": [0.1, None]}}
    tensor_file.save_state(tmp_path / "s/state.safetensors", tensors, facts)
    tensor_file.save_state(tmp_path / "t/state.safetensors", tensors, facts)
    found, kept = tensor_file.load_state(tmp_path / "s/state.safetensors")
    assert kept == facts and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert ((tmp_path / "s/state.safetensors").read_bytes()
            == (tmp_path / "t/state.safetensors").read_bytes())


# ---- reward models

def scorer(trunk):
    """A reward model of this trunk whose head is not zero."""
    model = RewardModel(trunk)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(3))
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_gives_the_same_scores_after_a_round_trip(tmp_path, words, tied):
    checkpoint.create(tmp_path / "base", tiny_model(tied), words)
    trunk, vocabulary = checkpoint.load(tmp_path / "base")
    model = scorer(trunk)
    checkpoint.save(tmp_path / "scorer", model, tmp_path / "base")
    again = checkpoint.load_reward_model(tmp_path / "scorer", vocabulary)
    tokens = torch.randint(3, 280, (3, 24), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert torch.equal(model(tokens), again(tokens)) and model(tokens).std() > 0.1
    tensors = load_file(tmp_path / "scorer/model.safetensors")
    assert tensors["score.weight"].shape == (1, 16) and "lm_head.weight" not in tensors
    checkpoint.save(tmp_path / "copy", again, tmp_path / "scorer")
    for file in (tmp_path / "scorer").iterdir():
        assert file.read_bytes() == (tmp_path / "copy" / file.name).read_bytes()


def test_reward_models_and_language_models_are_told_apart(directory, tmp_path):
    trunk, vocabulary = checkpoint.load(directory)
    checkpoint.save(tmp_path / "scorer", scorer(trunk), directory)
    refused(tmp_path / "scorer", "is a reward model; expected a language model")
    with pytest.raises(MinipostError, match=r"architectures is \['LlamaForCausalLM'\]; a reward"):
        checkpoint.load_reward_model(directory, vocabulary)


@pytest.mark.parametrize("other", ["tokenizer", "BOS", "EOS"])
def test_a_reward_model_that_reads_other_ids_is_refused(directory, tmp_path, words, other):
    """Another tokenizer of the same size, another BOS, another EOS."""
    trunk, vocabulary = checkpoint.load(directory)
    checkpoint.save(tmp_path / "scorer", scorer(trunk), directory)
    if other == "EOS":
        change(tmp_path / "scorer/generation_config.json",
               lambda raw: raw.update(eos_token_id=[2, 5]))
    elif other == "BOS":
        change(tmp_path / "scorer/tokenizer.json", lambda raw: raw["post_processor"][
            "special_tokens"]["<bos>"].update(ids=[5]))
    else:
        other = Tokenizer.train(["other words make other merges, of course they do"] * 3, 280)
        other.backend.save(str(tmp_path / "scorer/tokenizer.json"))
    with pytest.raises(MinipostError, match="scorer: .* tokenizer differs"):
        checkpoint.load_reward_model(tmp_path / "scorer", vocabulary)


@pytest.mark.parametrize("head, message", [
    (None, "score.weight is missing"), (torch.ones(2, 16), r"score.weight has shape \(2, 16\)"),
    (torch.full((1, 16), float("inf")), "score.weight holds values that are not finite"),
])
def test_a_reward_model_whose_head_does_not_fit(directory, tmp_path, head, message):
    trunk, vocabulary = checkpoint.load(directory)
    checkpoint.save(tmp_path / "scorer", scorer(trunk), directory)
    path = tmp_path / "scorer/model.safetensors"
    tensors = {name: x for name, x in load_file(path).items() if name != "score.weight"}
    save_file(tensors | ({} if head is None else {"score.weight": head}), path,
              metadata={"format": "pt"})
    with pytest.raises(MinipostError, match=message):
        checkpoint.load_reward_model(tmp_path / "scorer", vocabulary)


# ---- shards

def shard(directory):
    """Cut the model file in two beside an index, as large models come."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    where = {}
    for part in (0, 1):
        mine = {name: tensors[name] for i, name in enumerate(sorted(tensors)) if i % 2 == part}
        where |= dict.fromkeys(mine, f"part-{part}.safetensors")
        save_file(mine, directory / f"part-{part}.safetensors", metadata={"format": "pt"})
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_a_sharded_model_is_read(directory):
    whole, _ = checkpoint.load(directory)
    shard(directory)                    # by another tool: what minipost writes is one file
    same(checkpoint.load(directory)[0], whole)
    assert checkpoint.verify(directory).startswith("digests.json speaks of a model.safetensors")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b", "", ".", "..", 3,
                                  None, "nul\0", "half\ud800"])
def test_weight_map_names_plain_files_only(directory, name):
    index = shard(directory)
    change(index, lambda raw: raw["weight_map"].update({"model.norm.weight": name}))
    refused(directory)


@pytest.mark.parametrize("table", [[["a", "b"]], "x", None, 3])
def test_weight_map_must_be_an_object(directory, table):
    index = shard(directory)
    change(index, lambda raw: raw.update(weight_map=table))
    refused(directory, index.name, "weight_map")


def test_a_shard_that_lacks_its_tensor(directory):
    index = shard(directory)
    change(index, lambda raw: raw["weight_map"].update(
        {"model.norm.weight": "part-0.safetensors",
         "model.embed_tokens.weight": "part-1.safetensors"}))
    refused(directory, "part-")


# ---- directories that are refused

@pytest.mark.parametrize("key, value", [
    ("model_type", "gpt2"), ("model_type", None), ("attention_bias", True), ("mlp_bias", True),
    ("hidden_act", "gelu"), ("rope_theta", 5.0), ("rope_theta", 0), ("rope_parameters", [1]),
    ("rope_parameters", {"rope_type": "yarn"}), ("rope_scaling", {"type": "linear"}),
    ("hidden_size", None), ("hidden_size", "wide"), ("hidden_size", 10**12), ("vocab_size", -1),
    ("num_hidden_layers", 10**8), ("num_attention_heads", 0), ("num_key_value_heads", 3),
    ("head_dim", 7), ("rms_norm_eps", float("nan")), ("rms_norm_eps", float("inf")),
    ("max_position_embeddings", float("inf")), ("max_position_embeddings", 0),
    ("intermediate_size", 25), ("tie_word_embeddings", False),
])
def test_config_that_does_not_fit(directory, key, value):
    change(directory / "config.json", lambda raw: raw.update({key: value}))
    refused(directory)


def test_error_messages_name_file_and_cause_once(directory):
    change(directory / "config.json", lambda raw: raw.update(rope_theta=5.0))
    with pytest.raises(MinipostError) as error:
        checkpoint.load(directory)
    assert str(error.value) == (f"{directory}/config.json: rope_theta is 5.0 but rope_parameters "
                                "says 10000.0")


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_attention_heads"])
def test_config_without_a_key(directory, key):
    change(directory / "config.json", lambda raw: raw.pop(key))
    refused(directory, "config.json", key)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "directory"])
def test_file_missing_or_not_whole(directory, name, damage):
    path = directory / name
    kept = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(kept[: len(kept) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "directory":
        path.mkdir()
    refused(directory, name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json",
                                  "generation_config.json", "tokenizer_config.json",
                                  "digests.json"])
def test_what_is_no_file_is_refused_at_once(directory, name):
    """A pipe would wait for ever, a device fill the memory."""
    (directory / name).unlink()
    os.mkfifo(directory / name)
    refused(directory, f"{name}: is a pipe; expected a file")
    if name != "digests.json":
        (directory / name).unlink()
        (directory / name).symlink_to("/dev/zero")
        refused(directory, name)


def test_a_file_that_is_far_too_long_is_refused(directory):
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        kept = (directory / name).read_bytes()
        with open(directory / name, "wb") as file:
            file.truncate(10**9)                            # a hole: nothing is written
        refused(directory, name, "is longer than 67,108,864 bytes")
        (directory / name).write_bytes(kept)
    with open(directory / "model.safetensors", "r+b") as file:
        file.write((150 * 10**6).to_bytes(8, "little"))     # the names of 1.5 million tensors
        file.truncate(10**9)
    refused(directory, "model.safetensors", "list of tensors has 150,000,000 bytes")


@pytest.mark.parametrize("name", ["chat_template.jinja", "special_tokens_map.json",
                                  "tokenizer.json", "config.json"])
def test_what_a_link_leads_to_outside_is_not_copied_into_a_run(directory, tmp_path, name):
    model, _ = checkpoint.load(directory)
    (tmp_path / "secret").write_text("{}")
    if (directory / name).exists():
        (directory / name).rename(tmp_path / "secret")
    (directory / name).symlink_to(tmp_path / "secret")
    refused(directory, name, "symbolic link out of its directory", "secret")
    with pytest.raises(MinipostError, match="symbolic link"):
        checkpoint.save(tmp_path / "next", model, directory)
    assert not (tmp_path / "next" / name).exists()


def test_links_inside_a_directory_and_in_hugging_faces_cache_are_followed(directory, tmp_path):
    (directory / "tokenizer.json").rename(directory / "words")
    (directory / "tokenizer.json").symlink_to("words")
    model, _ = checkpoint.load(directory)
    snapshot, blobs = tmp_path / "models--x/snapshots/abc", tmp_path / "models--x/blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for number, file in enumerate(directory.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    checkpoint.load(snapshot)
    checkpoint.save(tmp_path / "next", model, snapshot)
    assert not (tmp_path / "next/tokenizer.json").is_symlink()
    same(checkpoint.load(tmp_path / "next")[0], model)


@pytest.mark.parametrize("text, part", [
    ('{"a": 1, "a": 1}', "'a' stands twice"), ('{"a": NaN}', "NaN is not a JSON number"),
    ('{"a": 1e999}', "1e999 is no finite number"), ('{"a": ' + "9" * 30 + "}", "30 digits"),
    ('{"a": "\\ud800"}', "half of a surrogate pair"), ("[" * 10**5, "nested too deep"),
    ('{"a":' * 90 + "1" + "}" * 90, "deeper than 64 levels"), ("[]", "expected a JSON object"),
    (b'{"a": "\xff"}', "not UTF-8 at byte 7"), ("", "not readable as JSON"),
])
def test_json_with_tricks_is_refused(tmp_path, text, part):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MinipostError) as error:
        files.read_json(path)
    assert str(error.value).startswith(f"{path}: ") and part in str(error.value)
    path.write_text('{"a": "\\ud83d\\ude00 \\u00e9", "b": [1, -2.5e3, null]}')
    assert files.read_json(path) == {"a": "\U0001f600 é", "b": [1, -2500.0, None]}


@pytest.mark.parametrize("key, value", [
    ("vocab_size", 280.0), ("vocab_size", True), ("vocab_size", "280"), ("num_hidden_layers", 2.0),
    ("head_dim", False), ("num_key_value_heads", 1.0), ("rms_norm_eps", "1e-5"),
    ("rms_norm_eps", True), ("rope_theta", "10000"), ("rope_theta", True), ("rope_theta", -1),
    ("tie_word_embeddings", 1), ("tie_word_embeddings", "true"), ("attention_bias", "false"),
    ("mlp_bias", 0), ("partial_rotary_factor", 0.5), ("dtype", ["float32"]),
])
def test_numbers_and_switches_of_a_wrong_kind_are_refused(directory, key, value):
    change(directory / "config.json", lambda raw: raw.update({key: value}))
    refused(directory, "config.json", key)


def test_a_context_of_a_hundred_million_costs_nothing(directory):
    whole, _ = checkpoint.load(directory)
    change(directory / "config.json", lambda raw: raw.update(max_position_embeddings=10**8))
    model, _ = checkpoint.load(directory)
    tokens = torch.arange(40)[None]
    assert torch.equal(model(tokens), whole(tokens))


def test_no_such_directory(tmp_path):
    refused(tmp_path / "nowhere")


@pytest.mark.parametrize("tensor, message", [
    (None, "is missing"),
    (torch.ones(8), "has shape (8,)"),
    (torch.full((16,), float("nan")), "not finite"),
    (torch.ones(16, dtype=torch.int64), "I64"),
    (torch.ones(16).to(torch.float8_e4m3fn), "F8"),
])
def test_tensor_that_does_not_fit(directory, tensor, message):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.norm.weight")
    if tensor is not None:
        tensors["model.norm.weight"] = tensor
    save_file(tensors, path, metadata={"format": "pt"})
    refused(directory, "norm.weight", message)


@pytest.mark.parametrize("change_to", [
    {"eos_token_id": None}, {"eos_token_id": []}, {"eos_token_id": 280}, {"eos_token_id": [2, "x"]},
    {"eos_token_id": -1}, {"bos_token_id": 280}, {"bos_token_id": "<bos>"}, {"eos_token_id": True},
    {"eos_token_id": 1.0}, {"eos_token_id": [2, 0.0]}, {"eos_token_id": [[2]]},
    {"bos_token_id": 1.0}, {"bos_token_id": True},
])
def test_control_tokens_that_do_not_exist(directory, change_to):
    (directory / "generation_config.json").unlink()
    change(directory / "config.json", lambda raw: raw.update(change_to))
    refused(directory, next(iter(change_to)))


def test_a_list_of_eos_ids_and_no_pad(directory):
    change(directory / "generation_config.json",
           lambda raw: raw.update(eos_token_id=[2, 5], pad_token_id=-1))
    _, vocabulary = checkpoint.load(directory)
    assert vocabulary.eos == {2, 5} and vocabulary.pad == 0


def test_what_the_template_adds_decides_and_not_an_id_in_config(directory):
    change(directory / "config.json", lambda raw: raw.update(bos_token_id=5))
    (directory / "generation_config.json").unlink()
    assert checkpoint.load(directory)[1].prompt("") == [1]
    change(directory / "tokenizer_config.json", lambda raw: raw.update(add_bos_token=False))
    change(directory / "tokenizer.json", lambda raw: raw.update(post_processor=None))
    assert checkpoint.load(directory)[1].prompt("") == []


def test_a_directory_of_an_earlier_version_is_refused(directory):
    """Its prompts began with a BOS that no file says."""
    change(directory / "tokenizer.json", lambda raw: raw.update(post_processor=None))
    change(directory / "tokenizer_config.json", lambda raw: raw.pop("add_bos_token"))
    refused(directory, "tokenizer.json", "earlier version", "<bos>", "checkpoints/base")
    (directory / "tokenizer_config.json").unlink()
    refused(directory, "earlier version")


@pytest.mark.parametrize("edit, part", [
    (lambda post: post["single"].append(post["single"][0]), "puts [1] behind every text"),
    (lambda post: post["special_tokens"]["<bos>"].update(ids=[280]), "expected ids below 280"),
    (lambda post: post["single"].pop(), "does not hold the text once"),
    (lambda post: post.update(special_tokens={}), "names a token that it does not give"),
])
def test_a_template_that_fits_no_prompt(directory, edit, part):
    change(directory / "tokenizer.json", lambda raw: edit(raw["post_processor"]))
    refused(directory, "tokenizer.json", part)


def add(directory, **tensors):
    """Write these tensors beside those of the model, None to leave one out."""
    path = directory / "model.safetensors"
    found = {**load_file(path), **tensors}
    save_file({k: v for k, v in found.items() if v is not None}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["score.weight", "model.layers.0.self_attn.q_proj.bias",
                                  "model.layers.2.input_layernorm.weight", "lm_head.bias",
                                  "model.rotary_emb.inv_freq2"])
def test_a_tensor_that_nobody_asked_for_is_named(directory, name):
    add(directory, **{name: torch.ones(16)})
    refused(directory, "holds 1 tensors", name)


def test_tensors_that_nobody_asked_for_are_counted(directory):
    add(directory, **{f"model.layers.{i}.mlp.bias": torch.ones(2) for i in range(5)})
    refused(directory, "holds 5 tensors", "model.layers.0.mlp.bias, model.layers.1.mlp.bias")
    trunk = tiny_model()
    index = shard_of(directory, "model.norm.weight")
    refused(directory, "holds 5 tensors")
    change(index, lambda raw: [raw["weight_map"].pop(f"model.layers.{i}.mlp.bias")
                               for i in range(5)])
    refused(directory, "holds 5 tensors")                   # a shard that holds more than it says
    assert trunk.config.num_hidden_layers == 2


def shard_of(directory, name):
    """Beside the whole model an index that names it for every tensor."""
    path = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(load_file(path), "all.safetensors")}))
    path.rename(directory / "all.safetensors")
    return index


def test_a_config_of_fewer_layers_than_there_are(directory):
    change(directory / "config.json", lambda raw: raw.update(num_hidden_layers=1))
    refused(directory, "holds 9 tensors", "model.layers.1.input_layernorm.weight")


def test_what_is_known_to_follow_from_config_is_ignored(directory):
    whole, _ = checkpoint.load(directory)
    add(directory, **{"model.rotary_emb.inv_freq": torch.ones(6),
                      "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(6)})
    same(checkpoint.load(directory)[0], whole)


def test_a_second_head_beside_tied_embeddings(directory, tmp_path, words):
    """It is the embedding again, or the model is not the one that config.json says."""
    whole, _ = checkpoint.load(directory)
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    add(directory, **{"lm_head.weight": embedding.clone()})
    same(checkpoint.load(directory)[0], whole)
    add(directory, **{"lm_head.weight": embedding + 1e-3})
    refused(directory, "lm_head.weight differs", "tie_word_embeddings")
    add(directory, **{"lm_head.weight": torch.ones(3, 16)})
    refused(directory, "lm_head.weight has shape (3, 16)")


def test_a_reward_model_with_a_head_that_it_does_not_use(directory, tmp_path):
    trunk, vocabulary = checkpoint.load(directory)
    checkpoint.save(tmp_path / "scorer", scorer(trunk), directory)
    add(tmp_path / "scorer", **{"score.bias": torch.ones(1)})
    with pytest.raises(MinipostError, match="holds 1 tensors .* score.bias"):
        checkpoint.load_reward_model(tmp_path / "scorer", vocabulary)


def test_the_type_that_config_states_is_that_of_the_matrices(directory):
    change(directory / "config.json", lambda raw: raw.update(dtype="float16", torch_dtype=None))
    refused(directory, "has the type F32", "F16")
    change(directory / "config.json", lambda raw: raw.update(torch_dtype="float32"))
    refused(directory, "dtype is 'float16' but torch_dtype 'float32'")
    change(directory / "config.json", lambda raw: raw.update(torch_dtype="int8", dtype="int8"))
    refused(directory, "dtype is 'int8'")
    tensors = load_file(directory / "model.safetensors")
    add(directory, **{name: x.half() if x.dim() == 2 else x for name, x in tensors.items()})
    change(directory / "config.json", lambda raw: raw.update(torch_dtype="float16", dtype=None))
    checkpoint.load(directory)                              # norms may be kept wider


def test_a_float64_value_that_is_infinite_in_float32(directory):
    tensors = load_file(directory / "model.safetensors")
    change(directory / "config.json", lambda raw: raw.update(torch_dtype=None, dtype=None))
    add(directory, **{name: x.double() for name, x in tensors.items()})
    checkpoint.load(directory)
    add(directory, **{"model.norm.weight": torch.full((16,), 1e300, dtype=torch.float64)})
    refused(directory, "norm.weight", "not finite")


# ---- ids without tokens, and tokens without ids

def test_ids_that_no_token_has_are_masked(tmp_path, words):
    """Padded embeddings; a hole, where the tokenizer skips an id."""
    checkpoint.create(tmp_path / "wide", tiny_model(vocab=words.vocab_size + 3), words)
    model, _ = checkpoint.load(tmp_path / "wide")
    assert model.unused.nonzero()[:, 0].tolist() == [280, 281, 282]
    change(tmp_path / "wide/tokenizer.json", lambda raw: raw["added_tokens"].append(
        {**raw["added_tokens"][0], "content": "<think>", "id": 282}))
    refused(tmp_path / "wide", "<think>", "does not get its id 282")
    change(tmp_path / "wide/tokenizer.json", lambda raw: raw["model"]["vocab"].update(far=282))
    change(tmp_path / "wide/tokenizer.json", lambda raw: raw["added_tokens"].pop())
    model, _ = checkpoint.load(tmp_path / "wide")
    assert model.unused.nonzero()[:, 0].tolist() == [280, 281]
    change(tmp_path / "wide/generation_config.json", lambda raw: raw.update(eos_token_id=[2, 281]))
    assert checkpoint.load(tmp_path / "wide")[0].unused.nonzero()[:, 0].tolist() == [280]
    checkpoint.save(tmp_path / "next", model, tmp_path / "wide")
    assert load_file(tmp_path / "next/model.safetensors")[
        "model.embed_tokens.weight"].shape == (283, 16)


def test_where_every_id_has_a_token_nothing_is_masked(directory):
    assert checkpoint.load(directory)[0].unused is None


def test_an_added_pad_beyond_the_model_does_no_harm(directory):
    """No text can contain it, and padding is filled with another id."""
    pad = {"id": 280, "content": "[PAD]", "special": True, "single_word": False, "lstrip": False,
           "rstrip": False, "normalized": False}
    change(directory / "tokenizer.json", lambda raw: raw["added_tokens"].append(pad))
    change(directory / "generation_config.json", lambda raw: raw.update(pad_token_id=280))
    _, vocabulary = checkpoint.load(directory)
    assert vocabulary.pad == 0 and 280 not in vocabulary.prompt("a[PAD]")
    assert "'[PAD]'" in vocabulary.complaint("a[PAD]", "tokens")
    change(directory / "tokenizer.json", lambda raw: raw["added_tokens"][-1].update(special=False))
    refused(directory, "the tokenizer has the id 280, the model only 280 ids")


# ---- digests

def test_a_damaged_value_is_seen_and_a_replaced_file_is_not_held_to_the_digest(directory):
    path = directory / "model.safetensors"
    assert checkpoint.verify(directory) == ""
    kept = path.read_bytes()
    for place in (len(kept) - 1, len(kept) - 2000):
        path.write_bytes(kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1:])
        refused(directory, "model.safetensors: damaged", "delete digests.json")
    (directory / "digests.json").unlink()
    checkpoint.load(directory)
    assert checkpoint.verify(directory) == "there is no digests.json"
    checkpoint.save(directory, tiny_model(), directory)
    save_file(load_file(path), path, metadata={"format": "pt", "by": "another tool"})
    assert checkpoint.verify(directory).startswith("another model.safetensors")
    checkpoint.load(directory)
    for wrong in ("[]", "{}", '{"model.safetensors": 3}'):
        (directory / "digests.json").write_text(wrong)
        refused(directory, "digests.json")


def test_no_digest_is_copied_from_the_model_it_was_trained_from(directory, tmp_path):
    model, _ = checkpoint.load(directory)
    with torch.no_grad():
        model.norm.weight += 1
    checkpoint.save(tmp_path / "next", model, directory)
    assert checkpoint.verify(tmp_path / "next") == ""
    assert ((tmp_path / "next/digests.json").read_bytes()
            != (directory / "digests.json").read_bytes())


@pytest.mark.parametrize("where", ["os.replace", "minipost.checkpoint.digest"])
def test_a_write_that_breaks_off_leaves_a_directory_that_opens(directory, monkeypatch, where):
    """After the old digest is gone, before the new one is there."""
    monkeypatch.setattr(where, full)
    with pytest.raises((MinipostError, OSError)):
        checkpoint.save_weights(directory, tiny_model(rope_theta=5e5))
    monkeypatch.undo()
    checkpoint.load(directory)
    assert checkpoint.verify(directory) == "there is no digests.json"


def test_a_tokenizer_with_ids_beyond_the_model(directory, words, tmp_path):
    checkpoint.create(tmp_path / "small", tiny_model(vocab=words.vocab_size - 1), words)
    refused(tmp_path / "small", "tokenizer")


# ---- writing

def contents(directory):
    """The bytes of all files but the digest, which is taken away before the weights change."""
    return {file.name: file.read_bytes() for file in directory.iterdir()
            if file.name != "digests.json"}


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", [
    "os.fsync", "os.replace", "os.chmod", "minipost.layout.tensor_file.save_file",
    "pathlib.Path.write_bytes"])
def test_a_failed_write_changes_nothing(directory, monkeypatch, where):
    before = contents(directory)
    model = tiny_model(rope_theta=5e5)
    monkeypatch.setattr(where, full)
    with pytest.raises(MinipostError, match="No space left.*unchanged"):
        checkpoint.save(directory, model, directory)
    assert contents(directory) == before


def test_half_a_file_is_never_published(directory):
    before = contents(directory)

    def half(path):
        path.write_text("half")
        full()

    with pytest.raises(MinipostError, match="config.json"):
        files.publish(directory / "config.json", half)
    assert contents(directory) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_never_saved(directory, value):
    before = contents(directory)
    model, _ = checkpoint.load(directory)
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[3, 4] = value
    with pytest.raises(MinipostError, match="down_proj"):
        checkpoint.save(directory, model, directory)
    assert contents(directory) == before


def test_a_directory_that_cannot_be_made(tmp_path, directory):
    model, _ = checkpoint.load(directory)
    (tmp_path / "file").write_text("")
    for write in (lambda path: checkpoint.save(path, model, directory),
                  lambda path: tensor_file.save_state(path / "state", {}, {})):
        with pytest.raises(MinipostError, match="file"):
            write(tmp_path / "file" / "model")


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "not an object"])
def test_a_run_state_that_is_not_whole(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    tensor_file.save_state(path, {"a": torch.ones(4)}, {"step": 1})
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        metadata = {"format": "pt"} if damage == "foreign" else {"minipost": "[1]"}
        save_file({"a": torch.ones(4)}, path, metadata=metadata)
    with pytest.raises(MinipostError, match="state.safetensors"):
        tensor_file.load_state(path)
