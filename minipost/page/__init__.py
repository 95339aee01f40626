"""The report of runs: one HTML file that needs no network.

    write(directory)        the page of one run, beside its other files
    render(runs)            the page of several, as a text
    verdict(run)            what came out, in words

Texts of a model are hostile.  The template escapes all it is given; characters that steer a screen
or turn the direction of text are spelled out; the page's policy lets nothing run but page.js.
reading.py reads runs, health.py judges them, plots.py computes charts, view.py arranges it.
"""

from pathlib import Path

from minipost import files
from minipost.page.reading import load, read_rows  # noqa: F401
from minipost.page.view import render, verdict  # noqa: F401


def write(directory):
    """Write report.html into a run's directory, whole or not at all.  -> its path"""
    path = Path(directory, "report.html")
    publish(path, render([load(directory)]))
    return path


def publish(path, text):
    files.publish(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
