"""The doctor's check of what one answer to every problem earns."""

import random

import pytest
from fakes import Echo, said

from minipost.checks import constant
from minipost.checks.finding import OK, WARNING
from minipost.datasets.rows import File
from minipost.tasks.base import Problem
from minipost.tasks.choose import Choose

RNG = random.Random(0)


def rows(*columns):
    return [Problem(f"p{k}", c) for k, c in enumerate(columns)]


def values(once, reference, empty=(0.0,)):
    return {"once": once, "reference": reference, "empty": list(empty)}


@pytest.mark.parametrize("columns, found", [
    ([{"completion": x} for x in ("yes", "no", "yes", "no", "yes", "other")], ["yes", "no"]),
    ([{"completion": f"{k}: {x}", "answer": x} for k, x in enumerate((7, 8, 7))], ["7"]),
    ([{"completion": f"{k}", "solution": x, "answer": "a"} for k, x in enumerate("778")], ["7"]),
    ([{"completion": "7", "answer": 7}, {"completion": "8", "answer": 8}], []),     # one row each
    ([{"completion": "bad", "label": False}] * 3, []),                              # no good answer
    ([{}, {}], []),
])
def test_the_answers_that_several_rows_of_a_file_have(columns, found):
    assert constant.common(File.__new__(File), rows(*columns), RNG) == found


def test_the_answers_that_several_problems_of_a_task_have():
    """Of a list it is the place that is named, not the working in front of it."""
    task = Choose(lists=1.0, drills=0.0)
    found = constant.common(task, task.sample(60, random.Random(1)), RNG)
    assert sorted(found) == ["Answer: 1", "Answer: 2", "Answer: 3"]


def test_an_answer_is_tried_on_every_problem():
    problems = [Problem(c, {"letter": c}) for c in "aab"]
    earned, error = constant.try_all(["a", "b"], problems, Echo().reward)
    assert not error and sum(earned["a"]) > sum(earned["b"]) > 0
    assert len(earned["a"]) == 3

    def fails(completions, **columns):
        return [1 / (text != "b") for text in completions]
    assert "ZeroDivisionError" in constant.try_all(["a", "b"], problems, fails)[1]


def test_one_answer_that_pays():
    said(constant.one_answer_to_all(values([0, 1], [1, 1]), {"yes": [1, 1, 1, 0], "no": [0] * 4}),
         WARNING, "'yes' to every problem earns 0.750", "sampled answers 0.500 and reference "
         "answers 1.000")
    said(constant.one_answer_to_all(values([0, 1], []), {"yes": [0, 1, 1]}), WARNING,
         "the best answers 1.000")
    # a reward on another scale
    said(constant.one_answer_to_all(values([-4, -2], [0, 0], [-4]), {"yes": [-1, -1]}), WARNING)


def test_one_answer_that_does_not_pay():
    said(constant.one_answer_to_all(values([0, 0], [1, 1]), {"yes": [1, 1, 0, 0, 0]}), OK,
         "'yes' to every problem earns 0.400")
    said(constant.one_answer_to_all(values([1, 1, 0], [1, 1]), {"yes": [1, 1, 1, 0, 0]}), OK)
    said(constant.one_answer_to_all(values([-4, -4], [0, 0], [-4]), {"yes": [-3, -3]}), OK)
    said(constant.one_answer_to_all(values([0], [1]), {}), OK, "hardly two problems")
    # none is known to be good: the best that was seen counts
    said(constant.one_answer_to_all(values([0, 1], []), {"yes": [0, 1, 0]}), OK)
    said(constant.one_answer_to_all(values([0], [1]), {}, "f raised"), WARNING, "f raised")
