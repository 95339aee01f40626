r"""How answers are read: the grammar that all tasks share, and what every task owes to it."""

import random
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipost import tasks
from minipost.errors import MinipostError
from minipost.tasks import answers
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.calculator import Calculator
from minipost.tasks.choose import Choose
from minipost.tasks.countdown import Countdown
from minipost.tasks.dialogue import Dialogue
from minipost.tasks.facts import Facts
from minipost.tasks.polish import Polish
from minipost.tasks.recall import Recall
from minipost.tasks.search import Search
from minipost.tasks.wording import Wording

TASKS = [Arithmetic(), Arithmetic(direct=True), Countdown(), Countdown(numbers=4, target=24),
         Countdown(direct=True), Facts(), Recall(), Wording(), Search(), Calculator(), Dialogue(),
         Choose(slip=0.0), Polish()]
IDS = [f"{task.name}{', direct' * task.direct} {k}" for k, task in enumerate(TASKS)]
WRAPPING = [("", ""), ("**", "**"), ("$", "$"), ("$$", "$$"), ("`", "`"), (r"\(", r"\)"),
            (r"\[", r"\]"), (r"\boxed{", "}"), (r"\text{", "}"), ("**Answer:** ", ""),
            ("**Answer: ", "**"), ("**Answer**: ", ""), ("Final Answer:", ""), ("= ", ""),
            ("first\nAnswer: 3\nAnswer:", "\nlater 5"), ("first\nAnswer:\n\n", "\nlater 5")]


def rewards(task, problem, texts):
    return task.reward([problem.prompt] * len(texts), texts,
                       **{key: [value] * len(texts) for key, value in problem.columns.items()})


# ---- the shared grammar

@pytest.mark.parametrize("text, answer", [
    ("", ""), ("17", "17"), (" 17\n", "17"), ("Answer: 17", "17"), ("Answer:17", "17"),
    ("3\nAnswer: 17\nand 4", "17"), ("Answer: 17\nAnswer: 18", "18"), ("Answer:\n17", "17"),
    ("Answer: \n \n 17\n5", "17"), ("**Answer:**\n17\n5", "17"), ("**Answer:\n17**", "17"),
    ("Answer:\n", ""), ("\n17", "17"), ("17\n5", "17\n5"), ("**Answer**: 17", "17"),
    ("**Answer**: **17**", "17"), ("Answer**: 17", "17"), ("**Final Answer:** 17", "17"),
    ("**Final Answer**: 17", "17"), ("**Final Answer: 17**", "17"), ("Answer:** 17", "** 17"),
    ("**Answer** : 17", "**Answer** : 17"), ("Answer : 17", "Answer : 17"),
    ("Answer 17", "Answer 17"), ("**Answer** 17", "**Answer** 17"), ("Answer*: 17", "Answer*: 17"),
    ("Answer: = 17", "17"), ("=17.", "17"), ("**= 17**.", "17"), (r"$=\boxed{17}$", "17"),
    ("= = 17", "= 17"), ("==17", "=17"), ("5+12 = 17", "5+12 = 17"), ("=", ""), ("17 =", "17 ="),
    ("Answer\uff1a17", "17"), ("\uff11\uff17\uff0e", "17"), ("\uff1d\uff0d\uff11", "-1"),
    ("\uff0a\uff0a17\uff0a\uff0a", "17"), ("\uff08\uff11\uff0b2\uff09\uff0f3", "(1+2)/3"),
    ("17\u00b2", "17\u00b2"), ("\u00bd", "\u00bd"), ("\u2460", "\u2460"), ("\u3002", "\u3002"),
    ("6 x 4", "6*4"), ("(1)X(2)", "(1)*(2)"), ("10x0 x 10", "10*0*10"), ("0x10", "0x10"),
    ("(0x1)", "(0x1)"), ("1x0x1", "1*0x1"), ("6 x", "6 x"), ("x 4", "x 4"), ("6 x y", "6 x y"),
    ("6xx4", "6xx4"), ("max (1)", "max (1)"),
    ("Answer: 1 Answer: 2", "2"), ("17.", "17"), ("17..", "17."), ("**17.**", "17"),
    ("**17**.", "17"), ("**17.**.", "17."), (r"$\boxed{17}$.", "17"), (r"\boxed{$17$}", "17"),
    (r"\(\boxed{\text{Rome}}\)", "Rome"), ("** 17 **", "17"), ("**17", "**17"), ("$17", "$17"),
    ("*17*", "*17*"), ("'17'", "'17'"), ("**Answer:** 17", "17"), ("**Answer: 17**", "17"),
    ("**Answer: 17**.", "17"), ("**Answer:** **17**", "17"), ("**Answer: 17", "**17"),
    ("****", ""), ("$$", ""), ("$", "$"), ("**", "**"), (r"\boxed{}", ""), (".", ""),
    ("6 \u00d7 4 \u2212 2 \u00f7 1", "6 * 4 - 2 / 1"), (r"6\times4\cdot1\div2", "6*4*1/2"),
    ("a\u00a0b\u2009c", "a b c"), ("x" * 200, "x" * 200), ("x" * 201, ""),
    ("Answer: 17" + " " * 999, "17"), ("answer: 17", "answer: 17"),
])
def test_what_a_text_states(text, answer):
    assert answers.stated(text) == answer


@given(st.text(st.sampled_from("17-=*$. \n\tx\u00d7\uff11"), max_size=9))
def test_an_answer_behind_a_prompt_that_ends_in_the_marker_is_read_as_behind_it(line):
    """The marker adds only that later lines are not read."""
    assert answers.stated(f"Answer:{line}\n5") == answers.stated(line.strip().split("\n")[0]
                                                               or "5")


@pytest.mark.parametrize("text, number", [
    ("0", 0), ("7", 7), ("-17", -17), ("+17", 17), ("- 17", -17), ("-0", 0),
    ("999999999", 10**9 - 1),
    *((text, None) for text in (
        "", "-", "+", "--1", "+-1", "17.0", "17.5", ".5", "1,000", "1_000", "017", "00", "1 7",
        "1e3", "0x1", "17/2", "17-5", "1" * 10, "=17", "\u0661\u0667", "\u00bd", "\u00b2",
        "1\u0667", "seventeen", "17\n18"))])
def test_what_is_a_whole_number(text, number):
    assert answers.whole(text) == number


# ---- every task

@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_a_right_answer_is_right_in_every_spelling(task):
    """The steps of an answer in steps stay as they are; only what it comes to is wrapped."""
    rng = random.Random(0)
    for problem in [*task.heldout(4), *task.sample(4, rng)]:
        text = task.demonstrate(problem, rng)
        if task.name == "arithmetic":
            text = f"Answer: {problem.columns['answer']}"
        if task.name == "dialogue":  # without the turns that follow
            text = str(problem.columns["answer"])
        answer, right = text.removeprefix("Answer: "), rewards(task, problem, [text])
        found, ballot = task.parse(text), task.ballot(text)
        spelt = [text]
        if task.name in ("arithmetic", "recall", "facts", "dialogue") or task.direct:
            spelt += [f"{start}{answer}{stop}{end}" for start, end in WRAPPING
                      for stop in ("", ".", " .", "\t")
                      if task.name != "facts" or "\n" not in start]
        if task.name == "countdown":
            spelt += [re.sub(r"([-+*/=:])", rf"{gap}\1{gap}", text)
                      for gap in (" ", "\u00a0", "\t")]
            spelt += [text.translate(str.maketrans("-*/", f"\u2212{times}\u00f7"))
                      for times in "\u00d7xX"]
        if task.name != "wording":
            spelt.append(text.translate({c: c + 0xfee0 for c in range(0x21, 0x7f)}))
        assert rewards(task, problem, spelt) == right * len(spelt)
        for each in spelt:
            assert (task.parse(each), task.ballot(each)) == (found, ballot), each


WORDS = st.sampled_from([
    "Answer:", "**", "$", r"\boxed{", "}", ".", "=", " ", "\n", "17", "0", "24", "-", "\u2212", "/",
    "\u00d7", "x", "*", "+", "(", ")", ",", ":", "\uff11", "\uff1a", "Answer", "none",
    "not", "or", "e", "\u0661", "\x00", "\ud800"])
JUNK = st.lists(WORDS, max_size=8).map("".join) | st.text(max_size=12)


@st.composite
def near(draw, task, problem):
    """A demonstration, of this problem or another, with up to two characters changed; or junk."""
    rng = random.Random(draw(st.integers(0, 30)))
    other = draw(st.sampled_from([problem, problem, *task.heldout(2)]))
    text = task.demonstrate(other, rng)
    for _ in range(draw(st.integers(0, 2))):
        k = draw(st.integers(0, len(text)))
        text = text[:k] + draw(JUNK) + text[k + draw(st.integers(0, 2)):]
    return draw(st.sampled_from([text, text, draw(JUNK), draw(JUNK) + text, text + draw(JUNK)]))


@pytest.mark.parametrize("task", TASKS, ids=IDS)
@given(data=st.data())
def test_parse_reward_and_ballot_agree(task, data):
    """What has no answer earns nothing and has no vote; one ballot, one reward."""
    problem = data.draw(st.sampled_from(task.heldout(3)))
    texts = data.draw(st.lists(near(task, problem), min_size=2, max_size=6))
    right, earned = task.parse(task.demonstrate(problem)), {}
    for text, reward in zip(texts, rewards(task, problem, texts), strict=True):
        ballot = task.ballot(text)
        if task.parse(text) is None:
            assert reward == 0.0 and ballot is None
        else:
            assert ballot is not None and earned.setdefault(ballot, reward) == reward
        if reward == 1.0 and task.name != "wording":
            assert task.parse(text) == right


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_no_length_of_a_text_is_too_much(task):
    """Quadratic time would take minutes."""
    problem, n = task.heldout(1)[0], 20_000
    for part in ("1", "0", " ", "1 x", "1x  ", "$", "**", "\n", ".", "(", "-", "=", ":", "Answer:",
                 r"\boxed{", "1+1=2:2\n", "1+1=2:1 ", "a\u0301\u0323", "\u0323\u0301", "=1", "1 ",
                 "- "):
        for text in (part * n, "Answer: " + part * n, "1+1=2:" + part * n):
            found = task.parse(text)
            assert rewards(task, problem, [text])[0] <= 0.0
            assert task.name == "wording" or found is None or (task.ballot(text) is not None)
            if task.steps is not None:
                assert len(task.check_steps(problem, text)) == len(task.steps(text))


def test_a_task_can_be_imported_by_its_class():
    from minipost.tasks import Arithmetic as found

    assert found is Arithmetic and tasks.Countdown is Countdown
    with pytest.raises(AttributeError, match="no attribute 'Arithmetics'"):
        getattr(tasks, "Arithmetics")  # noqa: B009


# ---- knobs

@pytest.mark.parametrize("task, knob", [
    (Arithmetic, "terms"), (Arithmetic, "largest"), (Countdown, "numbers"), (Countdown, "largest"),
    (Countdown, "target"), (Recall, "episodes"), (Arithmetic, "direct"), (Arithmetic, "hurried"),
    (Countdown, "direct"), (Facts, "kinds"), (Wording, "noise")])
@pytest.mark.parametrize("value", [
    100_000, 10**30, -1, 6.5, 3.0, float("nan"), float("inf"), "x" * 999, None, (), 0.5])
def test_a_knob_out_of_bounds_is_refused_in_a_sentence(task, knob, value):
    with pytest.raises(MinipostError, match=knob) as error:
        task(**{knob: value})
    assert len(str(error.value)) < 200


def test_a_switch_is_no_number():
    for task, knobs in ((Arithmetic, dict(terms=True)), (Recall, dict(episodes=True)),
                        (Arithmetic, dict(direct=1)), (Countdown, dict(target=False)),
                        (Wording, dict(noise=False))):
        with pytest.raises(MinipostError, match=next(iter(knobs))):
            task(**knobs)


@pytest.mark.parametrize("task", [Arithmetic(), Countdown(), Recall()])
def test_a_held_out_split_has_an_end(task, monkeypatch):
    monkeypatch.setattr(sys.modules[type(task).__module__], "MOST_HELD_OUT", 9)
    assert task.heldout(10**12) == task.heldout(9) and len(task.heldout(9)) == 9
