"""The test-time methods by name.  Every file in this folder is a method; there is no registry.

A method's file knows of the model only what `tools`, a measure.texts.Texts, lets it ask.  It
defines

    Config           its settings: a frozen dataclass, every field a flag
    solve(problems, tools, cfg) -> answers, workings; a working is plain data on how one was found
    arms(problems, tools, cfg)  yields an Arm for each way to answer that it compares
    show(working) -> lines of text
    TASK, KNOBS      the task that its demo is measured on, and the knobs of it that the demo sets
    BEFORE, AFTER    the two arms that a demo compares; {group_size} in a name is that setting

It may also define the fields of `InferenceMethod` below that have a default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from minipost import contract


@dataclass(frozen=True)
class InferenceMethod:
    """A test-time method's file, with defaults for what it does not define."""

    name: str
    module: ModuleType
    Config: Any
    solve: Callable
    arms: Callable
    show: Callable
    TASK: str
    KNOBS: Mapping[str, Any]
    BEFORE: str
    AFTER: str
    #: further pairs of arms that a demo compares, such as those of equal cost; named as above
    PAIRS: Sequence[tuple[str, str]] = ()
    #: how many held-out problems a demo takes
    N: int = 200
    #: the directory of the model that it usually asks, where that is not the thinker
    MODEL: str = ""
    #: the directory of its usual reward model, where it asks one
    VERIFIER: str = ""
    #: whether it asks the tool of a task whose answers are made with one
    TOOL: bool = False
    #: outcome(working) -> what was asked, whether the answer is right; where that is not the
    #: problem itself
    outcome: Callable | None = None


def names():
    """The methods by their command-line name."""
    return contract.names(sys.modules[__name__])


def load(name):
    """The InferenceMethod of this name.  MinipostError says what its file does not define."""
    return contract.load(sys.modules[__name__], name, InferenceMethod)


outline = load  # for --help: these files import nothing that takes long
