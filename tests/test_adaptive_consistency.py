"""Votes that stop when they are decided."""

import math
import random

import pytest
from fakes import Babble, Echo
from hypothesis import given
from hypothesis import strategies as st

from minipost.measure.stats import vote
from minipost.tasks.base import Problem
from minipost.test_time import adaptive_consistency as adaptive


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_lead_is_as_safe_as_the_beta_law_says(a, b):
    """The integral of x^a (1 - x)^b above 1/2, over that of all, by Simpson's rule."""
    a, b = max(a, b), min(a, b)

    def area(low, high, n=2000):
        h = (high - low) / n
        return h / 3 * sum((4 if k % 2 else 2 if 0 < k < n else 1)
                           * (low + k * h) ** a * (1 - low - k * h) ** b for k in range(n + 1))

    count = [entry for entry in (("x", float(a)), ("y", float(b))) if entry[1]]
    assert adaptive.safe(count) == pytest.approx(area(0.5, 1) / area(0, 1), abs=1e-9)


def test_four_that_agree_are_enough_and_three_are_not():
    assert adaptive.safe([("x", 3.0)]) == 1 - 2**-4 < 0.95 < adaptive.safe([("x", 4.0)])
    assert adaptive.safe([]) == adaptive.safe([("x", 2.0), ("y", 2.0)]) == 0.5
    assert adaptive.safe([("x", 5.0), ("y", 1.0), ("z", 1.0)]) == adaptive.safe(
        [("x", 5.0), ("y", 1.0)])                               # of the first two alone


def run(words, **options):
    """What is drawn for one prompt that is answered by these words in turn."""
    words, asked = iter(words), []

    def sample(texts, n):
        asked.append((len(texts), n))
        return [[next(words)] for _ in texts]

    options = {"group_size": 40, "threshold": 0.95, "stop": "lead", "sure": 0.9, **options}
    drawn, = adaptive.search(["?"], sample, lambda text: text, lambda prompts, texts: [
        math.log(0.95 if text == "s" else 0.4) for text in texts], **options)
    assert all(row == (1, 1) for row in asked)
    return [text for text, _ in drawn]


@given(st.integers(0, 999), st.floats(0.5, 0.99))
def test_it_stops_at_the_first_safe_lead(seed, threshold):
    rng = random.Random(seed)
    words = rng.choices("aabc", k=40)
    drawn = run(words, threshold=threshold)
    assert drawn == words[: len(drawn)]
    safes = [adaptive.safe(vote(words[:k])) for k in range(1, len(drawn) + 1)]
    assert all(s < threshold for s in safes[:-1])
    assert safes[-1] >= threshold or len(drawn) == 40


def test_a_threshold_of_1_takes_all_and_so_does_a_tie():
    assert len(run("a" * 200, group_size=200, threshold=1.0)) == 200
    assert len(run("ab" * 20)) == 40


def test_own_confidence_stops_at_the_first_sure_answer_or_takes_the_surest():
    assert run("abcsd", stop="own") == ["a", "b", "c", "s"]
    assert run("abc", stop="own", group_size=3) == ["a", "b", "c"]

    class Tools(Babble):
        def confidence(self, prompts, answers):
            return [{"a": -1.0, "b": -0.5, "c": -0.5}[answer] for answer in answers]

    tools = Tools(Echo(), ["a", "b", "c"])
    cfg = adaptive.Config(stop="own", group_size=3)
    answers, (working,) = adaptive.solve([Problem("a", {"letter": "a"})], tools, cfg)
    assert answers == ["b"] and working["samples"] == ["a", "b", "c"]
    cfg = adaptive.Config(stop="own", group_size=3, sure=0.6)
    answers, (working,) = adaptive.solve([Problem("a", {"letter": "a"})],
                                         Tools(Echo(), ["a", "b", "c"]), cfg)
    assert answers == ["b"] and working["samples"] == ["a", "b"]


def test_problems_stop_on_their_own():
    said = {"1": iter("aaaaaaa"), "2": iter("abababcccccccc")}
    drawn = adaptive.search(["1", "2"], lambda texts, n: [[next(said[t])] for t in texts],
                            lambda text: text, None, group_size=12, threshold=0.95, stop="lead",
                            sure=1.0)
    assert [len(mine) for mine in drawn] == [4, 12]
