"""`make museum`: hang every bug in turn and show which tests see it.

python -m tests.museum [NAME ...]    a table; exit code 1 where a test named there sees nothing
python -m tests.museum [NAME ...] --ask test_ops.py ...    which tests of other files fail on them
"""

import argparse
import sys
import time

from rich.console import Console
from rich.table import Table

from .exhibits import EXHIBITS
from .gallery import failed, hang


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.museum", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="exhibits; all of them if none is named")
    parser.add_argument("--ask", nargs="+", help="tests to ask instead, test_file.py[::name]")
    args = parser.parse_args()
    chosen = [e for e in EXHIBITS if not args.names or e.name in args.names]
    if len(chosen) < len(args.names):
        parser.error(f"no such exhibit among {', '.join(e.name for e in EXHIBITS)}")
    start, caught = time.perf_counter(), 0
    table = Table(show_lines=True, expand=True)
    for title, ratio in (("bug", 3), ("thread", 3), ("what went wrong", 5), ("caught by", 7)):
        table.add_column(title, ratio=ratio, overflow="fold")
    # A name of a test may end in brackets, which are markup elsewhere.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 140)
    for exhibit in chosen:
        found = hang(exhibit, args.ask or exhibit.caught_by)
        tests = [name for name in found if failed(name, found)] if args.ask else exhibit.caught_by
        missed = [test for test in tests if not failed(test, found)]
        caught += bool(tests) and not missed
        table.add_row(exhibit.name, exhibit.thread, exhibit.story, "\n".join(
            f"{test} SEES NOTHING" if test in missed else test for test in tests) or "NOTHING")
        seen = sum(map(bool, found.values()))
        print(f"{exhibit.name}: fails {seen} of {len(found)} tests", flush=True)
    console.print(table)
    print(f"{len(chosen)} bugs, {caught} caught ({time.perf_counter() - start:.0f} seconds)")
    return int(caught < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
