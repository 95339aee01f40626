"""The tasks by name.  A file in this folder is a task; base.py says what it has to define.

answers.py is no task: it has the grammar of answers that all of them share.
"""

import importlib
import pkgutil
from typing import Any

from minipost import contract
from minipost.errors import MinipostError, check_frozen
from minipost.tasks.base import Task

NEEDED = ("sample", "heldout", "demonstrate", "reward", "parse")


FAULTS: dict[str, str] = {}  # {name: what is wrong with its file}, which `load` says


def found():
    """{name: class} of every task in this folder, whole or not.  It writes FAULTS.

    A file that cannot be imported is a task of the file's name, so that it hurts no other.
    """
    tasks: dict[str, Any] = {}
    FAULTS.clear()
    for file in pkgutil.iter_modules(__path__):
        try:
            module = contract.imported(f"{__name__}.{file.name}")
        except MinipostError as error:
            tasks[file.name], FAULTS[file.name] = Task, str(error)
            continue
        for task in vars(module).values():
            if isinstance(task, type) and Task in task.__mro__[1:] and \
                    task.__module__ == module.__name__:
                name = vars(task).get("name", file.name)
                if tasks.setdefault(name, task) is not task:
                    files = [kind.__module__.replace(".", "/") for kind in (tasks[name], task)]
                    FAULTS[name] = (f"{files[1]}.py: its task is called {name!r}, as is that of "
                                    f"{files[0]}.py; give one of them another name")
    return dict(sorted(tasks.items()))


TASKS = found()


def __getattr__(name):
    """A task by the name of its class, as in `from minipost.tasks import Arithmetic`."""
    for task in globals().get("TASKS", {}).values():  # there are none yet while the files load
        if task.__name__ == name:
            return task
    raise AttributeError("; ".join([f"module {__name__!r} has no attribute {name!r}",
                                    *globals().get("FAULTS", {}).values()]))


def load(name):
    """The class of this name.  MinipostError says what it does not define."""
    if name not in TASKS:
        raise MinipostError(f"there is no task {name!r:.40}; there are {', '.join(TASKS)}")
    if name in FAULTS:
        raise MinipostError(FAULTS[name])
    task = TASKS[name]
    file = importlib.import_module(task.__module__).__file__
    missing = [part for part in NEEDED if getattr(task, part) is getattr(Task, part)]
    if missing or "name" not in vars(task):
        raise MinipostError(f"{file}: {task.__name__} does not define {(missing or ['name'])[0]}; "
                            "minipost/tasks/base.py says what a task has")
    check_frozen(task, file)
    return task
