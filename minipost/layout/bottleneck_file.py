"""The directory of bottleneck adapters: adapter_config.json and adapter_model.safetensors.

peft has none of this kind, so the layout is ours: the names of gpt.py, and the head of a reward
model whole.
"""

from pathlib import Path

import torch

from minipost import files
from minipost.engine.bottleneck import put, width_of
from minipost.errors import MinipostError
from minipost.layout.lora_file import CONFIG, HEAD, LANGUAGE, SCORE, WEIGHTS
from minipost.layout.tensor_file import check_finite, read_tensors, write_tensors

KIND = "BOTTLENECK"


def tensors_of(module):
    """{name in the file: parameter}."""
    model = getattr(module, "trunk", module)
    found = {name: p for name, p in model.named_parameters()
             if {"after_attention", "after_mlp"} & {*name.split(".")}}
    return found | ({HEAD: module.score.weight} if hasattr(module, "score") else {})


def save(directory, module, base, dtype):
    """Write the bottlenecks of a module, and its score's head if it has one.  As lora_file.save."""
    tensors = tensors_of(module)
    check_finite(directory, tensors)
    write_tensors(Path(directory) / WEIGHTS, {k: x.to(dtype) for k, x in tensors.items()},
                  format="pt")
    files.write_json(Path(directory) / CONFIG, {
        "peft_type": KIND, "task_type": SCORE if hasattr(module, "score") else LANGUAGE,
        "base_model_name_or_path": str(Path(base).resolve()), "width": width_of(module)})


@torch.no_grad()
def add(directory, module):
    """Put bottlenecks into a module, and fill its score's head."""
    path, task = Path(directory) / CONFIG, SCORE if hasattr(module, "score") else LANGUAGE
    raw = files.read_json(path)
    width = raw.get("width")
    if type(width) is not int or not 1 <= width <= 4096 or raw.get("task_type") != task:
        raise MinipostError(f"{path}: width is {width!r:.40} and task_type "
                            f"{raw.get('task_type')!r:.40}; expected a whole number from 1 to "
                            f"4096, and {task}")
    put(getattr(module, "trunk", module), width)
    wanted = tensors_of(module)
    found = read_tensors(Path(directory) / WEIGHTS, {k: tuple(p.shape) for k, p in wanted.items()})
    for name, p in wanted.items():
        p.copy_(found[name])
