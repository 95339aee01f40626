"""What a run's directory says, for the report.  Nothing in it is trusted: all of it is data."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from minipost import files
from minipost.errors import MinipostError
from minipost.measure.stats import beyond_chance

MOST = 2**28  # bytes of the longest log that is read


@dataclass
class RunData:
    """A run as its files have it; what is missing is empty."""

    path: Path
    config: dict = field(default_factory=dict)
    lines: list = field(default_factory=list)      # of metrics.jsonl: {metric: number or None}
    summary: dict = field(default_factory=dict)
    rows: list = field(default_factory=list)       # of report.jsonl
    complaint: str = ""                            # what is wrong with metrics.jsonl

    @property
    def algo(self):
        return str(self.config.get("algo") or self.summary.get("name") or "?")

    @property
    def task(self):
        return str(part(self.config, "task").get("name") or self.summary.get("task") or "?")

    @property
    def options(self):
        return part(self.config, "options")

    @property
    def seed(self):
        return self.options.get("seed", self.summary.get("seed", "?"))

    @property
    def about(self):
        return next((row for row in self.rows if row["kind"] == "run"), {})

    @property
    def step(self):
        return self.lines[-1]["step"] if self.lines else 0

    def kind(self, name):
        return [row for row in self.rows if row["kind"] == name]


def part(data, name):
    """A part of a JSON object that is an object itself, {} if it is not."""
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def moved(summary):
    """[(name, row)] of the results beside the headline, of its split, that changed beyond chance.

    For a headline that did not: it may have been at its ceiling before.
    """
    headline, _, split = str(summary.get("metric", "")).partition(", ")
    return [(name, row) for name, row in part(summary, "all").items()
            if name.partition(", ")[2] == split
            and name.partition(", ")[0] != headline.removesuffix(" reward")
            and (gain := row.get("gain")) and beyond_chance(gain)]


def load(path):
    """The RunData of a directory.  MinipostError where it is no run."""
    path = Path(path)
    if not path.is_dir():
        raise MinipostError(f"{path}: there is no such folder; name the folder of a run, such as "
                            "runs/demo-grpo")
    there = {name for name in ("config.json", "metrics.jsonl", "summary.json", "report.jsonl")
             if (path / name).exists()}
    config = files.read_json(path / "config.json") if "config.json" in there else {}
    if "algo" not in config and "summary.json" not in there:
        raise MinipostError(f"{path}: is no run (its config.json names no method, and there is no "
                            "summary.json); name the --out of minipost.train or minipost.evaluate")
    summary = files.read_json(path / "summary.json") if "summary.json" in there else {}
    lines, complaint = read_log(path / "metrics.jsonl", bool(summary)) if "algo" in config \
        or "metrics.jsonl" in there else ([], "")
    return RunData(path, config, lines, summary, read_rows(path / "report.jsonl"), complaint)


def read_log(path, finished):
    """(the lines of a metrics.jsonl, what is wrong with it or "").

    Half of a last line is no fault: the run may be writing it.  finished: whether the run is over.
    """
    if not path.exists():
        return [], f"{path}: is not there, and holds a line for each step of a run"
    whole = [line for line in json_lines(path) if type(line.get("step")) is int]
    count = sum(not line.isspace() for line in files.read_bytes(path, MOST).split(b"\n")[:-1])
    lines = [{name: x for name, x in line.items() if x is None or type(x) in (int, float)}
             for line in whole]
    if count > len(lines):
        return lines, f"{path}: {count - len(lines)} of {count} lines are not the metrics of a step"
    return lines, f"{path}: is empty, although the run is finished" if finished and not lines \
        else ""


def read_rows(path):
    """The rows of a report.jsonl, those with a kind; [] where there is none."""
    return [row for row in json_lines(path) if isinstance(row.get("kind"), str)] \
        if path.exists() else []


def json_lines(path):
    """The JSON objects of a file's lines.  A line that is none, such as half of one, is left out.
    """
    found = []
    for line in files.read_bytes(path, MOST).splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
