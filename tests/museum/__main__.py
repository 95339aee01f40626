"""`make museum`: every bug in our code, one after another, and which tests catch it."""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .exhibits import EXHIBITS
from .gallery import missed


def main():
    started, console = time.perf_counter(), Console(highlight=False)
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(missed, EXHIBITS))
    table = Table(box=box.SIMPLE_HEAD, show_lines=True)
    for name in ("bug", "caught by"):
        table.add_column(name, overflow="fold")
    for exhibit, holes in zip(EXHIBITS, found):
        names = [("NOT by " if test in holes else "") + test.partition("::")[2].replace("_", " ")
                 for test in exhibit.caught_by]
        table.add_row(Text.assemble((exhibit.name, "bold"), f"  {exhibit.thread}\n", exhibit.story),
                      Text("\n".join(names)))
    console.print(table)
    holes = [exhibit.name for exhibit, missing in zip(EXHIBITS, found) if missing]
    console.print(f"{len(EXHIBITS)} bugs, {len(EXHIBITS) - len(holes)} caught by every test that is named"
                  + (f"; not caught: {', '.join(holes)}" if holes else "")
                  + f"; {time.perf_counter() - started:.0f} s", soft_wrap=True)
    return int(bool(holes))


if __name__ == "__main__":
    sys.exit(main())
