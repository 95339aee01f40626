"""The rewards for answers in maths: which number a text answers with, and math-verify's process."""

import importlib.util
import json
from fractions import Fraction
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipost.datasets import maths
from minipost.errors import MinipostError


@pytest.mark.parametrize("text, number", [
    ("She has 5 apples.\n#### 1,234", 1234), ("#### 42\n", 42), ("#### -3.50", Fraction(-7, 2)),
    ("Answer: $42.", 42), ("**Answer:** 42", 42), ("**Answer: 42**", 42), ("Answer: x = 7", 7),
    ("Answer: 42 eggs", 42), ("Answer: 5%", 5), ("Answer: -$5", -5), ("Answer: \u221217", -17),
    ("Answer: 17/2", Fraction(17, 2)), ("Answer: $1,000 dollars", 1000), (r"so \boxed{7}", 7),
    (r"\boxed{\text{7}}", 7), (r"\boxed{6} no, \boxed{7}.", 7), ("Answer: .5", Fraction(1, 2)),
    ("the sum is 42 km.", 42), ("10% of 1,234,567.", 1234567), ("17-5", 5), ("it is -5", -5),
    ("2*3=6", 6), ("3.", 3), ("12,345,678.90", Fraction("12345678.9")), ("1/2", Fraction(1, 2)),
])
def test_a_number_is_read(text, number):
    assert maths.read(text) == number


def test_completions_may_be_messages():
    """As they are where the prompts are: what was said last is the answer."""
    chats = [[{"role": "assistant", "content": "first 3"},
              {"role": "assistant", "content": text}] for text in ("Answer: 42", "Answer: 3")]
    assert maths.number(chats, solution=["42", "42"]) == [1.0, 0.0]
    asked = []
    with patch.object(maths.WORKER, "equal", lambda right, text: asked.append(text) or True):
        assert maths.math_verify(chats, solution=["42", None]) == [1.0, None]
    assert asked == ["Answer: 42"]


@pytest.mark.parametrize("text", [
    "", "none", "Answer: 17 or 18", "Answer: not 17", "#### 17 wrong, 3", "Answer:", r"\boxed{",
    "#### 1/0", "9" * 60, "Answer: +-3", "12 Answer: x", r"\boxed{7} #### x"])
def test_no_number_is_read(text):
    assert maths.read(text) is None


@given(st.text(alphabet="0123456789.,/-+ $#{}\\boxedAnswer:*\n\u2212", max_size=60), st.integers(
    -10**12, 10**12))
def test_any_text_is_read_and_what_stands_behind_the_last_mark_counts(text, number):
    assert maths.read(text) is None or isinstance(maths.read(text), Fraction)
    assert maths.read(f"{text}\n#### {number:,}\n") == number


def test_very_long_texts_take_no_time():
    for text in ("1" * 10**6, "1," * 10**5, r"\boxed{" * 10**5, "Answer: " * 10**5, "1 " * 10**5,
                 "1/" * 10**5, "Answer: " + " " * 10**5, "-" * 10**5):
        maths.read(text)


def test_the_reward_compares_with_the_column_of_the_row():
    texts = ["#### 42", "so 42.0 eggs", "41", "?"]
    assert maths.number(texts, answer=["6*7\n#### 42"] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert maths.number(texts, solution=[42, "42", None, "$41"], answer=["0"] * 4, more=3) == [
        1.0, 1.0, None, 0.0]
    with pytest.raises(MinipostError, match="no column 'solution' or 'answer'.*--columns"):
        maths.number(texts)
    with pytest.raises(ValueError, match="the solution 'none' states no number"):
        maths.number(["1"], answer=["none"])


def test_without_math_verify_one_sentence_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name: None if name == "math_verify" else find(name))
    monkeypatch.setattr(maths, "WORKER", maths.Worker())
    with pytest.raises(MinipostError, match=r"install it by pip install 'minipost\[math\]'"):
        maths.math_verify(["1"], solution=["1"])


class Fake:
    """A process that compares texts as they are, and never returns from one that says `sleep`."""

    CODE = ("import json, sys, time\nprint('ready', flush=True)\nfor line in sys.stdin:\n"
            "    a, b = json.loads(line)\n    if b == 'sleep': time.sleep(1000)\n"
            "    if b == 'end': break\n    print(json.dumps(a == b), flush=True)\n")


def test_a_process_that_takes_too_long_or_ends_is_begun_anew(monkeypatch):
    """And what it was asked earns nothing."""
    real, worker = maths.subprocess.Popen, maths.Worker()
    monkeypatch.setattr(maths.subprocess, "Popen", lambda command, **options: real(
        [command[0], "-c", Fake.CODE], **options))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(maths, "LIMIT", 0.3)
    monkeypatch.setattr(maths, "WORKER", worker)
    texts = ["a", "b", "sleep", "a", "end", "a"]
    assert maths.math_verify(texts, solution=["a"] * 6) == [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    process = worker.process
    worker.stop()
    assert process.poll() is not None and worker.process is None


def test_math_verify_sees_what_is_equal():
    pytest.importorskip("math_verify")
    texts = [r"so \boxed{\frac{1}{2}}", "$0.5$", "1/3", "the answer is 42", "x"]
    right = ["1/2", r"$\frac12$", r"\frac{1}{3}", "6*7=42\n#### 42", "$y$"]
    assert maths.math_verify(texts, solution=right) == [1.0, 1.0, 1.0, 1.0, 0.0]
    maths.WORKER.stop()


def test_what_serves_says_false_where_math_verify_cannot_read(monkeypatch):
    pytest.importorskip("math_verify")
    said = []
    maths.serve([json.dumps(["$x^2$", "?"]), json.dumps(["", ""])], said.append)
    assert said == ["ready", "false", "false"]
