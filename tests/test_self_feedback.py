"""Draft, critique, revise."""

import pytest
from fakes import Babble

from minipost.tasks.arithmetic import Arithmetic
from minipost.test_time import self_feedback


class Author:
    """Answers each prompt with the next of its texts, and keeps what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def __call__(self, texts, n):
        assert n == 1
        self.asked += texts
        return [[self.texts.pop(0)] for _ in texts]


SUM = Arithmetic().pose("7+5-3")
FAULT, FINE = "7+5=12 no", "7+5=12 ok\n12-3=9 ok"
DRAFT, MENDED = "7+5=13\n13-3=10\nAnswer: 10", "7+5=12\n12-3=9\nAnswer: 9"


def right(problems, answers):
    return Arithmetic().reward(None, answers, [p.columns["answer"] for p in problems])


def test_a_draft_is_revised_by_its_critique_until_that_approves():
    author = Author(DRAFT, FAULT, MENDED, FINE, "never asked")
    rounds, = self_feedback.refine([SUM], author, Arithmetic(), 5)
    assert rounds == [{"answer": DRAFT, "critique": FAULT},
                      {"answer": MENDED, "critique": FINE}]
    assert author.asked == [
        "7+5-3=? Think:\n", f"7+5-3=? Draft:\n{DRAFT}\nCritique:\n",
        f"7+5-3=? Draft:\n{DRAFT}\nCritique:\n{FAULT}\nRevise:\n",
        f"7+5-3=? Draft:\n{MENDED}\nCritique:\n"]


def test_a_checker_stops_it_instead_and_an_approved_fault_is_drafted_anew():
    author = Author(DRAFT, FINE, DRAFT, FAULT, MENDED, "never asked")
    rounds, = self_feedback.refine([SUM], author, Arithmetic(), 9, right)
    assert [found["answer"] for found in rounds] == [DRAFT, DRAFT, MENDED]
    assert author.asked[2] == "7+5-3=? Think:\n" and author.asked[4].endswith("Revise:\n")


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_no_more_attempts_are_made_than_allowed(attempts):
    author = Author(*[DRAFT, FAULT] * 9)
    rounds, = self_feedback.refine([SUM], author, Arithmetic(), attempts)
    assert len(rounds) == attempts and len(author.asked) == 2 * attempts - 1
    author = Author(*[DRAFT] * 9)
    rounds, = self_feedback.retry([SUM], author, attempts, right)
    assert len(rounds) == attempts == len(author.asked)
    author = Author(DRAFT, *[MENDED] * 9)
    rounds, = self_feedback.retry([SUM], author, 4, right)
    assert [r["answer"] for r in rounds] == [DRAFT, MENDED]


def test_each_arm_takes_its_answers_and_no_more():
    tools = Babble(Arithmetic(), ["Answer: 1"])
    found = {arm.name: len(arm.workings[0]["rounds"])
             for arm in self_feedback.arms([SUM], tools, self_feedback.Config(attempts=3))}
    assert found == {"draft": 1, "retry": 3, "self-feedback": 1,  # its critique approves
                     "retry, checker": 3, "self-feedback, checker": 3, "vote, its tokens": 2}
