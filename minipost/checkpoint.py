"""The model directory, in Hugging Face's layout, and the run state for exact resume.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json

transformers opens such a directory as LlamaForCausalLM, and a directory that transformers wrote
opens here, if it is of a family in families.py.
A directory of an adapter opens too (layout/lora_file.py).

One trap of the layout is handled here.  rope_theta stands in two places: transformers 4 reads one,
transformers 5 the other.  We write both and refuse a file where they differ.
"""

import os
import re
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from minipost import files
from minipost.engine.bottleneck import width_of
from minipost.engine.coded import is_coded
from minipost.engine.lora import adapters, merged
from minipost.engine.prefix import length_of
from minipost.errors import MinipostError
from minipost.families import (
    FAMILIES,
    LLAMA,
    family_of,
    positive,
    rotary,
    row_of,
    switch,
    whole_number,
)
from minipost.files import opened, read_bytes
from minipost.gpt import GPT, GPTConfig, RewardModel, ValueHead
from minipost.layout import bottleneck_file, lora_file, prefix_file
from minipost.layout.lora_file import base_of
from minipost.layout.tensor_file import (
    LETTERS,
    check_tensor,
    digest,
    open_tensors,
    write_tensors,
)
from minipost.layout.vocabulary_file import read_vocabulary, stated_ids, unused
from minipost.tokenizer import BOS, EOS, PAD, unlike

# Buffers of old versions of transformers, which follow from config.json.
IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json",
              "special_tokens_map.json", "chat_template.jinja")
WEIGHTS, DIGESTS = "model.safetensors", "digests.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
UNKNOWN = ("quantization_config", "logit_scale", "logits_scaling", "attention_multiplier",
           "residual_multiplier", "embedding_multiplier", "use_mrope")


# ---- config.json

def stated_dtype(raw):
    """The type of the weights as config.json says it, in the letters of safetensors, or None."""
    new, old = raw.get("dtype"), raw.get("torch_dtype")
    if new is not None and old is not None and new != old:
        raise ValueError(f"dtype is {new!r:.40} but torch_dtype {old!r:.40}")
    said = old if new is None else new
    if said is not None and not (isinstance(said, str) and said in LETTERS):
        raise ValueError(f"dtype is {said!r:.40}; expected one of {', '.join(LETTERS)}")
    return None if said is None else LETTERS[said]


def read_config(directory):
    """GPTConfig and the raw dict of a model directory; MinipostError where it does not open here.
    """
    path = Path(directory) / "config.json"
    if not Path(directory).is_dir():
        raise MinipostError(f"{directory}: no such model directory")
    raw = files.read_json(path)
    if "algo" in raw and "model_type" not in raw:
        there = [str(part) for name in ("model", "reward_model", "critic")
                 if (part := Path(directory) / name).is_dir()]
        raise MinipostError(f"{directory}: is a run" + (f"; name {' or '.join(there)}" if there else
                                                        " that has saved no model"))
    row = row_of(raw, path)
    kinds = raw.get("architectures") or [f"{row.name}ForCausalLM"]
    if not isinstance(kinds, list) or not all(str(k).startswith(row.name) for k in kinds):
        raise MinipostError(f"{path}: architectures is {kinds!r:.60}; minipost opens {row.name}'s")
    for key in UNKNOWN:
        if raw.get(key) not in (None, False):
            raise MinipostError(f"{path}: {key} is {raw[key]!r:.60}; minipost's model has no such "
                                "part")
    if raw.get("hidden_act", "silu") != "silu":
        raise MinipostError(f"{path}: hidden_act is {str(raw['hidden_act'])[:40]!r}; expected "
                            "'silu'")
    whole = {**row.missing, **raw}
    try:
        for key in ("attention_bias", "mlp_bias"):
            if switch(raw, key):
                raise ValueError(f"{key} is true; minipost's layers have no such biases")
        stated_dtype(raw)
        heads, width = whole_number(raw, "num_attention_heads"), whole_number(raw, "hidden_size")
        layers = whole_number(raw, "num_hidden_layers")
        theta, rope, context = rotary(row, raw, path)
        config = GPTConfig(
            vocab_size=whole_number(raw, "vocab_size"),
            hidden_size=width,
            intermediate_size=whole_number(raw, "intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=whole_number(whole, "num_key_value_heads", heads),
            head_dim=whole_number(whole, "head_dim", width // heads),
            max_position_embeddings=context,
            rms_norm_eps=positive(raw, "rms_norm_eps", 1e-6),
            rope_theta=theta,
            tie_word_embeddings=switch(whole, "tie_word_embeddings"),
            family=family_of(row, whole, layers, rope),
        )
    except KeyError as error:
        raise MinipostError(f"{path}: the key {error} is missing") from None
    except MinipostError:
        raise
    except ValueError as error:
        raise MinipostError(f"{path}: {error}") from None
    return config, raw


def scorer(raw):
    """The class of a reward model in transformers, of the family of this config.json."""
    return f"{FAMILIES[raw['model_type']].name}ForSequenceClassification"


def hf_config(config, ids, dtype):
    """The config.json of a model of our own, which is a Llama."""
    known = asdict(config)
    if known.pop("family") != asdict(LLAMA):
        raise MinipostError("a new model is a Llama; a model of another family is saved beside the "
                            "files of the one that it was trained from")
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **known,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_scaling": None, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, **ids,
        "dtype": dtype, "torch_dtype": dtype,
    }


# ---- weights

Table = dict[str, list[tuple[str, tuple[int, ...]]]]


def names(config):
    """Our parameter -> the parts, stacked by rows, that Hugging Face stores: (name, shape)."""
    family = config.family
    d, e, ffn = config.hidden_size, config.head_dim, config.intermediate_size
    q, kv = config.num_attention_heads * e, config.num_key_value_heads * e
    table: Table = {"embed_tokens.weight": [("model.embed_tokens.weight", (config.vocab_size, d))]}
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        table |= {
            ours + "input_layernorm.weight": [(theirs + "input_layernorm.weight", (d,))],
            ours + "self_attn.qkv_proj.weight": [
                (theirs + f"self_attn.{part}_proj.weight", (rows, d))
                for part, rows in (("q", q), ("k", kv), ("v", kv))
            ],
            ours + "self_attn.o_proj.weight": [(theirs + "self_attn.o_proj.weight", (d, q))],
            ours + "post_attention_layernorm.weight": [
                (theirs + "post_attention_layernorm.weight", (d,))
            ],
            ours + "mlp.gate_up_proj.weight": [
                (theirs + f"mlp.{part}_proj.weight", (ffn, d)) for part in ("gate", "up")
            ],
            ours + "mlp.down_proj.weight": [(theirs + "mlp.down_proj.weight", (d, ffn))],
        }
        if family.qkv_bias:
            table[ours + "self_attn.qkv_proj.bias"] = [
                (theirs + f"self_attn.{part}_proj.bias", (rows,))
                for part, rows in (("q", q), ("k", kv), ("v", kv))
            ]
        for part in ("q_norm", "k_norm") if family.qk_norm else ():
            name = f"self_attn.{part}.weight"
            table[ours + name] = [(theirs + name, (e,))]
    table["norm.weight"] = [("model.norm.weight", (d,))]
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = [("lm_head.weight", (config.vocab_size, d))]
    return table


def value_names(config):
    """The same for a ValueHead: the trunk without its language-model head, and `score`."""
    table = {f"trunk.{name}": parts for name, parts in names(config).items()
             if name != "lm_head.weight"}
    return {**table, "score.weight": [("score.weight", (1, config.hidden_size))]}


def shards(directory):
    """Tensor name -> the file that holds it, for one file or an indexed set of them."""
    path, index = directory / WEIGHTS, directory / f"{WEIGHTS}.index.json"
    pickled = [name for name in PICKLED if (directory / name).exists()]
    if pickled and not path.exists() and not index.exists():
        raise MinipostError(
            f"{directory}: has its weights in {pickled[0]}, which is a program and is never run "
            "here; if you trust it, transformers converts it, with DIR for this directory: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)")
    if not path.exists() and not index.exists():
        raise MinipostError(f"{directory}: has no weights; expected {WEIGHTS} in it, or the files "
                            f"that {index.name} names")
    if not index.exists() or path.is_file():
        return dict.fromkeys(open_tensors(path).keys(), path)
    table = files.read_json(index).get("weight_map")
    if not isinstance(table, dict):
        raise MinipostError(f"{index}: weight_map must be an object of tensor and file names")
    for file in table.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise MinipostError(f"{index}: weight_map names {str(file)[:80]!r}, not a plain file "
                                "beside it")
    if missing := sorted(name for name in {*table.values()} if not (directory / name).exists()):
        raise MinipostError(f"{directory}: {len(missing)} of the {len({*table.values()})} files of "
                            f"weights that {index.name} names are not there, such as "
                            f"{missing[0][:60]}; fetch them")
    return {name: directory / file for name, file in table.items()}


def stored(config, table, directory, letters=None):
    """Tensor name -> the open file that holds it; table is `names` or `value_names`.

    Names, shapes and types are checked against config.json here, before anything is allocated.
    letters: the type that config.json states for the matrices, see LETTERS.
    """
    where = shards(directory)
    if config.num_hidden_layers > len(where):
        raise MinipostError(f"{directory}: config.json says {config.num_hidden_layers} layers, but "
                            f"there are only {len(where)} tensors")
    sources = {path: open_tensors(path) for path in set(where.values())}
    wanted = dict(chain(*table(config).values()))
    for part, shape in wanted.items():
        if part not in where:
            raise MinipostError(f"{directory}: the tensor {part} is missing")
        check_tensor(sources[where[part]], where[part], part, shape,
                     letters if len(shape) == 2 else None)
    spare = {*where, *chain(*(file.keys() for file in sources.values()))} - wanted.keys()
    if table is names and config.tie_word_embeddings and HEAD in spare & where.keys():
        check_tensor(sources[where[HEAD]], where[HEAD], HEAD, wanted[EMBEDDING], letters)
        spare.remove(HEAD)  # `load_weights` holds it to the embedding
    left = sorted(name for name in spare if not IGNORED.fullmatch(name))
    if left:
        raise MinipostError(
            f"{directory}: holds {len(left)} tensors for which config.json has no place, such as "
            f"{', '.join(name[:60] for name in left[:3])}; they would be left out of the model")
    return {name: sources[path] for name, path in where.items()}


def verify(directory):
    """Whether model.safetensors is the file whose digest stands beside it: "", or why it is not.

    MinipostError where it is damaged.  Another list of tensors means that another file was put in
    its place, as some tools do in a copied directory.
    """
    path = Path(directory) / DIGESTS
    if not path.exists():
        return f"there is no {DIGESTS}"
    said = files.read_json(path).get(WEIGHTS)
    if not isinstance(said, dict) or not all(isinstance(said.get(k), str)
                                             for k in ("header", "data")):
        raise MinipostError(f"{path}: expected digests of header and data under {WEIGHTS!r}; "
                            "delete it to go without")
    if not (path.parent / WEIGHTS).exists():
        return f"{DIGESTS} speaks of a {WEIGHTS} that is not there"
    found = digest(path.parent / WEIGHTS)
    if found["header"] != said["header"]:
        return f"another {WEIGHTS} was put in the place of the one that {DIGESTS} speaks of"
    if found["data"] != said["data"]:
        raise MinipostError(f"{path.parent / WEIGHTS}: damaged, its values are not those of "
                            f"{DIGESTS}; fetch it again, or delete {DIGESTS} if it was changed on "
                            "purpose")
    return ""


@torch.no_grad()
def load_weights(model, table, sources, directory):
    """Fill the model from what `stored` opened; every value must be finite."""
    state = model.state_dict()
    for name, parts in table.items():
        whole = torch.cat([sources[part].get_tensor(part) for part, _ in parts])
        if not torch.isfinite(state[name].copy_(whole)).all():
            raise MinipostError(f"{directory}: {name} holds values that are not finite")
    if HEAD not in table and HEAD in sources and not torch.equal(
            sources[HEAD].get_tensor(HEAD), sources[EMBEDDING].get_tensor(EMBEDDING)):
        raise MinipostError(f"{directory}: {HEAD} differs from {EMBEDDING}, but config.json says "
                            "with tie_word_embeddings that they are one")


def weights(model):
    """Hugging Face's names and tensors of a GPT or a ValueHead; a tied head is left out.

    MinipostError where it has parts without such a name, which would be lost without a word.
    """
    if length_of(model) or width_of(model):
        raise MinipostError("the model has a prefix or bottlenecks, which cannot be added to its "
                            "weights, so a file of whole weights would leave them out")
    if adapters(model):
        raise MinipostError("the model has adapters beside its weights, which a file of whole "
                            "weights would leave out; take lora.merged(model)")
    state, found = model.state_dict(), {}
    critic = isinstance(model, ValueHead)
    table = value_names(model.trunk.config) if critic else names(model.config)
    for name, parts in table.items():
        pieces = state[name].split([shape[0] for _, shape in parts])
        found |= {part: piece for (part, _), piece in zip(parts, pieces)}
    return found


# ---- whole directories

def side_files(directory):
    """The files of a model directory that `save` copies.

    MinipostError where one is no file, or a link to a file elsewhere, which nobody meant to copy.
    """
    found = [directory / name for name in SIDE_FILES if os.path.lexists(directory / name)]
    for path in [*found, base_of(directory) / "config.json"]:
        if path.is_symlink():
            check_link(path)
        with opened(path):
            pass
    return found


def check_link(path):
    """MinipostError unless a link leads to a file in its own directory.

    The cache of Hugging Face is one directory: files in snapshots/ are links to those in blobs/.
    """
    target, homes = Path(os.path.realpath(path)), [Path(os.path.realpath(path.parent))]
    if homes[0].parent.name == "snapshots":
        homes.append(homes[0].parents[1] / "blobs")
    if not any(target.is_relative_to(home) for home in homes):
        end = str(target)[-60:]  # which has the file's name
        raise MinipostError(f"{path}: is a symbolic link out of its directory, to "
                            f"{'...' if len(str(target)) > 60 else ''}{end}; put a copy of the "
                            "file in its place")


def load(directory, device="cpu", dtype="float32", template=""):
    """Open a model directory, or an adapter's, which is added: (GPT, Vocabulary).

    template: as of `read_vocabulary`.
    """
    directory = Path(directory)
    base = base_of(directory)
    config, raw = read_config(base)
    side_files(directory)
    if raw.get("architectures") == [scorer(raw)]:
        raise MinipostError(f"{directory}: is a reward model; expected a language model")
    sources = stored(config, names, base, stated_dtype(raw))
    model = GPT(config).to(DTYPES[dtype])
    load_weights(model, names(config), sources, base)
    verify(base)
    if base != directory:
        layout_of(directory).add(directory, model)
    vocabulary = read_vocabulary(spoken(directory), raw, config.vocab_size, template)
    model.unused = unused(vocabulary, config.vocab_size)
    return model.to(device), vocabulary


def layout_of(directory):
    """The file of layout/ that opens an adapter's directory."""
    kind = files.read_json(Path(directory) / lora_file.CONFIG).get("peft_type")
    return {prefix_file.KIND: prefix_file, bottleneck_file.KIND: bottleneck_file}.get(
        kind, lora_file)


def load_reward_model(directory, vocabulary, device="cpu", dtype="float32"):
    """Open a reward model that reads what `vocabulary` writes.

    MinipostError where it has another tokenizer: its ids would mean other words.
    """
    directory = Path(directory)
    base = base_of(directory)
    config, raw = read_config(base)
    if base == directory and raw.get("architectures") != [scorer(raw)]:
        raise MinipostError(f"{directory}: architectures is {raw.get('architectures')}; a reward "
                            f"model is a {scorer(raw)}")
    table = value_names if base == directory else names
    sources = stored(config, table, base, stated_dtype(raw))
    model = RewardModel(GPT(config).to(DTYPES[dtype]))
    load_weights(model if base == directory else model.trunk, table(config), sources, base)
    verify(base)
    if base != directory:
        layout_of(directory).add(directory, model)
    own = read_vocabulary(spoken(directory), raw, config.vocab_size)
    if said := unlike(own, vocabulary):
        raise MinipostError(f"{directory}: the reward model's tokenizer differs from the policy's: "
                            f"{said}; train it from the same model directory, on rows of the same "
                            "kind (chats or texts)")
    return model.to(device)


def spoken(directory):
    """Where the tokenizer of a model directory is: of an adapter without one, beneath it."""
    base = base_of(directory)
    whole = all((directory / name).exists() or not (base / name).exists()
                for name in ("tokenizer.json", "generation_config.json"))
    return directory if whole else base


def create(directory, model, tokenizer, dtype="float32"):
    """Write a new model of our own, with all five files."""
    directory = Path(directory)
    files.make_directory(directory)
    ids = {f"{kind}_token_id": tokenizer.id(token)
           for kind, token in (("bos", BOS), ("eos", EOS), ("pad", PAD))}
    files.publish(directory / "tokenizer.json", lambda path: tokenizer.backend.save(str(path)))
    files.write_json(directory / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS,
        "pad_token": PAD, "add_bos_token": True,
        "model_max_length": model.config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    })
    files.write_json(directory / "generation_config.json", ids)
    files.write_json(directory / "config.json", hf_config(model.config, ids, dtype))
    save_weights(directory, model, dtype)


def save(directory, model, like, dtype="float32", end=None, template="", merge=False):
    """Write a trained GPT or RewardModel, and byte-for-byte copies of the other files of `like`.

    end: an id that ends a policy's answers now; it joins those of generation_config.json.
    template: the text of a chat template that takes the place of the model's.
    A model with adapters is written as an adapter of `like`; merge: as a whole model.  So is one
    with a prefix or with bottlenecks, which nothing merges.
    """
    directory, given = Path(directory), like
    base, like = base_of(given), spoken(Path(given))
    layout = (prefix_file if length_of(model) else bottleneck_file if width_of(model) else
              lora_file)
    beside = layout is not lora_file  # what nothing adds to the weights
    if beside and merge:
        raise MinipostError(f"{directory}: a prefix, or a bottleneck, cannot be added to the "
                            "weights, so there is no whole model to save; leave out merge")
    if merge and is_coded(model):
        raise MinipostError(f"{directory}: the weights are coded, and an adapter belongs to them "
                            "as they were; save the adapter alone, which opens with those")
    alone = beside or bool(adapters(model)) and not merge
    if alone and base != Path(given) and not (beside and layout_of(given) is layout):
        raise MinipostError(f"{given}: is an adapter itself, and what was trained is an adapter of "
                            "both together; save the whole model with --merge, or begin from a "
                            "whole one")
    other = directory / ("config.json" if alone else lora_file.CONFIG)
    if other.exists():
        raise MinipostError(f"{other}: is there, so the directory would hold a whole model and an "
                            "adapter; choose another directory")
    files.make_directory(directory)
    for path in side_files(like):
        data = read_bytes(path)
        files.publish(directory / path.name, lambda path, data=data: path.write_bytes(data))
    if template:
        files.publish(directory / "chat_template.jinja",
                      lambda path: path.write_text(template, encoding="utf-8", newline=""))
    raw, kind = files.read_json(base / "config.json"), dict[str, Any]()
    ids = stated_ids(like, raw)
    ends = ids.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    if end is not None and end not in ends and not isinstance(model, ValueHead):
        own = files.read_json(like / "generation_config.json") if (
            like / "generation_config.json").exists() else {
                key: ids[key] for key in ("bos_token_id", "pad_token_id") if key in ids}
        files.write_json(directory / "generation_config.json",
                         {**own, "eos_token_id": [*ends, end]})
    if alone:
        return layout.save(directory, model, base, DTYPES[dtype])
    if isinstance(model, ValueHead):
        kind = {"architectures": [scorer(raw)], "id2label": {"0": "score"},
                "label2id": {"score": 0}}
        if raw.get("pad_token_id") == raw.get("eos_token_id"):
            # transformers reads a score at the last token that is not padding: before the EOS.
            kind["pad_token_id"] = None
    files.write_json(directory / "config.json",
                     {**raw, **kind, "dtype": dtype, "torch_dtype": dtype})
    save_weights(directory, merged(model) if adapters(model) else model, dtype)


def save_weights(directory, model, dtype="float32"):
    """Write model.safetensors; a model that is not finite is never put over a good one."""
    found = weights(model)
    broken = [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise MinipostError(f"{directory}: not saved, {broken[0]} holds values that are not finite")
    path, beside = Path(directory) / WEIGHTS, Path(directory) / DIGESTS
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in found.items()}
    # Killed in between, the directory has no digest and opens without.
    write_tensors(path, tensors, before=lambda: beside.unlink(missing_ok=True), format="pt")
    files.write_json(beside, {WEIGHTS: digest(path)})
