"""The directory of a prefix, in peft's layout (PREFIX_TUNING without a projection).

    adapter_config.json  adapter_model.safetensors  and the files of the tokenizer

One tensor, prompt_embeddings (N, 2 layers x K E): of each place keys and values of layer after
layer.  In peft the text begins behind the prefix, so keys are written turned by N (prefix.py).  The
head of a reward model stands beside it whole.
"""

from pathlib import Path

import torch

from minipost import files
from minipost.engine.prefix import Prefix, attentions, put, turned
from minipost.errors import MinipostError
from minipost.layout.lora_file import CONFIG, HEAD, LANGUAGE, SCORE, WEIGHTS
from minipost.layout.tensor_file import check_finite, read_tensors, write_tensors

KIND, NAME = "PREFIX_TUNING", "prompt_embeddings"


@torch.no_grad()
def save(directory, module, base, dtype):
    """Write the prefix of a module, and its score's head if it has one.  As lora_file.save."""
    model, scores = getattr(module, "trunk", module), hasattr(module, "score")
    layers = attentions(model)
    parts = [part.flatten(1) for attention in layers
             for part in (turned(model, attention, attention.prefix.keys, 1),
                          attention.prefix.values)]
    tensors = {NAME: torch.cat(parts, 1), **({HEAD: module.score.weight} if scores else {})}
    check_finite(directory, tensors)
    write_tensors(Path(directory) / WEIGHTS, {k: x.to(dtype) for k, x in tensors.items()},
                  format="pt")
    kv, wide = layers[0].kv_heads, layers[0].head_dim
    files.write_json(Path(directory) / CONFIG, {
        "peft_type": KIND, "task_type": SCORE if scores else LANGUAGE,
        "base_model_name_or_path": str(Path(base).resolve()),
        "num_virtual_tokens": len(tensors[NAME]), "token_dim": kv * wide, "num_layers": len(layers),
        "num_attention_heads": kv, "num_transformer_submodules": 1,
        "encoder_hidden_size": kv * wide, "prefix_projection": False, "inference_mode": True,
    })


@torch.no_grad()
def add(directory, module):
    """Put a prefix before the layers of a module, and fill its score's head."""
    path, model = Path(directory) / CONFIG, getattr(module, "trunk", module)
    raw, scores = files.read_json(path), hasattr(module, "score")
    length, task = raw.get("num_virtual_tokens"), SCORE if scores else LANGUAGE
    if type(length) is not int or not 1 <= length < model.context or raw.get("prefix_projection"):
        raise MinipostError(f"{path}: num_virtual_tokens is {length!r:.40} and prefix_projection "
                            f"{raw.get('prefix_projection')!r:.40}; expected a whole number from 1 "
                            f"to {model.context - 1}, and false")
    if raw.get("task_type") not in (None, task):
        raise MinipostError(f"{path}: task_type is {raw['task_type']!r:.40}; expected {task}")
    layers = attentions(model)
    kv, wide = layers[0].kv_heads, layers[0].head_dim
    wanted = {NAME: (length, 2 * len(layers) * kv * wide),
              **({HEAD: tuple(module.score.weight.shape)} if scores else {})}
    found = read_tensors(Path(directory) / WEIGHTS, wanted)
    parts = found[NAME].to(model.norm.weight.dtype).view(length, len(layers), 2, kv, wide)
    put(model, [Prefix(turned(model, attention, parts[:, k, 0], -1), parts[:, k, 1])
                for k, attention in enumerate(layers)])
    if scores:
        module.score.weight.copy_(found[HEAD])
