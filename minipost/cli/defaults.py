"""Defaults that follow the size of the model, and steps that follow the number of rows.

The defaults of methods suit the nano checkpoints of this repository.  A model of more than LARGE
parameters wants a rate that is a hundred times smaller, fewer but longer answers, and one process:
a product of large matrices uses all threads, and every process more holds the weights once more.
Adapters want a larger rate.  What a flag says stands.
"""

import json
import math
from dataclasses import fields, replace

from minipost.cli.options import new_name
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.layout.lora_file import base_of

LARGE = 20_000_000   # parameters; on a CPU one process is then faster than two
ANSWER, HELD_OUT = 256, 64   # tokens of an answer, held-out problems
CRITIC_LR = 1e-5     # of a value head on a copy of the policy
RATES = ("dpo_lr", "sft_lr", "critic_lr")  # beside lr
ADAPTER_RATE = 10    # of adapters, times that of all weights
BUDGET_RATE = 50     # of adapters whose ranks have a budget, the same
PREFIX_RATE = 100    # of a prefix, the same
STEPS = 100          # at most, where there are no rows to go through

# What a step of a large model learns from.  A token forward and back takes 6 operations a weight:
# 0.8 billion of 135M.  At 80 billion a second, an estimate of two free cores, 4,000 take 40 s:
# 16 answers of up to 256, 4 pairs of two answers or 8 rows of 500.  A GPU is a hundred times faster
# and is idle with so few; what a pass takes there is bound by its memory (run.memory) anyway.
# A pass of 4 sequences on a CPU is as fast as one of 16, and keeps a quarter of the activations.
STEP = {
    "cpu": {"answers": 16, "group_size": 4, "pairs": 4, "batch_size": 8, "micro_batch_size": 4},
    "cuda": {"answers": 128, "group_size": 8, "pairs": 32, "batch_size": 32,
             "micro_batch_size": 64},
}
STOCK = 4            # batches of answers that are collected first, by methods that learn from a set


def parameters(directory):
    """How many numbers the weight files of a model directory hold; 0 where they cannot be read.

    The code that loads the model says what is wrong with it.
    """
    total = 0
    try:
        for path in base_of(directory).glob("*.safetensors"):
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(size, 10**8)))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items()
                         if name != "__metadata__")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, MinipostError):
        return 0
    return total


def longest_answer(directory):
    """ANSWER, or half of the context of a model with a small one."""
    try:
        context = json.loads((base_of(directory) / "config.json").read_text())
        return min(ANSWER, int(context["max_position_embeddings"]) // 2)
    except (OSError, ValueError, TypeError, KeyError, MinipostError):
        return ANSWER


def wanted(directory, device, method=None, config=None, given=()):
    """{setting: its default} that a model of this size wants, {} if it is a small one.

    method, config: the Method that trains it and its Config; None where nothing is trained.
    given: the names of settings that are not left to their defaults.
    """
    if parameters(directory) <= LARGE:
        return {}
    step = STEP.get(device, STEP["cpu"])
    found = {"eval_n": HELD_OUT, "max_new_tokens": longest_answer(directory),
             "micro_batch_size": step["micro_batch_size"]}
    if device == "cpu":
        found["workers"] = 1
    if method is None:
        return found
    names = {f.name for f in fields(config)} - set(config.idle())
    found |= {"lr": method.LARGE_LR, "dpo_lr": method.LARGE_LR, "sft_lr": 1e-5,
              "critic_lr": CRITIC_LR, "steps": min(config.steps, STEPS)}
    group = getattr(config, "group_size", 1)
    group = group if "group_size" in given else min(step["group_size"], group)
    stock = STOCK if "batch_size" in names else 1
    found |= {**method.LARGE, "pairs": step["pairs"], "batch_size": step["batch_size"],
              "group_size": group, "prompts": max(1, stock * step["answers"] // group)}
    return {name: value for name, value in found.items() if name in names or not hasattr(
        config, name)}


def given_in(argv, parts):
    """The names of the settings that a command line gives; parts: the dataclasses that have them.
    """
    return {new_name(a.partition("=")[0].lstrip("-").replace("-", "_"), parts)
            for a in argv if a.startswith("--")}


def for_size(settings, argv, device):
    """(the Settings with defaults for the model's size, a line that says which and why, or "")."""
    parts = [settings.options, settings.config]
    given = given_in(argv, parts)
    others = wanted(settings.options.model, device, settings.method, settings.config, given)
    if not others:
        return settings, ""
    if settings.task.name == File.name and not {"steps", "data_epochs"} & given:
        others["data_epochs"] = 1.0
        given |= {"steps"}  # which follow
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


def for_run(settings, argv, device):
    """(the Settings with all defaults that follow from others, lines that say which and why)."""
    given = given_in(argv, [settings.options, settings.config])
    settings, note = for_size(settings, argv, device)
    config, more = for_adapters(settings.options.lora or settings.options.bottleneck,
                                settings.options.prefix, settings.config, given,
                                settings.options.lora_budget)
    config, last = for_sampler(settings.options.sampler, config, given)
    return replace(settings, config=config), "\n".join(filter(None, (note, more, last)))


def for_adapters(adapters, prefix, config, given, budget=0):
    """(the Config with the rates that adapters or a prefix want, a line that says so, or "").

    Ten times the rate of all weights is about right for adapters, whatever the size of the model
    (Schulman 2025, thinkingmachines.ai/blog/lora).  A prefix wants more, of what was tried here,
    and so do adapters with a budget of ranks, whose singular values begin at 0.
    """
    factor, words = ((BUDGET_RATE, "adapters with a budget, fifty") if budget else
                     (ADAPTER_RATE, "adapters, ten") if adapters else
                     (PREFIX_RATE, "a prefix, a hundred"))
    names = [f.name for f in fields(config)
             if f.name in {"lr", *RATES} - set(config.idle()) and f.name not in given
             ] if adapters or prefix else []
    if not names:
        return config, ""
    new = {name: float(f"{factor * getattr(config, name):.6g}") for name in names}
    said = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in new.items())
    return replace(config, **new), f"defaults for {words} times the rates: {said}"


def for_sampler(sampler, config, given):
    """(the Config as --sampler wants it, a line that says so, or "").  given: names of its flags.

    A server rounds otherwise than training does, so its log-probs are of a slightly other policy.
    A method that can weigh tokens by their ratio does; the others get the log-probs of training,
    see Run.rollout.
    """
    if sampler != "vllm" or "correct" in given or not hasattr(config, "correct"):
        heeded(config, given)
        return config, ""
    return replace(config, correct="truncated"), (
        f"--sampler vllm: --correct truncated --cap {config.cap:g}, since the server's log-probs "
        "are not those of training; any flag wins")


def heeded(config, given):
    """MinipostError where a bound of ratios is given that the Config's `correct` does not use."""
    if not {"correct", "cap"} <= {f.name for f in fields(config)}:
        return
    used = {"clip": "clip", "none": ""}.get(config.correct, "cap")
    for name in ("clip", "cap"):
        if name in given and name != used:
            other = f"--correct {'clip' if name == 'clip' else 'truncated or masked'}"
            raise MinipostError(f"--{name} goes with {other}; with --correct {config.correct} it "
                                "does nothing")


def with_epochs(run, method, config, epochs):
    """(the Config with the steps that so many passes over the rows take, a line that says so).

    run: whose task holds the rows.  MinipostError where there is no list of rows to pass over.
    """
    rows, each = method.rows(run, config)
    if not rows:
        raise MinipostError(f"--data-epochs {epochs:g}: {method.name} goes through no finite list "
                            f"of rows on {run.task.name} here; give --steps")
    steps = math.ceil(epochs * rows / each)
    return replace(config, steps=steps), (
        f"--data-epochs {epochs:g} over {rows:,} rows, {each} in a step: {steps:,} steps")
