"""Recall: what a problem tells, lives of episodes, locks."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.recall import FORMS, HELD_OUT, THINGS, TRAINING, UNKNOWN, Recall


def told(problem):
    """{thing: codes} of the episodes shown, and the thing that is asked for."""
    *shown, last = problem.prompt.split("\n")
    found = {}
    for line in shown:
        question, answer = line.split("? ")
        found.setdefault(thing(question), set()).add(answer)
    return found, thing(last.removesuffix("?"))


def thing(question):
    starts = [form.format("") for form in FORMS]
    return next(question.removeprefix(start) for start in starts if question.startswith(start))


@pytest.mark.parametrize("episodes", [0, 1, 6, 16])
@pytest.mark.parametrize("split", ["sample", "heldout"])
def test_the_answer_is_what_an_episode_tells_or_unknown(episodes, split):
    task = Recall(episodes=episodes)
    problems = task.sample(300, random.Random(0)) if split == "sample" else task.heldout(300)
    known = 0
    for problem in problems:
        codes, asked = told(problem)
        assert all(len(found) == 1 for found in codes.values())
        assert problem.columns["answer"] == (*codes.get(asked, [UNKNOWN]),)[0]
        known += asked in codes
        assert {asked, *codes} <= set(TRAINING if split == "sample" else HELD_OUT)
        assert sum(len(line) > 0 for line in problem.prompt.split("\n")) <= episodes + 1
    assert known == 0 if episodes == 0 else 150 < known < 270
    text = [task.demonstrate(p) for p in problems]
    answers = [p.columns["answer"] for p in problems]
    assert set(task.reward(None, text, answers)) == {1.0}
    assert set(task.reward(None, [" 5"] * 300, answers)) == {0.0}


def test_no_thing_is_in_both_splits():
    assert not set(TRAINING) & set(HELD_OUT) and len(THINGS) == len(TRAINING) + len(HELD_OUT)
    assert 16 < len(HELD_OUT) < 40


@given(st.text(max_size=12))
def test_parse_never_raises(text):
    found = Recall().parse(text)
    assert found is None or found == UNKNOWN or len(found) == 2 and found.isdecimal()


@pytest.mark.parametrize("text, code", [
    (" 47", "47"), ("47.", "47"), ("**47**", "47"), (r"\boxed{47}", "47"), ("$47$", "47"),
    (" none", "none"), ("None.", "none"), ("Answer: NONE", "none"),
    *((text, None) for text in (
        "", "4", "047", "05", "470", "4 7", "47.5", "-47", "+47", "47 or 48", "not 47", "nonesuch",
        "no", "47\n48", "\u0664\u0667", "**47"))])
def test_what_is_a_code(text, code):
    assert Recall().parse(text) == code
    for right in ("47", "none", "48", "05"):
        assert Recall().reward([""], [text], [right]) == [float(right == code)]


def test_a_life_says_what_has_been_told():
    life = Recall().stream(40, 5, random.Random(0))
    codes, seen = {}, set()
    for question, answer, told_before in life:
        assert thing(question) in HELD_OUT
        assert codes.setdefault(thing(question), answer) == answer
        assert told_before == (thing(question) in seen)
        seen.add(thing(question))
    assert len(seen) == 5 and len({q for q, _, _ in life}) > 5


def test_a_lock_shows_its_keys_and_those_that_failed():
    assert Recall().lock(6, [3, 5]) == "Keys 1 to 6. Tried 3 5. Try"
    assert Recall().lock(6, []) == "Keys 1 to 6. Try"


@pytest.mark.parametrize("episodes", [-1, 17])
def test_senseless_knobs_are_refused(episodes):
    with pytest.raises(MinipostError, match="episodes must be 0..16"):
        Recall(episodes=episodes)
