"""Countdown against an independent solver that builds expression trees over Fractions."""

import random
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks import countdown
from minipost.tasks.base import Problem, is_held_out
from minipost.tasks.countdown import (
    Countdown,
    apply,
    evaluate,
    expression,
    held_out,
    moves,
    solvable,
    solve,
)

TASKS = [Countdown(), Countdown(numbers=4), Countdown(target=24),
         Countdown(numbers=4, target=24), Countdown(largest=100)]
GAME = TASKS[3]
HAND = Problem("", {"numbers": [4, 9, 10, 13], "target": 24})
SOLUTION = "13-9=4:4 4 10\n10-4=6:4 6\n4*6=24:24"

small = st.integers(-6, 13)
hands = st.lists(st.integers(1, 13), min_size=2, max_size=4)


def rewards(task, problems, texts):
    return task.reward([p.prompt for p in problems], texts,
                       **{key: [p.columns[key] for p in problems] for key in problems[0].columns})


def reward(text, problem=HAND):
    return rewards(GAME, [problem], [text])[0]


@cache
def tree_values(hand):
    """Values of all expression trees over `hand`, (numerator, denominator), by bit masks."""
    n, table = len(hand), {}
    for mask in range(1, 1 << n):
        if mask & (mask - 1) == 0:
            table[mask] = {(hand[mask.bit_length() - 1], 1)}
            continue
        made, left = set(), (mask - 1) & mask
        while left:
            for a, b in table[left]:
                for c, d in table[mask ^ left]:
                    made |= {(a * d + c * b, b * d), (a * d - c * b, b * d), (a * c, b * d)}
                    if c:
                        made.add((a * d, b * c))
            left = (left - 1) & mask
        table[mask] = {(f.numerator, f.denominator) for f in (Fraction(*v) for v in made)}
    return {Fraction(*v) for v in table[(1 << n) - 1]}


def makes_24(left):
    """Brute force on floats; no two values of four cards 1..13 near 24 lie within 1e-6."""
    if len(left) == 1:
        return abs(left[0] - 24) < 1e-6
    for i in range(len(left)):
        for j in range(i):
            rest = [x for k, x in enumerate(left) if k not in (i, j)]
            a, b = left[i], left[j]
            for c in (a + b, a * b, a - b, b - a, b and a / b, a and b / a):
                if makes_24([*rest, c]):
                    return True
    return False


def test_the_game_of_24_has_1362_solvable_hands():
    hands_24 = [h for h in combinations_with_replacement(range(1, 14), 4) if solvable(h, 24)]
    assert len(hands_24) == 1362
    rng = random.Random(0)
    every = list(combinations_with_replacement(range(1, 14), 4))
    for hand in rng.sample(every, 150):
        assert (hand in hands_24) == makes_24(list(hand))


def test_fractions_are_found_where_nothing_else_works():
    assert solvable([3, 3, 8, 8], 24) and not solvable([3, 3, 8, 8], 24, whole=True)
    only = list(solve([3, 3, 8, 8], 24))
    assert only == ["8/3=(8/3):(8/3) 3 8\n3-(8/3)=(1/3):(1/3) 8\n8/(1/3)=24:24"]
    assert GAME.demonstrate(Problem("", {"numbers": [3, 3, 8, 8], "target": 24})) == only[0]
    assert not solvable([1, 1, 1, 1], 24) and list(solve([1, 1, 1, 1], 24)) == []


@given(st.lists(small, min_size=1, max_size=3), st.integers(-30, 99))
@example([0, 3, 7], 0)
@settings(max_examples=150)
def test_solvable_agrees_with_expression_trees(hand, target):
    values = tree_values(tuple(hand))
    assert solvable(hand, target) == (target in values)
    for value in list(values)[:5]:
        assert solvable(hand, value)


@given(st.lists(small, min_size=2, max_size=4), st.integers(1, 40))
@example([-2, 3, 15], 24)  # only as (-2)*(3-15), by way of a negative difference
@settings(max_examples=60, deadline=None)
def test_the_target_is_in_reach_exactly_when_some_move_keeps_it_there(hand, target):
    state = tuple(sorted(hand))
    assert solvable(state, target) == any(solvable(s, target) for _, s in moves(state))


def reach_whole(state):
    """The single numbers that moves between non-negative integers lead to."""
    if len(state) == 1:
        return set(state)
    return {value for _, after in moves(state)
            if all(n >= 0 and n == int(n) for n in after) for value in reach_whole(after)}


@given(st.lists(st.integers(1, 13), min_size=2, max_size=3))
@settings(max_examples=50)
def test_whole_reach_is_what_whole_moves_make(hand):
    reached = reach_whole(tuple(sorted(hand)))
    assert {t for t in range(200) if solvable(hand, t, whole=True)} == set(range(200)) & reached


@given(hands, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_every_move_is_legal_and_distinct(hand, rng):
    state = tuple(sorted(hand))
    while len(state) > 1:
        options = moves(state)
        assert len({after for _, after in options}) == len(options)
        for line, after in options:
            assert apply(state, line) == after == tuple(sorted(after))
            assert min(after) >= 0
        state = rng.choice(options)[1]


@given(hands.filter(lambda h: len(h) == 3), st.integers(10, 99))
@settings(max_examples=60, deadline=None)
def test_solutions_are_distinct_and_earn_the_reward(hand, target):
    problem = Problem("", {"numbers": hand, "target": target})
    found = list(solve(hand, target))
    assert len(set(found)) == len(found)
    assert bool(found) == (target in tree_values(tuple(hand)))
    assert all(reward(text, problem) == 1.0 for text in found)


def test_reward_wants_every_line_legal_and_the_target_alone():
    assert reward(SOLUTION) == reward(SOLUTION + "\n") == 1.0
    assert reward("9-13=(-4):(-4) 4 10\n4-10=(-6):(-6) (-4)\n(-6)*(-4)=24:24") == 1.0
    for wrong in ("", "24", ":24", "24:24",
                  SOLUTION[:-1], SOLUTION.rsplit("\n", 1)[0],  # unfinished
                  SOLUTION + "\n24", SOLUTION + "\n\n", "\n" + SOLUTION,  # lines too many
                  SOLUTION.replace("4*6", "4+6"),  # false arithmetic
                  SOLUTION.replace(":4 4 10", ":4 10"), SOLUTION.replace(":4 6", ":6 6"),
                  SOLUTION.replace("13-9=4", "14-10=4"), "8*3=24:24",  # numbers not there
                  "4*6=24:24", "13-9=4:4 4 10\n4*4=16:10 16\n16+10=26:26"):
        assert reward(wrong) == 0.0, wrong
    assert reward("12*2=24:5 24", Problem("", {"numbers": [2, 5, 12], "target": 24})) == 0.0
    assert reward("4*6=24:24", Problem("", {"numbers": [6, 4, 4], "target": 24})) == 0.0


def test_one_number_is_not_used_twice_and_nothing_is_divided_by_zero():
    assert apply((4, 6), "4+4=8:6") is None
    assert apply((4, 4), "4+4=8:8") == (8,)
    assert apply((4, 4), "4+4=8:8.") is None and apply((4, 4), "4+4=8:8\n") is None
    assert apply((0, 4), "4/0=4:4") is None and apply((0, 4), "4/0=0:0") is None
    assert apply((3, 8), "8/3=2:2") is None
    assert apply((3, 8), "8/3=(8/3):(8/3)") == (Fraction(8, 3),)
    assert apply((3, 8), "\u0663+8=11:11") is None


def test_check_steps_asks_for_legal_moves_that_keep_the_target_in_reach():
    assert GAME.check_steps(HAND, SOLUTION) == [True] * 3
    lost = "13-9=4:4 4 10\n10/4=(5/2):(5/2) 4\n(5/2)*4=10:10"
    assert GAME.check_steps(HAND, lost) == [True, False, False]
    illegal = SOLUTION.replace("10-4=6", "10-4=7")
    assert GAME.check_steps(HAND, illegal) == [True, False, False]
    assert [len(s) for s in GAME.states(HAND, illegal)] == [3]
    assert GAME.states(HAND, SOLUTION) == [(4, 4, 10), (4, 6), (24,)]


@given(st.text() | st.text(alphabet="0123456789+-*/=:() \n\u0663"), st.integers(0, len(SOLUTION)))
@settings(max_examples=300)
def test_no_text_makes_the_checkers_raise(text, cut):
    for candidate in (text, SOLUTION[:cut] + text, ":" + text, SOLUTION[:cut] + SOLUTION[cut + 1:]):
        assert GAME.parse(candidate) is None or isinstance(GAME.parse(candidate), Fraction)
        assert len(GAME.check_steps(HAND, candidate)) == len(GAME.steps(candidate))
        assert reward(candidate) in (0.0, 1.0)
        apply((4, 9, 10, 13), candidate)


def test_parse_reads_the_single_number_left():
    assert GAME.parse(SOLUTION) == 24 and GAME.parse(SOLUTION + "\n") == 24
    assert GAME.parse("8/3=(8/3):(8/3)") == Fraction(8, 3)
    for text in ("", "24", "13-9=4:4 4 10", ":8/3", ":(8/0)", ":(1/00)", ":" + "1" * 10, "1:\n\n"):
        assert GAME.parse(text) is None


@pytest.mark.parametrize("task", TASKS)
def test_problems_fit_the_knobs_and_the_splits_share_no_numbers(task):
    train, held = task.sample(1000, random.Random(0)), task.heldout(60)
    for problem in train + held:
        numbers, target = problem.columns["numbers"], problem.columns["target"]
        assert len(numbers) == task.numbers and numbers == sorted(numbers)
        assert 1 <= numbers[0] and numbers[-1] <= task.largest
        assert target == task.target or task.target == 0 and 10 <= target <= 99
        assert problem.prompt == f"Reach {target} from {' '.join(map(str, numbers))}:\n"
    assert not any(held_out(p.columns["numbers"]) for p in train)
    assert all(held_out(p.columns["numbers"]) for p in held)
    assert len({p.prompt for p in held}) == len(held) > 10


def test_the_held_out_hands_are_one_hundred_for_every_target():
    first = {tuple(p.columns["numbers"]) for p in GAME.heldout(10**6)}
    assert len(first) == 100
    for hand in combinations_with_replacement(range(1, 14), 4):
        rule = hand in first if solvable(hand, 24) else is_held_out(hand)
        assert held_out(hand[::-1]) == rule
    for hand in ((1, 2, 3), (5, 6, 7), (1, 5, 5), (1, 2, 3, 14), (20, 30, 40, 50)):
        assert held_out(hand) == is_held_out(hand)


@pytest.mark.parametrize("task", TASKS)
def test_heldout_is_a_fixed_list_and_sampling_follows_the_seed(task):
    assert task.heldout(5) == task.heldout(40)[:5]
    assert task.sample(20, random.Random(3)) == task.sample(20, random.Random(3))
    assert task.sample(20, random.Random(3)) != task.sample(20, random.Random(4))


@pytest.mark.parametrize("knobs", [dict(numbers=2), dict(numbers=5), dict(largest=0),
                                   dict(largest=1), dict(largest=101), dict(target=7),
                                   dict(target=24, largest=14), dict(target=24, largest=2)])
def test_senseless_knobs_are_refused(knobs):
    with pytest.raises(MinipostError, match="numbers|largest|target"):
        Countdown(**knobs)


@pytest.mark.parametrize("task", TASKS)
def test_demonstrations_solve_and_bad_ones_are_exact_but_lost(task):
    rng = random.Random(8)
    problems = task.sample(150, rng) + task.heldout(50)
    good = [task.demonstrate(p, rng) for p in problems]
    assert rewards(task, problems, good) == [1.0] * len(problems)
    for problem, text in zip(problems, good):
        assert task.check_steps(problem, text) == [True] * (task.numbers - 1)
        whole = solvable(problem.columns["numbers"], problem.columns["target"], whole=True)
        assert whole != ("(" in text)
    bad = [task.demonstrate(p, rng, bad=1.0) for p in problems]
    assert sum(rewards(task, problems, bad)) < 0.25 * len(problems)
    for problem, text in zip(problems, bad):
        assert len(task.states(problem, text)) == task.numbers - 1 and "(" not in text


def test_a_half_bad_demonstration_recovers_where_it_can():
    rng = random.Random(9)
    problem = Problem("", {"numbers": [4, 9, 10, 13], "target": 24})
    texts = [GAME.demonstrate(problem, rng, bad=0.5) for _ in range(100)]
    labels = [GAME.check_steps(problem, text) for text in texts]
    assert 0 < sum(map(reward, texts)) < 100
    assert all(steps == sorted(steps, reverse=True) for steps in labels)
    assert all(steps[-1] == bool(reward(text)) for steps, text in zip(labels, texts))


# ---- what the test-time methods ask of the task

AT_ONCE = Countdown(numbers=4, target=24, direct=True)


def test_an_answer_at_once_is_an_expression_of_all_the_numbers():
    rng = random.Random(0)
    problems = AT_ONCE.sample(200, rng)
    assert problems[0].prompt.endswith(". Answer:") and AT_ONCE.like(problems[0]) == problems[0]
    texts = [AT_ONCE.demonstrate(p, rng) for p in problems]
    columns = {k: [p.columns[k] for p in problems] for k in ("numbers", "target")}
    assert AT_ONCE.reward(None, texts, **columns) == [1.0] * 200
    assert [AT_ONCE.parse(t) for t in texts] == [24] * 200
    others = [p.columns["numbers"] for p in problems[1:] + problems[:1]]
    assert sum(AT_ONCE.reward(None, texts, others, columns["target"])) < 10
    assert AT_ONCE.reward(None, ["6*4", "(6*4)*1", "4*6*1*1", "1+1"], [[1, 1, 4, 6]] * 4,
                          [24] * 4) == [
0.0, 0.0, 1.0, 0.0]


@given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 99), st.sampled_from("+-*/"),
       st.sampled_from("+-*/"), st.booleans())
def test_expressions_are_evaluated_exactly(a, b, c, one, two, left):
    text = f"({a}{one}{b}){two}{c}" if left else f"{a}{one}({b}{two}{c})"
    ops = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y,
           "/": lambda x, y: Fraction(x) / y}
    try:
        value = ops[two](ops[one](a, b), c) if left else ops[one](a, ops[two](b, c))
    except ZeroDivisionError:
        value = None
    found = evaluate(text)
    assert found == (None if value is None else (value, sorted((a, b, c))))


@pytest.mark.parametrize("text", ["", " ", "2**3", "7//2", "(1", "1)", "()", "-4+28",
                                  "1 if 2 else 3", "x",
                                  "4!", "2+", "0x18", "08*3", "1_0+14", "(" * 64, "1.5*16", "24\n"])
def test_what_is_no_expression_is_none(text):
    assert evaluate(text) is None


@given(st.text(alphabet="0123456789+-*/() ", max_size=70))
def test_no_text_makes_the_evaluator_raise(text):
    evaluate(text)
    AT_ONCE.ballot(text)
    expression(text)


def test_a_vote_counts_expressions_in_whatever_order_they_are_written():
    one = "13-9=4:4 5 10\n10-5=5:4 5\n5*4=20:20"
    two = "10-5=5:5 9 13\n13-9=4:4 5\n4*5=20:20"
    other = "4+9=13:10 13 13\n13-10=3:3 13\n13*3=39:39"
    assert GAME.ballot(one) == GAME.ballot(two) == "(10-5)*(13-9)"
    assert GAME.ballot(other) == "((4+9)-10)*13"
    # read, not checked, and apart from the same expression by exact moves
    assert GAME.ballot("13-9=5:4 5 10\n10-5=5:4 5\n5*4=20:20") == "(10-(13-9))*4, not exact"
    assert GAME.ballot(SOLUTION) == "(10-(13-9))*4"
    assert GAME.ballot("nonsense") is None and AT_ONCE.ballot(" 6*4 ") == "6*4"
    assert AT_ONCE.ballot(" ") is None and GAME.ballot(SOLUTION[:-6]) is None


@pytest.mark.parametrize("hand, target, right, wrong", [
    ([4, 9, 10, 13], 24, SOLUTION, SOLUTION.replace("13-9=4", "13-9=5")),           # a wrong result
    ([4, 9, 10, 13], 24, SOLUTION, SOLUTION.replace("13-9=4:4 4 10", "13-9=4:4 4 11")),  # and rest
    ([4, 9, 11, 13], 28, SOLUTION.replace("10", "11").replace("=6", "=7").replace("4 6", "4 7")
     .replace("4*6=24:24", "4*7=28:28"),
     "13-9=4:4 4 10\n11-4=7:4 7\n4*7=28:28"),                      # goes on from what was not left
    ([3, 3, 8], 8, "8/3=(8/3):(8/3) 3\n(8/3)*3=8:8", "(8/3)*3=8:8"),   # starts from what is no card
    ([4, 6, 8], 24, "8-4=(4):(4) 6\n4*6=24:24", "4*6=24:24"),       # one number in two spellings
    ([3, 3, 8], 8, "8/3=(16/6):3 (8/3)\n(24/9)*3=8:8", "(8/3)*3=8:8"),
])
def test_a_right_and_a_wrong_answer_never_share_a_vote(hand, target, right, wrong):
    problem = Problem("", {"numbers": hand, "target": target})
    assert [reward(text, problem) for text in (right, wrong)] == [1.0, 0.0]
    assert None is not GAME.ballot(right) != GAME.ballot(wrong)


def test_more_moves_than_any_problem_takes_are_no_answer():
    """An expression of many lines could take quadratic time."""
    move = "2+1=2:2\n"
    assert expression(move * 8) == "(((((((1+2)+1)+1)+1)+1)+1)+1)+1" and GAME.parse(move * 8) == 2
    for lines in (9, 200_000):
        assert expression(move * lines) is GAME.parse(move * lines) is None
        assert GAME.ballot(move * lines) is None


MOVES = ["13 - 9 = 4: 4 4 10\n10 - 4 = 6: 4 6\n4 * 6 = 24: 24", SOLUTION.replace("\n", " \n "),
         SOLUTION.replace("-", "\u2212"), SOLUTION.replace("*", "\u00d7"),
         SOLUTION.replace("*", r" \times "), SOLUTION.replace("*", "x"),
         SOLUTION.replace("*", " X "), SOLUTION.replace("=", "\uff1d").replace("4", "\uff14"),
         SOLUTION.replace("4 4 10", "10\u00a04  4"),
         SOLUTION.replace("13", " 13\t"), SOLUTION + "\n"]


@pytest.mark.parametrize("text", MOVES)
def test_moves_in_another_spelling_are_the_same_moves(text):
    assert reward(text) == 1.0 and GAME.parse(text) == 24
    assert GAME.ballot(text) == expression(text) == expression(SOLUTION)
    assert GAME.states(HAND, text) == GAME.states(HAND, SOLUTION)
    first = text.split("\n")[0] + "\n"
    assert sorted(GAME.state(HAND, first).split()) == ["10", "4", "4"]
    assert GAME.questions(HAND, MOVES[0] + "\n") == GAME.questions(HAND, SOLUTION)


@pytest.mark.parametrize("text", [
    SOLUTION.replace("13", "013"), SOLUTION.replace("4:4 4 10", "4:4 4 10."), SOLUTION + ".",
    SOLUTION.replace("13-9", "13--9"), SOLUTION.replace("4 4 10", "4 41 0"), f"**{SOLUTION}**",
    SOLUTION.replace("13-9", "1 3-9"), SOLUTION.replace("4 4 10", "4,4,10"), "4*6=24:24",
    SOLUTION.replace("*", "**"), SOLUTION.replace("24:24", "24.0:24"), SOLUTION + "\n\n",
    SOLUTION.replace("*", "xx"), SOLUTION.replace("4*", "04x"),
    "\u0664*6=24:24", SOLUTION.replace("13-9", "+13-9"), SOLUTION.replace("\n", "\n\n", 1)])
def test_other_moves_earn_nothing(text):
    assert reward(text) == 0.0


RIGHT = ["(10-4)*(13-9)", " (10-4)*(13-9)", "( 10 - 4 ) * ( 13 - 9 )", "(10-4)*(13-9) = 24",
         "(10-4)*(13-9)=24.", "(10\u22124)\u00d7(13\u22129)", "(10\u20134)\u00b7(13-9)",
         "(10-4)\u2217(13-9)", "$(10-4)*(13-9)$", "**(10-4)*(13-9)**", "**(10-4)*(13-9) = 24**",
         "**(10-4)*(13-9)** = 24", r"\boxed{(10-4)*(13-9)}", r"$(10-4)\times(13-9)=\boxed{24}$",
         r"$\boxed{(10-4)\cdot(13-9) = 24}$.", "`(10-4)*(13-9)`", "(10-4)*(13-9)\n",
         "Answer: (10-4)*(13-9)", "**Answer:** (10 - 4) * (13 - 9) = 24\nas 6 * 4 = 24",
         "\u00a0(10-4)*(13-9)\u2009", "(10-4)*(13-9) = (24)", "(10-4)*(13-9)=48/2",
         "(10-4)x(13-9)", "(10-4) X (13-9)", "= (10-4)*(13-9) = 24", "**Answer**: (10-4)x(13-9)",
         "Answer\uff1a\uff0810\uff0d4\uff09\uff0a\uff08\uff11\uff13\uff0d\uff19\uff09\uff1d24"]


@pytest.mark.parametrize("text", RIGHT)
def test_an_expression_in_another_spelling_earns_the_reward(text):
    assert AT_ONCE.reward([""], [text], [[4, 9, 10, 13]], [24]) == [1.0]
    assert AT_ONCE.parse(text) == 24 and AT_ONCE.ballot(text) == "(10-4)*(13-9)"
    for hand, target in (([4, 9, 10, 13], 25), ([4, 9, 10], 24), ([4, 9, 10, 12], 24)):
        assert AT_ONCE.reward([""], [text], [hand], [target]) == [0.0]


@pytest.mark.parametrize("text", [
    "(10-4)*(13-9) = 25", "(10-4)*(13-9) = 24 = 24", "24 = (10-4)*(13-9)", "(10-4)*(13-9) =",
    "(10-4)*(13-9) = 24.0", "(10-4)*(13-9) = 024", "(10-4)*(13-9) or (13-9)*(10-4)",
    "(10-4)*(13-9)!", "(10-4)(13-9)", "(10-4)xx(13-9)", "(10-4)*(13-9), 24", "not (10-4)*(13-9)",
    "(10-4)*\n(13-9)", "(10-4)*(13-09)", "(1 0-4)*(13-9)", "(10.0-4)*(13-9)", "(1_0-4)*(13-9)",
    "(10-4)*(13-9)**1", "(10-4)**(13-9)", "(10-4)//(13-9)", "(10-4)/ /(13-9)", "-(4-10)*(13-9)",
    "+(10-4)*(13-9)", "(10-4)*(13--9)", "(10-4)*(13-9)+0j", "(10-4)*(13-9)*1e0", "10-4*(13-9",
    "(\u0661\u0660-4)*(13-9)", "**(10-4)*(13-9)", "$(10-4)*(13-9)", "13-9=4:4 4 10", "9/(4-4)",
    "2**9**9", "9" * 10 + "*1", "0x10-4", "0X10-4", "10-4 x", "(10-4)*(13-9)" + "*1" * 40,
    "(" * 40 + "1" + ")" * 40])
def test_what_is_no_answer_at_once(text):
    for said in (text, f"Answer: {text}", rf"\boxed{{{text}}}"):
        assert AT_ONCE.parse(said) is AT_ONCE.ballot(said) is None
        assert AT_ONCE.reward([""], [said], [[4, 9, 10, 13]], [24]) == [0.0]


def test_what_a_judge_is_asked_is_what_the_text_says():
    problem = GAME.pose("4 9 10 13")
    assert GAME.questions(problem, "") == [("24 from 4 9 10 13?", "ok")]
    # wrong, and asked about as it stands
    text = "13-9=5:4 5 10\n"
    assert GAME.questions(problem, text) == [("4 9 10 13: 13-9=", "5:4 5 10"),
                                             ("24 from 4 5 10?", "ok")]
    assert GAME.questions(problem, text + "10-5=5:4 5") == [
        ("4 9 10 13: 13-9=", "5:4 5 10"), ("4 5 10: 10-5=", "5:4 5"), ("24 from 4 5?", "ok")]
    assert GAME.questions(problem, "junk")[0] == ("4 9 10 13: junk=", "")
    assert GAME.state(problem, text) == "4 5 10" and GAME.state(problem, "") == "4 9 10 13"


def written(state, results):
    """Every text of moves between these numbers whose results are among `results`, right or not."""
    if len(state) == 1:
        return {""}
    found = set()
    for i, a in enumerate(state):
        for j, b in enumerate(state):
            for op, r in product("+-*/", results if i != j else ()):
                left = sorted([*(n for k, n in enumerate(state) if k not in (i, j)), r])
                a_, b_, r_, *left_ = (str(n) if n >= 0 and n.denominator == 1 else f"({n})"
                                      for n in (a, b, r, *left))
                line = f"{a_}{op}{b_}={r_}:{' '.join(left_)}"
                found |= {f"{line}\n{rest}".rstrip("\n") for rest in written(tuple(left), results)}
    return found


@pytest.mark.parametrize("hand, target", [((1, 2, 3), 6), ((2, 2, 4), 10), ((3, 5, 8), 24),
                                          ((1, 1, 1), 99)])
def test_right_answers_are_those_of_all_texts_that_the_reward_accepts(hand, target):
    """Of all texts over a few results the reward picks those listed, and all listed are right."""
    problem = Countdown()._problem(list(hand), target)
    listed = Countdown().answers(problem)
    assert len(set(listed)) == len(listed) and bool(listed) == solvable(hand, target)
    results = {Fraction(n) for n in (-3, -2, -1, 1, 2, 3, 4, 5, 6, 8, 10, target)}
    results |= {Fraction(1, 3), Fraction(3, 8)}
    texts = sorted(written(tuple(map(Fraction, hand)), sorted(results)))
    right = {text for text, worth in zip(texts, rewards(Countdown(), [problem] * len(texts), texts))
             if worth == 1}
    assert right <= set(listed)
    assert not listed or set(rewards(Countdown(), [problem] * len(listed), listed)) == {1.0}
    assert {text for text in listed
            if all(Fraction(r) in results for r in results_of(text))} == right


def results_of(text):
    return [line.split("=")[1].split(":")[0].strip("()") for line in text.split("\n")]


def test_right_answers_hold_what_solve_and_demonstrate_write():
    rng = random.Random(0)
    for problem in Countdown().heldout(40):
        listed = set(Countdown().answers(problem))
        assert set(solve(problem.columns["numbers"], problem.columns["target"])) <= listed
        assert Countdown().demonstrate(problem, rng) in listed
    assert Countdown(direct=True).answers(HAND) is None
    assert SOLUTION in GAME.answers(HAND)


def test_the_game_of_24_is_tested_on_the_papers_hands(tmp_path, monkeypatch):
    """Places 901 to 1000 of the paper's list: the first three and the last, and their number."""
    hands = [tuple(p.columns["numbers"]) for p in GAME.heldout(1000)]
    assert len(set(hands)) == 100
    assert {(4, 5, 6, 10), (1, 2, 4, 7), (2, 5, 8, 11)} <= set(hands)
    assert all(solvable(hand, 24) and held_out(hand) for hand in hands)
    trained = {tuple(p.columns["numbers"]) for p in GAME.sample(3000, random.Random(0))}
    assert not trained & set(hands) and len(trained) > 1000
    for text, said in (("4 5 6 10\n1 1 1 1\n", "that can make 24"), ("4 5 6 10\n" * 2, "different"),
                       ("4 5 x 10\n", "invalid literal"), (None, "No such file")):
        monkeypatch.setattr(countdown, "HANDS_24", path := tmp_path / "hands.txt")
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)
        countdown._hands_24.cache_clear()
        with pytest.raises(MinipostError, match=said):
            held_out((4, 5, 6, 10))
    countdown._hands_24.cache_clear()


def test_a_problem_can_be_posed():
    for text in (" 13 9 10 4 ", "4, 9, 10, 13", "4,9,10,13", "4\u00a09 10\t13\n", "24: 4 9 10 13"):
        assert GAME.pose(text) == GAME.pose("4 9 10 13")
    assert GAME.pose("4 9 10 13").columns == {"numbers": [4, 9, 10, 13], "target": 24}
    assert Countdown().pose("30: 3 5 2").columns == {"numbers": [2, 3, 5], "target": 30}
    for task, text in ((GAME, "4 9 10"), (GAME, "4 9 10 x"), (GAME, ""), (GAME, "0 1 2 3"),
                       (Countdown(), "3 5 2"), (Countdown(), "x: 3 5 2"), (GAME, "4 9 10 1300"),
                       (GAME, "04 9 10 13"), (GAME, "4 9 10 \u0661"), (GAME, "4 9 10 -13"),
                       (GAME, "4 " * 50_000), (GAME, ":" * 50_000), (GAME, " " * 50_000),
                       (GAME, "4 9 10 13" + " " * 300)):
        with pytest.raises(MinipostError, match="whole numbers, of up to") as error:
            task.pose(text)
        assert len(str(error.value)) < 200
