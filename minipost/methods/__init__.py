"""The training methods by name.  Every file in this folder is a method; there is no registry.

A method's file defines

    train(run, cfg)         a generator that makes one step and yields its metrics, {name: number}
    Config                  a frozen dataclass with at least `steps`; each field is a flag, and
                            the comment beside it is the flag's help
    TASK, METRIC            the task that its demo trains on, the metric that the summary headlines
    loss, loss_grad         pure functions of tensors: (scalar, metrics) and {argument: derivative};
                            only where the method has a loss of its own

It may also define the fields of `Method` below that have a default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from minipost import contract
from minipost.errors import MinipostError
from minipost.tasks import TASKS


def all_held_out(run, splits, cfg):
    """The default `measure`: it measures the policy's answers."""
    from minipost.measure.results import results  # imports torch, which --help can do without

    return results(run, splits)


def rows_a_step(run, cfg):
    """The default `rows`: every problem of a finite list, so many in a step as the Config says."""
    known = run.task.training() if run.task.training else ()
    return len(known), next(getattr(cfg, name) for name in ("pairs", "batch_size", "prompts")
                            if hasattr(cfg, name))


@dataclass(frozen=True)
class Method:
    """A method's file, with defaults for what it does not define."""

    name: str
    module: ModuleType
    Config: Any
    train: Callable
    TASK: str
    METRIC: str
    #: measure(run, splits, cfg) -> {split: {metric: Result}}
    measure: Callable = all_held_out
    #: total(run, cfg) -> steps of all stages, where there are several
    total: Callable = lambda run, cfg: cfg.steps
    #: rows(run, cfg) -> (rows of the data that it goes through, 0 if none; how many in a step)
    rows: Callable = rows_a_step
    #: milestones(run, cfg) -> {step: name} of stages after which the run is measured too
    milestones: Callable = lambda run, cfg: {}
    #: check(run, cfg) raises MinipostError where the run cannot work, before anything is written
    check: Callable = lambda run, cfg: None
    #: fixed(cfg) -> why a run cannot be made longer by --resume DIR --steps N, or ""
    fixed: Callable = lambda cfg: ""
    #: remark(lines of metrics.jsonl) -> a sentence to end with, or ""
    remark: Callable = lambda lines: ""
    #: the gradient its mean step should be (proof/estimates.Estimate), or why none is checked
    PROOF: Sequence[Mapping[str, Any]] | str = ()
    #: the metrics that are shown over all steps at the end
    TRACE: Sequence[str] = ()
    #: the keys of a file's rows that it learns from, beside the prompt, where the rows have them:
    #: completion, chosen, rejected, label, reward.  All rows are held to them before the first step
    READS: Sequence[str] = ()
    #: whether it orders answers that it samples, by their rewards
    COMPARES: bool = False
    #: whether every step learns from `run.rollout`, which --lag delays
    ON_POLICY: bool = False
    #: whether it learns from `run.score`, which --reward-model can give
    SCORED: bool = True
    #: which learners are saved as model directories: {learner: folder}
    EXPORTS: Mapping[str, str] = field(default_factory=lambda: {"policy": "model"})
    #: the model that it starts from, unless one is named
    MODEL: str = "checkpoints/base"
    #: the learning rate by default of a model of more than 20M parameters (cli/defaults.py)
    LARGE_LR: float = 1e-6
    #: other settings that such a model has by default
    LARGE: Mapping[str, Any] = field(default_factory=dict)
    #: knobs of TASK, and options of the command line, that hold unless a task or a file is named
    KNOBS: Mapping[str, Any] = field(default_factory=dict)
    DEMO: Mapping[str, Any] = field(default_factory=dict)


def names():
    """The methods by their command-line name."""
    return contract.names(sys.modules[__name__])


def load(name):
    """The Method of this name.  MinipostError says what its file does not define."""
    method = contract.load(sys.modules[__name__], name, Method)
    if method.TASK not in TASKS:
        raise MinipostError(f"{method.module.__file__}: TASK is {method.TASK!r:.40}; expected one "
                            f"of {', '.join(TASKS)}")
    return method


def outline(name):
    """The Method of this name as far as --help goes, without the second that torch takes.

    It knows only its docstring, Config, TASK, KNOBS, MODEL and DEMO.  Where its file does not show
    these for certain, it is loaded.
    """
    wanted = ("Config", "TASK", "KNOBS", "MODEL", "DEMO")
    return contract.outline(sys.modules[__name__], name, Method, wanted) or load(name)
