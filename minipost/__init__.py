"""minipost: every method of LLM post-training in readable PyTorch, on one nano-GPT.

    run = minipost.open("checkpoints/base", task="arithmetic")
    for metrics in minipost.train(run, "grpo", steps=28):
        print(metrics["reward"])
    print(minipost.evaluate(run))
    run.save("out")

See minipost/api.py.  The command lines are `minipost train`, `minipost evaluate`, and so on.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"


class Door(ModuleType):
    """A module whose main function runs a command line, and that can be called from Python too.

    Its name is then a function of minipost/api.py: `minipost.train(run, ...)`.
    """

    def __call__(self, *given, **settings):
        api = importlib.import_module("minipost.api")
        return getattr(api, self.__name__.rpartition(".")[2])(*given, **settings)


def __getattr__(name):
    """What the package offers to Python.  It is imported when it is asked for: torch takes time."""
    if name == "open":
        return importlib.import_module("minipost.api").open_model
    if name in ("train", "evaluate"):
        return importlib.import_module(f"minipost.{name}")
    if name == "MinipostError":
        return importlib.import_module("minipost.errors").MinipostError
    raise AttributeError(f"module 'minipost' has no attribute {name!r}")
