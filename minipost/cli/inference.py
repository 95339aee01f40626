"""The common part of `minipost.evaluate --method` and `minipost.solve`.

It runs a test-time method with a model on a task.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from minipost import test_time
from minipost.cli import options as command
from minipost.errors import MinipostError
from minipost.measure.stats import paired


@dataclass(frozen=True)
class Options(command.Options):
    """The options of every test-time method."""

    model: str = "checkpoints/thinker"  # model directory
    max_new_tokens: int = 192   # longest answer, in tokens
    verifier: str = ""          # directory of a reward model, if the method uses one
    temperature: float = 1.0    # sampling temperature of answers and steps (tau)

    LIMITS = {"temperature": ">= 0"}


@dataclass(frozen=True)
class Measured(Options):
    """The further options of a measurement."""

    n: int = 200                # held-out problems
    workers: int = 0            # processes; 0: one per core, at most 4
    out: str = ""               # directory for summary.json
    show: int = 2               # held-out problems shown before and after
    report: bool = True         # with --out: write report.html, a page about the run

    LIMITS = {"show": ">= 0"}


def settings_of(argv, prog, options):
    """The Settings of a command line."""
    def usual(method):
        given = {"model": method.MODEL} if method.MODEL else {}
        return options(n=method.N, **given) if options is Measured else options(**given)

    return command.parse(argv, prog, usual, methods=test_time, flag="--method",
                         json=True)


def tools_for(settings):
    """The Texts of a run on this task, with the verifier if there is one."""
    from minipost import checkpoint
    from minipost.measure.texts import Texts
    from minipost.optim import Learner
    from minipost.rollout import check_context
    from minipost.run import Run

    options, task, method = settings.options, settings.task, settings.method
    model, vocabulary = checkpoint.load(options.model)
    directory = options.verifier or method.VERIFIER
    verifier = checkpoint.load_reward_model(directory, vocabulary) if directory else None
    check_context(model, 1, options.max_new_tokens)
    run = Run(Learner(model), vocabulary, task, task.reward, seed=options.seed,
              max_new_tokens=options.max_new_tokens)
    return Texts(run, options.temperature, verifier, asks_tool=method.TOOL)


def heldout(task, n):
    """The first n held-out problems.  MinipostError where there is none."""
    from minipost.measure.results import no_held_out

    problems = task.heldout(n)
    if not problems:
        raise no_held_out(task)
    return problems


def measure(settings):
    """Every arm of the method on the held-out problems: (problems, {name: Arm}, sampled tokens).

    Arms may share samples, so they may cost more together than was sampled.
    """
    problems = heldout(settings.task, settings.options.n)
    tools = tools_for(settings)
    arms = {arm.name: arm for arm in settings.method.arms(problems, tools, settings.config)}
    return problems, arms, tools.tokens


def evaluate(argv, prog):
    """Measure a method on held-out problems and print a table.  --out DIR: write summary.json."""
    settings = settings_of(argv, prog, Measured)
    from minipost import files, parallel  # imports torch, which --help can do without
    from minipost.cli.console import Console

    method, options, cfg, task = settings.method, settings.options, settings.config, settings.task
    if options.out:
        files.make_directory(Path(options.out))
        if files.is_run(options.out):
            raise MinipostError(f"{options.out}: holds a run of minipost.train, whose summary.json "
                                "would be lost; choose another --out")
    console, start = Console(quiet=settings.json), time.perf_counter()
    console.tell(f"{method.name} with {options.model} on {task.name} "
                 f"({', '.join(f'{k} {v}' for k, v in asdict(task).items())})")
    console.tell(f"  {', '.join(f'{k} {v}' for k, v in asdict(cfg).items())}, "
                 f"temperature {options.temperature}, seed {options.seed}")
    problems, arms, tokens = parallel.launch(
        lambda: measure(settings), options.workers or parallel.default_workers("cpu"))
    seconds = time.perf_counter() - start
    (first, last), *pairs = ([name.format(**asdict(cfg)) for name in pair]
                             for pair in ((method.BEFORE, method.AFTER), *method.PAIRS))
    pairs = [pair for pair in pairs if {*pair} <= arms.keys()]  # some arms are of one mode alone
    before, after = arms[first].result, arms[last].result
    summary = {
        "name": method.name, "task": task.name, "seed": options.seed,
        "metric": f"accuracy, held-out: {first} -> {last}",
        "before": asdict(before.score), "after": asdict(after.score), "seconds": round(seconds, 1),
        "tokens": tokens,
        "gain": asdict(paired(before.rewards, after.rewards)),
        "pairs": {f"{old} -> {new}": asdict(paired(arms[old].result.rewards,
                                                   arms[new].result.rewards))
                  for old, new in pairs},
        "all": {name: {"score": asdict(arm.result.score), "tokens per problem": round(arm.each, 1)}
                for name, arm in arms.items()},
    }
    if settings.json:
        print(json.dumps({**summary, "arms": {
            name: {"rewards": arm.result.rewards, "texts": arm.result.texts}
            for name, arm in arms.items()}}, indent=2))
    else:
        if len(before.rewards) == len(after.rewards) == len(problems):
            console.side_by_side(problems, before, after, "held-out", options.show)
        console.say(f"how it went, {last}, held-out problem 1: "
                    f"{problems[0].prompt.strip()}")
        for line in shortened(method.show(arms[last].workings[0])):
            console.say(f"  {line}")
        console.arms(arms, first)
        for old, new in pairs:
            gain = paired(arms[old].result.rewards, arms[new].result.rewards)
            console.say(f"{new} less {old}: {gain:+}")
        console.say(f"{seconds:.0f} s")
    if options.out:
        files.write_json(Path(options.out) / "summary.json", summary)
        console.say(f"{options.out}/summary.json says it as data")
        if options.report:
            from minipost.cli.samples import of_evaluation

            of_evaluation(settings, problems, arms, first, last, console)


def shortened(lines, most=24):
    """At most `most` lines, and how many more there are."""
    return lines if len(lines) <= most else [
        *lines[:most], f"... and {len(lines) - most} lines more"]
