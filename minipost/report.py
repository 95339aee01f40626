"""A page about a run, or several: python -m minipost.report runs/demo-grpo

    python -m minipost.report RUN                        writes RUN/report.html again
    python -m minipost.report RUN --follow               again and again, while the run goes on
    python -m minipost.report A B C --out compare.html   several runs: methods in one plot, seeds of
                                                         a method as a band
    python -m minipost.report RUN --json                 the verdict and the checks as data

The page is one file that needs no network.  Every run writes it at its end (--report False: not).
A run is the --out of minipost.train, or of minipost.evaluate --method.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from minipost import page
from minipost.cli.options import fail_in_one_sentence
from minipost.errors import MinipostError, visible
from minipost.page import health

PROG = "python -m minipost.report"
EVERY = 5  # seconds between two looks at a run that is followed


def main(argv=None):
    return fail_in_one_sentence(lambda: report(sys.argv[1:] if argv is None else argv))


def report(argv):
    flags = argparse.ArgumentParser(
        prog=PROG, description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", nargs="+", metavar="RUN", help="the directory of a run")
    flags.add_argument("--out", default="", help="file to write; RUN/report.html if empty")
    flags.add_argument("--follow", action="store_true", help="write it again while the run goes on")
    flags.add_argument("--json", action="store_true", help="print data and write no page")
    given = flags.parse_args(argv)
    if len(given.runs) > 1 and not (given.out or given.json):
        raise MinipostError("a page of several runs lies in none of them; say where with --out, "
                            "such as --out compare.html")
    if given.follow and (len(given.runs) > 1 or given.json):
        raise MinipostError("--follow rewrites the page of one run; leave out the others and "
                            "--json")
    places = [os.path.realpath(name) for name in given.runs]
    for name, place in zip(given.runs, places):
        if places.count(place) > 1:
            raise MinipostError(f"{name}: the run is named twice; name each run once")
    out = Path(given.out or Path(given.runs[0], "report.html"))
    if given.follow:
        return follow(Path(given.runs[0]), out)
    runs = [page.load(name) for name in given.runs]
    for run in runs:
        if run.complaint:
            print(visible(f"warning: {health.log(run).sentence}"), file=sys.stderr)
    if given.json:
        print(json.dumps([as_data(run) for run in runs], indent=2))
        return 0
    page.publish(out, page.render(runs))
    print(visible(str(out)))
    return 0


def as_data(run):
    """What the head of the page says, as data."""
    tone, sentence = page.verdict(run)
    return {"run": str(run.path), "method": run.algo, "task": run.task, "seed": run.seed,
            "step": run.step, "verdict": sentence, "tone": tone, "summary": run.summary,
            "health": [{**asdict(f), "finding": f.sentence} for f in health.examine(run)]}


def follow(directory, out):
    """Write the page whenever the run has gone on, and a last time when nobody works at it."""
    print(visible(f"{out}: is written again while the run goes on; Ctrl-C ends this"))
    seen = None
    try:
        while True:
            going = at_work(directory)
            now = [(directory / name).stat().st_mtime_ns for name in (
                "metrics.jsonl", "report.jsonl", "summary.json") if (directory / name).exists()]
            if now != seen or not going:
                page.publish(out, page.render([page.load(directory)], EVERY if going else 0))
                seen = now
            if not going:
                print("the run is over" if (directory / "summary.json").exists()
                      else "no process is at work in this run")
                return 0
            time.sleep(EVERY)
    except KeyboardInterrupt:
        page.publish(out, page.render([page.load(directory)]))
        return 0


def at_work(directory):
    """Whether a process holds the run (cli/directory.py), or, without locks, has not ended it."""
    try:
        import fcntl
    except ImportError:  # there is no such lock on Windows
        return not (directory / "summary.json").exists()
    try:
        number = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(number)
    return False


if __name__ == "__main__":
    sys.exit(main())
