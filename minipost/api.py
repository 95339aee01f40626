"""minipost from Python: open a model, train it, measure it, save it.

    import minipost

    run = minipost.open("checkpoints/base", task="arithmetic")
    for metrics in minipost.train(run, "grpo", steps=28):
        print(metrics["step"], metrics["reward"])
    print(minipost.evaluate(run, n=200)["held-out"]["greedy"])
    run.save("out")

`run` is a minipost.run.Run, all of whose methods may be used: `run.problems(4)`,
`run.answer(["7+5=? Answer:"])`.  It works in one process.  Nothing is written until `save`, and
nothing can be resumed: that is what the command line is for.
"""

import json
import os
import re
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import fields, replace

from minipost import methods, tasks
from minipost.cli import trl
from minipost.cli.defaults import for_adapters, for_sampler, wanted, with_epochs
from minipost.cli.options import SetUp, apart, shipped_models
from minipost.cli.session import pick_device
from minipost.datasets.formats import Given
from minipost.datasets.rewards import Added, Part
from minipost.datasets.rows import File
from minipost.datasets.suited import for_method
from minipost.engine.bottleneck import width_of
from minipost.engine.lora import adapters
from minipost.engine.prefix import length_of
from minipost.errors import LARGEST, MinipostError, check_type, expected
from minipost.measure.meter import next_step
from minipost.measure.results import results, splits
from minipost.opening import open_run
from minipost.run import Run
from minipost.tasks import TASKS

OPENED = {f.name for f in fields(SetUp)} - {"reward_model", "reward_timeout"}
TRAINED = {"steps", "lr", "epochs", "data_epochs", "beta", "group_size", "batch_size"}  # by many


@contextmanager
def in_python():
    """Inside the block a MinipostError names arguments: max_new_tokens, not --max-new-tokens."""
    try:
        yield
    except MinipostError as error:
        error.args = (as_arguments(str(error)),)
        raise


def as_arguments(sentence):
    """A sentence on flags as one on arguments, without the advice that only a command can take."""
    sentence = re.sub(r", or [a-z ]* --eval-n 0", "", sentence)
    return re.sub(r"--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), sentence)


def unknown(name, known, others, where, sentence):
    """The MinipostError on a setting that is none of the known, which the sentence lists.

    others: settings of another function, `where`.  A name of TRL's is answered by ours.
    """
    ours = next((new for new in (name, *trl.ARGUMENTS.get(name, ())) if new in known | others), "")
    theirs = f"{name} is a name of TRL's; "
    if ours == name:
        return MinipostError(f"{name} is a setting of {where}")
    if ours:
        more = f"use {ours}" if ours in known else f"here it is {ours}, a setting of {where}"
        return MinipostError(theirs + more)
    flags = re.findall("`--([a-z-]+)`", said := trl.INSTEAD.get(name, ""))
    if said and {flag.replace("-", "_") for flag in flags} <= known | others:
        return MinipostError(theirs + as_arguments(said.replace("`", "")))
    whole = f"{sentence.format(repr(name)[:40])} {', '.join(sorted(known))}"
    error = MinipostError(whole)
    error.args = (whole,)  # not cut to LONGEST: the name that one looks for may be in the middle
    return error


@in_python()
def open_model(model="checkpoints/base", task=None, data=None, reward=None, eval_data="",
               **settings):
    """A Run: a model directory, and what it is to answer.

    model: the directory.  task: the name of a task, whose knobs are among `settings`.
    data: rows instead of a task: the path of a file, or a list of dicts; eval_data: those to hold
        out, as data.
    reward: a function f(prompts, completions, **columns) -> a number per row, several in a list,
        or names as --reward takes them; the task's own if None.
    settings: knobs of the task, and options of a run (seed, max_new_tokens, micro_batch_size,
        device, dtype, chat, ...), by the names of their flags.  Here and in `train`, defaults
        follow the size of the model as on the command line (cli/defaults.py).

    MinipostError says what cannot be used, and what to do.
    """
    if (task is None) == (data is None):
        raise MinipostError("give one of task and data: the problems to look at")
    if task is not None and (eval_data or not isinstance(eval_data, str)):
        raise MinipostError("eval_data goes with data; a task holds out problems of its own")
    if task is not None and task not in TASKS:
        raise MinipostError(f"there is no task {task!r:.40}; there are {', '.join(TASKS)}")
    kind = File if task is None else tasks.load(task)
    knobs = {f.name for f in fields(kind)} - {"data", "eval_data"}
    known = OPENED - {"model", "reward"}
    for name in settings:
        if name not in knobs | known:
            raise unknown(name, knobs | known, TRAINED, "minipost.train",
                          "there is no setting {} here; there are")
    own = {name: value for name, value in settings.items() if name in knobs}
    for name, value in own.items():
        check_type(kind, name, value)
    named = [reward] if isinstance(reward, str) or callable(reward) else reward or []
    if not isinstance(named, list | tuple) or not all(
            isinstance(one, str) or callable(one) for one in named):
        raise MinipostError(f"reward is {reward!r:.40}; expected a function, a name, or a list of "
                            "functions or of names")
    functions = [Part(getattr(one, "__name__", type(one).__name__), one, {}) for one in named
                 if callable(one)]
    if functions and len(functions) < len(named):
        raise MinipostError("reward holds functions and names; expected one of the two")
    options = shipped_models(SetUp(model=str(model), reward=() if functions else tuple(named)))
    others = wanted(options.model, pick_device(options.device)) | settings
    options = replace(options, **{name: value for name, value in others.items()
                                  if name in known - knobs})
    if task is None:
        problems = File(named_rows(data, "data"), named_rows(eval_data, "eval_data"), **own)
    else:
        problems = kind(**own)
        apart({"options": options, "task": problems}, ())
    run = open_run(options, problems, pick_device(options.device))
    if run.server:
        run.server.connect()
    if functions:
        run.reward, run.hidden = Added(functions), False
    return run


def named_rows(rows, name):
    """What File takes as a path: the path of a file, or a list of rows under this name."""
    if isinstance(rows, str | os.PathLike):
        return os.fspath(rows)
    if isinstance(rows, dict | bytes) or not isinstance(rows, Iterable):
        raise MinipostError(f"{name} is {rows!r:.40}; expected the path of a file or a list of "
                            "dicts")
    lines = []
    for k, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise MinipostError(f"{name}, row {k}: expected a dict, found {type(row).__name__}")
        try:
            lines.append(json.dumps(row) + "\n")
        except (TypeError, ValueError) as error:
            raise MinipostError(f"{name}, row {k}: not writable as JSON ({error})") from None
    return Given(name, "".join(lines).encode())


def check_run(run):
    if not isinstance(run, Run):
        raise MinipostError(f"run is {run!r:.40}; expected a run from minipost.open")


@in_python()
def train(run, algo, **settings):
    """Train the run's policy with a method: a generator of one dict of metrics per step.

    algo: the method, by the name of its file, dr_grpo, or of its flag, dr-grpo.  settings: of its
    Config, such as steps=28, lr=1e-4, and data_epochs=1 instead of steps: so many passes over the
    rows of the data.
    A run that was trained before goes on from its weights, with a new optimiser, as a run of the
    next seed does: it draws other problems and other answers.  With its first step an earlier
    training of the same run is over, and MinipostError if it is asked for another step.
    """
    check_run(run)
    algo = algo.replace("_", "-") if isinstance(algo, str) else algo
    if algo not in methods.names():
        raise MinipostError(f"there is no method {algo!r:.40}; there are "
                            f"{', '.join(methods.names())}")
    method = methods.load(algo)
    known = {f.name for f in fields(method.Config)}
    epochs = settings.pop("data_epochs", 0)
    for name in settings:
        if name not in known:
            raise unknown(name, known | {"data_epochs"}, OPENED, "minipost.open",
                          f"{algo} has no setting {{}}; it has")
    if expected(epochs, float) or not 0 <= epochs < LARGEST:
        raise MinipostError(f"data_epochs is {epochs!r:.40}; expected a number above 0")
    if epochs and "steps" in settings:
        raise MinipostError("steps and data_epochs exclude each other; give one of them")
    others = wanted(run.origin, run.policy.module.device.type, method, method.Config(**settings),
                    settings)
    if others and isinstance(run.task, File) and "steps" not in settings:
        epochs = epochs or 1
    config = shipped_models(method.Config(**{
        name: value for name, value in others.items() if name in known} | settings))
    config, _ = for_sampler("vllm" if run.server else "own", config, settings)
    module = run.policy.module
    config, _ = for_adapters(bool(adapters(module) or width_of(module)), length_of(module), config,
                             settings, run.policy.allocator)
    known = run.task.training() if run.task.training else run.problems(16)
    run.task = for_method(run, algo, method.READS, known, run.reward_model is not None,
                          method.COMPARES)
    if epochs:
        config, _ = with_epochs(run, method, config, epochs)
    method.check(run, config)
    return steps(run, method, config)


def steps(run, method, config):
    if run.step:  # it was trained before
        run.parts, run.saved, run.carried = {"learner/policy": run.policy}, {}, {}
        run.policy.reset_optimizer()
        run.step, run.seed = 0, run.seed + 1
    learn = method.train(run, config)
    run.total = method.total(run, config)
    run.training = mine = object()
    for _ in range(run.total):
        if run.training is not mine:
            raise MinipostError("another training of this run has begun, so this one is over; "
                                "give each a run of its own by minipost.open")
        run.said.clear()  # what reward functions said of answers that were measured
        with in_python():
            metrics = {**next_step(learn, method), **run.differences()}
        metrics |= run.said.metrics()
        run.step += 1
        yield {"step": run.step, **metrics, "num_tokens": run.tokens}


@in_python()
def evaluate(run, n=400):
    """{split: {"greedy" or "sampled": Score}}: the mean reward on n held-out problems.

    A Score has `value`, and the 95% interval from `low` to `high`.
    """
    check_run(run)
    if expected(n, int) or n < 1:
        raise MinipostError(f"n is {n!r:.40}; expected a whole number of at least 1")
    if isinstance(run.task, File) and run.task.few:
        raise MinipostError(run.task.few)
    return {split: {name: found.score for name, found in measured.items()}
            for split, measured in results(run, splits(run.task, n)).items()}
