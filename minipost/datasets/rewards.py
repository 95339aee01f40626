"""Reward functions: the user's own, sums of several, and the contract of each call.

A reward has TRL's signature: f(prompts, completions, **columns) -> a list of floats, one per row.
"""

import importlib.util
import math
from pathlib import Path

from minipost.errors import MinipostError


def load_reward(names, task):
    """The run's reward function: the task's, or the sum of the functions FILE.py:FUNCTION."""
    if not names:
        return task.reward
    found = []
    for name in names:
        path, _, function = name.rpartition(":")
        if not path or not Path(path).is_file():
            raise MinipostError(f"--reward {name}: expected FILE.py:FUNCTION, the file existing")
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        if spec is None or spec.loader is None:
            raise MinipostError(f"--reward {name}: {path} is no Python file; expected "
                                "FILE.py:FUNCTION")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            found.append(getattr(module, function))
        except Exception as error:  # the user's file may raise anything; one sentence names it
            raise MinipostError(f"--reward {name}: {type(error).__name__}: {error}") from error
    return found[0] if len(found) == 1 else added(found)


def added(functions):
    """One reward function that adds up several.  None from one means that it does not apply."""
    def total(prompts, completions, **columns):
        lists = [f(prompts=prompts, completions=completions, **columns) for f in functions]
        if any(len(values) != len(prompts) for values in lists):
            raise ValueError(f"expected {len(prompts)} values from each of {len(lists)} functions")
        rows = [[v for v in row if v is not None] for row in zip(*lists)]
        return [sum(row) if row else None for row in rows]
    total.__qualname__ = " + ".join(getattr(f, "__qualname__", str(f)) for f in functions)
    return total


def columns(problems):
    """The problems' columns as lists, one entry per problem."""
    names = {name for problem in problems for name in problem.columns}
    return {name: [problem.columns.get(name) for problem in problems] for name in sorted(names)}


def ask(reward, problems, completions):
    """Call a reward function and enforce its contract: one finite float per row.

    MinipostError names the function if it raises, returns the wrong number of values, or returns a
    value that is no finite number.  In the last case it also names the row.
    """
    name = getattr(reward, "__qualname__", type(reward).__name__)
    try:
        values = reward(
            prompts=[problem.prompt for problem in problems], completions=completions,
            **columns(problems),
        )
    except Exception as error:  # user code may raise anything; the run ends with one sentence
        raise MinipostError(
            f"the reward function {name} raised {type(error).__name__}: {error}"
        ) from error
    try:
        values = list(values)
    except TypeError:
        raise MinipostError(
            f"the reward function {name} returned {type(values).__name__}, expected a list"
        ) from None
    if len(values) != len(problems):
        raise MinipostError(
            f"the reward function {name} returned {len(values)} values for {len(problems)} rows"
        )
    for row, value in enumerate(values):
        try:
            good = math.isfinite(value)
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good:
            raise MinipostError(
                f"the reward function {name} returned {value!r} for row {row} "
                f"(completion {completions[row][:40]!r}); expected a finite number"
            )
    return [float(value) for value in values]


def sources(names):
    """The files of the functions FILE.py:FUNCTION."""
    return [Path(name.rpartition(":")[0]) for name in names]
