"""Pre-training against sampling: equal compute, and what is counted."""

from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import pretrain_or_sample as script


@given(st.floats(0.05, 20), st.floats(1, 50))
def test_the_small_models_answers_make_up_for_the_difference(ratio, times):
    """In units of 2 N D_train, where D_asked = ratio D_train; n is rounded to a whole number."""
    n = script.answers(ratio, times)
    assert abs((3 + n * ratio) - times * (3 + ratio)) <= ratio / 2 + 1e-9


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    return script.asked("checkpoints/student", "--task arithmetic --terms 3", 12, 0, (1, 4, 6))


def test_fewer_answers_are_the_first_of_many(asked):
    assert list(asked) == [1, 4, 6] and all(len(row) == 12 for pair in asked.values()
                                            for row in pair)
    vote, best = asked[1]
    assert vote == best                                         # one answer is its own vote
    for few, many in ((1, 4), (4, 6)):
        assert all(a <= b for a, b in zip(asked[few][1], asked[many][1]))
    assert all(v <= b for vote, best in asked.values() for v, b in zip(vote, best))


def test_a_row_for_each_task_and_ratio(monkeypatch):
    def asked(model, task, n, seed, counts=()):
        if not counts:
            return {"greedy": [float(model == script.LARGE)] * n}
        return {count: ([float(seed == 1)] * n, [1.0] * n) for count in counts}

    monkeypatch.setattr(script, "asked", asked)
    monkeypatch.setattr(script, "parameters", {script.LARGE: 600, script.SMALL: 100}.get)
    monkeypatch.setattr(script.parallel, "launch", lambda f, workers: f())
    found, times = script.rows(Namespace(n=4, seeds=2))
    assert times == 6 and len(found) == len(script.TASKS) * len(script.RATIOS)
    assert [row[2] for row in found[:3]] == ["7", "25", "100"]
    title, ratio, n, large, small, vote, less, best = found[0]
    assert large.startswith("1.000") and small.startswith("0.000") and vote.startswith("0.500")
    assert less.startswith("-0.500") and best.startswith("1.000")
