"""Choose: forms of a number, lists of them, and what a right reply to a list is."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.arithmetic import LIMIT
from minipost.tasks.base import is_held_out
from minipost.tasks.choose import (
    LARGEST,
    MOST,
    NOTHING,
    ROW,
    Choose,
    agreed,
    drawn,
    formed,
    lettered,
    listed,
    reply,
    spelt,
    value,
)


@given(st.integers(0, LIMIT), st.integers(0, 999))
def test_a_form_has_its_value_and_numbers_of_at_most_two_digits(total, seed):
    n, form = formed(total, random.Random(seed))
    assert total + n == int(re.findall("[0-9]+", form)[0]) or n <= 0
    assert value(form) == total and re.fullmatch("[0-9]{1,2}[+-][0-9]{1,2}", form)
    assert min(int(n) for n in re.findall("[0-9]+", form)) <= LARGEST


def test_a_number_has_many_forms():
    forms = {formed(40, random.Random(k))[1] for k in range(2000)}
    assert len(forms) > 50


@pytest.mark.parametrize("entry, found", [
    ("17", 17), ("9+8", 17), ("9 + 8", 17), ("25-8", 17), ("3-9", -6), ("-3", -3), ("+3", 3),
    ("", None), ("?", None), ("9+8+1", None), ("9*2", None), ("09+1", None), ("9+", None),
    ("(9+8)", None), ("9+8=17", None), ("9+-8", None)])
def test_what_an_answer_comes_to(entry, found):
    assert value(entry) == found and Choose().parse(f"Answer: {entry}") == found
    assert spelt(f"Answer: {entry}") == (NOTHING if found is None else entry.replace(" ", ""))


def test_a_reply_works_out_counts_and_names_the_first():
    entries = ["25-8", "4+12", "9+8", "16", NOTHING]
    assert listed(entries) == "Choose:\n1: 25-8\n2: 4+12\n3: 9+8\n4: 16\n5: ?\nMost agree on:\n"
    assert reply(entries) == ("1: 25-8=17a x1\n2: 4+12=16b x1\n3: 9+8=17a x2\n4: 16b x2\n"
                              "5: ? x0\nMost: a x2\nAnswer: 1")
    assert reply(["3", "4", "2+2"]).endswith("3: 2+2=4b x2\nMost: b x2\nAnswer: 2")
    assert agreed(entries) == (17, (1, 2, 3, 4)) and agreed(["?", "3"]) == (3, (2,))
    assert agreed(["?", "?"]) == (None, (1, 2))
    assert reply(["?", "?"]).endswith("Most: a x0\nAnswer: 1")


@given(st.integers(0, 9999))
def test_a_list_and_its_reply_agree_with_a_count_by_hand(seed):
    entries = drawn(random.Random(seed))
    assert 2 <= len(entries) <= MOST
    worked = [int(eval_(e)) for e in entries if e != NOTHING]       # by Python's own rules
    task = Choose(lists=1.0, drills=0.0)
    problem, = task.sample(1, random.Random(seed))
    number = task.chosen(task.demonstrate(problem))
    assert number in problem.columns["good"] == agreed(problem.columns["list"])[1]
    if worked:
        most = max(worked.count(v) for v in worked)
        assert set(agreed(entries)[1]) == {k for k, e in enumerate(entries, 1) if e != NOTHING
                                           and worked.count(int(eval_(e))) == most}


def test_no_place_of_a_list_is_right_much_more_often_than_another():
    """So that who names the same place of all lists of a length is right of half of them."""
    lists = [drawn(random.Random(seed)) for seed in range(4000)]
    best = 0
    for k in range(2, MOST + 1):
        goods = [agreed(entries)[1] for entries in lists if len(entries) == k]
        counts = [sum(place in good for good in goods) for place in range(1, k + 1)]
        assert k == 2 or max(counts) - min(counts) < 0.1 * len(goods)
        best += max(counts)
    assert best < 0.63 * len(lists)


def row_of(problem):
    return {name: [problem.columns[name]] for name in ("good", "row")}


def eval_(entry):
    a, sign, b = re.fullmatch("([0-9]+)(?:([+-])([0-9]+))?", entry).groups()
    return int(a) + (int(b) * (1 if sign == "+" else -1) if b else 0)


def test_sums_are_of_both_kinds_and_none_is_held_out():
    task, rng = Choose(), random.Random(0)
    found = task.sample(400, rng)
    sums = [p for p in found if p.columns["chain"]]
    assert 20 < len(sums) < 60
    assert {p.prompt.rpartition("=? ")[2] for p in sums} == {"Any form:\n", "Think:\n"}
    for p in sums:
        assert not is_held_out([int(n) for n in re.findall("[0-9]+", p.columns["chain"])])
    for p in task.heldout(50):
        assert is_held_out([int(n) for n in re.findall("[0-9]+", p.columns["chain"])])
        assert p.prompt.endswith("=? Any form:\n")
    splits = task.splits(30)
    assert [len(rows) for rows in splits.values()] == [30, 30]
    assert all(p.prompt.startswith("Choose:") for p in splits["lists"])
    assert all(is_held_out(p.columns["list"]) for p in splits["lists"])
    assert not any(is_held_out(p.columns["list"]) for p in found if p.columns["list"])
    plain, = Choose(forms=False).heldout(1)
    assert plain == Choose(forms=False).like(task.heldout(1)[0])
    assert plain.prompt.endswith("=? Think:\n")


def test_a_demonstration_slips_as_often_as_it_is_told():
    rng = random.Random(0)
    for slip, low, high in ((0.0, 1.0, 1.0), (0.13, 0.4, 0.6)):
        task = Choose(slip=slip, lists=0.0, drills=0.0)
        found = task.sample(400, rng)
        right = [task.reward([""], [task.demonstrate(p, rng)], **row_of(p))[0]
                 for p in found]
        assert low <= sum(right) / 400 <= high


def test_the_last_step_finds_the_form_that_is_stated():
    task, rng = Choose(slip=0.0, lists=0.0, drills=0.0), random.Random(0)
    for p in task.sample(100, rng):
        if p.columns["any_form"]:
            *_, before, step, answer = task.demonstrate(p, rng).split("\n")
            a, b, result = map(int, re.fullmatch("([0-9]+)([+-][0-9]+)=([0-9]+)", step).groups())
            assert a + b == result and before.endswith(f"={a}") and value(answer[8:]) == a
            assert {result, abs(b)} == set(map(int, re.findall("[0-9]+", answer)))


def test_a_row_gives_every_number_the_letter_of_its_first_place():
    assert lettered((17, 5, 17, 84, 5)) == "17a 5b 17a 84c 5b"
    task = Choose(lists=0.0, drills=1.0)
    for problem in task.sample(50, random.Random(0)):
        numbers = problem.columns["row"]
        said = task.demonstrate(problem)
        assert problem.prompt == f"Letters:\n{' '.join(map(str, numbers))}\n"
        assert len(numbers) == ROW
        pairs = [(int(word[:-1]), word[-1]) for word in said.split()]
        assert tuple(n for n, _ in pairs) == numbers
        assert len(set(pairs)) == len(set(numbers)) == len({letter for _, letter in pairs})
        wrong = said[:-1] + ("b" if said[-1] == "a" else "a")
        assert task.reward(["", ""], [said, wrong], [(), ()], [numbers] * 2) == [1.0, 0.0]
    with pytest.raises(MinipostError, match="lists is 0.6 and drills 0.5; expected at most 1"):
        Choose(lists=0.6)


@pytest.mark.parametrize("knob", ["slip", "lists", "drills"])
@pytest.mark.parametrize("bad", [-0.1, 1.1, "x", None, True, float("nan")])
def test_a_share_out_of_bounds_is_refused(knob, bad):
    with pytest.raises(MinipostError, match=knob):
        Choose(**{knob: bad})
