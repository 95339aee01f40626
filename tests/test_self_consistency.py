"""A vote of n answers against the laws of votes (invariant 43)."""

import itertools
import math

import pytest

from minipost.measure.stats import vote
from minipost.tasks.arithmetic import Arithmetic
from minipost.test_time import self_consistency


def test_one_sample_elects_itself_and_nothing_stated_elects_the_first():
    assert self_consistency.elect(["x1"], str)[0] == "x1"
    text, count = self_consistency.elect(["no", "idea"], lambda text: None)
    assert (text, count) == ("no", [])
    text, _ = self_consistency.elect(["p b", "q a", "r a"], lambda text: text[-1])
    assert text == "q a"


@pytest.mark.parametrize("texts, number", [
    (["Answer: 17.5", "Answer: 17/2", "Answer: 17 or 18", "Answer: 18"], 18),
    (["Answer: \u221217", "Answer: 17", "Answer: - 17", "Answer: 17.5"], -17),
    (["not 17", "Answer: **17**", r"\boxed{17}", "Answer: 18", "Answer: 18.", "17"], 17)])
def test_what_is_no_number_has_no_vote_for_one(texts, number):
    """The text that is elected states the winning number, and its reward is that of its ballot."""
    task = Arithmetic()
    text, count = self_consistency.elect(texts, task.ballot)
    assert count[0][0] == task.parse(text) == number
    assert task.reward([""], [text], [number]) == [1.0]
    assert sum(votes for _, votes in count) == sum(task.parse(t) is not None for t in texts)


def elected_right(p, n):
    """The chance that a vote of n answers is right, each right with chance p, by enumeration."""
    total = 0.0
    for answers in itertools.product((True, False), repeat=n):
        chance = math.prod(p if right else 1 - p for right in answers)
        total += chance * (vote(answers)[0][0] is True)
    return total


@pytest.mark.parametrize("p, sign", [(0.6, 1), (0.4, -1)])
def test_condorcet_both_ways(p, sign):
    curve = [elected_right(p, n) for n in (1, 3, 5, 7, 9)]
    assert curve[0] == pytest.approx(p)
    assert all(sign * (b - a) > 0.01 for a, b in zip(curve, curve[1:]))
    law = sum(math.comb(9, k) * p**k * (1 - p) ** (9 - k) for k in range(5, 10))
    assert curve[-1] == pytest.approx(law)
