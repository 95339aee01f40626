"""Train a model with a method on a task: `python -m minipost.train --algo grpo --task arithmetic`.

One run writes one directory:

    config.json    every setting, resolved         metrics.jsonl  one line per step
    summary.json   held-out before and after       model/         the trained model
    state/         what --resume continues from    (all of it is replaced whole or not at all)

Ctrl-C stops after the step in progress with everything saved; --resume DIR goes on from there and
ends with the same bytes as a run that was never stopped (same machine and number of workers).
"""

import argparse
import importlib
import pkgutil
import sys
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Literal

from minipost import methods
from minipost.errors import MinipostError
from minipost.tasks import TASKS
from minipost.tasks.files import File

PROG = "python -m minipost.train"
PROBLEMS = f"""Problems: --task {{{','.join(sorted(TASKS))}}}, whose knobs are listed below, or
--data FILE.jsonl, with --eval-data FILE.jsonl to hold out those (else one prompt in ten) and
--on-bad-row skip to leave out rows that are not as they should be."""


@dataclass(frozen=True)
class Options:
    """What every run has, whatever the method."""

    model: str = "checkpoints/base"  # model directory to start from
    out: str = ""               # run directory; runs/ALGO-TASK-SEED if empty
    reward: tuple[str, ...] = ()  # functions to add up, FILE.py:FUNCTION; the task's own if none
    reward_model: str = ""      # directory of a reward model to score with instead of a function
    seed: int = 0               # everything random follows from it
    room: int = 48              # longest response, in tokens (L_max)
    micro: int = 16             # sequences in one forward and backward pass; changes no gradient
    workers: int = 0            # processes on a CPU; 0: one per core, at most 4
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to run; auto: the best there is
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights; bfloat16 is slow on CPUs
    eval_n: int = 400           # held-out problems measured before and after
    show: int = 4               # held-out problems shown before and after
    save_every: int = 50        # steps between saved states; 0: only at the end
    eval_every: int = 0         # steps between held-out measurements into metrics.jsonl; 0: none
    budget: int = 0             # response tokens after which the run stops early; 0: no such limit

    def __post_init__(self):
        for name, least in (("room", 1), ("micro", 1), ("workers", 0), ("eval_n", 1), ("show", 0),
                            ("save_every", 0), ("eval_every", 0), ("budget", 0)):
            if getattr(self, name) < least:
                raise MinipostError(f"{name} is {getattr(self, name)}; expected at least {least}")


# ---- command line

def algorithms():
    """The methods by their command-line name; a file in minipost/methods is a method."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(methods.__path__))


def method(algo):
    return importlib.import_module(f"minipost.methods.{algo.replace('-', '_')}")


def parse(argv):
    """The command line as (algo, options, method config, task); tyro makes flags of dataclasses."""
    first = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    first.add_argument("--algo", choices=algorithms())
    first.add_argument("--task", choices=sorted(TASKS))
    first.add_argument("--data")
    first.add_argument("--eval-data", default="")
    first.add_argument("--on-bad-row", choices=("stop", "skip"))
    known, rest = first.parse_known_args(argv)
    if known.algo is None:
        if not rest or {"-h", "--help"} & set(rest):
            print(f"usage: {PROG} --algo {{{','.join(algorithms())}}} [--task "
                  f"{{{','.join(sorted(TASKS))}}} | --data FILE.jsonl] [options]\n"
                  f"       {PROG} --resume RUN_DIRECTORY\n\n{__doc__}\n"
                  f"`{PROG} --algo NAME --help` lists every option of a method.")
            raise SystemExit(0 if rest else 2)
        raise MinipostError(f"--algo is missing; choose one of {', '.join(algorithms())}")
    if known.data and known.task:
        raise MinipostError("--task and --data exclude each other")
    for flag in ("eval_data", "on_bad_row"):
        if getattr(known, flag) and not known.data:
            raise MinipostError(f"--{flag.replace('_', '-')} goes with --data")
    import tyro

    module, flat = method(known.algo), tyro.conf.OmitArgPrefixes
    parts = {"method": module.Config}
    if not known.data:
        parts["task"] = TASKS[known.task or module.TASK]
    parts["options"] = Options
    # What a demo starts from and which knobs its task has, where they are not as usual.
    ours = {"options": {"model": getattr(module, "MODEL", Options.model)},
            "task": getattr(module, "KNOBS", {}) if not known.task else {}}
    defaults = {part: c(**ours.get(part, {})) for part, c in parts.items()}
    together = make_dataclass("Arguments", [(part, flat[c], defaults[part])
                                            for part, c in parts.items()])
    found = tyro.cli(together, args=rest, prog=f"{PROG} --algo {known.algo}",
                     description=f"{module.__doc__}\n{PROBLEMS}",
                     config=(tyro.conf.FlagConversionOff,))
    task = found.task if not known.data else File(known.data, known.eval_data,
                                                   known.on_bad_row or "stop")
    return known.algo, found.options, found.method, task


def resumed(directory):
    """The settings of an earlier run, from its config.json."""
    from minipost.checkpoint import read_json

    path = Path(directory) / "config.json"
    saved = read_json(path)
    try:
        module = method(saved["algo"])
        task = {**TASKS, File.name: File}[saved["task"]["name"]]
        return (saved["algo"], build(Options, saved["options"]),
                build(module.Config, saved["method"]), build(task, saved["task"]))
    except (KeyError, TypeError, AttributeError, ModuleNotFoundError) as error:
        raise MinipostError(f"{path}: not the settings of a run ({error!r})") from None


def build(cls, saved):
    known = {f.name: saved[f.name] for f in fields(cls) if f.name in saved}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


def fail_in_one_sentence(work):
    """Run work(); a MinipostError is printed as one sentence and gives exit code 1."""
    try:
        return work() or 0
    except MinipostError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped at once; the last saved state stands", file=sys.stderr)
        return 130


def main(argv=None):
    return fail_in_one_sentence(lambda: start(sys.argv[1:] if argv is None else argv))


def start(argv):
    resume = any(argument.partition("=")[0] == "--resume" for argument in argv)
    if resume:
        if len(argv) != 2 or argv[0] != "--resume":
            raise MinipostError(f"write {PROG} --resume RUN_DIRECTORY and nothing else; every "
                                "setting is read from the run's config.json")
        settings, directory = resumed(argv[1]), Path(argv[1])
    else:
        settings = parse(argv)
        algo, options, _, task = settings
        directory = Path(options.out or f"runs/{algo}-{task.name}-{options.seed}")
    from minipost import parallel
    from minipost.session import Session

    options = settings[1]
    device = pick_device(options.device)
    workers = options.workers or parallel.default_workers(device)
    session = Session(directory, settings[0], method(settings[0]), *settings[1:], device, resume)
    return parallel.launch(session.go, workers)


def pick_device(name):
    import torch

    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if name == "auto":
        return next((device for device, found in there.items() if found()), "cpu")
    if name in there and not there[name]():
        raise MinipostError(f"--device {name}: this machine or this build of torch has none")
    return name


if __name__ == "__main__":
    sys.exit(main())
