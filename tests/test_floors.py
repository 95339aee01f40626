"""Imports go down: every file and folder of minipost has a floor, and there is no circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "minipost"

# From the ground up.  What stands here imports from lower floors alone; a folder is a whole.
FLOORS = [
    "errors",
    "files contract",
    "tokenizer_file chat",
    "engine",
    "families",
    "ops parallel gpt tokenizer tasks",
    "layout",
    "optim checkpoint",
    "rollout shard",
    "parts",
    "datasets",
    "run sampler",
    "opening",
    "measure",
    "test_time checks",
    "page",
    "methods cli",
    "proof",
    "api",
    "train evaluate solve doctor prove report",
    "__main__",
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
# Folders whose files may import each other.
OPEN = {"engine", "layout", "tasks", "datasets", "measure", "checks", "cli", "proof", "page"}
# The methods, and ways to answer, that are made of others: whose parts they take.
MADE_OF = {
    "test_time.by_difficulty": {"self_feedback"},
    "methods.ppo": {"sft", "reward"}, "methods.rlaif": {"sft", "ppo", "dpo"},
    "methods.ttrl": {"grpo"}, "methods.intuitor": {"grpo"},
    "methods.sdpo": {"distill"}, "methods.prime": {"reinforce_pp"},
    "methods.r1_zero": {"grpo"}, "methods.r1": {"sft", "grpo", "reward", "r1_zero"},
    "methods.process_grpo": {"prm"}, "methods.iterative_grpo": {"sft", "reward", "grpo"},
    "methods.gdpo": {"grpo", "r1_zero"}, "methods.math_shepherd": {"prm"},
    "methods.iterated_rlhf": {"sft", "reward", "ppo"},
    "methods.direct_rlaif": {"sft", "grpo", "rlaif"},
    "methods.tool_use": {"sft", "grpo"}, "methods.satori": {"sft", "grpo"},
    **{f"methods.{name}": {"dpo"} for name in ("ipo", "simpo", "orpo", "mdpo")},
    "methods.rpo": {"dpo", "reward"},
}


def home(path):
    """The dotted name of a file: methods/sft.py is methods.sft, methods/__init__.py is methods."""
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(
        ".__init__")


FILES = {home(path): path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"}


def imports(text):
    """What a file imports, anywhere in it: files of minipost by dotted name, others after a `!`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, module = alias.name.partition(".")
                yield module if package == "minipost" else f"!{alias.name}"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports are not read here"
            package, _, module = node.module.partition(".")
            for alias in node.names:
                full = f"{module}.{alias.name}".strip(".")
                ours = full if full in FILES else module
                yield ours if package == "minipost" else f"!{node.module}"


def trespasses(name, imported):
    """The imports of a file that do not go down, nor stay where they may."""
    folder, *file = name.split(".")
    for other in imported:
        if other.startswith("!"):
            if other[1:].split(".")[0] == "torch" and folder in ("tasks", "test_time"):
                yield f"{name} imports torch"
            continue
        its_folder, *its_file = other.split(".")
        if not its_folder:  # minipost/__init__.py, which imports nothing
            continue
        if its_folder != folder:
            if FLOOR[its_folder] >= FLOOR[folder]:
                yield (f"{name} (floor {FLOOR[folder]}) imports {other} "
                       f"(floor {FLOOR[its_folder]})")
        elif file and folder not in OPEN and not set(its_file) & MADE_OF.get(name, set()):
            yield f"{name} imports {other}: these files do not import each other"


def circle(graph):
    """A circle of {name: what it imports} as a list, or None."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]


GRAPH = {name: {other for other in imports(path.read_text()) if not other.startswith("!")}
         for name, path in FILES.items()}


def test_every_file_and_folder_has_a_floor():
    assert len(FILES) > 60 and {name.split(".")[0] for name in FILES} == set(FLOOR)


def test_imports_go_only_down():
    found = [each for name, path in FILES.items()
             for each in trespasses(name, imports(path.read_text()))]
    assert not found, "\n".join(found)


def test_there_is_no_circle_of_files_nor_of_folders():
    assert circle(GRAPH) is None
    folders = {}
    for name, others in GRAPH.items():
        folder = name.split(".")[0]
        folders.setdefault(folder, set()).update(
            each for other in others if (each := other.split(".")[0]) != folder)
    assert circle(folders) is None


@pytest.mark.parametrize("name, text", [
    ("ops", "from minipost import gpt"), ("tasks.facts", "from minipost.rollout import pack"),
    ("tasks.facts", "import torch"), ("test_time.tot", "from torch.nn import functional"),
    ("gpt", "from minipost.tokenizer import Tokenizer"),
    ("rollout", "from minipost.run import Run"),
    ("methods.sft", "from minipost.methods.grpo import loss"),
    ("methods.sft", "from minipost.train import main"),
    ("methods.ppo", "from minipost.methods import dpo"),
    ("test_time.tot", "from minipost.test_time import mcts"),
    ("datasets.rows", "import minipost.run"), ("train", "from minipost.evaluate import main"),
])
def test_each_kind_of_trespass_is_seen(name, text):
    assert list(trespasses(name, imports(text)))


@pytest.mark.parametrize("name, text", [
    ("methods.sft", "from minipost.ops import spread"), ("gpt", "import torch"),
    ("train", "from minipost.cli.options import parse"),
    ("cli.session", "from minipost.cli import console"),
    ("tasks.facts", "from minipost.tasks.base import Problem"),
    ("methods.ipo", "from minipost.methods import dpo"),
    ("methods.rlaif", "from minipost.methods.ppo import Config"),
])
def test_what_is_allowed_is_no_trespass(name, text):
    assert not list(trespasses(name, imports(text)))


def test_a_circle_is_seen():
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b", "c"}, "b": {"c"}}) is None


def test_tasks_and_ways_to_answer_load_no_torch(python):
    """Nor does anything that they import."""
    done = python("-c", "import importlib, pkgutil, sys\n"
                  "from minipost import tasks, test_time\n"
                  "for package in (tasks, test_time):\n"
                  "    for module in pkgutil.iter_modules(package.__path__):\n"
                  "        importlib.import_module(f'{package.__name__}.{module.name}')\n"
                  "assert len(sys.modules) > 50 and 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_nothing_is_ever_unpickled_or_evaluated():
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "torch.save"), (path, called)
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                assert "pickle" not in names and getattr(node, "module", "") != "pickle", path
