"""Reward functions: the contract that each call is held to."""

import pytest

from minipost.datasets.rewards import ask, columns, load_reward
from minipost.errors import MinipostError
from minipost.tasks.base import Problem

PROBLEMS = [Problem("a", {"letter": "a"}), Problem("b", {"letter": "b"})]


@pytest.mark.parametrize("values, message", [
    ([1.0], "returned 1 values for 2 rows"),
    ([1.0, float("nan")], "returned nan for row 1 .*'yy'.* expected a finite number"),
    ([None, 1.0], "returned None for row 0"),
    (["1", 1.0], "returned '1' for row 0"),
    (None, "returned NoneType, expected a list"),
])
def test_a_reward_function_is_held_to_its_contract(values, message):
    def mine(prompts, completions, **columns):
        return values

    with pytest.raises(MinipostError, match=f"reward function .*mine {message}"):
        ask(mine, PROBLEMS, ["xx", "yy"])


def test_a_reward_function_that_raises_is_named():
    def mine(**columns):
        return [1 / 0]

    with pytest.raises(MinipostError, match="mine raised ZeroDivisionError: division by zero"):
        ask(mine, PROBLEMS, ["x", "y"])


def test_a_reward_function_receives_the_columns_as_lists():
    def mine(prompts, completions, letter, **rest):
        assert not rest
        return [float(p == letter_ and c == "x") for p, c, letter_ in
                zip(prompts, completions, letter)]

    assert ask(mine, PROBLEMS, ["x", "y"]) == [1.0, 0.0]
    assert columns([Problem("p", {"k": 1}), Problem("q", {})]) == {"k": [1, None]}


def test_a_file_that_is_no_python_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("def reward(**columns): ...\n")
    with pytest.raises(MinipostError, match=r"mine\.txt is no Python file; expected FILE\.py:FUNC"):
        load_reward([f"{path}:reward"], None)
