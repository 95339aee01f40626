"""Defaults that follow the size of the model.

The defaults of methods suit the nano checkpoints of this repository.  A model of more than LARGE
parameters wants a rate that is a hundred times smaller, fewer but longer answers, and one process:
a product of large matrices uses all threads, and every process more holds the weights once more.
What a flag says stands.
"""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

from minipost.cli.options import new_name

LARGE = 20_000_000   # parameters; on a CPU one process is then faster than two
ANSWER, HELD_OUT = 256, 64   # tokens of an answer, held-out problems
CRITIC_LR = 1e-5     # of a value head on a copy of the policy


def parameters(directory):
    """How many numbers the weight files of a model directory hold; 0 where they cannot be read.

    The code that loads the model says what is wrong with it.
    """
    total = 0
    try:
        for path in Path(directory).glob("*.safetensors"):
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(size, 10**8)))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items()
                         if name != "__metadata__")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0
    return total


def longest_answer(directory):
    """ANSWER, or half of the context of a model with a small one."""
    try:
        context = json.loads((Path(directory) / "config.json").read_text())
        return min(ANSWER, int(context["max_position_embeddings"]) // 2)
    except (OSError, ValueError, TypeError, KeyError):
        return ANSWER


def wanted(directory, rate):
    """{setting: its default} that a model of this size wants, {} if it is a small one.

    rate: the learning rate of the method for a large model.
    """
    if parameters(directory) <= LARGE:
        return {}
    return {"lr": rate, "dpo_lr": rate, "sft_lr": 1e-5, "critic_lr": CRITIC_LR,
            "eval_n": HELD_OUT, "max_new_tokens": longest_answer(directory)}


def flags(argv, settings):
    """The names, as they are now, of the settings that a command line gives."""
    return {new_name(a.partition("=")[0].lstrip("-").replace("-", "_"),
                     [settings.options, settings.config]) for a in argv if a.startswith("--")}


def for_size(settings, argv, device):
    """(the Settings with defaults for the model's size, a line that says which and why, or "")."""
    others = wanted(settings.options.model, settings.method.LARGE_LR)
    if not others:
        return settings, ""
    parts, given = [settings.options, settings.config], flags(argv, settings)
    if device == "cpu":
        others["workers"] = 1
    said, changed = [], []
    for part in parts:
        new = {f.name: others[f.name] for f in fields(part)
               if f.name in others and f.name not in given}
        said += [f"--{name.replace('_', '-')} {value:g}" for name, value in new.items()]
        changed.append(replace(part, **new))
    count = parameters(settings.options.model)
    line = (f"defaults for a model of {count / 1e6:.0f}M parameters, more than {LARGE / 1e6:.0f}M: "
            f"{' '.join(said)}; any flag wins")
    return replace(settings, options=changed[0], config=changed[1]), line if said else ""


def for_sampler(sampler, config, given):
    """(the Config as --sampler wants it, a line that says so, or "").  given: names of its flags.

    A server rounds otherwise than training does, so its log-probs are of a slightly other policy.
    A method that can weigh tokens by their ratio does; the others get the log-probs of training,
    see Run.rollout.
    """
    if sampler != "vllm" or "correct" in given or not hasattr(config, "correct"):
        return config, ""
    return replace(config, correct="truncated"), (
        f"--sampler vllm: --correct truncated --cap {config.cap:g}, since the server's log-probs "
        "are not those of training; any flag wins")
