"""The choice between parallel and sequential answers, with a model whose chances are known."""

import random
import re

import pytest
from fakes import Babble
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem
from minipost.tasks.countdown import Countdown
from minipost.test_time import by_difficulty


class Model(Babble):
    """Short sums are right as drafted and spoilt when revised; long ones the other way round.

    A draft costs a token, and so do a critique and a revision.
    """

    def __init__(self, long=6):
        super().__init__(Arithmetic(), [])
        self.long, self.asked = long, []

    def sample(self, texts, n):
        self.tokens += n * len(texts)
        self.asked += texts
        return [[self.say(text)] * n for text in texts]

    def say(self, text):
        numbers = [int(x) for x in re.findall("[+-]?[0-9]+", text.split("=")[0])]
        revised = text.endswith("Revise:\n")
        if text.endswith("Critique:\n"):
            return "1+1=2 no"
        return f"Answer: {sum(numbers) + ((len(numbers) >= self.long) != revised)}"

    def worth(self, states, votes, known):
        self.tokens += len(states)
        return self.right([p for p, _ in states], [text for _, text in states])


CFG = by_difficulty.Config(budget=6, attempts=2, probes=2, bins=2, training=60)


@pytest.mark.parametrize("oracle", [True, False])
def test_each_bin_is_answered_in_its_better_way(oracle):
    tools = Model(long=9)
    tools.task = Arithmetic(fewest=2, terms=16)
    cfg = by_difficulty.Config(**{**vars(CFG), "oracle": oracle})
    known = by_difficulty.learn(tools, cfg)
    assert known["chains"] == 2                                 # 3 tokens for a chain of 2 attempts
    assert known["ways"] == ["sequential", "parallel"]          # the hard bin first
    problems = tools.task.heldout(40)
    arms = {arm.name: arm for arm in by_difficulty.arms(problems, tools, cfg)}
    short = [len(re.findall("[0-9]+", p.prompt)) < 9 for p in problems]
    assert 5 < sum(short) < 35
    assert arms["parallel alone"].result.rewards == [float(x) for x in short]
    assert arms["sequential alone"].result.rewards == [float(not x) for x in short]
    assert arms["by difficulty"].result.rewards == [1.0] * 40
    bins = [w["bin"] for w in arms["by difficulty"].workings]
    assert bins == [int(x) for x in short]
    asked = 6 * 40
    assert arms["parallel alone"].tokens == asked == arms["sequential alone"].tokens
    spent = arms["by difficulty"].tokens
    assert spent == asked + 40 * 2 * (1 if oracle else 2)
    # 8 or 10 answers, and 3 chains of 3 tokens, in place of 6 and of 2
    assert arms["parallel, its tokens"].tokens == spent
    assert arms["sequential, its tokens"].tokens == 40 * 3 * 3
    assert arms["parallel, its tokens"].result.rewards == [float(x) for x in short]


@given(st.integers(1, 7), st.integers(1, 30))
def test_bins_have_equally_many_training_problems(bins, training):
    tools = Model()
    tools.task = Arithmetic(fewest=2, terms=12)
    count = []

    def worth(states, votes, known):
        drawn = [k % 97 / 97 for k in range(len(states))]
        count.append(drawn)
        return drawn

    tools.worth = worth
    cfg = by_difficulty.Config(budget=2, attempts=2, probes=1, bins=bins, training=training)
    known = by_difficulty.learn(tools, cfg)
    assert len(known["edges"]) == bins - 1 == len(known["ways"]) - 1 == len(known["rows"]) - 1
    (easy,) = count
    found = [sum(e <= x for e in known["edges"]) for x in easy]
    problems = tools.task.sample(training, random.Random("by difficulty"))
    long = [len(re.findall("[0-9]+", p.prompt)) >= 6 for p in problems]
    for b, row in enumerate(known["rows"]):
        mine = [float(not x) for x, at in zip(long, found) if at == b]
        assert row["parallel"] == (sum(mine) / len(mine) if mine else 0.0)
    if bins <= training:
        assert max(found.count(b) for b in range(bins)) - min(
            found.count(b) for b in range(bins)) <= 1


def test_training_problems_are_no_held_out_ones_and_a_task_needs_critiques():
    tools = Model()
    by_difficulty.learn(tools, CFG)
    assert not {p.prompt for p in Arithmetic().heldout(500)} & set(tools.asked)
    tools.task = Countdown()
    with pytest.raises(MinipostError, match="no form for a critique"):
        by_difficulty.solve([Problem("x")], tools, CFG)
