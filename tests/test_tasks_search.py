"""Search: traces are read as they were written, and written as the knobs say."""

import ast
import operator
import random
import re
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.countdown import Countdown, solvable
from minipost.tasks.search import (
    LANGUAGE,
    NO,
    YES,
    Search,
    expression,
    firsts,
    form,
    language,
    nearest,
    read,
    walk,
)

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
HANDS = st.lists(st.integers(1, 13), min_size=3, max_size=4).map(lambda ns: tuple(sorted(ns)))
WORDS = st.sampled_from([None, *LANGUAGE])


def chains(hand):
    """Every chain of moves between whole numbers from a hand, by brute force: [(moves, result)]."""
    if len(hand) == 1:
        return [((), hand[0])]
    found = []
    for i, j in permutations(range(len(hand)), 2):
        for op, f in OPERATORS.items():
            if op == "/" and hand[j] == 0:
                continue
            result = f(Fraction(hand[i]), hand[j])
            if result < 0 or result.denominator > 1:
                continue
            rest = tuple(n for k, n in enumerate(hand) if k not in (i, j))
            move = f"{hand[i]}{op}{hand[j]}={result}"
            found += [((move, *moves), last) for moves, last in chains((*rest, int(result)))]
    return found


@given(HANDS, st.randoms(use_true_random=False), st.lists(WORDS, min_size=1, max_size=6))
def test_a_trace_is_read_as_it_was_made(hand, rng, words):
    """Attempts of any kind, some with a wrong result, among lines that are none."""
    lines, expected = [], []
    everything = chains(hand)
    for word in words:
        moves, last = rng.choice(everything)
        exact = True
        if rng.random() < 0.3:
            *before, end = moves
            last, exact = last + rng.choice((1, 7)), False
            moves = (*before, f"{end.partition('=')[0]}={last}")
        lines.append(" ".join(moves) + (f" {word}" if word else ""))
        expected.append((moves, exact, last, None if word is None else word in YES.values()))
        if rng.random() < 0.3:
            lines.append(rng.choice(("", "no", "yes yes", "1+1", "Answer: 3", "1+1=2 perhaps",
                                     "1+1=2  no", "01+1=2", " 1+1=2", "1+1=2 no yes")))
    found = [(a.moves, a.exact, a.result, a.verdict) for a in read(hand, "\n".join(lines))]
    assert found == expected


@given(HANDS, st.randoms(use_true_random=False))
def test_moves_are_right_only_if_they_use_each_number_once(hand, rng):
    moves, _ = rng.choice(chains(hand))
    assert walk(hand, moves)
    assert not walk((*hand, 1), moves) and not walk(hand[1:], moves) and not walk(hand, moves[:-1])
    used = ast.parse(expression(moves), mode="eval")
    assert sorted(n.value for n in ast.walk(used) if isinstance(n, ast.Constant)) == sorted(hand)


@given(HANDS)
def test_first_moves_are_all_moves_between_whole_numbers_each_once(hand):
    """The larger number stands first."""
    found = [move for move, _ in firsts(hand)]
    expected = {moves[0] for moves, _ in chains(hand)}
    assert len(found) == len(set(found)) and set(found) == {
        move for move in expected if operator.ge(*map(int, re.findall("[0-9]+", move)[:2]))}


@given(HANDS, st.integers(0, 99))
def test_the_nearest_moves_come_as_near_as_any(hand, target):
    gap, moves = nearest(hand, target)
    results = [last for _, last in chains(hand)]
    assert walk(hand, moves)
    assert gap == min(abs(last - target) for last in results)
    assert (gap == 0) == solvable(hand, target, whole=True)


@pytest.mark.parametrize("knobs", [dict(), dict(numbers=4, target=24), dict(numbers=4)])
@pytest.mark.parametrize("traces", ["single", "backtracking", "wrong", "full"])
def test_demonstrations_show_what_the_knob_says(knobs, traces):
    task, rng = Search(traces=traces, rate=0.5, mixed=0.4, **knobs), random.Random(1)
    problems = task.sample(200, rng)
    searched = right = 0
    for problem in problems:
        hand, target = problem.columns["numbers"], problem.columns["target"]
        text = task.demonstrate(problem, rng)
        tried = read(hand, text)
        assert len(tried) == text.count("\n") and all(a.exact for a in tried)
        assert form([""], [text]) == [1.0]
        reward, = task.reward([""], [text], [hand], [target])
        assert reward == (tried[-1].result == target) == (task.parse(text) == target)
        if tried[0].verdict is None:
            assert len(tried) == 1
            continue
        searched += 1
        right += reward
        can = solvable(hand, target, whole=True)
        assert [a.verdict for a in tried] == [False] * (len(tried) - 1) + [can or traces == "wrong"]
        assert len({a.moves[0] for a in tried}) == len(tried)
        assert all(a.result != target for a in tried[:-1])
        if traces == "wrong":
            options = [m for m, after in firsts(tuple(sorted(hand))) if nearest(after, target)[0]]
            assert not reward or not options
        else:
            assert reward == can
    low, high = {"single": (0, 0), "full": (200, 200)}.get(traces, (70, 130))
    assert low <= searched <= high
    assert right == 0 if traces == "single" else right < 10 if traces == "wrong" else right > 60


@pytest.mark.parametrize("traces", ["backtracking", "wrong", "full"])
def test_most_bounds_the_attempts_and_every_place_from_which_they_are_enough_is_drawn(traces):
    task, free = (Search(4, target=24, traces=traces, rate=1.0, most=most) for most in (3, 0))
    for problem in free.sample(30, random.Random(0)):
        hand, starts = tuple(sorted(problem.columns["numbers"])), set()
        options = firsts(hand)
        good = [nearest(after, 24)[0] == 0 for _, after in options]
        for seed in range(40):
            tried = read(hand, task.demonstrate(problem, random.Random(seed)))
            assert 1 <= len(tried) <= 3
            starts.add(tried[0].moves[0])
            if traces != "wrong" and any(good):
                assert tried[-1].result == 24
            elif not any(good):
                assert tried[-1].verdict == (traces == "wrong")
        enough = {move for k, (move, _) in enumerate(options)
                  if any((good[k:] + good[:k])[:3]) or not any(good)}
        assert starts <= enough or traces == "wrong"
        assert len(starts) >= min(len(enough), 4) - 1
    with pytest.raises(MinipostError, match="most is -1; expected 0 to 100"):
        Search(most=-1)


def test_a_thought_is_counted():
    task, problem = Search(), Countdown().pose("24: 4 9 10")
    text = ("4+9=13 10+13=23 no\n9-4=5 5*10=50 no\n4+9=13 10+13=23 yes\n9-4=6 6*10=60 non\n"
            "10-4=6 6+9=15\nAnswer: (10-4)+9")
    assert task.thinking(problem, text) == {
        "attempts": 5, "distinct": 4, "backtracks": 3, "checks": 4, "sound": 2}
    assert set(task.thinking(problem, "").values()) == {0}


def test_rules_pay_for_form_and_for_one_language():
    good = "4+9=13 10+13=23 no\n9-4=5 5*10=50\nAnswer: (9-4)*10"
    bad = ["4+9=13 perhaps\nAnswer: 24", "4+9=13\nAnswer: ", "4+9=13\nAnswer: four", "Answer: 24",
           good + "\n", good.replace("no", "No"), good.replace("\nAnswer: ", " "),
           good.replace("\n9", "\n\n9"), good + "\nAnswer: 1", "", "4+9=13"]
    assert form([""] * 12, [good, *bad]) == [1.0] + [0.0] * 11
    mixed = "\n".join(f"4+9=13 10+13=23 {word}" for word in (*NO.values(), YES["de"]))
    assert language([""] * 4, [good, mixed, "Answer: 24", mixed + " x"]) == [1, 0.25, 1, 1 / 3]


def test_a_vote_is_for_an_expression():
    task = Search()
    texts = ["1+2=3\nAnswer: (10-4)*(13-9)", "Answer: (13-9)*(10-4)", "Answer: 23", "4*6=24"]
    assert [task.parse(text) for text in texts] == [24, 24, 23, None]
    assert [task.ballot(text) for text in texts] == ["(10-4)*(13-9)", "(13-9)*(10-4)", "23", None]


def test_the_split_is_that_of_countdown():
    for knobs in (dict(), dict(numbers=4, target=24)):
        ours, theirs = Search(**knobs), Countdown(**knobs)
        assert [p.columns for p in ours.heldout(50)] == [p.columns for p in theirs.heldout(50)]
        drawn = ours.sample(50, random.Random(3))
        assert [p.columns for p in drawn] == [
            p.columns for p in theirs.sample(50, random.Random(3))]
        assert all(p.prompt.endswith(". Think:\n") for p in drawn)


def test_knobs_have_bounds():
    for knobs in (dict(rate=1.5), dict(mixed=-0.1), dict(traces="long"), dict(numbers=5)):
        with pytest.raises(MinipostError):
            Search(**knobs)
