"""minipost: every method of LLM post-training in readable PyTorch, on one nano-GPT.

    run = minipost.open("checkpoints/base", task="arithmetic")
    for metrics in minipost.train(run, "grpo", steps=28):
        print(metrics["reward"])
    print(minipost.evaluate(run))
    run.save("out")

See minipost/api.py.  The command lines are `minipost train`, `minipost evaluate`, and so on.
"""

import importlib

__version__ = "0.1.0"


def __getattr__(name):
    """What the package offers to Python.  It is imported when it is asked for: torch takes time."""
    if name == "open":
        return importlib.import_module("minipost.api").open_model
    if name in ("train", "evaluate"):  # modules that can be called, see api.callable_module
        return importlib.import_module(f"minipost.{name}")
    if name == "MinipostError":
        return importlib.import_module("minipost.errors").MinipostError
    raise AttributeError(f"module 'minipost' has no attribute {name!r}")
