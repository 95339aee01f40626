"""The tasks by name.  Each file in this folder is a task.  base.py says what a task must define."""

import importlib
import pkgutil

from minipost.errors import MinipostError
from minipost.tasks.base import Task

NEEDED = ("sample", "heldout", "demonstrate", "reward", "parse")


def found():
    """{name: class} of every task in this folder.  MinipostError if one is incomplete."""
    tasks = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for task in vars(module).values():
            if isinstance(task, type) and Task in task.__mro__[1:] and \
                    task.__module__ == module.__name__:
                missing = [name for name in NEEDED if getattr(task, name) is getattr(Task, name)]
                if missing or "name" not in vars(task):
                    raise MinipostError(f"{module.__file__}: {task.__name__} does not define "
                                        f"{(missing or ['name'])[0]}; minipost/tasks/base.py says "
                                        "what a task has")
                tasks[vars(task)["name"]] = task
    return dict(sorted(tasks.items()))


TASKS = found()
