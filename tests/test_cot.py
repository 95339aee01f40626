"""Chain of thought: the prompts that ask for steps or for an answer at once."""

import random

import pytest
from fakes import Babble

from minipost.errors import MinipostError
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


def test_examples_are_the_training_problems_in_the_order_of_their_draw():
    task, rng, (problem,) = Arithmetic(), random.Random(0), Arithmetic().heldout(1)
    shown = [task.example(p, task.demonstrate(p, rng)) for p in task.sample(3, rng)]
    assert cot.few_shot(task, [problem], 3, random.Random(0)) == [
        "".join(shown) + task.example(problem)]


@pytest.mark.parametrize("mode", [dict(), dict(direct=True), dict(hurried=True)])
def test_no_example_is_the_very_problem_by_its_question(mode):
    """Training problems are asked here, of so few that an example would often be the problem."""
    task = Arithmetic(terms=2, **mode)
    problems = Arithmetic(terms=2).sample(300, random.Random(1))
    prompts = cot.few_shot(task, problems, 3, random.Random(0))
    for problem, prompt in zip(problems, prompts, strict=True):
        assert prompt.count(task.example(problem)) == 1 and prompt.count("=?") == 4


def test_a_task_with_no_other_problem_has_no_examples():
    class Lone(Arithmetic):
        def sample(self, n, rng):
            return [self.pose("7+5")] * n

    with pytest.raises(MinipostError, match="no examples for '7[+]5=[?]'"):
        cot.few_shot(Lone(), [Lone().pose("7 + 5")], 1, random.Random(0))


def test_four_ways_to_answer_the_same_problems(monkeypatch):
    task, asked = Arithmetic(), []
    tools = Babble(task, ["Answer: 1"])
    monkeypatch.setattr(tools, "greedy", lambda texts: asked.append(texts) or Babble.greedy(
        tools, texts))
    arms = list(cot.arms(task.heldout(3), tools, cot.Config(shots=2)))
    assert [arm.name for arm in arms] == ["direct", "direct, 2 examples", "worked",
                                          "worked, 2 examples"]
    assert sum(arm.tokens for arm in arms) == tools.tokens
    ends = ("? Answer:", "=?\n", "? Think:\n", "=?\n")
    for texts, end, lines in zip(asked, ends, (0, 3 + 3 + 1, 1, 8 + 8 + 1), strict=True):
        assert all(text.endswith(end) and text.count("\n") == lines for text in texts)
