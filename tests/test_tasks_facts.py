"""The rows of the facts task are complete, correct and cleanly split; its reward is exact."""

import json
import random
import re
import runpy
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.answers import LONGEST
from minipost.tasks.base import is_held_out
from minipost.tasks.facts import KINDS, PATH, Facts, parse, rows

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_facts.py"
SUM = re.compile(r"What is (\d\d) (plus|minus) (\d\d)\?\n")


def sums():
    """(split, a, b, sign, completion) of every arithmetic row."""
    for row in rows():
        if row["kind"] == "arithmetic":
            a, sign, b = SUM.fullmatch(row["prompt"]).groups()
            yield row["split"], int(a), int(b), sign, row["completion"]


def test_counts():
    kinds = Counter(row["kind"] for row in rows())
    assert kinds["capital"] >= 195
    assert kinds["french"] + kinds["german"] + kinds["spanish"] >= 630
    assert Counter(split for split, *_ in sums()) == {"train": 800, "test": 200}


def test_no_question_comes_twice():
    assert max(Counter(row["prompt"] for row in rows()).values()) == 1
    assert max(Counter((*sorted((a, b)), sign) for _, a, b, sign, _ in sums()).values()) == 1


def test_arithmetic_is_right_and_not_negative():
    for _, a, b, sign, completion in sums():
        assert completion == str(a + b if sign == "plus" else a - b) and int(completion) >= 0
        assert 10 <= a <= 99 and 10 <= b <= 99


def test_held_out_pairs_never_train():
    pairs = {split: {frozenset((a, b)) for s, a, b, *_ in sums() if s == split}
             for split in ("train", "test")}
    assert not pairs["train"] & pairs["test"]
    assert all(is_held_out((a, b), share=5) == (split == "test") for split, a, b, *_ in sums())


def test_only_arithmetic_is_held_out():
    assert {row["kind"] for row in rows() if row["split"] == "test"} == {"arithmetic"}


def test_file_is_what_the_script_writes():
    assert runpy.run_path(str(SCRIPT))["render"]().encode() == PATH.read_bytes()


def test_tables_are_nfc():
    for path in (PATH, PATH.with_name("capitals.tsv"), PATH.with_name("words.tsv")):
        assert unicodedata.is_normalized("NFC", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("problems", [
    Facts().sample(300, random.Random(1)), Facts().heldout(300), Facts().known(300)])
def test_demonstrations_earn_the_reward_and_wrong_answers_do_not(problems):
    task = Facts()
    prompts = [p.prompt for p in problems]
    columns = {key: [p.columns[key] for p in problems] for key in ("answer", "kind")}
    right = [task.demonstrate(p) for p in problems]
    assert task.reward(prompts, right, **columns) == [1.0] * len(problems)
    wrong = [text + "x" for text in right]
    assert task.reward(prompts, wrong, **columns) == [0.0] * len(problems)


def test_reward_ignores_spaces_composition_and_later_lines_only():
    texts = ["  Bogotá \nand more", unicodedata.normalize("NFD", "Bogotá"), "bogotá", "Bogota",
             "\nBogotá", ""]
    assert Facts().reward([""] * 6, texts, answer=["Bogotá"] * 6) == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("answer, right, wrong", [
    ("Bogotá",
     ["Bogotá.", "**Bogotá**", "**Bogotá.**", r"\boxed{\text{Bogotá}}", "Answer: Bogotá"],
     ["Bogotá or Quito", "not Bogotá", "Bogotá?", "BOGOTÁ", "It is Bogotá", "**Bogotá",
      "Bogotá.."]),
    ("St. John's", ["St.  John\u2019s", "St.\u00a0John's."], ["St John's", "St. Johns"]),
    ("Washington, D.C.", ["Washington, D.C", " Washington, D.C.\n"],
     ["Washington", "Washington, DC"]),
    ("Port-au-Prince", ["Port\u2010au\u2010Prince"], ["Port au Prince", "Port - au - Prince"]),
    ("42", ["42.", "$42$", r"\boxed{42}"],
     ["42.0", "042", "4 2", "\u0664\u0662", "42 or 43", "+42"]),
])
def test_an_answer_in_another_spelling_is_the_same(answer, right, wrong):
    for texts, value in ((right, 1.0), (wrong, 0.0)):
        for text in texts:
            assert Facts().reward([""], [text], [answer]) == [value], text
    assert {parse(text) for text in right} == {parse(answer)} == {answer.removesuffix(".")}


def test_no_two_answers_of_the_file_are_read_as_one():
    answers = {row["completion"] for row in rows()}
    assert len({parse(answer) for answer in answers}) == len(answers)


@given(st.text())
@example("\ud800 half of a surrogate pair")
@example(" \nlate")
@example("0" * 201)
def test_parse_never_raises_and_is_settled(text):
    answer, line = parse(text), text.split("\n")[0]
    assert answer is not None or len(line) > LONGEST or not re.search(r"\w", line)
    assert answer is None or (answer == answer.strip() and "\n" not in answer
                              and unicodedata.is_normalized("NFC", answer))


def test_sample_draws_training_rows_of_the_chosen_kinds():
    held = {p.prompt for p in Facts().heldout(10**6)}
    assert len(held) == 200
    drawn = Facts().sample(20_000, random.Random(0))
    assert {p.columns["kind"] for p in drawn} == set(KINDS)
    assert not held & {p.prompt for p in drawn}
    few = Facts(kinds="german, capital")
    assert {p.columns["kind"] for p in few.sample(200, random.Random(0))} == {"german", "capital"}
    assert few.heldout(5) == []


def test_orders_are_fixed_and_known_is_mixed():
    task = Facts()
    assert task.known(40) == task.known(99)[:40] and task.heldout(40) == task.heldout(99)[:40]
    assert {p.columns["kind"] for p in task.known(40)} == set(KINDS) - {"arithmetic"}
    assert len(task.known(10**6)) == sum(row["kind"] != "arithmetic" for row in rows())
    assert {SUM.fullmatch(p.prompt)[2] for p in task.heldout(20)} == {"plus", "minus"}


def test_unknown_kind_is_an_error():
    with pytest.raises(MinipostError, match="klingon"):
        Facts(kinds="german,klingon")


GOOD = {"kind": "capital", "split": "train", "prompt": "Where?\n", "completion": "Here"}


@pytest.mark.parametrize("bad", [
    b"{", b"", b"[]", b'"\xff"',
    *(json.dumps(GOOD | change).encode() for change in (
        {"kind": "river"}, {"split": "dev"}, {"prompt": "Where?"}, {"completion": " Here"},
        {"completion": 3}, {"extra": "x"}))])
def test_malformed_line_names_file_and_line(tmp_path, bad):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + bad + b"\n")
    with pytest.raises(MinipostError, match=r"broken\.jsonl:2: .*expected .*completion"):
        rows(path)


def test_missing_file_is_named_with_its_remedy(tmp_path):
    with pytest.raises(MinipostError, match=r"absent\.jsonl.*scripts\.make_facts"):
        rows(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("text, line", [
    ("land\tcity\nFrance\tParis\n", 1), ("country\tcapital\nFrance\n", 2),
    ("country\tcapital\nFrance\t\n", 2)])
def test_malformed_table_names_file_and_line(tmp_path, text, line):
    path = tmp_path / "broken.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"broken\.tsv:{line}: expected country <tab> capital"):
        runpy.run_path(str(SCRIPT))["table"](path, ("country", "capital"))
