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
import shutil
import tempfile
import weakref
from dataclasses import fields, replace
from pathlib import Path

from minipost import methods, tasks
from minipost.cli.defaults import for_adapters, for_sampler, wanted, with_epochs
from minipost.cli.options import SetUp, shipped_models
from minipost.cli.session import pick_device
from minipost.datasets.rewards import Added, Part
from minipost.datasets.rows import File
from minipost.datasets.suited import for_method
from minipost.engine.bottleneck import width_of
from minipost.engine.lora import adapters
from minipost.engine.prefix import length_of
from minipost.errors import LARGEST, MinipostError
from minipost.measure.results import results, splits
from minipost.opening import open_run
from minipost.tasks import TASKS


def open_model(model="checkpoints/base", task=None, data=None, reward=None, eval_data="",
               **settings):
    """A Run: a model directory, and what it is to answer.

    model: the directory.  task: the name of a task, whose knobs are among `settings`.
    data: rows instead of a task: the path of a file, or a list of dicts; eval_data: the path of
        those to hold out.
    reward: a function f(prompts, completions, **columns) -> a number per row, several in a list,
        or names as --reward takes them; the task's own if None.
    settings: knobs of the task, and options of a run (seed, max_new_tokens, micro_batch_size,
        device, dtype, chat, ...), by the names of their flags.  Here and in `train`, defaults
        follow the size of the model as on the command line (cli/defaults.py).

    MinipostError says what cannot be used, and what to do.
    """
    if (task is None) == (data is None):
        raise MinipostError("give one of task and data: the problems to look at")
    if task is not None and task not in TASKS:
        raise MinipostError(f"there is no task {task!r:.40}; there are {', '.join(TASKS)}")
    kind = File if task is None else tasks.load(task)
    knobs = {f.name for f in fields(kind)} - {"data", "eval_data"}
    known = {f.name for f in fields(SetUp)} - {"model", "reward", "reward_model", "reward_timeout"}
    for name in settings:
        if name not in knobs | known:
            raise MinipostError(f"there is no setting {name!r:.40} here; there are "
                                f"{', '.join(sorted(knobs | known))}")
    own = {name: value for name, value in settings.items() if name in knobs}
    named = [reward] if isinstance(reward, str) or callable(reward) else list(reward or [])
    functions = [Part(getattr(one, "__name__", type(one).__name__), one, {}) for one in named
                 if callable(one)]
    if functions and len(functions) < len(named):
        raise MinipostError("reward holds functions and names; expected one of the two")
    options = shipped_models(SetUp(model=str(model), reward=() if functions else tuple(named)))
    others = wanted(options.model, pick_device(options.device)) | settings
    options = replace(options, **{name: value for name, value in others.items()
                                  if name in known - knobs})
    folder = ""
    if data is not None and not isinstance(data, str | os.PathLike):
        text, folder = as_lines(data), tempfile.mkdtemp(prefix="minipost-rows-")
        data = Path(folder, "data.jsonl")
        data.write_text(text, encoding="utf-8")
    try:
        problems = kind(**own) if task is not None else File(str(data), str(eval_data), **own)
        run = open_run(options, problems, pick_device(options.device))
        if run.server:
            run.server.connect()
    except BaseException:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if folder:  # its rows are there for as long as the run is
        weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
    if functions:
        run.reward, run.hidden = Added(functions), False
    return run


def as_lines(rows):
    """Rows as JSONL."""
    lines = []
    for k, row in enumerate(rows):
        if not isinstance(row, dict):
            raise MinipostError(f"data, row {k}: expected a dict, found {type(row).__name__}")
        try:
            lines.append(json.dumps(row) + "\n")
        except (TypeError, ValueError) as error:
            raise MinipostError(f"data, row {k}: not writable as JSON ({error})") from None
    return "".join(lines)


def train(run, algo, **settings):
    """Train the run's policy with a method: a generator of one dict of metrics per step.

    algo: the method, by the name of its file.  settings: of its Config, such as steps=28, lr=1e-4,
    and data_epochs=1 instead of steps: so many passes over the rows of the data.
    A run that was trained before goes on from its weights, with a new optimiser, as a run of the
    next seed does: it draws other problems and other answers.
    """
    if algo not in methods.names():
        raise MinipostError(f"there is no method {algo!r:.40}; there are "
                            f"{', '.join(methods.names())}")
    method = methods.load(algo)
    known = {f.name for f in fields(method.Config)}
    epochs = settings.pop("data_epochs", 0)
    for name in settings:
        if name not in known:
            raise MinipostError(f"{algo} has no setting {name!r:.40}; it has "
                                f"{', '.join(sorted(known | {'data_epochs'}))}")
    if not isinstance(epochs, int | float) or not 0 <= epochs < LARGEST:
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
    run.task = for_method(run, algo, method.READS, known, run.reward_model is not None)
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
    while run.step < run.total:
        run.said.clear()  # what reward functions said of answers that were measured
        metrics = {**next(learn), **run.differences()}
        metrics |= run.said.metrics()
        run.step += 1
        yield {"step": run.step, **metrics, "num_tokens": run.tokens}


def evaluate(run, n=400):
    """{split: {"greedy" or "sampled": Score}}: the mean reward on n held-out problems.

    A Score has `value`, and the 95% interval from `low` to `high`.
    """
    if isinstance(run.task, File) and run.task.few:
        raise MinipostError(run.task.few)
    return {split: {name: found.score for name, found in measured.items()}
            for split, measured in results(run, splits(run.task, n)).items()}
