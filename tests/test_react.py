"""ReAct at test time: calls, observations, and what the tool is worth."""

import json

import pytest
from fakes import Echo

from minipost import evaluate, test_time
from minipost.errors import MinipostError
from minipost.measure.texts import Texts
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem
from minipost.test_time import react as acting


def test_a_step_of_a_sum_is_a_call():
    task = Arithmetic()
    assert task.tool(None, "7+5=") == "12\n" and not task.acts
    assert task.tool(None, "7+5=12\n12-30=") == "-18\n"
    assert task.tool(None, "7+5=12\n12-=") == task.tool(None, "=") == "error\n"


class Adder:
    """A model that writes the next of its lines up to a call's end, or all of them."""

    def __init__(self, *lines):
        self.lines, self.task, self.tokens, self.asked = lines, Arithmetic(), 0, []
        self.turn = self

    def __call__(self, texts, n):
        self.asked += texts
        self.tokens += len(texts)
        return [[self.lines[text.partition("\n")[2].count("\n")]] for text in texts]

    def sample(self, texts, n):
        return [["alone"] for _ in texts]

    def heard(self, text, more):
        assert text.endswith("=") and more.endswith("\n")
        return True


SUM = Problem("7+5-3=? Think:\n", {"chain": "7+5-3", "answer": 9})
OTHER = Problem("2+2-1=? Think:\n", {"chain": "2+2-1", "answer": 3})


def test_the_tool_writes_behind_each_call_and_the_model_goes_on():
    tools = Adder("7+5=", "12-3=", "Answer: 9")
    (answer,), (working,) = acting.solve([SUM], tools, acting.Config())
    assert answer == "7+5=12\n12-3=9\nAnswer: 9"
    assert tools.asked == [SUM.prompt, f"{SUM.prompt}7+5=12\n", f"{SUM.prompt}7+5=12\n12-3=9\n"]
    assert acting.show(working) == ["7+5= -> 12", "12-3= -> 9", "Answer: 9"]


def test_the_control_answers_calls_as_those_of_the_next_problem_were():
    """Whoever else has ended by then; of fewer calls the last is said again."""
    found = [["7+5=", "12\n", "12-3=", "9\n", "Answer: 9"], ["none"], ["2+2=", "4\n", "Answer: 4"]]
    control = acting.wrong(found)
    assert [control(0, ""), control(0, ""), control(0, "")] == ["4\n", "4\n", "4\n"]
    assert [control(2, ""), control(1, ""), control(2, "")] == ["12\n", "4\n", "9\n"]
    assert acting.wrong([found[1], found[0]])(1, "") == ""


def test_a_call_is_answered_wrong_whoever_else_goes_on():
    class Two(Adder):
        """It ends the answer to the second problem at once where the control is asked."""

        def __call__(self, texts, n):
            self.asked += texts
            return [["Answer: 1" if text.count("\n") > 1 or (text[0] == "2" and len(self.asked) > 4)
                     else "7+5=" if text[0] == "7" else "2+2="] for text in texts]

        arm = Texts.arm

        def right(self, problems, answers):
            return [0.0] * len(answers)

    arms = {arm.name: arm for arm in acting.arms([SUM, OTHER], Two(), acting.Config())}
    assert arms["tool"].result.texts == ["7+5=12\nAnswer: 1", "2+2=4\nAnswer: 1"]
    assert arms["wrong tool"].result.texts == ["7+5=4\nAnswer: 1", "Answer: 1"]
    with pytest.raises(MinipostError, match="at least 2 problems"):
        next(acting.arms([SUM], Two(), acting.Config()))


def test_after_its_calls_the_model_goes_on_alone():
    tools = Adder("7+5=", "12-3=", "Answer: 9")
    pieces = acting.act([SUM], tools, acting.right([SUM], tools.task), 1)
    assert pieces == [["7+5=", "12\n", "alone"]]
    assert acting.act([SUM], tools, acting.right([SUM], tools.task), 0) == [["alone"]]


def test_an_observation_without_room_to_go_on_is_not_put_in():
    tools = Adder("7+5=", "12-3=", "Answer: 9")
    tools.heard = lambda text, more: "12-3=" not in text
    pieces = acting.act([SUM, SUM], tools, acting.right([SUM, SUM], tools.task), 4)
    assert pieces == 2 * [["7+5=", "12\n", "12-3="]]


def test_a_tool_error_is_an_observation():
    pieces = acting.act([SUM], Adder("7+x=", "Answer: 9"), acting.right([SUM], Arithmetic()), 4)
    assert pieces == [["7+x=", "error\n", "Answer: 9"]]


def test_a_task_without_a_tool_is_refused_at_test_time():
    tools = Adder()
    tools.task = Echo()
    with pytest.raises(MinipostError, match="the task echo has no tool"):
        acting.solve([SUM], tools, acting.Config())


def test_its_arms():
    way = test_time.load("react")
    assert (way.BEFORE, way.AFTER) == ("no tool", "tool") and ("no tool", "wrong tool") in way.PAIRS


def test_the_thinker_in_a_hurry_is_right_with_a_calculator():
    """On a few held-out sums; the control, a calculator that answers others' calls, is not."""
    from minipost import checkpoint
    from minipost.optim import Learner
    from minipost.run import Run

    task = Arithmetic(hurried=True)
    model, words = checkpoint.load("checkpoints/thinker")
    run = Run(Learner(model), words, task, task.reward, max_new_tokens=64)
    problems = task.heldout(24)
    arms = {arm.name: arm for arm in acting.arms(problems, Texts(run), acting.Config())}
    means = {name: sum(arm.result.rewards) / 24 for name, arm in arms.items()}
    assert means["tool"] > 0.9 > 0.7 > means["no tool"] > means["wrong tool"]
    assert arms["tool"].tokens < arms["no tool"].tokens     # what the tool writes is not sampled


@pytest.mark.parametrize("task", ["arithmetic", "calculator"])
def test_it_runs_on_every_task_with_a_tool(task, capsys):
    flags = ["--method", "react", "--task", task, "--model", "checkpoints/student", "--n", "3",
             "--max-new-tokens", "24", "--workers", "1", "--json"]
    assert evaluate.main(flags) == 0
    assert set(json.loads(capsys.readouterr().out)["arms"]) == {"no tool", "tool", "wrong tool"}
