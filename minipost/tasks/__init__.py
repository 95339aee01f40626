"""The tasks by name.  A file in this folder is a task; base.py says what it has to define.

answers.py is no task: it has the grammar of answers that all of them share.
"""

import importlib
import pkgutil

from minipost.errors import MinipostError
from minipost.tasks.base import Task

NEEDED = ("sample", "heldout", "demonstrate", "reward", "parse")


def found():
    """{name: class} of every task in this folder, whole or not."""
    tasks = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for task in vars(module).values():
            if isinstance(task, type) and Task in task.__mro__[1:] and \
                    task.__module__ == module.__name__:
                tasks[vars(task).get("name", file.name)] = task
    return dict(sorted(tasks.items()))


TASKS = found()


def __getattr__(name):
    """A task by the name of its class, as in `from minipost.tasks import Arithmetic`."""
    for task in globals().get("TASKS", {}).values():  # there are none yet while the files load
        if task.__name__ == name:
            return task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(name):
    """The class of this name.  MinipostError says what it does not define."""
    task = TASKS[name]
    missing = [part for part in NEEDED if getattr(task, part) is getattr(Task, part)]
    if missing or "name" not in vars(task):
        raise MinipostError(f"{importlib.import_module(task.__module__).__file__}: {task.__name__} "
                            f"does not define {(missing or ['name'])[0]}; minipost/tasks/base.py "
                            "says what a task has")
    return task
