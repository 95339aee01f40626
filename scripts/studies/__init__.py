"""Findings of papers, tried at nano scale.  Every file here is a study: `make study-NAME`.

A study trains small models with `minipost.train` and compares its figures with a paper's claim.
Its file defines

    PAPER       the address of the paper
    CLAIM       the finding, as the paper has it, in a sentence
    LIMITS      what a nano model can and cannot tell about large ones, in three sentences
    runs(seeds) -> {run: arguments of minipost.train}, in the order in which they are made
    findings(made) -> a Finding; made is a Made
    draw(figure, found) draws the Finding on a matplotlib figure
    TRIED       what was changed after tries, in a sentence or two

and, where its runs start from more than a checkpoint,

    prepare(made) makes what is not there yet of models and data, before the runs

and, where some runs follow from the results of others,

    then(made, done) -> more runs, like `runs`, once those named in `done` are there; asked again
                        until it has none that is new.  `swept` chooses a learning rate so.

The verdict is `reproduced`, `reversed`, or `not reproduced`.  What decides it stands in the study's
docstring, in three lines that begin with these words, and was written before the runs that are
shown.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from minipost import contract, files
from scripts.compare import FACTORS, farther, fingerprint, over_seeds

ROOT = Path(__file__).resolve().parents[2]
VERDICTS = ("reproduced", "reversed", "not reproduced")


@dataclass(frozen=True)
class Study:
    """What a study's file defines."""

    name: str
    module: ModuleType
    PAPER: str
    CLAIM: str
    LIMITS: str
    runs: Callable
    findings: Callable
    draw: Callable
    prepare: Callable = lambda made: None
    then: Callable = lambda made, done: {}
    TRIED: str = ""


@dataclass(frozen=True)
class Finding:
    """What came out: a table, a verdict, a sentence with the figures, and data for the plot."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdict: str
    sentence: str
    data: Any = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Made:
    """The finished runs of a study.

    folder: each run's directory is below it.  seeds: those that were asked for.  options: smaller
    settings of a trial, {} in earnest.
    """

    folder: Path
    seeds: Sequence[int]
    options: Mapping[str, Any] = field(default_factory=dict)

    def place(self, run):
        """A run's directory.  One that two studies share is beside their folders: "../name"."""
        return (self.folder / run).resolve()

    def model(self, run):
        """The trained model's directory."""
        return self.place(run) / "model"

    def summary(self, run):
        return files.read_json(self.place(run) / "summary.json")

    def metrics(self, run):
        """The lines of metrics.jsonl."""
        text = (self.place(run) / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def once(self, name, compute, *given):
        """compute(*given), as data for JSON, kept beside the runs until what is given changes.

        given: model directories as Paths, which stand for what is in them, and data for JSON.
        """
        path = self.folder / f"{name}.json"
        of = json.loads(json.dumps([fingerprint(one) if isinstance(one, Path) else one
                                    for one in given]))
        if not path.is_file() or files.read_json(path).get("of") != of:
            files.write_json(path, {"of": of, "found": compute(*given)})
        return files.read_json(path)["found"]


def combined(*parts, most=math.inf):
    """A weighted sum of means over seeds of shares, paired by seed, as a Score.

    parts: (weight, Scores), the Scores one of each seed, in the same order everywhere.  The
    interval ends where shares between 0 and 1 end, and at `most`.
    """
    n = len(parts[0][1])
    each = [sum(weight * scores[k].value for weight, scores in parts) for k in range(n)]
    return over_seeds(each, [score for _, scores in parts for score in scores],
                      [weight / n for weight, scores in parts for _ in scores],
                      sum(min(0, weight) for weight, _ in parts),
                      min(most, sum(max(0, weight) for weight, _ in parts)))


def firsts(usual):
    """The learning rates that are tried first."""
    return [float(f"{usual * factor:.6g}") for factor in FACTORS]


def swept(score, usual, done):
    """Runs that choose a learning rate, as in compare.py: more beyond the best one at an edge.

    score(rate) -> what is to be high.  usual: the rate about which they lie.  done(rate): whether
    its run is there.  -> {rate: score}, the rates that are still to be run, a list
    """
    earned, wanted = {}, firsts(usual)
    while wanted:
        if missing := [rate for rate in wanted if not done(rate)]:
            return earned, missing
        earned |= {rate: score(rate) for rate in wanted}
        wanted = farther(earned, usual)
    return earned, []


def best(earned):
    """The rate of the highest score."""
    return max(earned, key=earned.__getitem__)


def names():
    """The studies by their command-line name."""
    return [name for name in contract.names(sys.modules[__name__]) if not name.startswith("--")]


def rule(doc):
    """{verdict: when it is given} of a study's docstring, in the order of VERDICTS."""
    found = {verdict: re.search(rf"^{verdict}  +(.*(?:\n  +.*)*)", doc, flags=re.MULTILINE)
             for verdict in VERDICTS}
    return {verdict: " ".join(match[1].split()) for verdict, match in found.items() if match}


def load(name):
    """The Study of this name."""
    return contract.load(sys.modules[__name__], name, Study)
