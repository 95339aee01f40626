"""What writes a part of BENCHMARKS.md: its markers, its table, the machine that it was made on."""

import datetime
import importlib.metadata
import platform
from pathlib import Path

from scripts.alternate import CORES


def write(report, part, lines, command="python -m scripts.bench"):
    """Put the lines between the part's markers in the report, or at its end if it has none."""
    first, last = f"<!-- {part}: {command} {part} -->", f"<!-- end of {part} -->"
    text = report.read_text(encoding="utf-8") if report.exists() else "# Benchmarks\n"
    block = "\n".join([first, *lines, last])
    if first in text and last in text:
        text = text[: text.index(first)] + block + text[text.index(last) + len(last) :]
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    report.write_text(text, encoding="utf-8")
    print("\n".join(lines))


def machine(*packages):
    """The machine and versions behind the figures, in one line."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in cpu if line.startswith("model name")]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", *packages)]
    return (f"Machine: {names[0] if names else platform.processor()}, {CORES} cores, "
            f"Python {platform.python_version()}, {', '.join(versions)}; "
            f"{datetime.date.today():%Y-%m-%d}.")


def table(columns, rows):
    return ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
