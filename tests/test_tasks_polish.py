"""Polish: cluttered sums, their stages, and that a rewording keeps what is asked for."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import is_held_out
from minipost.tasks.polish import (
    STAGES,
    Polish,
    asked_for,
    clear,
    cluttered,
    reworded,
    stage,
)

GIVEN = "7 (3)+twice 4+6-6-3 (8)=?"
STAGED = [GIVEN, "7+twice 4+6-6-3=?", "7+8+6-6-3=?", "7+8-3=?"]


def test_the_stages_of_a_problem():
    assert [stage(GIVEN, k) for k in range(4)] == STAGED and STAGES == 3
    assert stage(GIVEN, 9) == STAGED[-1] == reworded(STAGED[-1])
    assert [asked_for(words) for words in STAGED] == [12] * 4
    assert reworded("7+2-2=?") == "7=?"                     # a rewording without effect is none
    assert reworded("7-7+3+5-5-3+1=?") == "7-7+3-3+1=?"     # the first term stays
    assert clear("7-7 (2)+3+5-5-3+1=?") == "7-7+1=?" and reworded("7+3-3+3=?") == "7+3=?"
    assert reworded("what 7=?") == "what 7=?"


@given(st.integers(0, 9999))
def test_every_stage_asks_for_the_same_number(seed):
    rng = random.Random(seed)
    problem, = Arithmetic(terms=4).sample(1, rng)
    words = cluttered(problem.columns["chain"], rng.randint(0, 4), rng.randint(0, 4), rng)
    stages = [stage(words, k) for k in range(STAGES + 1)]
    assert [asked_for(each) for each in stages] == [problem.columns["answer"]] * 4
    assert all(len(b) <= len(a) for a, b in zip(stages, stages[1:]))
    last = clear(words)
    assert asked_for(last) == problem.columns["answer"] and reworded(last) == last
    assert re.fullmatch("[0-9]+([+-][0-9]+)*=[?]", last) and clear(stages[-1]) == last


def test_clutter_is_as_much_as_is_asked_for():
    for remarks, pairs in ((0, 0), (2, 0), (0, 3), (3, 1)):
        words = cluttered("7+5-3", remarks, pairs, random.Random(1))
        assert words.count("(") == remarks and len(re.findall("[+-]", words)) == 2 + 2 * pairs
    assert "twice" in cluttered("8+6-4+2+8", 0, 0, random.Random(0))


@pytest.mark.parametrize("words, number", [
    ("12+8-3=?", 17), ("3-5=?", -2), ("7=?", 7), ("twice 7=?", 14), ("9-twice 4 (5)=?", 1),
    ("", None), ("17", None), ("12+8", None), ("+3=?", None), ("(3)+4=?", None), ("3 +4=?", None),
    ("3+4 (x)=?", None), ("thrice 4=?", None), ("3+4=? 7", None), ("3++4=?", None)])
def test_what_words_ask_for(words, number):
    assert asked_for(words) == number


def test_problems_of_both_kinds_and_all_stages_and_none_held_out():
    task = Polish()
    found = task.sample(400, random.Random(0))
    ends = [p.prompt.rpartition(" ")[2] for p in found]
    assert set(ends) == {"Polish:", "Answer:"} and 150 < ends.count("Polish:") < 250
    assert 60 < sum(reworded(p.columns["words"]) == p.columns["words"] for p in found) < 240
    for p in found:
        text = task.demonstrate(p)
        assert task.reward([""], [text], **{k: [v] for k, v in p.columns.items()}) == [1.0]
    chains = {p.columns["chain"]: p for p in task.sums.heldout(100)
              if reworded(words := f"{p.columns['chain']}=?") == words}
    for p, (chain, own) in zip(task.heldout(60), chains.items()):
        assert is_held_out([int(n) for n in re.findall("[0-9]+", chain)])
        assert p.prompt.endswith("=? Answer:") and p.columns["answer"] == own.columns["answer"]
        assert p.prompt.count("(") == 3 and len(re.findall("[+-]", p.prompt)) == 3 + 2 * 3
    plain = Polish(clutter=0, rewording=0.0).sample(50, random.Random(1))
    assert all(p.prompt.endswith("Answer:") and "(" not in p.prompt for p in plain)


def test_no_training_problem_has_held_out_operands():
    """Of clear ones, which show their operands, unless some cancelled."""
    found = Polish(clutter=0).sample(300, random.Random(2))
    numbers = [[int(n) * (2 if double else 1) for double, n in
                re.findall("(twice )?([0-9]+)", p.columns["words"])] for p in found]
    whole = [each for each in numbers if len(each) == 4]
    assert len(whole) > 200 and not any(is_held_out(each) for each in whole)


def test_what_is_left_of_a_held_out_sum_is_held_out():
    """Else it is left of sums that are not, such as 3+5-5+2 and 3+4-4+2, and drawn in training."""
    for split in Polish().splits(200).values():
        for p in split:
            left = [int(n) for n in re.findall("[0-9]+", clear(p.columns["words"]))]
            assert len(left) == 4 and is_held_out(left)


def test_splits_are_problems_clear_ones_and_rewordings():
    held, plain, rewordings = Polish().splits(6).values()
    assert [p.columns["answer"] for p in held] == [p.columns["answer"] for p in plain]
    assert all(reworded(p.columns["words"]) == p.columns["words"] for p in plain)
    assert all(p.prompt.endswith("Answer:") for p in (*held, *plain))
    assert all(p.prompt.endswith("Polish:") for p in rewordings)
    assert ["(" in p.prompt for p in rewordings] == [True, False, False] * 2


def test_a_number_answers_and_a_problem_rewords_and_neither_does_both():
    task, columns = Polish(), dict(words=[GIVEN] * 4, answer=[12] * 4)
    texts = [" 12", " 7+8-3=?", f" {STAGED[1]}", " 7+8=?"]
    assert task.reward([""] * 4, texts, reworded=[False] * 4, **columns) == [1, 0, 0, 0]
    assert task.reward([""] * 4, texts, reworded=[True] * 4, **columns) == [0, 1, 1, 0]
    problem = Polish().heldout(1)[0]
    assert task.polish(problem).prompt == f"{problem.columns['words']} Polish:"
    right = problem.columns["answer"]
    fresh = task.polished(problem, f" {right}+0=?\nmore")
    assert fresh.prompt == f"{right}+0=? Answer:" and fresh.columns["answer"] == right
    assert task.keeps(problem) and task.keeps(fresh)
    for text in ("", f" {right}", f"{right}+1=?"):
        assert not task.keeps(task.polished(problem, text))


@pytest.mark.parametrize("knob, bad", [("terms", 1), ("terms", 25), ("largest", 0), ("clutter", -1),
                                       ("clutter", 9), ("clutter", True), ("rewording", 2),
                                       ("rewording", None), ("rewording", float("nan"))])
def test_a_knob_out_of_bounds_is_refused(knob, bad):
    with pytest.raises(MinipostError, match=knob):
        Polish(**{knob: bad})
