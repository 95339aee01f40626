"""Every bug of the museum is seen by all tests that its exhibit names; `make museum` shows them.

To put each into the code in turn takes half a minute: `pytest -m museum` asks for that.
"""

import ast

import pytest

from .exhibits import EXHIBITS
from .gallery import TESTS, failed, patched, tour

each = pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)


@pytest.fixture(scope="module")
def seen(request):
    """{name: how its tests ended} of the exhibits that this session asks for."""
    asked = [item.callspec.params["exhibit"] for item in request.session.items
             if getattr(item, "function", None) is test_the_tests_that_it_names_see_the_bug]
    found = tour([(e.file, e.ours, e.theirs, e.caught_by) for e in asked])
    return {exhibit.name: ended for exhibit, ended in zip(asked, found, strict=True)}


def test_there_are_many_of_many_places():
    assert len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS) >= 20
    assert len({exhibit.thread for exhibit in EXHIBITS}) > 0.9 * len(EXHIBITS)


@each
def test_the_patch_applies_and_the_tests_exist(exhibit):
    """A snippet that stands in our code once, what still is Python without it, names of tests."""
    ast.parse(patched(exhibit.file, exhibit.ours, exhibit.theirs))
    assert exhibit.caught_by and exhibit.story.endswith(".")
    for test in exhibit.caught_by:
        file, _, name = test.partition("::")
        defined = {node.name for node in ast.parse((TESTS / file).read_text()).body
                   if isinstance(node, ast.FunctionDef)}
        assert name.partition("[")[0] in defined, test


@pytest.mark.museum
@each
def test_the_tests_that_it_names_see_the_bug(exhibit, seen):
    """All of them, by a value that is wrong and not because the code no longer runs."""
    ended = seen[exhibit.name]
    assert not [test for test in exhibit.caught_by if not failed(test, ended)], ended


@pytest.mark.museum
def test_without_a_bug_they_all_pass():
    """The control: a snippet replaced by itself is seen by nobody."""
    tests = sorted({test for exhibit in EXHIBITS for test in exhibit.caught_by})
    (ended,) = tour([(EXHIBITS[0].file, EXHIBITS[0].ours, EXHIBITS[0].ours, tests)])
    assert {name: fault for name, fault in ended.items() if fault} == {}
    for test in tests:
        assert any(name == test or name.startswith(f"{test}[") for name in ended), test


def test_the_gallery_tells_a_bug_from_none_and_from_code_that_does_not_run():
    file, ours = "minipost/ops.py", "return torch.expm1(-gap) + gap"
    test = "test_ops.py::test_k3_is_unbiased_and_its_gradient_is_the_other_kl"
    found = tour([(file, ours, theirs, [test]) for theirs in (
        ours, "return torch.expm1(gap) - gap", "return no_such_name")])
    assert found == [{test: ""}, {test: "AssertionError"}, {test: "NameError"}]
    assert [failed(test, ended) for ended in found] == [False, True, False]
    with pytest.raises(RuntimeError, match="pytest ended with"):
        tour([(file, ours, "return (", [test])])
    with pytest.raises(ValueError, match="holds 0 times"):
        patched(file, "no such line", "")
