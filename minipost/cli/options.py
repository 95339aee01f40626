"""The command lines of train, evaluate, solve and doctor: common options and one two-stage parser.

The first stage finds the method and the task or file.  The second stage makes a flag of every field
of their dataclasses.  A renamed flag still works under its old name, and the command prints the new
name once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from typing import Any, Literal

from minipost import tasks
from minipost.cli.trl import refuse
from minipost.datasets.rows import File
from minipost.errors import Bounded, MinipostError, check_type
from minipost.files import shipped
from minipost.tasks import TASKS

FIRST: Mapping[str, str] = {  # flag and kind: the options that decide which others there are
    f"--task {{{','.join(TASKS)}}}": "problems of ours, whose knobs are listed below",
    "--data FILE": "problems of yours: JSONL, JSON, Parquet, or a data set of save_to_disk",
    "--eval-data FILE": "rows to hold out; without it, one prompt in ten of --data",
    "--columns OLD:NEW": "other names for columns: question:prompt,answer:solution",
    "--on-bad-row {stop,skip}": "rows that are not as they should be: stop at the first, or leave "
                                "them out (default: stop)",
    "--max-length INT": "longest prompt with its answer, in tokens; 0: what the model holds",
    "--on-long-row {stop,skip,truncate}": "rows that are longer (default: stop)",
}


KNOBS = {f"--{f.name.replace('_', '-')}" for task in TASKS.values() if is_dataclass(task)
         for f in fields(task)}


@dataclass(frozen=True)
class Options(Bounded):
    """The options of every command."""

    model: str = "checkpoints/base"  # model directory
    seed: int = 0               # everything random follows from it
    max_new_tokens: int = 48    # longest response, in tokens (L_max)


@dataclass(frozen=True)
class SetUp(Options):
    """The options of a training run, which the doctor checks."""

    reward: tuple[str, ...] = ()  # functions to add up, FILE.py:FUNCTION=WEIGHT; none: the task's
    reward_timeout: float = 0.0  # seconds that one call of a function may take; 0: no limit
    reward_model: str = ""      # directory of a reward model to score with instead of a function
    control_tokens: Literal["stop", "tokens", "plain"] = "stop"  # what those in --data stand for
    chat: bool = False          # make each prompt that is a string the message of a user
    chat_template: str = ""     # file of a chat template (jinja) in place of the model's
    micro_batch_size: int = 16  # sequences in one forward and backward pass; changes no gradient
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to run; auto: the best available
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights; bfloat16 is slow on CPUs
    gradient_checkpointing: bool = False  # compute layers again on the way back, to save memory
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the layers alone
    sampler: Literal["own", "vllm"] = "own"  # who draws the policy's answers; vllm: --sampler-url
    sampler_url: str = "http://127.0.0.1:8000"  # of a vLLM server in development mode
    lora: int = 0               # rank of the adapters that learn instead of the weights; 0: none
    lora_alpha: float = 0.0     # what the adapters add is times alpha / rank; 0: twice the rank
    lora_targets: tuple[str, ...] = ()  # matrices with an adapter, such as q_proj v_proj; none: all
    lora_numbers: int = 0       # how many numbers learn in all adapters together, below a rank of 1
    lora_budget: int = 0        # mean rank that is left where ranks are shared out; 0: all of them
    base_bits: int = 0          # 8 or 4, of a weight of the layers beside adapters; 0: as --dtype
    prefix: int = 0             # keys and values that learn before each layer's own; 0: none
    bottleneck: int = 0         # width of adapters that learn behind each sublayer; 0: none
    merge: bool = False         # save whole models, adapters added, instead of the adapters alone

    LIMITS = {"lora": ">= 0, <= 4096", "lora_numbers": ">= 0", "lora_budget": ">= 0",
              "base_bits": ">= 0", "prefix": ">= 0, <= 4096", "bottleneck": ">= 0, <= 4096"}

    def __post_init__(self):
        super().__post_init__()
        for name in ("lora_alpha", "lora_targets"):
            if getattr(self, name) and not self.lora:
                raise MinipostError(f"--{name.replace('_', '-')} goes with --lora, the rank of the "
                                    "adapters; without it all weights learn")
        if self.sampler_url != SetUp.sampler_url and self.sampler == "own":
            raise MinipostError("--sampler-url goes with --sampler vllm; without it minipost "
                                "samples by itself")
        if self.lora_numbers and not self.lora:
            raise MinipostError(f"--lora-numbers {self.lora_numbers}: goes with --lora, the rank "
                                "of the directions on which they act; 2 is usual")
        if self.lora_budget and not self.lora_budget <= self.lora:
            raise MinipostError(f"--lora-budget {self.lora_budget}: goes with a --lora of at least "
                                f"as much, the rank at first; it is {self.lora}")
        if self.lora_budget and (self.lora_numbers or self.optimizer == "muon"):
            raise MinipostError(f"--lora-budget {self.lora_budget}: shares out ranks by the "
                                "gradients of AdamW's adapters; leave out --lora-numbers and "
                                "--optimizer muon")
        if self.base_bits not in (0, 4, 8):
            raise MinipostError(f"base_bits is {self.base_bits}; expected 8, 4, or 0 for none")
        if self.base_bits and (not self.lora or self.merge or self.sampler == "vllm"):
            raise MinipostError(f"--base-bits {self.base_bits}: goes with --lora, since coded "
                                "weights do not learn, and without --merge and --sampler vllm, "
                                "since an adapter is saved for the weights as they were")
        for flag in ("prefix", "bottleneck"):
            for name, given in (("--lora", self.lora), ("--merge", self.merge),
                                ("--sampler vllm", self.sampler == "vllm"),
                                ("--bottleneck", self.bottleneck and flag == "prefix")):
                if (count := getattr(self, flag)) and given:
                    raise MinipostError(f"--{flag} {count} with {name}: is not supported; what "
                                        "learns there learns alone, cannot be added to the "
                                        "weights, and is read by minipost's own sampler")


@dataclass(frozen=True)
class Settings:
    """A whole command line.  Parts that the command does not have are None."""

    options: Any
    task: Any = None
    method: Any = None
    config: Any = None
    json: bool = False


def parse(argv, prog, options, *, description="", methods=None, flag="--algo", task=True,
          data=False, json=False, kind=File, others=None):
    """The Settings of a command line.  tyro makes the flags.

    options: the command's dataclass, or a function from the method to an instance.
    methods: the package from which --algo or --method chooses, by its `names`, `load` and, for
        --help, `outline`.
    task: whether a command without methods needs a task; a method has a default task.
    data, json: whether the command knows --data and --json.  kind: what makes a task of --data.
    others: {flag: words} that the command reads by itself, for --help.
    """
    argv = [dashed(argument) for argument in argv]
    known, rest = _first(argv, prog, methods, flag, data, json)
    for argument in rest:
        if argument.startswith("--") and not argument.isprintable():
            raise MinipostError(f"{argument[:40]!r}: there is no such option")
    asked = bool({"-h", "--help"} & set(rest))  # tyro ends with the help, or with a fault
    method = (methods.outline if asked else methods.load)(known.method) if methods else None
    if known.data and known.task:
        raise MinipostError("--task and --data exclude each other")
    for name in ("eval_data", "on_bad_row", "columns", "max_length", "on_long_row"):
        if getattr(known, name) and not known.data:
            raise MinipostError(f"--{name.replace('_', '-')} goes with --data")
    parts: dict[str, Any] = {"config": method.Config()} if method else {}
    if known.task:
        parts["task"] = tasks.load(known.task)()
    elif method and not known.data:
        parts["task"] = tasks.load(method.TASK)(**method.KNOBS)
    elif task and not known.data and not asked:
        raise MinipostError("give one of --task and --data: the problems to look at")
    parts["options"] = options(method) if method else options()
    if "task" not in parts:
        for name in KNOBS & {argument.partition("=")[0] for argument in rest}:
            raise MinipostError(f"{name} is a knob of a task; name the task with --task")
    others = {**dict(list(FIRST.items())[: None if data else 1]), **(others or {}),
              **({"--json": "print data, and no text"} if json else {})}
    apart(parts, {"help", flag[2:], *(each.split()[0][2:].replace("-", "_")
                                      for each in [*FIRST, *others])})
    if asked:
        show_help(f"{prog} {flag} {known.method}" if method else prog, parts, others,
                  method.module.__doc__ if method else description)
    once(argv, parts.values())
    refuse(rest, parts.values(), {each.split()[0][2:].replace("-", "_") for each in others})
    import tyro

    flat = tyro.conf.OmitArgPrefixes
    together = make_dataclass("Arguments", [(part, flat[type(usual)], usual)
                                            for part, usual in parts.items()])
    found = dict(vars(tyro.cli(
        together, args=switched(renamed(rest, parts.values()), parts.values()),
        prog=f"{prog} {flag} {known.method}" if method else prog,
        config=(tyro.conf.FlagConversionOff,))))
    found |= {part: shipped_models(found[part]) for part in ("options", "config") if part in found}
    if known.data:
        found["task"] = kind(known.data, known.eval_data, known.on_bad_row or "stop",
                             known.columns, known.max_length, known.on_long_row or "stop")
    return Settings(found["options"], found.get("task"), method, found.get("config"), known.json)


def apart(parts, first):
    """MinipostError where two parts of a command line have a setting of the same name.

    first: the names that are read before the parts.
    """
    known = dict.fromkeys(first, "the command's own flags")
    for part in (parts[name] for name in ("options", "config", "task") if name in parts):
        file = type(part).__module__.partition(":")[0].replace(".", "/") + ".py"
        for name in [f.name for f in fields(part)] if is_dataclass(part) else ():
            if name in known:
                raise MinipostError(f"{file}: the setting {name!r} of {type(part).__name__} is one "
                                    f"of {known[name]} too; give it another name")
            known[name] = file


def show_help(prog, parts, others, description):
    """Print the help of a command line, and end."""
    from minipost.cli import help

    sections, told = {}, {flag: words for flag, words in others.items() if flag not in FIRST}
    if "config" in parts:
        sections["method"] = (parts["config"].__doc__, help.options_of(parts["config"]))
    sections["problem"] = ("", [(flag, words) for flag, words in others.items() if flag in FIRST])
    if "task" in parts and is_dataclass(parts["task"]) and fields(parts["task"]):
        sections["task"] = (parts["task"].__doc__, help.options_of(parts["task"]))
    for group, rows in help.grouped(parts["options"]).items():
        sections[group] = ("", rows)
    sections["run"] = ("", [*sections.pop("run", ("", []))[1], *told.items(),
                            ("-h, --help", "show this and end")])
    print(help.page(f"{prog} [options]", description, sections))
    raise SystemExit(0)


def once(argv, parts):
    """MinipostError where a flag is repeated of which only the last would count, unlike others.

    Those are flags that take several values, and the files and the task.  A number that stands
    twice is as usual the last one.
    """
    given = [argument.partition("=")[0] for argument in argv]
    several = {"--" + f.name.replace("_", "-") for part in parts for f in fields(part)
               if str(f.type).startswith("tuple")}
    for flag in sorted(several | {"--task", "--data", "--eval-data"}):
        if given.count(flag) > 1:
            raise MinipostError(f"{flag} is given {given.count(flag)} times; give it once" + (
                ", with all its values behind it" if flag in several else ", with one value"))


def dashed(argument):
    """The argument, with dashes in place of underscores if it is a flag: --group_size is ours."""
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def shipped_models(part):
    """Settings with the checkpoints that come with minipost where this folder has none of the name.

    part: a dataclass.  -> the same, or one whose strings checkpoints/NAME are paths that exist.
    """
    names = {f.name: value for f in fields(part)
             if isinstance(value := getattr(part, f.name), str)
             and value.startswith("checkpoints/") and not os.path.exists(value)}
    found = {name: str(path) for name, value in names.items() if (path := shipped(value)).exists()}
    return replace(part, **found) if found else part


def _first(argv, prog, methods, flag, data, json):
    """The first stage: (the flags that the second stage depends on, the other arguments)."""
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.set_defaults(data=None, eval_data="", on_bad_row=None, columns="", json=False,
                       max_length=0, on_long_row=None)
    if methods:
        first.add_argument(flag, dest="method", choices=methods.names(), required=True)
    first.add_argument("--task", choices=list(TASKS))
    if data:
        first.add_argument("--data")
        first.add_argument("--eval-data", default="")
        first.add_argument("--columns", default="")
        first.add_argument("--on-bad-row", choices=("stop", "skip"))
        first.add_argument("--max-length", type=int)
        first.add_argument("--on-long-row", choices=("stop", "skip", "truncate"))
    if json:
        first.add_argument("--json", action="store_true")
    return first.parse_known_args(argv)


# ---- names that have changed

RENAMED: dict[str, tuple[str, ...]] = {  # old name: new names; the first that a command has applies
    "room": ("max_new_tokens",),
    "micro": ("micro_batch_size",),
    "group": ("group_size",),
    "copies": ("group_size", "branching"),
    "tries": ("branching",),
    "ranked": ("group_size",),
    "answers": ("group_size", "batch_size"),
    "samples": ("group_size",),
    "flip": ("label_smoothing",),
    "batch": ("batch_size",),
    "minibatch": ("minibatch_size",),
    "warmup": ("warmup_steps",),
    "decay": ("weight_decay",),
}


def new_name(old, parts):
    """The name of a setting in these dataclasses: the old name if one has it, else the new name."""
    known = {f.name for part in parts for f in fields(part)}
    if old in known:
        return old
    return next((new for new in RENAMED.get(old, ()) if new in known), old)


def renamed(arguments, parts):
    """The arguments with old flags renamed.  Each renaming is printed once, to stderr."""
    found, said = [], {}
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            old = flag[2:].replace("-", "_")
            new = new_name(old, parts)
            if new != old:
                said[flag] = "--" + new.replace("_", "-")
                argument = said[flag] + equals + value
        found.append(argument)
    for old, new in said.items():
        print(f"{old} is now {new}", file=sys.stderr)
    return found


def switched(arguments, parts):
    """The arguments, with True behind each flag of a yes or no that stands alone."""
    flags = {"--" + f.name.replace("_", "-") for part in parts for f in fields(part)
             if f.type in (bool, "bool")}
    found = []
    for argument, behind in zip(arguments, [*arguments[1:], "--"]):
        found += [argument, "True"] if argument in flags and behind.startswith("--") else [argument]
    return found


def rebuild(cls, saved):
    """A dataclass from the settings in a run's config.json, under old names or new ones.

    MinipostError names a setting that the dataclass does not have or that has another type.
    """
    values = {new_name(name, [cls]): value for name, value in saved.items()}
    names = {f.name for f in fields(cls)}
    for name, value in values.items():
        if name not in names:
            raise MinipostError(f"there is no setting {name[:40]!r} here")
        check_type(cls, name, value)
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def fail_in_one_sentence(work):
    """Run work().  A MinipostError is printed as one sentence and gives exit code 1.

    What cannot be printed is no reason to fail: a character that the terminal lacks is spelled out,
    and a reader that goes away, such as `head`, only ends the printing.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the start
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        code = work() or 0
    except SystemExit as leave:  # such as that of --help
        code = leave.code if isinstance(leave.code, int) else 1
        if not flushed():
            return code or 1
        raise
    except MinipostError as error:
        code = complain(f"error: {error}", 1)
    except KeyboardInterrupt:
        code = complain("stopped at once; what was saved before stands", 130)
    except BrokenPipeError:
        code = 1
    except OSError as error:  # such as a name of more than 255 characters
        code = 1
        if error.filename is None:  # all that is written to files is watched where it is written
            silence()
            return complain(f"error: nothing more could be printed ({error.strerror})", 1)
        hint = "; choose a shorter name" if error.errno == errno.ENAMETOOLONG else ""
        complain(f"error: {MinipostError(f'{error.filename}: {error.strerror}{hint}')}", 1)
    return code if flushed() else code or 1


def flushed():
    """Whether all could be printed.  A reader that has gone, such as `head`, is no harm."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
    except OSError as error:
        silence()
        complain(f"error: nothing more could be printed ({error.strerror})", 1)
        return False
    return True


def silence():
    """Let nothing more come to standard output, nor what is still in its buffer."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(sentence, code):
    with suppress(OSError):
        print(sentence, file=sys.stderr)
    return code
