"""Reward functions: the user's own, sums of several, and the contract of each call.

A reward has TRL's signature: f(prompts, completions, **columns) -> a list with a number per row.
All are given by name, as lists of one entry per row.  They are the function's own copies.  So are
the lists and dicts of a JSONL file in them.  TRL's further arguments (completion_ids,
trainer_state, log_extra, log_metric) are not given.
"""

import contextlib
import inspect
import math
import time
from decimal import Decimal
from functools import partial
from numbers import Real
from pathlib import Path

from minipost.chat import ROLE, Messages
from minipost.datasets import usercode
from minipost.datasets.usercode import Ended, TimeIsUp, guarded, short, told, within
from minipost.errors import MinipostError

FORM = "expected FILE.py:FUNCTION"


class Added:
    """The functions that --reward names, as one that adds up what they return.

    None from one of several means that it does not apply to the row; None from all is none.

    parts: [(name, function, what its file changed when it was imported)], see usercode.guarded.
    changed: names of all that they changed in the process, which is put back after each call.
    """

    def __init__(self, parts):
        self.parts = parts
        self.changed = {what for *_, own in parts for what in own}
        self.__qualname__ = " + ".join(name for name, *_ in parts)

    def __call__(self, prompts, completions, **columns):
        given = {"prompts": prompts, "completions": completions, **columns}
        return self.total([f(**copied(given)) for _, f, _ in self.parts])

    @staticmethod
    def total(lists):
        rows = [[value for value in row if value is not None] for row in zip(*lists, strict=True)]
        return [sum(row) if row else None for row in rows]


# ---- --reward FILE.py:FUNCTION

def load_reward(names, task):
    """The run's reward function: the task's, or the sum of the functions FILE.py:FUNCTION.

    Each file is executed once, as a module like any other (see usercode.load).  MinipostError where
    a file or a function is not there or is no such thing, or where the file raises.
    """
    if not names:
        return task.reward
    changes, parts = {path: {} for path in reward_files(names)}, []
    for path in changes:
        usercode.forget(path)
    for name in names:
        path, function = divided(name)
        try:
            with guarded(changes[path], name=f"--reward {name}"):
                module = usercode.load(path)
                found = getattr(module, function, None)
        except (KeyboardInterrupt, MinipostError):
            raise
        except BaseException as error:  # the user's file may raise anything, SystemExit too
            raise MinipostError(f"--reward {name}: the file {raised(error)}") from error
        if wrong := fault(module, function, found):
            raise MinipostError(f"--reward {name}: {wrong}")
        parts.append((function, found, changes[path]))
    return Added(parts)


def reward_files(names):
    """The resolved paths of the files that --reward names, each once, in their order."""
    return list(dict.fromkeys(divided(name)[0] for name in names))


def sources(names):
    """The files of --reward and the modules beside them that load_reward has imported.

    -> [Path], sorted; see usercode.sources.
    """
    return usercode.sources(reward_files(names))


def divided(name):
    """(resolved path, function) of FILE.py:FUNCTION."""
    file, colon, function = name.rpartition(":")
    if not colon or not file:
        raise MinipostError(f"--reward {name}: {FORM}")
    try:
        path = Path(file).resolve()
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a circle of links
        raise MinipostError(f"--reward {name}: {error}; {FORM}") from None
    if not there:
        what = "is no regular file" if path.exists() else "there is no such file"
        raise MinipostError(f"--reward {name}: {short(path)}: {what}; {FORM}, the file existing")
    return path, function


def fault(module, name, found):
    """Why what a module holds under a name is no reward function, or ""."""
    if found is None:
        there = [key for key, thing in vars(module).items() if inspect.isfunction(thing)
                 and thing.__module__ == module.__name__ and not key.startswith("_")]
        return f"the file has no function {name!r}; it has " + (", ".join(there[:8]) or "none")
    if isinstance(found, type):
        return f"{name} is a class; expected a function, or an object of the class"
    if not callable(found):
        return f"{name} is of type {type(found).__name__}; expected a function"
    if any(map(inspect.iscoroutinefunction, (found, type(found).__call__))):
        return (f"{name} is async; expected a plain function, such as one that returns "
                f"asyncio.run({name}(...))")
    return ""


# ---- a call

def columns(problems):
    """The problems' columns as lists, one entry per problem."""
    names = {name for problem in problems for name in problem.columns}
    return {name: [problem.columns.get(name) for problem in problems] for name in sorted(names)}


def as_given(value):
    """What a row holds: messages, or a plain string that was made a message, or other data."""
    if isinstance(value, Messages):
        return value.turns if value.given else str(value)
    return value


def copied(value):
    """A copy of JSON data: its lists and dicts are new, other values are the same."""
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return value


def ask(reward, problems, completions, limit=0.0):
    """Call a reward function and enforce its contract: one finite float per row.

    limit: seconds that a call of each function may take, 0 for no limit; see usercode.within.

    MinipostError names the function if it takes other arguments, raises, ends the process, takes
    too long, returns anything but a list, a tuple or an array of one dimension with a number for
    each row, or returns a value that is no finite number.  Where it can be known, it also names the
    row, and the line of the user's file.
    """
    own = not isinstance(reward, Added)  # a task's
    if own:
        reward = Added([(getattr(reward, "__qualname__", type(reward).__name__), reward, {})])
    given = {"prompts": [problem.prompt for problem in problems], "completions": completions}
    more = columns(problems)
    if not own:  # a row's messages are the user's function's as messages, as in TRL
        given["prompts"] = [as_given(prompt) for prompt in given["prompts"]]
        given["completions"] = [
            [{"role": ROLE, "content": text}] if isinstance(prompt, list) else text
            for prompt, text in zip(given["prompts"], completions)]
        more = {name: [as_given(value) for value in values] for name, values in more.items()}
    if taken := given.keys() & more:
        raise MinipostError(f"the rows have the key {min(taken)!r}, the name of another argument "
                            "of reward functions; give it another name")
    given |= more

    def row(i):
        place = problems[i].place
        return f"row {i} ({place + '; ' if place else ''}completion {completions[i][:40]!r})"

    lists = [answer(reward, part, given, row, limit) for part in reward.parts]
    several = len(lists) > 1
    values = reward.total(lists) if several else lists[0]
    for i, value in enumerate(values):
        if value is None or not math.isfinite(value):
            raise MinipostError(
                f"the reward function {reward.__qualname__} returned {value} for {row(i)}; "
                "expected a finite number" + (" from at least one" if several else ""))
    return values


def answer(reward, part, given, row, limit):
    """What one part of a reward gives for each row: a finite float, or None.  See `ask`."""
    name, function, own = part
    name, changes, n = f"the reward function {name}", {}, len(given["prompts"])
    check_arguments(name, function, given)
    try:
        with guarded(changes, own, name):
            return within(limit, lambda: numbers(name, function(**copied(given)), row, n), name)
    except (KeyboardInterrupt, MinipostError):
        raise
    except BaseException as error:  # user code may raise anything, SystemExit too
        what, cause, kind = raised(error, limit), error, type(error)
    finally:
        reward.changed |= changes.keys()
    i = culprit(name, function, given, own, kind, limit)
    where = f"the whole batch of {n}" if i is None else row(i)
    raise MinipostError(f"{name} {what} for {where}") from cause


def raised(error, limit=0.0):
    """What the user's code did: "raised TypeError: the message (mine.py, line 12: `the code`)"."""
    if isinstance(error, TimeIsUp):
        return f"took more than {limit:g} s" + told(error)
    return ("" if isinstance(error, Ended) else "raised ") + told(error)


def check_arguments(name, function, given):
    """MinipostError if a function cannot be called with these arguments."""
    try:
        signature = inspect.signature(function)
    except Exception:  # some functions of C have none
        return
    try:
        signature.bind(**given)
    except TypeError as error:
        raise MinipostError(
            f"{name} cannot be called: {error}; it gets {', '.join(given)}. Take what is there by "
            "name, and the rest as **columns") from None


def culprit(name, function, given, own, kind, limit):
    """The first row that alone raises an error of this kind, or None.

    All together take `limit` seconds at most.  Then the row that was being asked is the one if it
    took half of them.
    """
    since = time.perf_counter()
    for i in range(len(given["prompts"])):
        start, alone = time.perf_counter(), {key: each[i : i + 1] for key, each in given.items()}
        left = limit and max(1e-5, limit - (start - since))
        try:
            with guarded({}, own, name):
                within(left, partial(function, **copied(alone)), name)
        except KeyboardInterrupt:
            raise
        except TimeIsUp:
            return i if kind is TimeIsUp and time.perf_counter() - start > limit / 2 else None
        except BaseException as error:
            if type(error) is kind:
                return i
    return None


# ---- what a function returns

def numbers(name, values, row, n):
    """n floats, or Nones, from what a function returned.  MinipostError says what was wrong."""
    wanted = f"expected a list of {n} numbers, one per row"
    if not isinstance(values, list | tuple):
        if not hasattr(values, "ndim") or not hasattr(values, "tolist"):
            if inspect.iscoroutine(values):
                values.close()
            raise MinipostError(f"{name} returned a value of type {type(values).__name__}; "
                                f"{wanted}")
        if values.ndim != 1:
            raise MinipostError(f"{name} returned a {type(values).__name__} of shape "
                                f"{tuple(values.shape)}; {wanted}")
        values = values.tolist()
    values = list(values)
    if len(values) != n:
        raise MinipostError(f"{name} returned {len(values)} values for {n} rows; {wanted}")
    found = [number(value) for value in values]
    for i, value in enumerate(found):
        if value is not None and not math.isfinite(value):
            raise MinipostError(
                f"{name} returned {shown(values[i])} for {row(i)}; expected a finite number")
    return found


def number(value):
    """A number as a float, NaN if it is none; None remains.

    Numbers are bools too, and tensors and arrays of one element.
    """
    if value is None:
        return None
    with contextlib.suppress(Exception):  # the user's class may raise anything
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, Real | Decimal):
            return float(value)
    return math.nan


def shown(value):
    """A value for a sentence."""
    try:
        return f"{value!r:.40}"
    except Exception:  # the user's class may raise anything
        return f"a value of type {type(value).__name__}"
