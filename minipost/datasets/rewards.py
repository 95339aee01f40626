"""Reward functions: the user's own, sums of several, and the contract of each call.

A reward has TRL's signature: f(prompts, completions, **columns) -> a list with a number per row.
All are given by name, as lists of one entry per row.  They are the function's own copies.  So are
the lists and dicts of a row in them.  None means that the function does not apply to the row.  The
function may be async; those that are run at once.  If it takes them, it is also given

    completion_ids      the ids of each completion, EOS included; where a text was not sampled, the
                        ids that the tokenizer makes of it
    trainer_state       global_step, max_steps and epoch, see TrainerState
    log_metric          log_metric(name, value): a metric of the step, the mean of all values
    log_extra           log_extra(column, values): a column of the rollouts that --keep-rollouts
                        keeps, with a value per row
"""

import contextlib
import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

from minipost.chat import ROLE, Messages
from minipost.datasets.usercode import Ended, TimeIsUp, guarded, told, within
from minipost.errors import MinipostError


class Part(NamedTuple):
    """One function of --reward."""

    name: str
    function: Callable
    own: dict            # what its file changed when it was imported, see usercode.guarded
    weight: float = 1.0


class Added:
    """The functions that --reward names, as one: the weighted sum of what they return.

    None from one of several means that it does not apply to the row; None from all is none.

    parts: a Part of each function.
    changed: names of all that they changed in the process, which is put back after each call.
    latest: where there are several, what each returned when they were last asked, a list each.
    """

    def __init__(self, parts):
        self.parts = [Part(*part) for part in parts]
        self.changed = {what for part in self.parts for what in part.own}
        self.__qualname__ = " + ".join(part.name for part in self.parts)
        self.latest: list[list[float | None]] = []

    def __call__(self, prompts, completions, **columns):
        given = {"prompts": prompts, "completions": completions, **columns}
        return self.total([settled(part.function, copied(given)) for part in self.parts])

    def total(self, lists):
        self.latest = lists
        rows = [[part.weight * value for part, value in zip(self.parts, row) if value is not None]
                for row in zip(*lists, strict=True)]
        return [sum(row) if row else None for row in rows]

    def labels(self):
        """A name of its own for each part."""
        names = [part.name for part in self.parts]
        return [name if name not in names[:k] else f"{name} {names[:k].count(name) + 1}"
                for k, name in enumerate(names)]


# ---- what a function is told, and what it says, beside the rows

@dataclass(frozen=True)
class TrainerState:
    """How far a run is: what TRL's `trainer_state` has of these names."""

    global_step: int = 0     # steps that have been made
    max_steps: int = 0       # steps that will have been; 0 where nothing is trained
    epoch: float = 0.0       # how often the rows have been gone through; 0.0 for an endless task
    is_world_process_zero: bool = True  # rewards are asked for in one process
    is_local_process_zero: bool = True


class Said:
    """What reward functions log beside their values, until `clear`."""

    def __init__(self):
        self.clear()

    def clear(self):
        self.values: dict[str, list[float]] = {}          # of each metric
        self.rows: dict[tuple, list[dict]] = {}           # (prompt, completion): columns

    def log_metric(self, name, value):
        if not isinstance(name, str) or not name or not math.isfinite(found := number(
                math.nan if value is None else value)):
            raise MinipostError(f"a reward function called log_metric({shown(name)}, "
                                f"{shown(value)}); expected a name and a finite number")
        self.values.setdefault(name, []).append(found)

    def metrics(self):
        """{name: the mean of its values}."""
        return {name: sum(values) / len(values) for name, values in self.values.items() if values}

    def add(self, problems, completions, columns):
        """Note columns {name: a value per row} of the answers to these problems."""
        for name, values in columns.items():
            if name.startswith("rewards/"):  # of one of several functions
                self.values.setdefault(name, []).extend(v for v in values if v is not None)
        for k, (problem, text) in enumerate(zip(problems, completions, strict=True)):
            self.rows.setdefault((problem.prompt, text), []).append(
                {name: values[k] for name, values in columns.items()})

    def of(self, prompt, completion):
        """The columns that were noted of an answer; of equal answers one after the other."""
        held = self.rows.get((prompt, completion), [])
        return held.pop(0) if len(held) > 1 else held[0] if held else {}


class Told(NamedTuple):
    """TRL's further arguments of a call."""

    ids: Callable[[], list[list[int]]]  # of each completion
    state: TrainerState
    said: Said

    def arguments(self, parts, n, extra):
        """Those by name that these parts take.  extra: {column: values} of log_extra."""
        def log_extra(column, values):
            values = values.tolist() if hasattr(values, "tolist") else values
            if not isinstance(column, str) or not isinstance(values, list | tuple) or \
                    len(values) != n:
                raise MinipostError(f"a reward function called log_extra({shown(column)}, "
                                    f"{shown(values)}); expected a name and a list of {n} values, "
                                    "one per row")
            extra[column] = list(values)

        every = {"completion_ids": self.ids, "trainer_state": lambda: self.state,
                 "log_extra": lambda: log_extra, "log_metric": lambda: self.said.log_metric}
        return {name: make() for name, make in every.items()
                if any(takes(part.function, name) for part in parts)}


LARGEST = 1e18  # a run has rewards in float32, in which the squares of larger ones overflow
# The methods that leave out an answer without a reward.  Others need a number for each.
NONE = ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "sapo", "entropy", "maxrl", "minimum-risk",
        "reinforce", "rloo", "self-critical", "trpo", "vineppo", "mixer", "es", "gdpo", "tool-use")
EXTRAS = ("completion_ids", "trainer_state", "log_extra", "log_metric")


def takes(function, name):
    """Whether a function can be given an argument of this name."""
    try:
        found = inspect.signature(function).parameters
    except Exception:  # some functions of C have none
        return False
    return any(p.kind is p.VAR_KEYWORD for p in found.values()) or (
        name in found and found[name].kind is not found[name].POSITIONAL_ONLY)


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


def ask(reward, problems, completions, limit=0.0, more=None, none=False):
    """Call a reward function and enforce its contract: one finite float per row, within 1e18.

    limit: seconds that a call of each function may take, 0 for no limit; see usercode.within.
    more: TRL's further arguments, as Told, or None.  none: whether a row may have no reward at all;
    it is NaN then.

    MinipostError names the function if it takes other arguments, raises, ends the process, takes
    too long, returns anything but a list, a tuple or an array of one dimension with a number for
    each row, or returns a value that is no finite number or too large.  Where it can be known, it
    also names the row, and the line of the user's file.
    """
    own = not isinstance(reward, Added)  # a task's
    if own:
        reward = Added([(getattr(reward, "__qualname__", type(reward).__name__), reward, {})])
    given = {"prompts": [problem.prompt for problem in problems], "completions": completions}
    rows, extra = columns(problems), {}
    if not own:  # a row's messages are the user's function's as messages, as in TRL
        given["prompts"] = [as_given(prompt) for prompt in given["prompts"]]
        given["completions"] = [
            [{"role": ROLE, "content": text}] if isinstance(prompt, list) else text
            for prompt, text in zip(given["prompts"], completions)]
        rows = {name: [as_given(value) for value in values] for name, values in rows.items()}
    if taken := {*given, *(EXTRAS if more else ())} & rows.keys():
        raise MinipostError(f"the rows have the key {min(taken)!r}, the name of another argument "
                            "of reward functions; give it another name")
    given |= rows | (more.arguments(reward.parts, len(problems), extra) if more else {})

    def row(i):
        place = problems[i].place
        return f"row {i} ({place + '; ' if place else ''}completion {completions[i][:40]!r})"

    lists = answers(reward, given, row, limit)
    several = len(lists) > 1 or reward.parts[0].weight != 1
    values = reward.total(lists) if several else lists[0]
    for i, value in enumerate(values):
        wanted = not_fit(math.nan if value is None else value)
        if wanted and not (none and value is None):
            raise MinipostError(
                f"the reward function {reward.__qualname__} returned {value} for {row(i)}; "
                f"{wanted}" + (" from at least one" if len(lists) > 1 else "")
                + ("" if none or value is not None else
                   f" ({', '.join(NONE)} leave an answer without a reward out)"))
    if more and (several or extra):
        each = {f"rewards/{name}": found for name, found in zip(reward.labels(), lists)}
        more.said.add(problems, completions, {**extra, **(each if several else {})})
    return [math.nan if value is None else value for value in values]


def answers(reward, given, row, limit):
    """What each part of a reward gives for each row: a list of finite floats, or None.  See `ask`.

    Those of functions that are async are awaited together.
    """
    found: list[Any] = []
    try:
        for part in reward.parts:
            found.append(answer(reward, part, given, row, limit))
    except BaseException:
        for each in found:
            if inspect.iscoroutine(each):
                each.close()  # it is never awaited, which Python would warn of
        raise
    waiting = {k: each for k, each in enumerate(found) if inspect.isawaitable(each)}
    if waiting:
        done = together(reward, waiting, given, row, limit)
        found = [done.get(k, each) for k, each in enumerate(found)]
    return found


def answer(reward, part, given, row, limit):
    """What one part of a reward gives for each row, or what is to be awaited for that."""
    name, changes, n = f"the reward function {part.name}", {}, len(given["prompts"])
    own = arguments(part.function, given)
    check_arguments(name, part.function, own)

    def work():
        values = part.function(**copied(own))
        return values if inspect.isawaitable(values) else numbers(name, values, row, n)

    try:
        with guarded(changes, part.own, name):
            return within(limit, work, name)
    except (KeyboardInterrupt, MinipostError):
        raise
    except BaseException as error:  # user code may raise anything, SystemExit too
        failed = error
    finally:
        reward.changed |= changes.keys()
    raise blamed(part, failed, given, row, limit) from failed


def together(reward, waiting, given, row, limit):
    """{k: values} of the parts whose awaitables these are, all awaited at once."""
    import asyncio  # it takes a while to load

    changes, failed, done, n = {}, {}, {}, len(given["prompts"])

    async def one(k, awaitable):
        name = f"the reward function {reward.parts[k].name}"
        try:
            done[k] = numbers(name, await awaitable, row, n)
        except asyncio.CancelledError:  # since another one has failed, or the time is up
            raise
        except BaseException as error:  # user code may raise anything, SystemExit too
            failed.setdefault(k, error)
            raise

    async def every():
        await asyncio.gather(*(one(k, awaitable) for k, awaitable in waiting.items()))

    names = " and ".join(reward.parts[k].name for k in waiting)
    try:
        own = {what: left for k in waiting for what, left in reward.parts[k].own.items()}
        with guarded(changes, own, f"the reward function {names}"):
            within(limit, lambda: awaited(every()), f"the reward function {names}")
        return done
    except (KeyboardInterrupt, MinipostError):
        raise
    except BaseException as error:
        k = next(iter(failed), next((k for k in waiting if k not in done), next(iter(waiting))))
        raise blamed(reward.parts[k], failed.get(k, error), given, row, limit) from error
    finally:
        reward.changed |= changes.keys()


def awaited(value):
    """The value, or what it gives if it is to be awaited.  In a running loop, by another thread."""
    if not inspect.isawaitable(value):
        return value
    import asyncio
    from threading import Thread

    async def wait():
        return await value

    def run():
        with asyncio.Runner() as runner:
            # What a cancelled function raises is not said a second time.
            runner.get_loop().set_exception_handler(lambda loop, context: None)
            return runner.run(wait())

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    found: list[Any] = []

    def keep():
        try:
            found.append((run(), None))
        except BaseException as error:
            found.append((None, error))

    thread = Thread(target=keep, daemon=True)
    thread.start()
    thread.join()
    if found[0][1]:
        raise found[0][1]
    return found[0][0]


def settled(function, given):
    """What a function gives, awaited if it is async."""
    return awaited(function(**given))


def raised(error, limit=0.0):
    """What the user's code did: "raised TypeError: the message (mine.py, line 12: `the code`)"."""
    if isinstance(error, TimeIsUp):
        return f"took more than {limit:g} s" + told(error)
    return ("" if isinstance(error, Ended) else "raised ") + told(error)


def blamed(part, error, given, row, limit):
    """The MinipostError on a function that raised this."""
    i = culprit(part, given, type(error), limit)
    where = f"the whole batch of {len(given['prompts'])}" if i is None else row(i)
    return MinipostError(f"the reward function {part.name} {raised(error, limit)} for {where}")


def arguments(function, given):
    """What is given to a function: further arguments only if it takes them."""
    return {key: each for key, each in given.items() if key not in EXTRAS or takes(function, key)}


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


def culprit(part, given, kind, limit):
    """The first row that alone raises an error of this kind, or None.

    All together take `limit` seconds at most.  Then the row that was being asked is the one if it
    took half of them.
    """
    since, silent = time.perf_counter(), {"log_extra": ignore, "log_metric": ignore}
    own, n = arguments(part.function, given), len(given["prompts"])
    for i in range(n):
        start, alone = time.perf_counter(), {
            key: silent.get(key, each[i : i + 1] if isinstance(each, list) else each)
            for key, each in own.items()}
        left = limit and max(1e-5, limit - (start - since))
        try:
            with guarded({}, part.own, part.name):
                within(left, partial(settled, part.function, copied(alone)), part.name)
        except KeyboardInterrupt:
            raise
        except TimeIsUp:
            return i if kind is TimeIsUp and time.perf_counter() - start > limit / 2 else None
        except BaseException as error:
            if type(error) is kind:
                return i
    return None


def ignore(*values):
    """What stands for log_extra and log_metric where one row is asked again."""


# ---- what a function returns

def numbers(name, values, row, n):
    """n floats, or Nones, from what a function returned.  MinipostError says what was wrong."""
    wanted = f"expected a list of {n} numbers, one per row"
    if not isinstance(values, list | tuple):
        if not hasattr(values, "ndim") or not hasattr(values, "tolist"):
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
        if value is not None and (wanted := not_fit(value)):
            raise MinipostError(f"{name} returned {shown(values[i])} for {row(i)}; {wanted}")
    return found


def not_fit(value):
    """What was expected in place of this value of a reward, or "" where it can be learnt from."""
    if not math.isfinite(value):
        return "expected a finite number"
    return f"expected a number of at most {LARGEST:g} in size" if abs(value) > LARGEST else ""


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
