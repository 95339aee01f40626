"""What a run leaves for its report beside metrics and summary: report.jsonl, a row a line.

    {"kind": "run"}      settings that differ from their defaults, versions, machine
    {"kind": "resume"}   after which step a run went on
    {"kind": "group"}    answers of a step with the numbers of their tokens (measure/watch.py)
    {"kind": "pairs"}    held-out problems with the answers before and after
    {"kind": "judged"}   answers with a reward model's score, or a value, after each token
    {"kind": "working"}  how a test-time method came to an answer
"""

import json
import platform
import time
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import torch

from minipost import __version__, files, page, parallel
from minipost.errors import MinipostError
from minipost.measure.results import on_both
from minipost.measure.watch import Watch, judged
from minipost.run import REWARD_MODEL

PAIRS = 12      # held-out problems that are shown before and after
JUDGED = 4      # held-out problems of which answers are scored token by token
WORKINGS = 3    # problems of which a test-time method's working is shown
NODES = 150     # nodes of a tree that are kept, at most


def differing(settings):
    """{setting: [value, default]} of a run's settings that are not those of a bare `--algo NAME`.
    """
    method, usual = settings.method, {}
    options = type(settings.options)()
    if hasattr(method, "DEMO"):  # it trains
        options = replace(options, **{"model": method.MODEL, **method.DEMO})
    else:
        options = replace(options, n=method.N, model=method.MODEL or options.model)
    known = method.KNOBS if settings.task.name == method.TASK else {}
    parts = [(settings.options, options), (settings.config, method.Config())]
    if known is method.KNOBS:
        parts.append((settings.task, replace(type(settings.task)(), **known)))
    for part, default in parts:
        default = json.loads(json.dumps(asdict(default)))
        for name, value in json.loads(json.dumps(asdict(part))).items():
            same = value == default[name] or name == "model" and str(value).endswith(
                str(default[name]))
            if not same and name not in ("out", "report", "show", "workers"):
                usual[name] = [value, default[name]]
    return usual


def about(settings, device, workers):
    """The row about the run itself."""
    return {"kind": "run", "differs": differing(settings), "device": str(device),
            "workers": workers, "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "versions": {"minipost": __version__, "torch": torch.__version__,
                         "Python": platform.python_version()}}


class Samples:
    """The rows of a training run.  All ranks take part, the first one writes.

    session: the Session, once its run, files and method are there.
    """

    def __init__(self, session):
        self.session, self.run, self.known = weakref.proxy(session), session.run, 0
        self.total = session.method.total(self.run, session.config)
        self.rows = []
        self.watch = Watch(self.run, self.total, session.method.milestones(
            self.run, session.config), self.rows)
        self.run.watches.append(self.watch)

    def begin(self):
        session = self.session
        self.rows.append({**about(session.settings, session.device, session.workers),
                          "steps": self.total})
        self.write()

    def resume(self, step):
        """Take up the rows of the steps up to this one."""
        path = self.session.directory / "report.jsonl"
        held = page.read_rows(path) if self.session.lead and path.exists() else []
        self.rows[:] = [row for row in held if row.get("step", 0) <= step
                        and row["kind"] in ("run", "resume", "group")]
        first = min((row["step"] for row in self.rows if row["kind"] == "group"), default=0) - 1
        self.watch.first = int(parallel.largest(first))  # as the first rank read it
        self.rows.append({"kind": "resume", "step": step})
        self.write()

    def step(self):
        """Write what this step added, if anything."""
        if len(self.rows) > self.known:
            self.write()

    def finish(self, split, metric, before, after):
        """Add the held-out problems before and after, and what a trained scorer says of answers."""
        problems = self.session.splits[split]
        before, after = on_both(before, after)
        if len(before.texts) == len(after.texts):
            self.rows.append(pairs(problems, before, after, split, metric))
        for name in (REWARD_MODEL, "critic"):
            scorer = self.run.learners.get(name)
            if scorer is not None and not any(row["kind"] == "group" for row in self.rows) \
                    and self.run.reward is not None and "chosen" not in problems[0].columns:
                self.rows.append(judged(self.run, problems[:JUDGED], scorer.module, name))
        self.write()

    def write(self):
        self.known = len(self.rows)
        if self.session.lead:
            try:
                self.session.files.keep_samples(self.rows)
            except MinipostError as error:
                self.session.console.say(f"no samples for the report: {error}")


def pairs(problems, before, after, split, metric):
    """The row on held-out problems: some that got better, some that got worse, and others."""
    numbers = list(range(len(problems))) if after.rows is None else after.rows
    change = [new - old for old, new in zip(before.rewards, after.rewards)]
    rose = [k for k, c in enumerate(change) if c > 0]
    fell = [k for k, c in enumerate(change) if c < 0]
    some = {*rose[: PAIRS // 2], *fell[: PAIRS // 4]}
    some |= set([k for k in range(len(change)) if k not in some][: max(0, PAIRS - len(some))])
    order = sorted(some, key=lambda k: (-(change[k] > 0), -(change[k] < 0), k))
    return {"kind": "pairs", "split": split, "metric": metric, "better": len(rose),
            "worse": len(fell), "n": len(change), "rows": [
                {"prompt": str(problems[numbers[k]].prompt), "before": before.texts[k],
                 "after": after.texts[k], "rewards": [before.rewards[k], after.rewards[k]]}
                for k in order]}


def trimmed(working):
    """A working whose tree has at most NODES nodes: the first ones, which were found first."""
    tree = working.get("tree") if isinstance(working, dict) else None
    if isinstance(tree, list) and len(tree) > NODES:
        return {**working, "tree": tree[:NODES], "left out": len(tree) - NODES}
    return working


def write_page(directory, console, say=True):
    """Write the report and say where it is.  A failure costs the report and not the run."""
    try:
        path = page.write(directory)
    except Exception as error:  # whatever it is, all that was trained has been saved
        what = "" if isinstance(error, MinipostError) else f"{type(error).__name__}: "
        console.say(f"the report could not be written ({what}{str(error)[:200]})")
    else:
        if say:
            console.say(f"the report: {path}")


def of_evaluation(settings, problems, arms, first, last, console):
    """report.jsonl and the page of a test-time method: first and last are names of arms."""
    directory, before, after = Path(settings.options.out), arms[first].result, arms[last].result
    rows = [{**about(settings, "cpu", settings.options.workers), "model": settings.options.model,
             "settings": {**asdict(settings.config), **asdict(settings.task)}}]
    if len(before.rewards) == len(after.rewards) == len(problems):
        rows.append(pairs(problems, before, after, "held-out", f"{first}, then {last}"))
    rows += workings(settings.method, problems, arms, (first, last))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        files.publish(directory / "report.jsonl", lambda path: path.write_text(text))
    except MinipostError as error:
        console.say(f"no samples for the report: {error}")
    write_page(directory, console)


def workings(method, problems, arms, names):
    """Rows on how the first and the last arm of a test-time method came to some answers."""
    found = []
    for k in range(WORKINGS):
        for name in names:
            arm = arms[name]
            if k >= len(arm.workings):
                continue
            same = len(arm.workings) == len(problems)
            found.append({
                "kind": "working", "arm": name, "problem": k + 1,
                "prompt": str(problems[k].prompt) if same else "",
                "answer": arm.result.texts[k], "reward": arm.result.rewards[k],
                "working": trimmed(arm.workings[k]), "lines": method.show(arm.workings[k])[:60]})
    return found
