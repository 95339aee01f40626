"""minipost from Python: open a model, train it, measure it, save it.

    import minipost

    run = minipost.open("checkpoints/base", task="arithmetic", terms=8)
    for metrics in minipost.train(run, "grpo", steps=28):
        print(metrics["step"], metrics["reward"])
    print(minipost.evaluate(run, n=200)["held-out"]["greedy"])
    run.save("out")

`run` is a minipost.run.Run, all of whose methods may be used: `run.problems(4)`,
`run.answer(["7+5=? Answer:"])`.  It works in one process.  Nothing is written until `save`, and
nothing can be resumed: that is what the command line is for.
"""

import inspect
from dataclasses import fields

from minipost import methods, tasks
from minipost.cli.options import SetUp, shipped_models
from minipost.cli.session import pick_device
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.measure.results import results, splits
from minipost.run import open_run
from minipost.tasks import TASKS


def open_model(model="checkpoints/base", task=None, data=None, reward=None, eval_data="",
               **settings):
    """A Run: a model directory, and what it is to answer.

    model: the directory.  task: the name of a task, whose knobs are among `settings`.  data: the
        path of a file of rows, instead of a task; eval_data: of those to hold out.
    reward: a function f(prompts, completions, **columns) -> a number per row, or names as --reward
        takes them; the task's own if None.
    settings: knobs of the task, and options of a run (seed, max_new_tokens, micro_batch_size,
        device, dtype, ...), by the names of their flags.

    MinipostError says what cannot be used, and what to do.
    """
    if (task is None) == (data is None):
        raise MinipostError("give one of task and data: the problems to look at")
    if task is not None and task not in TASKS:
        raise MinipostError(f"there is no task {task!r:.40}; there are {', '.join(TASKS)}")
    kind = File if task is None else tasks.load(task)
    knobs = {f.name for f in fields(kind)} if task is not None else {"on_bad_row"}
    known = {f.name for f in fields(SetUp)} - {"model", "reward", "reward_model", "reward_timeout"}
    for name in settings:
        if name not in knobs | known:
            raise MinipostError(f"there is no setting {name!r:.40} here; there are "
                                f"{', '.join(sorted(knobs | known))}")
    own = {name: value for name, value in settings.items() if name in knobs}
    problems = kind(**own) if task is not None else File(
        str(data), str(eval_data), own.get("on_bad_row", "stop"))
    named = () if reward is None or callable(reward) else (
        (reward,) if isinstance(reward, str) else tuple(reward))
    options = shipped_models(SetUp(model=str(model), reward=named, **{
        name: value for name, value in settings.items() if name in known - knobs}))
    run = open_run(options, problems, pick_device(options.device))
    if callable(reward):
        if inspect.iscoroutinefunction(reward):
            raise MinipostError(f"reward {reward.__name__} is async; expected a plain function")
        run.reward, run.hidden = reward, False
    return run


def train(run, algo, **settings):
    """Train the run's policy with a method: a generator of one dict of metrics per step.

    algo: the method, by the name of its file.  settings: of its Config, such as steps=28, lr=1e-4.
    A run that was trained before goes on from its weights, with a new optimiser, as a run of the
    next seed does: it draws other problems and other answers.
    """
    if algo not in methods.names():
        raise MinipostError(f"there is no method {algo!r:.40}; there are "
                            f"{', '.join(methods.names())}")
    method = methods.load(algo)
    known = {f.name for f in fields(method.Config)}
    for name in settings:
        if name not in known:
            raise MinipostError(f"{algo} has no setting {name!r:.40}; it has "
                                f"{', '.join(sorted(known))}")
    config = shipped_models(method.Config(**settings))
    method.check(run, config)
    return steps(run, method, config)


def steps(run, method, config):
    if run.step:  # it was trained before
        run.parts, run.saved, run.carried = {"learner/policy": run.policy}, {}, {}
        run.policy.reset_optimizer()
        run.step, run.seed = 0, run.seed + 1
    learn = method.train(run, config)
    while run.step < method.total(run, config):
        metrics = {**next(learn), **run.differences()}
        run.step += 1
        yield {"step": run.step, **metrics, "num_tokens": run.tokens}


def evaluate(run, n=400):
    """{split: {"greedy" or "sampled": Score}}: the mean reward on n held-out problems.

    A Score has `value`, and the 95% interval from `low` to `high`.
    """
    return {split: {name: found.score for name, found in measured.items()}
            for split, measured in results(run, splits(run.task, n)).items()}
