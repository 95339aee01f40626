"""The arithmetic task against Python's own sums, and its splits, parser and step checks."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem, is_held_out

WORKED = Arithmetic()
DIRECT = Arithmetic(direct=True)
TASKS = [WORKED, DIRECT, Arithmetic(terms=3, largest=99), Arithmetic(terms=12, largest=20)]


def rewards(task, problems, texts):
    return task.reward([p.prompt for p in problems], texts,
                       **{key: [p.columns[key] for p in problems] for key in problems[0].columns})


def numbers(problem):
    return [int(n) for n in re.findall(r"\d+", problem.columns["chain"])]


def running_totals(chain):
    """Left to right over the characters, a different way from the task's signed operands."""
    total, sign, totals = 0, 1, []
    for token in re.findall(r"\d+|[+-]", chain):
        if token in "+-":
            sign = 1 if token == "+" else -1
        else:
            total += sign * int(token)
            totals.append(total)
    return totals


@pytest.mark.parametrize("task", TASKS)
def test_problems_state_their_answer_and_stay_in_range(task):
    problems = task.sample(300, random.Random(0)) + task.heldout(100)
    for problem in problems:
        totals = running_totals(problem.columns["chain"])
        assert len(totals) == task.terms
        assert problem.columns["answer"] == totals[-1]
        assert all(0 <= total <= 99 for total in totals)
        assert all(1 <= n <= task.largest for n in numbers(problem))
        assert problem.prompt.startswith(problem.columns["chain"] + "=?")


def test_chains_of_mixed_lengths():
    """Each of the lengths as often, in both splits; without `fewest` nothing has changed."""
    task = Arithmetic(terms=8, fewest=3)
    for problems in (task.sample(600, random.Random(0)), task.heldout(600)):
        found = Counter(len(running_totals(p.columns["chain"])) for p in problems)
        assert sorted(found) == [3, 4, 5, 6, 7, 8] and min(found.values()) > 60
        assert all(p.columns["answer"] == running_totals(p.columns["chain"])[-1] for p in problems)
    assert Arithmetic(terms=4, fewest=4).heldout(3) != Arithmetic(terms=4).heldout(3)


def test_a_hint_tells_the_answer():
    for task in (WORKED, DIRECT):
        problem = task.sample(1, random.Random(1))[0]
        chain, answer = problem.columns["chain"], problem.columns["answer"]
        told = task.hint(problem)
        assert told.startswith(f"{chain}={answer}? ")
        assert told.replace(f"={answer}?", "=?") == problem.prompt


def test_the_format_of_a_demonstration():
    problem = WORKED.sample(1, random.Random(1))[0]
    chain = problem.columns["chain"]
    assert problem.prompt == f"{chain}=? Think:\n"
    a, sign, b = re.match(r"(\d)([+-])(\d)", chain).groups()
    totals = running_totals(chain)
    lines = WORKED.demonstrate(problem).split("\n")
    assert lines[0] == f"{a}{sign}{b}={totals[1]}"
    assert len(lines) == WORKED.terms and lines[-1] == f"Answer: {totals[-1]}"
    direct = DIRECT.sample(1, random.Random(1))[0]
    assert direct.prompt == f"{direct.columns['chain']}=? Answer:"
    assert DIRECT.demonstrate(direct) == f" {direct.columns['answer']}"


def test_splits_share_no_operands():
    train, held = WORKED.sample(2000, random.Random(2)), WORKED.heldout(500)
    assert not any(is_held_out(numbers(p)) for p in train)
    assert all(is_held_out(numbers(p)) for p in held)
    assert len({p.prompt for p in held}) == 500


@pytest.mark.parametrize("task", TASKS)
def test_heldout_is_a_fixed_list_and_sampling_follows_the_seed(task):
    assert task.heldout(5) == task.heldout(40)[:5]
    assert task.sample(20, random.Random(3)) == task.sample(20, random.Random(3))
    assert task.sample(20, random.Random(3)) != task.sample(20, random.Random(4))
    assert task.heldout(0) == []


def test_a_small_space_ends_with_all_its_held_out_problems():
    task = Arithmetic(terms=2)
    chains = {f"{a}{sign}{b}" for a in range(1, 10) for b in range(1, 10) for sign in "+-"
              if is_held_out([a, b]) and (sign == "+" or a >= b)}
    assert {p.columns["chain"] for p in task.heldout(10**6)} == chains


@pytest.mark.parametrize("knobs", [dict(terms=1), dict(largest=0), dict(largest=100),
                                   dict(terms=2, largest=1), dict(terms=3, largest=1),
                                   dict(fewest=1), dict(fewest=7), dict(fewest=True)])
def test_senseless_knobs_are_refused(knobs):
    with pytest.raises(MinipostError, match="largest|terms|fewest"):
        Arithmetic(**knobs)


@pytest.mark.parametrize("task", TASKS)
def test_demonstrations_are_right_without_slips_and_wrong_with_them(task):
    rng = random.Random(5)
    problems = task.sample(300, rng)
    assert rewards(task, problems, [task.demonstrate(p, rng) for p in problems]) == [1.0] * 300
    slipped = rewards(task, problems, [task.demonstrate(p, rng, slip=1.0) for p in problems])
    assert sum(slipped) <= 3  # totals that span nearly all of 0..99 leave no room to slip
    assert task is TASKS[2] or sum(slipped) == 0


def test_slipped_chains_are_wrong_by_little_and_go_on_from_their_own_totals():
    rng = random.Random(6)
    for problem in WORKED.sample(300, rng):
        text = WORKED.demonstrate(problem, rng, slip=0.4)
        *lines, answer = text.split("\n")
        before, wrong = str(numbers(problem)[0]), []
        for line in lines:
            left, _, result = line.partition("=")
            assert re.match(r"\d+", left)[0] == before and 0 <= int(result) <= 99
            error = int(result) - running_totals(left)[-1]
            assert abs(error) <= 3
            wrong.append(error != 0)
            before = result
        assert answer == f"Answer: {before}"
        assert WORKED.check_steps(problem, text) == [not w for w in wrong]
        assert any(wrong) == (rewards(WORKED, [problem], [text]) == [0.0])


def test_check_steps_finds_each_kind_of_wrong_step():
    problem = Problem("7+5-3+8-1+2=? Think:\n", {"chain": "7+5-3+8-1+2", "answer": 18})

    def check(text):
        return WORKED.check_steps(problem, text)

    assert check("7+5=12\n12-3=9") == [True, True]
    assert check("7+5=12\n12-3=9\n") == [True, True]
    assert check("7+5=13\n13-3=10") == [False, True]  # wrong sum, then a right step
    assert check("7+5=13\n12-3=9") == [False, False]  # not from the total as written
    assert check("7+5=12\n12-4=8") == [True, False]  # not the chain's operand
    assert check("7+5=12\n12+3=15") == [True, False]  # not the chain's sign
    assert check("5+7=12\n12-3=9") == [False, True]
    assert check("well\n12-3=9") == [False, False]
    assert check("7+05=12\n\n12-3=9") == [False, False, False]
    assert check("Answer: 3\n7+5=12") == [] and check("") == []
    long = WORKED.demonstrate(problem).replace("\nAnswer", "\n1+1=2\nAnswer")
    assert check(long) == [True] * 5 + [False]


@given(st.text() | st.text(alphabet="Answer: 0123456789+-=\n\u0663\u00b2"))
@settings(max_examples=300)
def test_no_text_makes_the_parsers_raise(text):
    problem = WORKED.heldout(1)[0]
    for candidate in (text, "Answer:" + text, text + "\nAnswer: 5"):
        answer = WORKED.parse(candidate)
        assert answer is None or abs(answer) < 10**9
        assert len(WORKED.check_steps(problem, candidate)) == len(WORKED.steps(candidate))
        assert rewards(WORKED, [problem], [candidate])[0] in (0.0, 1.0)


@given(st.integers(0, 99), st.text().filter(lambda text: not text.endswith("**")),
       st.text(alphabet="abc .1\n"))
def test_the_last_answer_counts_and_no_line_behind_it(number, before, after):
    assert WORKED.parse(f"{before}Answer: 1\nAnswer: {number}\n{after}") == number
    assert WORKED.parse(f" {number}\n") == number


NO_ANSWERS = ("17.5", "17/2", "17-5", "17 or 18", "not 17", "17 wrong, 3", "17 18", "17, 3", "x17",
              "17x", "17.0", "1,7", "017", "1_7", "1 7", "17%", "$17", "17$", "**17", "==17", "17=",
              "12+5", "12+5=17", "= 12+5", "\u0661\u0667", "17\u00b2", "\u00bd",
              "\uff11\uff17\uff0e\uff15", "#17", "(17)", "17 apples",
              "17?", "17:", "17\u202817", "\\boxed{17} or \\boxed{18}", "$17$ $18$", "1**7",
              "\\frac{17}{1}", "--17", "\u201417", "17\u200b", "1" * 10, "1" * 10_000, ".", "-",
              "**")


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("text", NO_ANSWERS)
def test_what_is_no_answer(text, direct):
    for said in (text, f" {text}\n", f"Answer: {text}", f"Answer: 17\nAnswer: {text}\n17",
                 f"**Answer: {text}**", f"Answer: \\boxed{{{text}}}", f"Answer: ${text}$"):
        task = Arithmetic(direct=direct)
        assert task.parse(said) is task.ballot(said) is None, said
        for right in (17, -17, 1, 7, 3, 12):
            assert task.reward([""], [said], [right]) == [0.0], said


@pytest.mark.parametrize("text, number", [
    ("17", 17), (" +17 ", 17), ("17.", 17), ("-17", -17), ("- 17", -17), ("\u221217", -17),
    ("\u2013 17", -17), ("$-17$", -17), ("**17**", 17), ("**17.**", 17), ("$17$.", 17),
    (r"\boxed{17}", 17), (r"$\boxed{17}$", 17), (r"\boxed{- 17}", -17), (r"\(17\)", 17),
    ("`17`", 17), ("\u00a017\u2009", 17), ("0", 0), ("-0", 0), ("17\r", 17),
    ("= 17", 17), ("\n17", 17), ("\uff11\uff17", 17), ("\uff0d\uff11\uff17", -17)])
def test_an_answer_in_another_spelling(text, number):
    for said in (text, f"Answer:{text}", f"1+1=2\nAnswer: {text}\nso it is 5",
                 f"**Answer:** {text}"):
        assert WORKED.parse(said) == DIRECT.parse(said) == number, said
        assert WORKED.reward([""], [said], [number]) == [1.0]
        assert WORKED.reward([""], [said], [number + 1]) == [0.0]


@given(st.lists(st.sampled_from(["17", "1", "0", "9", "-", "\u2212", "+", " ", ".", "*", "**", "$",
                                 "\\boxed{", "}", "/", ",", "or", "\u0667", "\t"]), max_size=7))
def test_nothing_but_the_number_and_its_wrapping_is_accepted(parts):
    """A rule of its own: without wrapping, spaces and a stop, the line is as Python writes it."""
    line = "".join(parts)
    found = WORKED.parse(f"Answer: {line}")
    bare = re.sub(r"\\boxed\{|\*\*|[\s$}]", "", line.replace("\u2212", "-")).removeprefix("+")
    if found is not None:
        assert bare.replace(".", "", 1) in (str(found), "-0")
        assert line.count(".") <= 1 and line.count("\\boxed{") == line.count("}")
        assert line.count("**") % 2 == line.count("$") % 2 == 0
        assert not re.search(r"[0-9][\s]+[0-9]", line)
    if not set(line) & set("*$.}"):
        spaced = re.fullmatch(r"[ \t]*[+-]?[ \t]*(0|[1-9][0-9]{0,8})[ \t]*",
                              line.replace("\u2212", "-"))
        assert (found is not None) == bool(spaced)


# ---- what the test-time methods ask of the task

def test_in_a_hurry_large_terms_are_counted_one_short_and_nothing_else():
    task, rng, short = Arithmetic(terms=8, hurried=True), random.Random(0), 0
    for problem in task.sample(200, rng):
        assert problem.prompt.endswith("=? Hurry:\n")
        total = int(problem.columns["chain"][0])
        for line, good in zip(task.steps(text := task.demonstrate(problem, rng, 0.6)),
                              task.check_steps(problem, text)):
            step, result = line.split("=")
            off = int(result) - sum(map(int, re.findall("[+-]?[0-9]+", step)))
            assert off == 0 if good else off == -1 and int(step[-1]) >= 7
            short += not good
            total = int(result)
            assert total >= 0
        assert task.parse(text) == total
    assert 200 < short < 400                                    # about 0.6 of 7 / 3 of each
    assert task.reward(None, [task.demonstrate(p, rng) for p in task.sample(50, random.Random(1))],
                       [p.columns["answer"] for p
                        in task.sample(50, random.Random(1))]) == [1.0] * 50


def test_a_critic_names_the_first_wrong_step_and_a_revision_mends_it():
    task, rng, faults = Arithmetic(), random.Random(0), 0
    for problem in task.sample(200, rng):
        draft = task.demonstrate(problem, rng, 0.3)
        good, lines = task.check_steps(problem, draft), task.steps(draft)
        critique = task.criticise(problem, draft)
        assert task.approves(critique) == all(good)
        if all(good):
            assert critique == "\n".join(f"{line} ok" for line in lines)
            continue
        k, faults, revision = good.index(False), faults + 1, task.mend(problem, draft, rng)
        mended = task.steps(revision)[k]
        assert critique == "\n".join([*(f"{line} ok" for line in lines[:k]), f"{mended} no"])
        assert task.steps(revision)[:k] == lines[:k]
        assert task.steps(revision)[k].startswith(lines[k].split("=")[0] + "=")
        assert task.reward(None, [revision], [problem.columns["answer"]]) == [1.0]
        assert all(task.check_steps(problem, revision))
    assert 100 < faults < 200
    slipped = [task.mend(p, d, rng, 0.5) for p in task.sample(300, rng)
               if not task.approves(task.criticise(p, d := task.demonstrate(p, rng, 0.5)))]
    assert slipped


def test_every_step_is_checked_and_a_wrong_one_is_written_again():
    """Verdicts agree with the steps, and what is left of them is the worked answer."""
    rng, mended = random.Random(0), 0
    for problem in WORKED.sample(200, rng):
        prompt, text = WORKED.checked(problem, rng, slip=0.5)
        *lines, answer = text.split("\n")
        pairs = list(zip(lines[::2], lines[1::2], strict=True))
        right = [step for step, verdict in pairs if verdict == "ok"]
        assert prompt == f"{problem.columns['chain']}=? Check:\n"
        assert "\n".join([*right, answer]) == WORKED.demonstrate(problem)
        for step, verdict in pairs:
            made, result = step.split("=")
            assert verdict == ("ok" if eval(made) == int(result) else "no")
        mended += len(pairs) - len(right)
    assert mended > 200


def test_what_critics_revisers_and_judges_read():
    task = Arithmetic()
    problem = task.pose("7+5-3")
    assert task.critique(problem, "d") == "7+5-3=? Draft:\nd\nCritique:\n"
    assert task.criticise(problem, "7+5=12\n12-3=8\nAnswer: 8") == "7+5=12 ok\n12-3=9 no"
    assert task.revise(problem, "d", "7+5=12 ok\n12-3=9 no\n") == (
        "7+5-3=? Draft:\nd\nCritique:\n12-3=9 no\nRevise:\n")
    assert task.approves("7+5=12 ok\n") and not task.approves("7+5=12 ok\n12-3=9 no\n")
    assert task.questions(problem, "7+5=12\n12-3=9\nAnswer: 9") == [
        ("7+5=", "12"), ("12-3=", "9")]
    assert task.questions(problem, "") == []


def test_examples_show_the_way_to_answer_without_a_cue():
    worked, direct = Arithmetic(), Arithmetic(direct=True)
    problem = worked.pose("7+5-3")
    assert worked.example(problem) == direct.example(problem) == "7+5-3=?\n"
    assert worked.example(problem, worked.demonstrate(problem)) == (
        "7+5-3=?\n7+5=12\n12-3=9\nAnswer: 9\n\n")
    asked = direct.like(problem)
    assert asked.prompt == "7+5-3=? Answer:" and asked.columns == problem.columns
    assert direct.example(asked, direct.demonstrate(asked)) == "7+5-3=?\nAnswer: 9\n\n"


def test_parts_and_what_joins_them():
    task = Arithmetic()
    problem = task.pose("1+2-3+4-5+6+7")
    parts, signs = task.parts(problem, 2)
    assert [p.columns["chain"] for p in parts] == ["1+2", "4+6", "7", "3+5"]
    assert signs == [1, 1, 1, -1]
    answers = [p.columns["answer"] for p in parts]
    (joined, sign, of), = task.joined(answers, signs, 4)
    assert (joined.columns["chain"], joined.columns["answer"], sign, of) == ("3+10+7-8", 12, 1,
                                                                             [0, 1, 2, 3])
    found = task.joined(answers, signs, 2)
    assert [(p.columns["chain"], s, of) for p, s, of in found] == [
        ("3+10", 1, [0, 1]), ("7", 1, [2]), ("8", -1, [3])]


@pytest.mark.parametrize("text", ["", "7", "7+", "a+b", "7*5", "7+0", "100+1", "7+5=?", "٧+٥",
                                  "7+5\n+3", "7 5+3", "7++5", "-7+5", "7+5.", "07+5", "7\u00d75",
                                  "1" + "+1" * 64, "7+" * 50_000, "7" + " " * 50_000 + "5"])
def test_what_is_no_chain_is_refused(text):
    with pytest.raises(MinipostError, match="expected a chain of 2 to 64 numbers") as error:
        Arithmetic().pose(text)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("text", ["7+5-3", " 7 + 5 - 3\n", "7+5\u22123", "7\u00a0+ 5 \u2013 3"])
def test_a_chain_may_be_posed_in_another_spelling(text):
    assert Arithmetic().pose(text) == Arithmetic().pose("7+5-3")
    assert Arithmetic().pose(text).prompt == "7+5-3=? Think:\n"


def test_the_longest_chain_can_be_posed():
    assert Arithmetic().pose("1" + "+1" * 63).columns["answer"] == 64
