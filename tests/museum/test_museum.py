"""Every bug of the museum is seen by all tests that its exhibit names; `make museum` shows them.

To put each into the code in turn takes half a minute: `pytest -m museum` asks for that.
"""

import ast
import functools
import inspect

import pytest

from .exhibits import EXHIBITS
from .gallery import TESTS, failed, place, tour

each = pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)


@pytest.fixture(scope="module")
def seen(request):
    """{name: how its tests ended} of the exhibits that this session asks for."""
    asked = [item.callspec.params["exhibit"] for item in request.session.items
             if getattr(item, "function", None) is test_the_tests_that_it_names_see_the_bug]
    found = tour([(e.name, e.caught_by) for e in asked])
    return {exhibit.name: ended for exhibit, ended in zip(asked, found, strict=True)}


@functools.cache
def defined(path):
    """Names of a file's functions."""
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)}


def test_there_are_many_of_many_places():
    assert len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS) >= 20
    assert len({exhibit.thread for exhibit in EXHIBITS}) > 0.9 * len(EXHIBITS)


@each
def test_the_bug_takes_what_our_function_takes(exhibit):
    """So the function exists, and has the arguments that the bug names."""
    holder, name = place(exhibit.where)
    ours = vars(holder)[name]
    parameters = inspect.signature(getattr(ours, "fget", ours)).parameters.values()
    by_name = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    by_place = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    bug = inspect.signature(exhibit.bug)
    bug.bind(ours, *by_place, **dict.fromkeys(by_name))
    # What ours takes by place would never reach an option that the bug takes by name alone.
    assert {n for n, p in bug.parameters.items() if p.kind == p.KEYWORD_ONLY} <= set(by_name)


@each
def test_the_tests_that_it_names_exist(exhibit):
    assert exhibit.caught_by and exhibit.story.endswith(".")
    for test in exhibit.caught_by:
        file, _, name = test.partition("[")[0].partition("::")
        files = [path.relative_to(TESTS).as_posix() for path in sorted(TESTS.rglob("test_*.py"))
                 if name in defined(path)]
        assert file in files, f"{file} has no {name}; it is in {', '.join(files) or 'no file'}"


@pytest.mark.museum
@each
def test_the_tests_that_it_names_see_the_bug(exhibit, seen):
    """All of them, by a value that is wrong and not because the code no longer runs."""
    ended = seen[exhibit.name]
    assert not [test for test in exhibit.caught_by if not failed(test, ended)], ended


@pytest.mark.museum
def test_without_a_bug_they_all_pass():
    """The control: what only hands our functions their arguments is seen by nobody."""
    tests = sorted({test for exhibit in EXHIBITS for test in exhibit.caught_by})
    (ended,) = tour([("no bug", tests)])
    assert {name: fault for name, fault in ended.items() if fault} == {}
    for test in tests:
        assert any(name == test or name.startswith(f"{test}[") for name in ended), test


def test_the_gallery_tells_a_bug_from_none_and_from_code_that_does_not_run():
    bug = next(exhibit for exhibit in EXHIBITS if exhibit.name == "KL ratio inverted")
    (test,) = bug.caught_by
    found = tour([(name, [test]) for name in ("no bug", bug.name, "does not run")])
    assert found == [{test: ""}, {test: "AssertionError"}, {test: "TypeError"}]
    assert [failed(test, ended) for ended in found] == [False, True, False]
    with pytest.raises(RuntimeError, match="we have no minipost.ops:no_such_name"):
        tour([("nowhere", [test])])
