"""The pages: links lead somewhere, tables are whole, and README stays one that is read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "checkpoints").glob("*/README.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page):
    """What GitHub makes of the page's headings."""
    return {re.sub(r"[^\w\- ]", "", line.lstrip("# ").strip().lower()).replace(" ", "-")
            for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, place = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        if place and there.suffix == ".md":
            assert place in anchors(there), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_is_whole(page):
    lines, cells = page.read_text(encoding="utf-8").splitlines(), 0
    for k, line in enumerate(lines, 1):
        if not line.startswith("|"):
            cells = 0
            continue
        found = len(re.findall(r"(?<!\\)\|", line))
        if not cells:                                       # a head, and the line below it
            assert k < len(lines) and re.fullmatch(r"\|[-:| ]+\|", lines[k]), f"line {k}: no head"
        assert found == (cells or found), f"line {k}: as many cells as the head"
        cells = found


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_map_names_every_method_and_folder():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", text[text.index("## The map"):]))
    for folder in ("methods", "test_time"):
        for path in (ROOT / "minipost" / folder).glob("[a-z]*.py"):
            assert path.stem in named, path.stem
    for path in (ROOT / "minipost").iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert path.name in named, path.name


def test_methods_has_a_line_for_each_method():
    text = (ROOT / "METHODS.md").read_text(encoding="utf-8")
    for folder in ("methods", "test_time"):
        for path in (ROOT / "minipost" / folder).glob("[a-z]*.py"):
            assert f"(minipost/{folder}/{path.name})" in text, path.name
