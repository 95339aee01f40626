"""What a run shows on the screen, with rich: header, live line, before and after.

All that is shown may hold texts of a model or of a user's file, so `plain` makes it safe to print.
What cannot be printed never ends a run.
"""

import re
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOBase
from typing import TextIO, cast

from rich import box
from rich.console import Console as Rich
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from minipost.cli.options import silence
from minipost.engine.bottleneck import width_of
from minipost.engine.coded import count
from minipost.engine.lora import adapters, trained
from minipost.engine.prefix import length_of
from minipost.errors import visible
from minipost.measure.results import on_both
from minipost.measure.stats import Score, beyond_chance, paired
from minipost.page.reading import moved

MOST_TEXT, MOST_ROWS = 160, 8  # characters of an answer of a group, and its rows
NARROW = 60  # columns of a terminal that has no room for a bar
LEAST = 14  # columns of the terminal that a column of text needs
LIVE = ("reward", "gold", "accuracy", "loss", "kl", "entropy")  # of a method's metrics


def line(metrics, rate, room=1000):
    """The metrics of a step on a line of at most `room` characters, the most telling ones first."""
    shown = [f"{name} {metrics[name]:.3f}" for name in LIVE
             if name in metrics and not (name == "loss" and "reward" in metrics)]
    shown.append(f"{rate:,.0f} tok/s")
    while len(shown) > 1 and len("  ".join(shown)) > room:
        shown.pop()
    return "  ".join(shown)


def plain(text):
    """A text without markup, in which nothing steers the terminal.

    All that is shown goes through here, whoever wrote it: a model, a user's file, a library.
    """
    return Text(visible(str(text)))


def pieces(name):
    """The parts of a column's name between which a line may end."""
    return [part.rstrip() for part in re.findall(r"[^ _/]+[ _/]*", name)] or [""]


def broken(name, width):
    """A column's name in lines of at most `width` characters, if its parts allow that."""
    lines = [""]
    for part in re.findall(r"[^ _/]+[ _/]*", name):
        if lines[-1] and len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def shortened(text, most=MOST_TEXT):
    """An answer on one line, without its middle if it is long: how it begins and what it says."""
    text = text.strip().replace("\n", "; ")
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


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
        self.rich = Rich(quiet=quiet, highlight=False, markup=False, emoji=False,
                         file=cast(TextIO, Screen()))
        self.bar = None

    def say(self, text):
        self.rich.print(plain(text), soft_wrap=True)  # keeps a path or command whole for copying

    def tell(self, text):
        """Say something that is long and holds nothing to copy: a terminal breaks it at words."""
        inner = text.lstrip(" ")
        if self.rich.is_terminal:
            self.rich.print(Padding(plain(inner), (0, 0, 0, len(text) - len(inner))))
        else:
            self.say(text)

    def table(self, names, rows, *, title="", texts=(0,), right=()):
        """A table; a list of its rows where the terminal is too narrow for it.

        rows: a text for each name.  texts: the columns that may be broken into lines.
        right: the columns of numbers that end at one place.
        """
        rows = [[cell if isinstance(cell, Text) else plain(cell) for cell in row] for row in rows]
        each = [LEAST if k in texts else max(
            [max(map(len, pieces(name))), *(row[k].cell_len for row in rows)])
            for k, name in enumerate(names)]
        if title:
            self.rich.print(plain(title))
        gap = self.rich.width - sum(each) - 1 >= 3 * len(each)
        if not gap and self.rich.width - sum(each) - 1 < 2 * len(each):
            self.list(names, rows)
            return
        table = Table(box=box.SIMPLE_HEAD, padding=(0, int(gap), 0, 1))
        for k, (name, least) in enumerate(zip(names, each)):
            table.add_column(plain(name if k in texts else broken(name, least)), overflow="fold",
                             no_wrap=k not in texts, justify="right" if k in right else "left")
        for row in rows:
            table.add_row(*row)
        self.rich.print(table)

    def list(self, names, rows):
        """The rows of a table without its columns: each value behind its name, as many as fit."""
        for row in rows:
            lines: list[Text] = []
            for name, cell in ((name, cell) for name, cell in zip(names, row) if len(cell)):
                cell = plain(f"{name} " if name else "") + cell
                if lines and lines[-1].cell_len + 2 + cell.cell_len <= self.rich.width - 4:
                    lines[-1] = plain("  ").join([lines[-1], cell])
                else:
                    lines.append(cell)
            for k, line in enumerate(lines):
                self.rich.print(Padding(line, (0, 0, 0, 4 if k else 2)))
        self.rich.print()

    def header(self, algo, task, config, options, model, workers):
        size = count(model) / 1e6
        learn = sum(p.numel() for p in trained(model))
        knobs = ", ".join(f"{k} {v}" for k, v in asdict(task).items() if v != "")
        recipe = ", ".join(f"{k} {v}" for k, v in asdict(config).items() if v != "")
        said = f"{size:.2f}M parameters"
        if adapters(model):
            many = f"{learn} numbers" if options.lora_numbers else f"{learn / 1e6:.2f}M"
            said = (f"{size - learn / 1e6:.2f}M parameters, and {many} in adapters of rank "
                    f"{options.lora}, which alone learn")
            if options.base_bits:
                said += f", the layers' weights in {options.base_bits} bits"
        elif length := length_of(model):
            said = (f"{size - learn / 1e6:.2f}M parameters, and {learn / 1e6:.2f}M in a prefix of "
                    f"{length}, which alone learns")
        elif width := width_of(model):
            said = (f"{size - learn / 1e6:.2f}M parameters, and {learn / 1e6:.2f}M in bottlenecks "
                    f"of width {width}, which alone learn")
        self.tell(f"{algo} trains {options.model} ({said}) on {task.name} ({knobs})")
        self.tell(f"  {recipe}")
        self.tell(f"  seed {options.seed}, {workers} process{'es' if workers > 1 else ''}, "
                 f"{model.device.type}, {options.dtype}")

    def scores(self, when, results):
        for split, metrics in results.items():
            for metric, found in metrics.items():
                self.say(f"{when}: {split}, {metric}: {found.score} on {found.score.n} problems")

    @contextmanager
    def progress(self, first, steps):
        """A live line on a terminal.  Elsewhere, a plain line ten times in a run."""
        self.first, self.steps, self.started = first, steps, time.perf_counter()
        if not self.rich.is_terminal or self.rich.is_dumb_terminal:
            yield
            return
        bar = [BarColumn(bar_width=6)] if self.rich.width >= NARROW else []
        # What stands beside the metrics, with the spaces between: step 12/40, a bar, 00:20 left.
        self.room = self.rich.width - 2 * len(str(steps)) - 21 - 7 * len(bar)
        self.bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), *bar,
            TextColumn("{task.fields[line]} ", markup=False), TimeRemainingColumn(compact=True),
            TextColumn("left"), console=self.rich,
        )
        with self.bar:
            self.task = self.bar.add_task("", total=steps, completed=first, line="")
            yield
        self.bar = None

    def step(self, step, metrics, rate):
        done, every = step - self.first, max(1, (self.steps - self.first) // 10)
        if self.bar:
            self.bar.update(self.task, completed=step,
                            line=line(metrics, rate, self.room))
        elif step == self.steps or done % every == 0:
            left = (time.perf_counter() - self.started) / done * (self.steps - step)
            self.say(f"step {step}/{self.steps}  {line(metrics, rate)}  {left:.0f} s left")

    def side_by_side(self, problems, before, after, split, show):
        """Problems with the answer before and the answer after, and how many changed.

        First come problems with a higher reward, then problems with a lower one, then others, each
        kind in the split's fixed order.  The title counts all, so the choice hides nothing.
        """
        before, after = on_both(before, after)
        if after.rows is not None:
            problems = [problems[i] for i in after.rows]
        change = [new - old for old, new in zip(before.rewards, after.rewards, strict=True)]
        rose, fell = (sum(sign * c > 0 for c in change) for sign in (1, -1))
        better = sorted(range(len(change)), key=lambda i: change[i] <= 0)[: show - min(1, fell)]
        worse = [i for i, c in enumerate(change) if c < 0 and i not in better]
        rest = [i for i in range(len(change)) if i not in better and i not in worse]
        self.table(("problem", "before", "after"),
                   [(problems[i].prompt.strip(), answer(before, i), answer(after, i))
                    for i in [*better, *worse, *rest][:show]], texts=(0, 1, 2), title=(
            f"{split}: of {len(change)} answers {rose} got better and {fell} got worse, such as"))

    def group(self, rows):
        """One prompt of a step with its answers, the best first; equal answers stand once.

        rows: those of measure.watch.Example.
        """
        if not rows:
            return
        times = Counter((-row["reward"], -row["advantage"], row["completion"]) for row in rows)
        shown = [(f"{count} x", f"{-reward:.3g}", f"{-adv:+.2f}", shortened(text))
                 for (reward, adv, text), count in sorted(times.items())]
        if cut := len(shown) - MOST_ROWS:
            half = MOST_ROWS // 2
            shown[half : half + cut] = [("", "", "", f"... {cut} more")] if cut > 0 else []
        learnt = any(row["advantage"] for row in rows)
        self.table(("", "reward", "advantage", shortened(rows[0]["prompt"])), shown, texts=(3,),
                   right=(0, 1, 2), title=(
            f"step {rows[0]['step']}, a prompt and its {len(rows)} answers: " + (
                "what has a positive advantage becomes likelier, what has a negative one less so"
                if learnt else "all earned the same, so nothing was learnt from them")))

    def look(self, name, summary):
        """What to look at: the headline of a run, in a sentence."""
        before, after, gain = (summary[key] for key in ("before", "after", "gain"))
        sure = beyond_chance(gain)
        asked = "".join(f"; {way.partition(', ')[0]} gave {score['value']:.3f} before"
                        for way, score in [*summary["asked"].items()][:1])
        self.tell(f"look at {name}: from {before['value']:.3f} to {after['value']:.3f}, a change "
                  f"of {Score(**gain):+} on the same problems, "
                  f"{'more than chance' if sure else 'which may be chance'}{asked}")
        for other, row in () if sure else moved(summary):
            self.tell(f"look at {other} too: from {row['before']['value']:.3f} to "
                      f"{row['after']['value']:.3f}, a change of {Score(**row['gain']):+}, more "
                      "than chance")

    def trace(self, lines, columns):
        """Some metrics at up to ten steps.  `lines` are those of metrics.jsonl."""
        columns = [name for name in columns if any(line.get(name) is not None for line in lines)]
        gap = max(1, -(-len(lines) // 10))
        rows = [[str(line["step"]), *("" if (v := line.get(name)) is None else f"{v:.3g}"
                                      for name in columns)]
                for line in [*lines[: -1 : gap], *lines[-1:]]]
        self.table(("step", *columns), rows, title="how it went", texts=(),
                   right=range(len(columns) + 1))

    def stages(self, summary, lines, milestones):
        """All results before, after each stage, and at the end: what a stage made and unmade.

        A run that was cut short has measured some stages and not others.
        """
        rows, at = [], {line["step"]: line for line in lines}
        for name, row in summary["all"].items():
            metric, _, split = name.partition(", ")
            middle = [at.get(step, {}).get(f"eval/{split}/{metric}") for step in milestones]
            rows.append((name, *("" if value is None else f"{value:.3f}" for value in (
                row["before"]["value"], *middle, row["after"]["value"]))))
        names = ("", "before", *milestones.values(), "end")
        self.table(names, rows, title="after each stage", right=range(1, len(names)))

    def arms(self, arms, before):
        """The arms of a test-time method: accuracy, tokens per problem, and the gain over `before`.

        An arm has a gain if it answered the same problems as `before`.
        """
        usual, rows = arms[before].result.rewards, []
        for name, arm in arms.items():
            gain, rewards = "", arm.result.rewards
            if len(rewards) == len(usual) and name != before:
                gain = f"{paired(usual, rewards):+}"
            rows.append((name, str(len(rewards)), str(arm.result.score), f"{arm.each:,.0f}", gain))
        self.table(("way to answer", "n", "accuracy [95%]", "tokens", f"less {before!r} [95%]"),
                   rows)

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
        rows = []
        for name, row in summary["all"].items():
            before, after = (Score(**row[when]) for when in ("before", "after"))
            rows.append((name, str(after.n), str(before), str(after)))
        for name, row in summary["asked"].items():
            rows.append((name, str(row["n"]), str(Score(**row)), ""))
        self.table(("reward", "n", "before [95%]", "after [95%]"), rows)
        self.end(summary, directory)

    def end(self, summary, directory):
        self.say(f"{summary['seconds']:.0f} s of training, {summary['tokens']:,} tokens; "
                 f"everything is in {directory}")


def answer(found, i):
    """A completion with a mark, or with its reward if rewards are more than right or wrong."""
    exact = set(found.rewards) <= {0.0, 1.0}
    mark = ("✗", "✓")[int(found.rewards[i])] if exact else f"{found.rewards[i]:+.2f}"
    return plain(f"{mark} " + found.texts[i].strip().replace("\n", "; "))
