"""The directory of an adapter, in peft's layout.

    adapter_config.json  adapter_model.safetensors  and the files of the tokenizer

adapter_config.json names the directory of the model that the adapter was trained on.  peft and
transformers open it, and what peft wrote opens here, if it is plain LoRA on matrices of the layers.

For each matrix there are two tensors: lora_A (r, D) and lora_B (V, r).  The head of a reward model
stands among them whole.
"""

import math
from pathlib import Path

import torch

from minipost import files
from minipost.engine.lora import STACKED, TARGETS, adapters, linears
from minipost.errors import MinipostError
from minipost.layout.tensor_file import check_finite, check_tensor, open_tensors, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BEFORE = "base_model.model."  # every name
HEAD = BEFORE + "score.weight"
LANGUAGE, SCORE = "CAUSAL_LM", "SEQ_CLS"  # task_type
# What changes the mathematics, with the values that mean "not used".
PLAIN = {"bias": ("none",), "use_dora": (None, False), "fan_in_fan_out": (None, False),
         "rank_pattern": (None, {}), "alpha_pattern": (None, {}), "layer_replication": (None,),
         "trainable_token_indices": (None,), "lora_bias": (None, False),
         "layers_to_transform": (None,), "exclude_modules": (None,),
         "target_parameters": (None, []), "alora_invocation_tokens": (None,),
         "use_qalora": (None, False), "use_bdlora": (None,), "arrow_config": (None,),
         "kasa_config": (None,), "monteclora_config": (None,),
         # With others ("pissa", "olora", "corda", "loftq", "lora_ga") peft changes the weights
         # beneath.
         "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal", "mica")}


def base_of(directory):
    """The directory of the model beneath an adapter, or the directory itself if it is a model."""
    directory = Path(directory)
    path = directory / CONFIG
    if not path.exists() or (directory / "config.json").exists():
        return directory
    base = files.read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not Path(base).is_dir():
        raise MinipostError(f"{path}: base_model_name_or_path is {str(base)!r:.80}; expected the "
                            "directory of the model that the adapter was trained on")
    if (Path(base) / CONFIG).exists():
        raise MinipostError(f"{path}: {base} is an adapter itself; expected a whole model")
    return Path(base)


def theirs(name, kind):
    """Hugging Face's name of a matrix: of the Linear `name` of ours, the part `kind`."""
    return f"{BEFORE}model.{name.removeprefix('trunk.').rpartition('.')[0]}.{kind}"


# ---- to be saved

def save(directory, module, base, dtype):
    """Write the adapters of a module, and its score's head if it has one.

    base: the directory of the model beneath.  dtype: a type of torch.
    """
    tensors, first = {}, adapters(module)[0][2]
    kinds = [kind for name, _, adapter in adapters(module)
             for kind, has in zip(STACKED[name.split(".")[-2]], adapter.adapted) if has]
    for name, _, adapter in adapters(module):
        found = [kind for kind, has in zip(STACKED[name.split(".")[-2]], adapter.adapted) if has]
        for kind, (_, of_b, of_a) in zip(found, adapter.parts()):
            at = theirs(name.removesuffix(".adapter"), kind)
            tensors |= {f"{at}.lora_A.weight": adapter.a[of_a],
                        f"{at}.lora_B.weight": adapter.b[of_b]}
    scores = hasattr(module, "score")
    if scores:
        tensors[HEAD] = module.score.weight
    check_finite(directory, tensors)
    write_tensors(Path(directory) / WEIGHTS, {k: x.to(dtype) for k, x in tensors.items()},
                  format="pt")
    alpha = first.scale * first.rank
    files.write_json(Path(directory) / CONFIG, {
        "peft_type": "LORA", "task_type": SCORE if scores else LANGUAGE,
        "base_model_name_or_path": str(Path(base).resolve()), "r": first.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "lora_dropout": 0.0,
        "target_modules": [kind for kind in TARGETS if kind in kinds], "bias": "none",
        "modules_to_save": ["score"] if scores else None, "inference_mode": True,
        "init_lora_weights": True, "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
    })


# ---- to be opened

def settings(directory, task):
    """(rank, scale, targets) of an adapter.  MinipostError where it is more than plain LoRA."""
    path = Path(directory) / CONFIG
    raw = files.read_json(path)
    if raw.get("peft_type") != "LORA":
        raise MinipostError(f"{path}: peft_type is {str(raw.get('peft_type'))!r:.40}; minipost "
                            "opens LORA")
    for key, values in PLAIN.items():
        if key in raw and raw[key] not in values:
            raise MinipostError(f"{path}: {key} is {raw[key]!r:.60}; minipost opens plain LoRA on "
                                "the matrices of the layers; merge it with peft first "
                                "(merge_and_unload), if that can be merged")
    rank, alpha, targets = raw.get("r"), raw.get("lora_alpha"), raw.get("target_modules")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise MinipostError(f"{path}: r is {rank!r:.40} and lora_alpha {alpha!r:.40}; expected a "
                            "whole number of at least 1, and a number")
    targets = list(TARGETS) if targets == "all-linear" else targets
    if not isinstance(targets, list) or not targets or not set(targets) <= set(TARGETS):
        raise MinipostError(f"{path}: target_modules is {targets!r:.80}; expected some of "
                            f"{', '.join(TARGETS)}")
    if raw.get("task_type") not in (None, task):
        kind = "language" if task == LANGUAGE else "reward"
        raise MinipostError(f"{path}: task_type is {raw['task_type']!r:.40}; expected {task}, that "
                            f"of a {kind} model")
    if (raw.get("modules_to_save") or ["score"]) != ["score"]:
        raise MinipostError(f"{path}: modules_to_save is {raw['modules_to_save']!r:.60}; minipost "
                            "opens a 'score' alone")
    return rank, alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank), targets


@torch.no_grad()
def add(directory, module):
    """Add what an adapter says to the matrices of a module, and fill its score's head."""
    rank, scale, targets = settings(directory, SCORE if hasattr(module, "score") else LANGUAGE)
    path = Path(directory) / WEIGHTS
    file = open_tensors(path)
    left, scores = set(file.keys()), hasattr(module, "score")

    def read(name, shape):
        if name not in left:
            raise MinipostError(f"{path}: the tensor {name} is missing")
        left.remove(name)
        check_tensor(file, path, name, shape, None)
        found = file.get_tensor(name).float()
        if not found.isfinite().all():
            raise MinipostError(f"{path}: {name} holds values that are not finite")
        return found

    for name, linear, rows in linears(module):
        for kind, part in zip(STACKED[name.rpartition(".")[2]], linear.weight.split(rows)):
            if kind in targets:
                at = theirs(name, kind)
                a = read(f"{at}.lora_A.weight", (rank, part.shape[1]))
                b = read(f"{at}.lora_B.weight", (len(part), rank))
                part.copy_((part.float() + scale * (b @ a)).to(part.dtype))
    if scores:
        module.score.weight.copy_(read(HEAD, tuple(module.score.weight.shape)))
    if left:
        raise MinipostError(f"{path}: holds {len(left)} tensors that belong to none of its "
                            f"target_modules, such as {min(left):.80}")
