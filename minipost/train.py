"""Train a model with a method on a task: `python -m minipost.train --algo grpo --task arithmetic`.

One run writes one directory:

    config.json    every setting, resolved         metrics.jsonl  one line per step
    summary.json   held-out before and after       model/         the trained model
    state/         what --resume continues from    (all of it is replaced whole or not at all)

Ctrl-C stops after the step in progress, with everything saved.  --resume DIR goes on from there and
ends with the same bytes as a run that was never stopped (same machine and number of workers).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from minipost import methods
from minipost.cli.options import Settings, SetUp, fail_in_one_sentence, parse, rebuild
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.tasks import TASKS

PROG = "python -m minipost.train"


@dataclass(frozen=True)
class Options(SetUp):
    """What every run has, whatever the method."""

    out: str = ""               # run directory; runs/ALGO-TASK-SEED if empty
    workers: int = 0            # processes on a CPU; 0: one per core, at most 4
    eval_n: int = 400           # held-out problems measured before and after
    show: int = 4               # held-out problems shown before and after
    save_every: int = 50        # steps between saved states; 0: only at the end
    eval_every: int = 0         # steps between held-out measurements into metrics.jsonl; 0: none
    budget: int = 0             # response tokens after which the run stops early; 0: no such limit

    LIMITS = dict.fromkeys(("workers", "show", "save_every", "eval_every", "budget"), ">= 0")


def settings_of(argv):
    """The Settings of a command line."""
    if not any(argument.partition("=")[0] == "--algo" for argument in argv):
        every = ",".join(methods.names())
        if argv and not {"-h", "--help"} & set(argv):
            raise MinipostError(f"--algo is missing; choose one of {every.replace(',', ', ')}")
        print(f"usage: {PROG} --algo {{{every}}} [--task {{{','.join(TASKS)}}} | "
              f"--data FILE.jsonl] [options]\n       {PROG} --resume RUN_DIRECTORY\n\n{__doc__}\n"
              f"`{PROG} --algo NAME --help` lists every option of a method.")
        raise SystemExit(0 if argv else 2)
    return parse(argv, PROG, lambda method: Options(model=method.MODEL), methods=methods, data=True)


def resumed(directory):
    """The Settings of an earlier run, from its config.json."""
    from minipost.checkpoint import read_json

    path = Path(directory) / "config.json"
    saved = read_json(path)
    try:
        method = methods.load(saved["algo"])
        task = {**TASKS, File.name: File}[saved["task"]["name"]]
        return Settings(rebuild(Options, saved["options"]), rebuild(task, saved["task"]), method,
                        rebuild(method.Config, saved["method"]))
    except (KeyError, TypeError, AttributeError, ModuleNotFoundError) as error:
        raise MinipostError(f"{path}: not the settings of a run ({error!r})") from None


def main(argv=None):
    return fail_in_one_sentence(lambda: start(sys.argv[1:] if argv is None else argv))


def start(argv):
    resume = any(argument.partition("=")[0] == "--resume" for argument in argv)
    if resume and (len(argv) != 2 or argv[0] != "--resume"):
        raise MinipostError(f"write {PROG} --resume RUN_DIRECTORY and nothing else; every "
                            "setting is read from the run's config.json")
    settings = resumed(argv[1]) if resume else settings_of(argv)
    options = settings.options
    directory = argv[1] if resume else options.out or \
        f"runs/{settings.method.name}-{settings.task.name}-{options.seed}"
    from minipost import parallel
    from minipost.cli.session import Session, pick_device

    device = pick_device(options.device)
    session = Session(Path(directory), settings, device, resume)
    return parallel.launch(session.go, options.workers or parallel.default_workers(device))


if __name__ == "__main__":
    sys.exit(main())
