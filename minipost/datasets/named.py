"""The reward functions that --reward names.

A name is FILE.py:FUNCTION, or PACKAGE.MODULE:FUNCTION of what is installed, with =WEIGHT behind it
if its values do not count once.  FUNCTION may be an object that can be called, a class whose
objects can, or a method, CLASS.METHOD.
"""

import importlib
import inspect
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from minipost.datasets import usercode
from minipost.datasets.rewards import Added, Part, raised
from minipost.datasets.usercode import guarded, short
from minipost.errors import MinipostError

FORM = "expected FILE.py:FUNCTION"
FORMS = f"{FORM} or an installed PACKAGE.MODULE:FUNCTION"
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Named(NamedTuple):
    """What a name of --reward says.  `path` is None where it names a module."""

    path: Path | None
    module: str
    function: str
    weight: float


def load_reward(names, task):
    """The run's reward function: the task's, or the weighted sum of the functions that are named.

    Each file is executed once, as a module like any other (see usercode.load).  MinipostError where
    a file, a module or a function is not there or is no such thing, or where it raises.
    """
    if not names:
        return task.reward
    every = {name: divided(name) for name in names}
    changes: dict[Any, dict] = {named.path or named.module: {} for named in every.values()}
    for named in every.values():
        if named.path:
            usercode.forget(named.path)
    parts, made = [], {}
    for name in names:
        named = every[name]
        own, what = changes[named.path or named.module], "file" if named.path else "module"
        try:
            with guarded(own, name=f"--reward {name}"):
                module = usercode.load(named.path) if named.path else \
                    importlib.import_module(named.module)
                found = looked_up(module, named.function, made)
        except (KeyboardInterrupt, MinipostError):
            raise
        except BaseException as error:  # the user's file may raise anything, SystemExit too
            if isinstance(error, ModuleNotFoundError) and not named.path and error.name and \
                    f"{named.module}.".startswith(f"{error.name}."):
                raise MinipostError(f"--reward {name}: there is no module {error.name}; "
                                    f"{FORMS}") from None
            raise MinipostError(f"--reward {name}: the {what} {raised(error)}") from error
        if wrong := fault(module, named.function, found, what):
            raise MinipostError(f"--reward {name}: {wrong}")
        parts.append(Part(named.function, found, own, named.weight))
    return Added(parts)


def looked_up(module, function, made):
    """What a module holds under a name with dots, None if nothing.

    A class stands for an object of it, made without arguments.  `made` keeps one for each class.
    """
    found = module
    for name in function.split("."):
        found = getattr(found, name, None)
        if isinstance(found, type):
            if found not in made:
                made[found] = found()
            found = made[found]
    return found


def reward_files(names):
    """The resolved paths of the files that --reward names, those of modules too, each once."""
    every = [divided(name) for name in names]
    found = [named.path or usercode.origin(named.module) for named in every]
    return list(dict.fromkeys(path for path in found if path))


def sources(names):
    """The files of --reward and the modules beside them that load_reward has imported.

    -> [Path], sorted; see usercode.sources.
    """
    return usercode.sources(reward_files(names))


def is_module(file):
    """Whether what stands before the colon names a module: no file has that name."""
    return MODULE.fullmatch(file) is not None and not file.endswith(".py") and not \
        os.path.isfile(file)


def absolute(name):
    """A name of --reward that means the same in any folder."""
    return name if is_module(name.rpartition(":")[0]) else os.path.abspath(name)


def divided(name):
    """What a name of --reward says, as Named."""
    file, colon, function = name.rpartition(":")
    function, equals, number = function.partition("=")
    if not colon or not file:
        raise MinipostError(f"--reward {name}: {FORM}")
    try:
        weight = float(number) if equals else 1.0
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise MinipostError(f"--reward {name}: the weight {number[:20]!r} is no finite number; "
                            f"{FORM}=WEIGHT")
    if is_module(file):
        return Named(None, file, function, weight)
    try:
        path = Path(file).resolve()
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a circle of links
        raise MinipostError(f"--reward {name}: {error}; {FORM}") from None
    if not there:
        what = "is no regular file" if path.exists() else "there is no such file"
        raise MinipostError(f"--reward {name}: {short(path)}: {what}; {FORM}, the file existing")
    return Named(path, "", function, weight)


def fault(module, name, found, what):
    """Why what a module holds under a name is no reward function, or ""."""
    if found is None:
        there = [key for key, thing in vars(module).items() if inspect.isfunction(thing)
                 and thing.__module__ == module.__name__ and not key.startswith("_")]
        return f"the {what} has no function {name!r}; it has " + (", ".join(there[:8]) or "none")
    if not callable(found):
        return f"{name} is of type {type(found).__name__}; expected a function"
    return ""
