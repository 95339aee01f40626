"""Chain of thought: the prompts that ask for steps or for an answer at once."""

import random

import pytest
from fakes import Babble

from minipost.tasks.arithmetic import Arithmetic
from minipost.test_time import cot


@pytest.mark.parametrize("direct", [True, False])
def test_a_few_shot_prompt_shows_solved_training_problems_and_gives_no_cue(direct):
    task = Arithmetic(direct=direct)
    problems = task.heldout(5)
    known = {task.example(p) for p in task.heldout(1000)}
    for problem, prompt in zip(problems, cot.few_shot(task, problems, 3, random.Random(0))):
        asked = task.example(problem)
        assert prompt.endswith(asked) and "Think" not in prompt
        shown = prompt.removesuffix(asked)
        assert not any(other in shown for other in known)
        assert shown.count("=?") == 3 and shown.count("Answer:") == 3


def test_four_ways_to_answer_the_same_problems():
    task = Arithmetic()
    tools = Babble(task, ["Answer: 1"])
    arms = list(cot.arms(task.heldout(3), tools, cot.Config(shots=2)))
    assert [arm.name for arm in arms] == ["direct", "direct, 2 examples", "worked",
                                          "worked, 2 examples"]
    assert sum(arm.tokens for arm in arms) == tools.tokens
