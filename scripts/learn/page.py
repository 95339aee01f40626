"""The code on docs/learn.md is cut out of the files that it names, so it cannot go stale.

    <!-- code: minipost/methods/dpo.py lead loss_grad -->
    <!-- code: minipost/methods/rloo.py train from "reward = " to "adv = " -->

Below such a line stands a fenced block.  The first form fills it with functions or classes, without
their docstrings, the second with lines of one: from the first that holds a text to the next that
holds another.
"""

import ast
import re
from pathlib import Path
from textwrap import dedent

from minipost.errors import MinipostError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "learn.md"
BLOCK = re.compile(r"(<!-- code: (.*?) -->\n)(```python\n.*?```)?", re.S)
CUT = re.compile(r'(\S+) from "(.*)" to "(.*)"')


def fill(text):
    """The page with every marked block written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}```python\n{block(found[2])}\n```"
                     + ("" if found[3] else "\n"), text)


def block(mark):
    """The code that a mark asks for.  MinipostError where the file has no such thing."""
    file, _, what = mark.partition(" ")
    if not (ROOT / file).is_file():
        raise MinipostError(f"docs/learn.md: code: {mark}: there is no file {file}")
    cut = CUT.fullmatch(what)
    if not cut:
        return "\n\n\n".join(source(file, name) for name in what.split())
    name, first, last = cut.groups()
    lines = source(file, name).splitlines()
    begin = next((k for k, line in enumerate(lines) if first in line), None)
    if begin is not None:
        end = next((k for k, line in enumerate(lines) if k >= begin and last in line), None)
        if end is not None:
            return dedent("\n".join(lines[begin : end + 1]))
    raise MinipostError(f"docs/learn.md: code: {mark}: {name} in {file} has no such lines")


def source(file, name):
    """A function or class of a file as text, without its docstring."""
    text = (ROOT / file).read_text(encoding="utf-8")
    kinds = ast.FunctionDef | ast.ClassDef
    node = next((n for n in ast.parse(text).body if isinstance(n, kinds) and n.name == name), None)
    if node is None:
        raise MinipostError(f"docs/learn.md: {file} has no function or class {name}")
    lines = text.splitlines()
    start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    kept = range(start, (node.end_lineno or 0) + 1)
    if ast.get_docstring(node) is not None:
        said = node.body[0]
        after = (said.end_lineno or 0) + 1
        gap = [after] if after in kept and not lines[after - 1].strip() else []
        gone = {*range(said.lineno, after), *gap}
        kept = [k for k in kept if k not in gone]
    return "\n".join(lines[k - 1] for k in kept)


def write(page=PAGE):
    """Rewrite the page in its place.  -> whether anything has changed"""
    old = page.read_text(encoding="utf-8")
    new = fill(old)
    if new != old:
        page.write_text(new, encoding="utf-8")
    return new != old
