"""What `minipost.evaluate --method` and `minipost.solve` share: a test-time method on a model and a task.

A file in minipost/test_time/ is a method.  It has

    TASK, KNOBS      the task that its demo is measured on, and which of its knobs differ from the usual
    VERIFIER         only where it needs a reward model: the directory of the usual one
    BEFORE, AFTER    the two arms that a demo compares; {samples} in a name is that setting
    Config           its settings, every field a flag
    solve(problems, tools, cfg) -> answers, workings
    arms(problems, tools, cfg)     yields (name, tokens, rewards, answers, workings) of each way to answer,
                                   `tokens` being what all the problems cost together
    show(working) -> lines of text; a working is plain data
    outcome(working) -> what was asked, whether the answer is right; only where that is not the problem

and knows of the model only what `tools`, a texts.Texts, lets it ask.
"""

import argparse
import importlib
import json
import pkgutil
import time
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path

from minipost import test_time
from minipost.errors import MinipostError, require
from minipost.stats import interval, paired
from minipost.tasks import TASKS


@dataclass(frozen=True)
class Options:
    """What every test-time method has."""

    model: str = "checkpoints/thinker"  # model directory
    verifier: str = ""          # directory of a reward model, where the method asks one
    temperature: float = 1.0    # at which answers and steps are sampled (tau)
    seed: int = 0               # everything random follows from it
    room: int = 192             # longest answer, in tokens

    def __post_init__(self):
        require(self, at_least=dict(room=1, temperature=0))


@dataclass(frozen=True)
class Measured(Options):
    """What a measurement has besides."""

    n: int = 200                # held-out problems
    workers: int = 0            # processes; 0: one per core, at most 4
    out: str = ""               # directory for summary.json
    show: int = 2               # held-out problems shown before and after

    def __post_init__(self):
        super().__post_init__()
        require(self, at_least=dict(n=1, workers=0, show=0))


def names():
    """The methods by their command-line name."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(test_time.__path__))


def parse(argv, prog, options):
    """The command line as (name, module, options, config, task, whether to print data and no text)."""
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--method", choices=names(), required=True)
    first.add_argument("--task", choices=sorted(TASKS))
    first.add_argument("--json", action="store_true")
    known, rest = first.parse_known_args(argv)
    import tyro

    module = importlib.import_module(f"minipost.test_time.{known.method.replace('-', '_')}")
    flat, task = tyro.conf.OmitArgPrefixes, TASKS[known.task or module.TASK]
    parts = {"method": module.Config, "task": task, "options": options}
    usual = {"method": module.Config(), "options": options(),
             "task": task() if known.task else task(**module.KNOBS)}
    together = make_dataclass("Arguments", [(part, flat[c], usual[part]) for part, c in parts.items()])
    found = tyro.cli(together, args=rest, prog=f"{prog} --method {known.method}",
                     description=f"{module.__doc__}\n--json prints data and no text.",
                     config=(tyro.conf.FlagConversionOff,))
    return known.method, module, found.options, found.method, found.task, known.json


def tools_for(module, options, task):
    """The Texts of a run on this task, with the verifier if there is one to ask."""
    from minipost import checkpoint
    from minipost.run import Learner, Run
    from minipost.texts import Texts

    model, vocabulary = checkpoint.load(options.model)
    directory = options.verifier or getattr(module, "VERIFIER", "")
    verifier = checkpoint.load_reward_model(directory, vocabulary) if directory else None
    limit = model.config.max_position_embeddings
    if options.room >= limit:
        raise MinipostError(f"room is {options.room}; the context of {options.model} holds {limit}")
    run = Run(Learner(model), vocabulary, task, task.reward, seed=options.seed, room=options.room)
    return Texts(run, options.temperature, verifier)


def measure(module, options, cfg, task):
    """Every arm on the held-out problems: (problems, {arm: row}), a row with its score, the tokens per
    problem, and the answers with their rewards and workings."""
    tools, problems = tools_for(module, options, task), task.heldout(options.n)
    found = {}
    for name, tokens, rewards, answers, workings in module.arms(problems, tools, cfg):
        found[name] = {"score": asdict(interval(rewards)), "tokens": tokens / len(rewards),
                       "rewards": rewards, "texts": answers, "workings": workings}
    return problems, found


def evaluate(argv, prog):
    """Measure a method on held-out problems, print a table, and write DIR/summary.json for --out."""
    from minipost import checkpoint, parallel
    from minipost.console import Console

    name, module, options, cfg, task, data = parse(argv, prog, Measured)
    if options.out:
        checkpoint.make_directory(Path(options.out))
    console, start = Console(quiet=data), time.perf_counter()
    console.say(f"{name} with {options.model} on {task.name} "
                f"({', '.join(f'{k} {v}' for k, v in asdict(task).items())})")
    console.say(f"  {', '.join(f'{k} {v}' for k, v in asdict(cfg).items())}, "
                f"temperature {options.temperature}, seed {options.seed}")
    problems, found = parallel.launch(lambda: measure(module, options, cfg, task),
                                      options.workers or parallel.default_workers("cpu"))
    seconds = time.perf_counter() - start
    first, last = (name.format(**asdict(cfg)) for name in (module.BEFORE, module.AFTER))
    before, after = found[first], found[last]
    summary = {
        "name": name, "task": task.name, "seed": options.seed,
        "metric": f"accuracy, held-out: {first} -> {last}",
        "before": before["score"], "after": after["score"], "seconds": round(seconds, 1),
        "tokens": round(sum(row["tokens"] * row["score"]["n"] for row in found.values())),
        "gain": asdict(paired(before["rewards"], after["rewards"])),
        "all": {arm: {"score": row["score"], "tokens per problem": round(row["tokens"], 1)}
                for arm, row in found.items()},
    }
    if data:
        print(json.dumps({**summary, "arms": {arm: {k: row[k] for k in ("rewards", "texts")}
                                              for arm, row in found.items()}}, indent=2))
    else:
        if len(before["rewards"]) == len(after["rewards"]) == len(problems):
            console.side_by_side(problems, before, after, "held-out", options.show)
        console.say(f"how it went, {last}, held-out problem 1: "
                    f"{problems[0].prompt.strip()}")
        for line in shortened(module.show(after["workings"][0])):
            console.say(f"  {line}")
        console.arms(found, first)
        console.say(f"{seconds:.0f} s")
    if options.out:
        checkpoint.write_json(Path(options.out) / "summary.json", summary)
        console.say(f"{options.out}/summary.json says it as data")


def shortened(lines, most=24):
    """At most so many lines, and how many more there are."""
    return lines if len(lines) <= most else [*lines[:most], f"... and {len(lines) - most} lines more"]
