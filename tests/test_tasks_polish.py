"""Polish: stories, their stages, and that a rewording keeps what is asked for."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.base import is_held_out
from minipost.tasks.polish import (
    STAGES,
    Polish,
    amount,
    asked_for,
    counted,
    read,
    reworded,
    stage,
    told,
)

STORY = ("Ida has 9. Emma gets twice 4. Emma has 12. Max gets 5. Emma loses 2 and 1. "
         "How many has Emma?")
STAGED = [STORY, "Emma gets twice 4. Emma has 12. Emma loses 2 and 1. How many has Emma?",
          "Emma has 12. Emma gets 8. Emma loses 3. How many has Emma?", "12+8-3=?"]


def test_the_stages_of_a_story():
    assert [stage(STORY, k) for k in range(4)] == STAGED and STAGES == 3
    assert stage(STORY, 9) == STAGED[-1]
    assert [asked_for(words) for words in STAGED] == [17] * 4
    plain = "Emma has 12. Emma gets 8. How many has Emma?"
    assert reworded(plain) == "12+8=?"                      # a rewording without effect is none


@given(st.integers(0, 9999))
def test_every_stage_asks_for_the_same_number(seed):
    rng = random.Random(seed)
    numbers = [rng.randint(10, 40), *(rng.choice([-1, 1]) * rng.randint(1, 9) for _ in range(3))]
    words = told(numbers, rng.randint(0, 5), rng)
    stages = [stage(words, k) for k in range(STAGES + 1)]
    assert [asked_for(each) for each in stages] == [sum(numbers)] * 4
    assert all(len(b) <= len(a) for a, b in zip(stages, stages[1:]))
    assert reworded(stages[-1]) == stages[-1]
    name, _ = read(words)
    assert "has" not in stages[-1] and stages[2].count(name) in (0, 5)


@given(st.integers(1, 99), st.integers(0, 999))
def test_an_amount_is_its_number(n, seed):
    assert counted(amount(n, random.Random(seed))) == n


@pytest.mark.parametrize("words, number", [
    ("12+8-3=?", 17), ("3-5=?", -2), ("7=?", 7), ("Emma has 12. How many has Emma?", 12),
    ("Emma has half of 12. How many has Emma?", 6), ("Emma has 12. How many has Ida?", 0),
    ("Emma has 12.", None), ("", None), ("17", None), ("12+8", None), ("How many has Emma?", None),
    ("Emma has twelve. How many has Emma?", None), ("Emma has 12. How many has Emma? 5", None)])
def test_what_words_ask_for(words, number):
    assert asked_for(words) == number


def test_problems_of_both_kinds_and_all_stages_and_none_held_out():
    task = Polish()
    found = task.sample(400, random.Random(0))
    ends = [p.prompt.rpartition(" ")[2] for p in found]
    assert set(ends) == {"Polish:", "Answer:"} and 150 < ends.count("Polish:") < 250
    assert 60 < sum(p.columns["words"].endswith("=?") for p in found) < 240
    for p in found:
        text = task.demonstrate(p)
        assert task.reward([""], [text], **{k: [v] for k, v in p.columns.items()}) == [1.0]
        assert not is_held_out(own_numbers(p))
    for p in task.heldout(60):
        assert is_held_out(own_numbers(p)) and p.prompt.endswith("? Answer:")
        assert p.prompt.count(".") == 4 + 4
    clear = Polish(clutter=0, rewording=0.0).sample(50, random.Random(1))
    assert all(p.prompt.endswith("Answer:") and p.prompt.count(".") in (0, 4) for p in clear)


def own_numbers(problem):
    return [int(n) for n in re.findall("[0-9]+", stage(problem.columns["words"], STAGES))]


def test_splits_are_stories_the_sums_that_they_are_and_rewordings():
    held, sums, rewordings = Polish().splits(6).values()
    assert [p.columns["answer"] for p in held] == [p.columns["answer"] for p in sums]
    assert all(p.columns["words"].endswith("=?") for p in sums)
    assert all(p.prompt.endswith("Polish:") for p in rewordings)
    assert [p.columns["words"].endswith("=?") for p in rewordings] == [False] * 6


def test_a_number_answers_and_a_problem_rewords_and_neither_does_both():
    task, columns = Polish(), dict(words=[STORY] * 4, answer=[17] * 4)
    texts = [" 17", " 12+8-3=?", f" {STAGED[1]}", " 12+8=?"]
    assert task.reward([""] * 4, texts, reworded=[False] * 4, **columns) == [1, 0, 0, 0]
    assert task.reward([""] * 4, texts, reworded=[True] * 4, **columns) == [0, 1, 1, 0]
    problem = Polish().heldout(1)[0]
    assert task.polish(problem).prompt == f"{problem.columns['words']} Polish:"
    fresh = task.polished(problem, f" {STAGED[2]}\nmore")
    assert fresh.prompt == f"{STAGED[2]} Answer:"
    assert fresh.columns["answer"] == problem.columns["answer"]
    assert task.keeps(problem) and task.keeps(fresh) == (problem.columns["answer"] == 17)
    assert not task.keeps(task.polished(problem, "")) and not task.keeps(task.polished(problem,
                                                                                      " 17"))


@pytest.mark.parametrize("knob, bad", [("changes", 0), ("changes", 7), ("clutter", -1),
                                       ("clutter", 9), ("clutter", True), ("rewording", 2),
                                       ("rewording", None), ("rewording", float("nan"))])
def test_a_knob_out_of_bounds_is_refused(knob, bad):
    with pytest.raises(MinipostError, match=knob):
        Polish(**{knob: bad})
