"""Train a model with a method on a task: `python -m minipost.train --algo grpo --task arithmetic`.

One run writes one directory:

    config.json    every setting, resolved         metrics.jsonl  one line per step
    summary.json   held-out before and after       model/         the trained model
    state/         what --resume continues from    rollouts/      what --keep-rollouts keeps
    report.html    curves, checks, samples         report.jsonl   the samples that it shows
    rewards.json   of each held-out problem        trackers/      what --log keeps here
    (each file is replaced whole or not at all)

Ctrl-C stops after the step in progress, with everything saved, and says what it waits for; twice,
or before the first step is made, it stops at once.  --resume DIR goes on from there and
ends with the same bytes as a run that was never stopped (on the same machine).  It stops if the
data, the reward, the model, the settings, the version of minipost or the file of the method or of
the task have changed since; --anyway goes on.  A run that is in the directory is replaced only by
--overwrite, with the first save of the new one; until then it lies in DIR/replaced-run, and a new
run that fails before puts it back.  --resume DIR --steps 500 goes on longer.

--shard leaves a part of each weight, gradient and moment in each rank, those of --workers or of
torchrun.  It goes with every method but trpo, not with --optimizer muon nor with --lag.  --resume
DIR --workers N goes on with another number of ranks.

`python -m minipost.train --algo NAME --help` lists every option of a method.
"""

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from minipost import Door, contract, methods, tasks
from minipost.cli.options import Settings, SetUp, fail_in_one_sentence, parse, rebuild
from minipost.cli.trackers import Name
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.tasks import TASKS

PROG = "python -m minipost.train"
MODELS = ("model", "reward_model")  # options that name directories


@dataclass(frozen=True)
class Options(SetUp):
    """What every run has, whatever the method."""

    out: str = ""               # run directory; runs/ALGO-TASK-SEED if empty
    workers: int = 0            # processes on a CPU; 0: one per core, at most 4
    data_epochs: float = 0.0    # passes over the rows of the data, in place of --steps; 0: no
    eval_n: int = 400           # held-out problems measured before and after; 0: none
    ask: int = 0                # answers of the untrained model to choose from, shown beside; 0: no
    show: int = 4               # held-out problems shown before and after
    save_every: int = 50        # steps between saved states; 0: only at the end
    eval_every: int = 0         # steps between held-out measurements into metrics.jsonl; 0: none
    shard: bool = False         # each rank keeps a part of weights, gradients and moments (FSDP2)
    lag: int = 0                # rollouts are by the policy of so many steps ago; keeps as many
    sampler_bits: int = 0       # rollouts are by weights rounded to so many bits; 0: as they are
    sampler_top_k: int = 0      # rollouts draw from so many likeliest tokens; 0: from all
    keep_rollouts: int = 0      # steps between rollouts that are kept in rollouts/; 0: none
    rollout_format: Literal["jsonl", "parquet"] = "jsonl"  # of what --keep-rollouts keeps
    log: tuple[Name, ...] = ()  # trackers that get the metrics too, under TRL's names
    budget: int = 0             # response tokens after which the run stops early; 0: no such limit
    report: bool = True         # write report.html, a page about the run, at its end

    LIMITS = dict.fromkeys(("eval_n", "ask", "show", "save_every", "eval_every", "keep_rollouts",
                            "budget", "sampler_top_k"), ">= 0") | {
        "lag": ">= 0, <= 1000", "sampler_bits": ">= 0, <= 16"}

    def __post_init__(self):
        super().__post_init__()
        if self.rollout_format != Options.rollout_format and not self.keep_rollouts:
            raise MinipostError("--rollout-format goes with --keep-rollouts, the steps between "
                                "those that are kept; without it none are")


def settings_of(argv):
    """The Settings of a command line."""
    if not any(argument.partition("=")[0] == "--algo" for argument in argv):
        if argv and not {"-h", "--help"} & set(argv):
            raise MinipostError("--algo is missing; choose one of "
                                + ", ".join(methods.names()))
        from minipost.cli import help

        print(help.choice(PROG, "--algo", contract.titles(methods), [
            f"--algo NAME [--task {{{','.join(TASKS)}}} | --data FILE] [options]",
            "--resume RUN_DIRECTORY"], __doc__))
        raise SystemExit(0 if argv else 2)
    own = not {"--task", "--data"} & {argument.partition("=")[0] for argument in argv}
    found = parse(argv, PROG, lambda method: Options(
        **{"model": method.MODEL, **(method.DEMO if own else {})}), methods=methods, data=True,
        others={"--overwrite": "replace the run that is in the directory",
                "--resume DIR": "go on with a run; its settings are read from there"})
    if found.options.data_epochs:
        from minipost.cli.defaults import given_in

        if "steps" in given_in(argv, [found.config]):
            raise MinipostError("--steps and --data-epochs exclude each other: the second says how "
                                "many steps there are by the number of rows; give one of them")
    for name in ("ask", "eval_every"):
        if getattr(found.options, name) and not found.options.eval_n:
            raise MinipostError(f"--{name.replace('_', '-')} measures held-out problems, and "
                                "--eval-n 0 asks for none; leave one of them out")
    if found.options.lag and not found.method.ON_POLICY:
        raise MinipostError(f"--lag {found.options.lag}: {off_policy(found.method)}, so there is "
                            "nothing to delay; grpo, ppo and the other on-policy methods do")
    if found.options.lag and found.options.sampler == "vllm":
        raise MinipostError("--lag with --sampler vllm: a server has one set of weights, so it "
                            "cannot answer for an older policy; leave out one of the two")
    if found.options.lag and found.options.shard:
        raise MinipostError(f"--lag {found.options.lag} keeps whole policies of earlier steps, of "
                            "which --shard leaves a part in each rank; leave out one of the two")
    if found.options.sampler_bits or found.options.sampler_top_k:
        check_sampler(found)
    others = {"--lora": found.options.lora, "--prefix": found.options.prefix,
              "--bottleneck": found.options.bottleneck,
              "--sampler vllm": found.options.sampler == "vllm"}
    if found.options.shard and any(others.values()):
        other = next(name for name, given in others.items() if given)
        raise MinipostError(f"--shard with {other}: is not supported; leave out one of the two")
    if found.options.keep_rollouts and not found.method.ON_POLICY:
        raise MinipostError(f"--keep-rollouts {found.options.keep_rollouts}: "
                            f"{off_policy(found.method)}; grpo, ppo and the other on-policy "
                            "methods do")
    return found


def off_policy(method):
    return (f"{method.name} does not learn from a rollout in every step (its file does not say "
            "ON_POLICY = True)")


def check_sampler(found):
    """MinipostError where rollouts cannot be by rounded weights, or of the likeliest tokens."""
    bits, top_k = found.options.sampler_bits, found.options.sampler_top_k
    asked = f"--sampler-bits {bits}" if bits else f"--sampler-top-k {top_k}"
    if not found.method.ON_POLICY:
        raise MinipostError(f"{asked}: {off_policy(found.method)}; grpo, ppo and the other "
                            "on-policy methods do")
    if bits == 1:
        raise MinipostError(f"{asked}: expected 0, or 2 to 16")
    if top_k and found.options.dtype != "float32":
        raise MinipostError(f"--sampler-top-k {top_k} with --dtype {found.options.dtype}: training "
                            "then computes the log-probs anew, and may find other tokens likeliest;"
                            " leave out one of the two")
    for name, has in (("--sampler vllm", found.options.sampler == "vllm"),
                      ("--lora", found.options.lora and bits), ("--shard", found.options.shard)):
        if has:
            raise MinipostError(f"{asked} with {name}: is not supported; leave out one of the two")


def saved_in(directory):
    """The Settings of a run and its number of workers, from its config.json."""
    from minipost.files import read_json

    path = Path(directory) / "config.json"
    saved = read_json(path)
    try:
        if saved["algo"] not in methods.names():
            raise ValueError(f"algo is {saved['algo']!r:.40}; expected one of {PROG}'s")
        method = methods.load(saved["algo"])
        named = saved["task"]["name"]
        task = File if named == File.name else tasks.load(named)
        parts = [{**saved[part]} for part in ("options", "task", "method")]
        workers = saved.get("workers", 0)
        if type(workers) is not int or not 0 <= workers <= 64:
            raise TypeError(f"workers is {workers!r:.40}")
    except (KeyError, TypeError, ValueError) as error:
        raise MinipostError(f"{path}: not the settings of a run ({error!s:.100}); begin again with "
                            "--overwrite") from None
    parts[1].pop("name")
    from minipost.cli.directory import telling_changes

    with telling_changes(directory):
        try:
            options, task, config = (rebuild(cls, part)
                                     for cls, part in zip((Options, task, method.Config), parts))
        except MinipostError as error:
            raise MinipostError(f"{path}: {error}") from None
    return Settings(options, task, method, config), workers


def resumed(argv):
    """(Settings, directory, workers, anyway, longer) of `--resume DIR`.

    longer: whether --steps asks for another number of steps than the run had.  --workers changes
    the number of ranks of a sharded run.

    A config.json may come from somebody else, and a reward function is a program.  So its name is
    to be given again.  A model that has moved is named by --model or --reward-model.
    """
    flags = argparse.ArgumentParser(prog=PROG, allow_abbrev=False)
    flags.add_argument("--resume", nargs="?")
    flags.add_argument("--reward", nargs="*", default=[])
    flags.add_argument("--anyway", action="store_true")
    flags.add_argument("--steps")
    flags.add_argument("--sampler-url")
    flags.add_argument("--workers", type=int)
    for name in MODELS:
        flags.add_argument(f"--{name.replace('_', '-')}", type=os.path.abspath)
    given, others = flags.parse_known_args(argv)
    if others or not given.resume or sum(a.startswith("--resume") for a in argv) > 1:
        found = f", not {others[0][:40]!r}" if others else ""
        raise MinipostError(f"write {PROG} --resume RUN_DIRECTORY, perhaps with --steps, --reward, "
                            "--model, --reward-model, --sampler-url, --workers and "
                            f"--anyway{found}; every other setting is read from the run's "
                            "config.json")
    from minipost.cli.directory import Directory
    from minipost.datasets.named import absolute

    directory = Directory(given.resume, PROG)
    if directory.unsettled():  # a run was killed here that was to replace another
        directory.hold()
        directory.release()
    given.reward = [absolute(name) for name in given.reward]
    given.resume = return_to_folder(given.resume)
    settings, workers = saved_in(given.resume)
    for name in MODELS:
        before, now = getattr(settings.options, name), getattr(given, name)
        if now:
            settings = replace(settings, options=replace(settings.options, **{name: now}))
        elif before and not os.path.isdir(before):
            raise MinipostError(f"{given.resume}: its model {before} is not there; if it has "
                                f"moved, add --{name.replace('_', '-')} with its new directory")
    if given.sampler_url:
        settings = replace(settings, options=replace(settings.options,
                                                     sampler_url=given.sampler_url))
    named = " ".join(settings.options.reward)
    before = [absolute(name) for name in settings.options.reward]
    if before and not given.reward:
        raise MinipostError(f"{given.resume}: the run would execute a program that its config.json "
                            f"names; if you trust it, add --reward {named}")
    if before != given.reward:
        if not given.anyway:
            raise MinipostError(f"{given.resume}: was made with --reward {named or '(none)'}, not "
                                f"{' '.join(given.reward)}; go on with another by --anyway")
        settings = replace(settings, options=replace(settings.options, reward=tuple(given.reward)))
    if given.workers is not None:
        if not settings.options.shard:
            raise MinipostError(f"--workers {given.workers}: only a run with --shard goes on with "
                                "another number of workers; leave it out")
        settings = replace(settings, options=replace(settings.options, workers=given.workers))
    longer = given.steps is not None
    return (lengthened(settings, given.steps) if longer else settings, given.resume, workers,
            given.anyway, longer)


def lengthened(settings, steps):
    """The Settings of a run that goes on to another number of steps.

    MinipostError where the method's stages or parts would begin at other steps than they did.
    """
    if not (steps.isascii() and steps.isdigit()):
        raise MinipostError(f"--steps {steps[:40]}: expected a whole number")
    if why := settings.method.fixed(settings.config):
        raise MinipostError(f"--steps {steps}: a run of {settings.method.name} cannot be made "
                            f"longer, since {why}; begin a new run")
    return replace(settings, config=replace(settings.config, steps=int(steps)))


def return_to_folder(directory):
    """Go to the folder in which a run began: the paths in its config.json start there.

    -> the run's directory as it is called from there
    """
    from minipost.files import read_json

    folder = read_json(Path(directory) / "config.json").get("folder")
    if not isinstance(folder, str) or not os.path.isdir(folder) or os.path.samefile(folder, "."):
        return directory
    directory = os.path.abspath(directory)
    os.chdir(folder)
    return directory


def main(argv=None):
    return fail_in_one_sentence(lambda: start(sys.argv[1:] if argv is None else argv))


def start(argv):
    resume = any(argument.partition("=")[0] == "--resume" for argument in argv)
    workers, anyway, longer, overwrite = 0, False, False, "--overwrite" in argv
    if resume:
        settings, directory, workers, anyway, longer = resumed(argv)
    else:
        settings = settings_of([argument for argument in argv if argument != "--overwrite"])
        directory = settings.options.out or \
            f"runs/{settings.method.name}-{settings.task.name}-{settings.options.seed}"
    from minipost import parallel
    from minipost.cli.defaults import for_run
    from minipost.cli.session import Session, pick_device

    device, note = pick_device(settings.options.device), ""
    if not resume:
        settings, note = for_run(settings, argv, device)
    workers = settings.options.workers or workers or parallel.default_workers(device)
    if settings.options.shard and device != "cpu" and (device != "cuda" or workers > 1):
        raise MinipostError(f"--shard --device {device} --workers {workers}: ranks share weights "
                            "on CPUs, or on GPUs with a rank on each that torchrun starts; use "
                            "torchrun without --workers, or --device cpu")
    session = Session(Path(directory), settings, device, workers, resume=resume, anyway=anyway,
                      longer=longer, overwrite=overwrite, note=note)
    return parallel.launch(session.go, workers, settings.options.shard)


sys.modules[__name__].__class__ = Door  # `minipost.train(run, ...)` is a function too

if __name__ == "__main__":
    sys.exit(main())
