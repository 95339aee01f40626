"""What a run shows on the screen, with rich: header, live line, before and after.

All that is shown may hold texts of a model or of a user's file, so `plain` makes it safe to print.
What cannot be printed never ends a run.
"""

import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOBase
from typing import TextIO, cast

from rich import box
from rich.console import Console as Rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from minipost.cli.options import silence
from minipost.engine.lora import adapters
from minipost.errors import visible
from minipost.measure.stats import Score, paired

LIVE = ("reward", "gold", "accuracy", "loss", "kl", "entropy")  # of a method's metrics


def line(metrics, rate):
    shown = [f"{name} {metrics[name]:.3f}" for name in LIVE
             if name in metrics and not (name == "loss" and "reward" in metrics)]
    return "  ".join([*shown, f"{rate:,.0f} tok/s"])


def plain(text):
    """A text without markup, in which nothing steers the terminal."""
    return Text(visible(str(text)))


class Screen(TextIOBase):
    """Standard output.  It falls silent when it cannot be written to, as when `head` has ended."""

    def __init__(self):
        self.gone = False

    @property
    def out(self):
        """The file itself.  While a live line is shown, sys.stdout is a proxy that writes to here.
        """
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)

    @property
    def encoding(self):  # type: ignore[override]  # which may be written, and nobody does
        return self.out.encoding

    def isatty(self):
        return self.out.isatty()

    def fileno(self):
        return self.out.fileno()

    def write(self, text):
        self.do(self.out.write, text)
        return len(text)

    def flush(self):
        self.do(self.out.flush)

    def do(self, work, *arguments):
        if not self.gone:
            try:
                work(*arguments)
            except (OSError, ValueError):  # ValueError: it is closed
                self.gone = True
                silence()


class Console:
    """All printing of a run.  A quiet Console (every rank but the first) prints nothing."""

    def __init__(self, quiet=False):
        self.rich = Rich(quiet=quiet, highlight=False, file=cast(TextIO, Screen()))
        self.bar = None

    def say(self, text):
        self.rich.print(plain(text), soft_wrap=True)  # keeps a path or command whole for copying

    def header(self, algo, task, config, options, model, workers):
        size = sum(p.numel() for p in model.parameters()) / 1e6
        knobs = ", ".join(f"{k} {v}" for k, v in asdict(task).items() if v != "")
        recipe = ", ".join(f"{k} {v}" for k, v in asdict(config).items())
        said = f"{size:.2f}M parameters"
        if learn := sum(a.a.numel() + a.b.numel() for _, _, a in adapters(model)) / 1e6:
            said = (f"{size - learn:.2f}M parameters, and {learn:.2f}M in adapters of rank "
                    f"{options.lora}, which alone learn")
        self.say(f"{algo} trains {options.model} ({said}) on {task.name} ({knobs})")
        self.say(f"  {recipe}")
        self.say(f"  seed {options.seed}, {workers} process{'es' if workers > 1 else ''}, "
                 f"{model.device.type}, {options.dtype}")

    def scores(self, when, results):
        for split, metrics in results.items():
            for metric, found in metrics.items():
                self.say(f"{when}: {split}, {metric}: {found.score} on {found.score.n} problems")

    @contextmanager
    def progress(self, first, steps):
        """A live line on a terminal.  Elsewhere, a plain line ten times in a run."""
        self.first, self.steps, self.started = first, steps, time.perf_counter()
        if not self.rich.is_terminal:
            yield
            return
        self.bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=6),
            TextColumn("{task.fields[line]} "), TimeRemainingColumn(compact=True),
            TextColumn("left"), console=self.rich,
        )
        with self.bar:
            self.task = self.bar.add_task("", total=steps, completed=first, line="")
            yield
        self.bar = None

    def step(self, step, metrics, rate):
        done, every = step - self.first, max(1, (self.steps - self.first) // 10)
        if self.bar:
            self.bar.update(self.task, completed=step, line=line(metrics, rate))
        elif step == self.steps or done % every == 0:
            left = (time.perf_counter() - self.started) / done * (self.steps - step)
            self.say(f"step {step}/{self.steps}  {line(metrics, rate)}  {left:.0f} s left")

    def side_by_side(self, problems, before, after, split, show):
        """Problems with the answer before and the answer after, and how many changed.

        First come problems with a higher reward, then problems with a lower one, then others, each
        kind in the split's fixed order.  The title counts all, so the choice hides nothing.
        """
        if after.rows is not None:
            problems = [problems[i] for i in after.rows]
        change = [new - old for old, new in zip(before.rewards, after.rewards)]
        rose, fell = (sum(sign * c > 0 for c in change) for sign in (1, -1))
        table = Table(box=box.SIMPLE_HEAD, title_justify="left", title=(
            f"{split}: of {len(change)} answers {rose} got better and {fell} got worse, such as"))
        for name in ("problem", "before", "after"):
            table.add_column(name, overflow="fold")
        better = sorted(range(len(change)), key=lambda i: change[i] <= 0)[: show - min(1, fell)]
        worse = [i for i, c in enumerate(change) if c < 0 and i not in better]
        rest = [i for i in range(len(change)) if i not in better and i not in worse]
        for i in [*better, *worse, *rest][:show]:
            table.add_row(plain(problems[i].prompt.strip()), answer(before, i), answer(after, i))
        self.rich.print(table)

    def trace(self, lines, columns):
        """Some metrics at up to ten steps.  `lines` are those of metrics.jsonl."""
        columns = [name for name in columns if any(line.get(name) is not None for line in lines)]
        table = Table(box=box.SIMPLE_HEAD, title="how it went", title_justify="left")
        for name in ("step", *columns):
            table.add_column(name, justify="right")
        gap = max(1, -(-len(lines) // 10))
        for line in [*lines[: -1 : gap], *lines[-1:]]:
            values = (line.get(name) for name in columns)
            table.add_row(str(line["step"]), *("" if v is None else f"{v:.3g}" for v in values))
        self.rich.print(table)

    def stages(self, summary, lines, milestones):
        """All results before, after each stage, and at the end: what a stage made and unmade.

        A run that was cut short has measured some stages and not others.
        """
        table = Table(box=box.SIMPLE_HEAD, title="after each stage", title_justify="left")
        for name in ("", "before", *milestones.values(), "end"):
            table.add_column(name, justify="left" if not name else "right")
        at = {line["step"]: line for line in lines}
        for name, row in summary["all"].items():
            metric, _, split = name.partition(", ")
            middle = [at.get(step, {}).get(f"eval/{split}/{metric}") for step in milestones]
            table.add_row(name, *("" if value is None else f"{value:.3f}" for value in (
                row["before"]["value"], *middle, row["after"]["value"])))
        self.rich.print(table)

    def arms(self, arms, before):
        """The arms of a test-time method: accuracy, tokens per problem, and the gain over `before`.

        An arm has a gain if it answered the same problems as `before`.
        """
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("way to answer", "n", "accuracy [95%]", "tokens", f"less {before!r} [95%]"):
            table.add_column(name)
        usual = arms[before].result.rewards
        for name, arm in arms.items():
            gain, rewards = "", arm.result.rewards
            if len(rewards) == len(usual) and name != before:
                gain = f"{paired(usual, rewards):+}"
            table.add_row(name, str(len(rewards)), str(arm.result.score), f"{arm.each:,.0f}", gain)
        self.rich.print(table)

    def findings(self, found, seconds):
        """The doctor's findings, one per line.  Warnings and faults end the screen."""
        marks = {"ok": ("ok", "green"), "does not apply": ("n/a", "dim"),
                 "warning": ("warning", "yellow"), "fault": ("FAULT", "bold red")}
        table = Table.grid(padding=(0, 2))
        for status, (mark, style) in marks.items():
            for finding in found:
                if finding.status == status:
                    table.add_row(Text(mark, style), plain(f"{finding.check}: {finding.sentence}"))
        self.rich.print(table)
        count = {status: sum(f.status == status for f in found) for status in marks}
        self.say(f"\n{count['ok']} ok, {count['does not apply']} n/a, warnings: "
                 f"{count['warning']}, faults: {count['fault']}; {seconds:.1f} s")

    def result(self, summary, directory):
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("reward", "n", "before [95%]", "after [95%]"):
            table.add_column(name)
        for name, row in summary["all"].items():
            before, after = (Score(**row[when]) for when in ("before", "after"))
            table.add_row(name, str(after.n), str(before), str(after))
        for name, row in summary["asked"].items():
            table.add_row(name, str(row["n"]), str(Score(**row)), "")
        self.rich.print(table)
        self.end(summary, directory)

    def end(self, summary, directory):
        self.say(f"{summary['seconds']:.0f} s of training, {summary['tokens']:,} tokens; "
                 f"everything is in {directory}")


def answer(found, i):
    """A completion with a mark, or with its reward if rewards are more than right or wrong."""
    exact = set(found.rewards) <= {0.0, 1.0}
    mark = ("✗", "✓")[int(found.rewards[i])] if exact else f"{found.rewards[i]:+.2f}"
    return plain(f"{mark} " + found.texts[i].strip().replace("\n", "; "))
