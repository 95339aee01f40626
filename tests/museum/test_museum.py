"""Every exhibit applies to our code, and every test that it names fails on it.

The second takes minutes, so it runs only when asked for: `make museum`, or `pytest -m museum`.
"""

import ast

import pytest

from .exhibits import EXHIBITS
from .gallery import TESTS, hang, missed, patched

by_name = pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)


@by_name
def test_the_patch_applies_and_the_tests_that_it_names_exist(exhibit):
    assert patched(exhibit.file, exhibit.ours, exhibit.theirs) != \
        (TESTS.parent / exhibit.file).read_text(encoding="utf-8")
    assert exhibit.thread and exhibit.story.endswith(".") and exhibit.caught_by
    for test in exhibit.caught_by:
        file, _, name = test.partition("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert name.split("[")[0] in [f.name for f in tree.body if isinstance(f, ast.FunctionDef)]


def test_there_are_at_least_twenty_and_no_two_are_alike():
    assert len(EXHIBITS) >= 20
    assert len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS)
    assert len({(exhibit.file, exhibit.ours, exhibit.theirs) for exhibit in EXHIBITS}) == len(EXHIBITS)


def test_the_gallery_tells_a_bug_from_none_and_from_code_that_does_not_run():
    file, ours = "minipost/ops.py", "return torch.expm1(-gap) + gap"
    test = "test_ops.py::test_k3_is_unbiased_and_its_gradient_is_the_other_kl"
    assert hang(file, ours, ours, [test]) == {test: ""}
    assert hang(file, ours, "return torch.expm1(gap) - gap", [test]) == {test: "AssertionError"}
    assert hang(file, ours, "return no_such_name", [test]) == {test: "NameError"}
    with pytest.raises(RuntimeError, match="pytest ended with"):
        hang(file, ours, "return (", [test])
    with pytest.raises(ValueError, match="holds 0 times"):
        patched(file, "no such line", "")


@pytest.mark.museum
@by_name
def test_the_bug_is_caught(exhibit):
    assert not missed(exhibit)
