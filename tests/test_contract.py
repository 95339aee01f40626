"""Files that are found by name: an outline gives what an import gives, or says that it cannot."""

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakes import helped_text

from minipost import contract, methods, train

ROOT = Path(contract.__file__).parents[1]
WANTED = ("Config", "TASK", "KNOBS", "MODEL")


@dataclass(frozen=True)
class File:
    """A stand-in for methods.Method."""

    name: str
    module: ModuleType
    Config: Any
    TASK: str
    train: Any
    KNOBS: Any = None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package of files `one` and `two`; `heavy` is a module beside it, which stands for torch."""
    def make(code, two="TASK = 'of two'"):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/__init__.py").write_text("")
        (tmp_path / "folder/one.py").write_text(code)
        (tmp_path / "folder/two.py").write_text(two)
        (tmp_path / "heavy.py").write_text("class Base:\n    pass\nTASK = 'heavy'\nsame = id\n")
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module("folder")

    yield make
    for name in [n for n in sys.modules if n.partition(".")[0] in ("folder", "heavy")]:
        del sys.modules[name]


def written(config="    steps: int = 3  # how many", before="", after="TASK = 'plain'",
            decorator="@dataclass(frozen=True)", bases=""):
    return (f'"""A file."""\nfrom dataclasses import dataclass\nfrom typing import Literal\n'
            f"import heavy\n{before}\n{decorator}\nclass Config{bases}:\n{config}\n{after}\n"
            "def train(run, cfg):\n    heavy.same(cfg)\n    yield {}\n")


def same(found, loaded):
    assert found.module.__doc__ == loaded.module.__doc__
    assert (found.TASK, found.KNOBS) == (loaded.TASK, loaded.KNOBS)
    assert [(f.name, f.type, f.default) for f in fields(found.Config)] == \
        [(f.name, f.type, f.default) for f in fields(loaded.Config)]
    assert repr(found.Config()) == repr(loaded.Config())


CLEAR = {
    "plain": written(),
    "a constant that another needs": written(after="N = 4\nKNOBS = {'terms': N}\nTASK = 'plain'"),
    "a method of Config": written("    steps: int = 3\n    def __post_init__(self):\n"
                                  "        if self.steps < LEAST: raise ValueError",
                                  after="LEAST, MOST = 1, 5\nTASK = 'plain'"),
    "a field called like a function": written(
        "    help: int = 3", after="TASK = 'plain'\ndef help(): return heavy.same"),
    "types that are text": written("    steps: Literal[1, 2] = 1").replace(
        "from", "from __future__ import annotations\nfrom", 1),
    "a choice": written("    how: Literal['train', 'heavy'] = 'train'"),
    "another file's": written(before="from folder import two", after="TASK = two.TASK"),
}
UNCLEAR = {
    "a name twice": written(after="TASK = 'first'\nTASK = 'second'"),
    "a condition": written(after="TASK = 'first'\nif heavy: TASK = 'second'"),
    "a loop": written(after="TASK = 'first'\nfor TASK in 'ab': pass"),
    "a call by itself": written(after="TASK = 'plain'\nsetattr(Config, 'steps', 4)"),
    "a call with a result": written(after="TASK = 'plain'\nwas = setattr(Config, 'x', 4)"),
    "a call of what changes it": written(
        after="TASK = 'plain'\ndef change(): KNOBS['terms'] = 4\nKNOBS = {}\nwas = change()"),
    "an attribute set": written(after="TASK = 'plain'\nConfig.__doc__ = 'another'"),
    "a global set": written(after="TASK = 'plain'\ndef set():\n    global TASK\n    TASK = 'b'\n"
                                  "was = set()"),
    "globals()": written(after="TASK = 'plain'\nwas = globals().update(TASK='second')"),
    "a star": written(after="TASK = 'plain'\nfrom heavy import *"),
    "a heavy constant": written(after="TASK = heavy.TASK"),
    "a heavy name": written(after="from heavy import TASK"),
    "a heavy base": written(bases="(heavy.Base)"),
    "a heavy decorator": written(decorator="@heavy.same\n@dataclass"),
    "a heavy default": written("    steps: int = len(heavy.TASK)"),
    "a type in quotes": written("    how: 'Literal[1]' = 1"),
    "another file by itself": written(before="from folder import two",
                                      after="TASK = getattr(two, 'TASK', 'none')"),
    "another file's own name": written(before="from folder import two",
                                       after="TASK = two.__name__"),
    "another file's heavy constant": written(before="from folder import two",
                                             after="TASK = two.BAD"),
    "what fails": written(after="TASK = 'a'\nKNOBS = 1 / 0"),
    "no TASK": written(after=""),
    "no code": "TASK = = 3",
}


@pytest.mark.parametrize("case", CLEAR)
def test_an_outline_is_what_an_import_gives(folder, case):
    package = folder(CLEAR[case])
    found = contract.outline(package, "one", File, WANTED)
    assert found is not None and "heavy" not in sys.modules
    same(found, contract.load(package, "one", File))


@pytest.mark.parametrize("case", UNCLEAR)
def test_a_file_that_has_to_be_imported_has_no_outline(folder, case):
    package = folder(UNCLEAR[case], two="import heavy\nTASK = 'of two'\nBAD = heavy.TASK")
    assert contract.outline(package, "one", File, WANTED) is None


@pytest.mark.parametrize("algo", methods.names())
def test_the_help_of_a_method_is_the_same_without_torch(capsys, monkeypatch, algo):
    outlined = contract.outline(methods, algo, methods.Method, WANTED)
    assert outlined is not None  # none has to be imported
    assert outlined.MODEL == methods.load(algo).MODEL
    short = helped_text(capsys, train.main, "--algo", algo)
    monkeypatch.setattr(methods, "outline", methods.load)
    assert short == helped_text(capsys, train.main, "--algo", algo)


def test_help_does_not_import_torch():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from contextlib import redirect_stdout
from io import StringIO
from minipost import doctor, evaluate, solve, train
for main, *line in [(train.main,), (train.main, "--algo", "grpo"), (train.main, "--algo", "rlaif"),
                    (train.main, "--algo", "prm", "--task", "countdown"), (evaluate.main,),
                    (evaluate.main, "--method", "tot"), (solve.main,),
                    (solve.main, "--method", "mcts"), (doctor.main, "--task", "facts")]:
    try:
        with redirect_stdout(StringIO()) as said:
            main([*line, "--help"])
    except SystemExit:
        pass
    assert "usage:" in said.getvalue(), line
    assert not {{"torch", "numpy", "tokenizers"}} & set(sys.modules), line
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE,
                          env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
