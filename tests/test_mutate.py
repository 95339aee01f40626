"""The mutation run itself: what it plants, which tests it asks, what it reports."""

import ast
import json
from dataclasses import asdict

import pytest

from scripts import mutate

SOURCE = '''"""A module."""
LIMIT = 3


def mean(values, scale=2, *, shift: int = 1):
    """Not planted in: 1 + 1."""
    if not values and scale < 3:
        raise ValueError(f"no {1 + 1} values")
    total = 0.0
    for k, value in enumerate(v for v in values if v > 0):
        total += max(value, k) * scale
    report(pick(value, k), Random(7))
    return total.detach() / len(values) if shift else sum(values, start=True)


class Box:
    size = 4

    def grow(self):
        return [[x[1:] for x in self.rows][-1] + "é", self.rows.mean(1)]
'''


@pytest.fixture
def planted():
    return [m for spot in mutate.spots("m.py", SOURCE) if (m := spot.plant(SOURCE))]


def test_every_mistake_is_code_and_another_program(planted):
    for mutant in planted:
        assert ast.dump(ast.parse(mutant.text)) != ast.dump(ast.parse(SOURCE))
        assert mutant.before and mutant.before != mutant.after, mutant
    kinds = {mutant.kind for mutant in planted}
    assert kinds == {"operator", "sign", "constant", "branches", "filter", "condition", "function",
                     "call", "arguments", "keyword", "statement"}


@pytest.mark.parametrize("after", [
    "if not values or scale < 3", "if not values and scale <= 3", "if (values) and scale < 3",
    "if not (not values and scale < 3):", "total -= max(value, k) * scale", "total = 1.0",
    "for v in values if v >= 0", "for v in values if True", "min(value, k)", "pick(k, value)",
    "total) / len(values)", "sum(values)", "sum(values, start=False)", "shift else total",
    "self.rows.sum(1)", "self.rows.mean(2)", "[x[2:] for x", "[-2] + ", "] - 'é'",
    "max(value, k) / ",
])
def test_such_mistakes_are_planted(planted, after):
    plain = [m.after.replace("(", "").replace(")", "") for m in planted]
    assert any(after.replace("(", "").replace(")", "") in text for text in plain), plain


def test_statements_are_left_out(planted):
    assert {m.before for m in planted if m.kind == "statement"} == {
        "report(pick(value, k), Random(7))", "total += max(value, k) * scale"}


def test_texts_defaults_annotations_and_what_is_outside_functions_stay(planted):
    assert {m.function for m in planted} == {"mean", "Box.grow"}
    for mutant in planted:
        for kept in ("LIMIT = 3", "size = 4", "scale=2, *, shift: int = 1", "1 + 1."):
            assert kept in mutant.text
        assert "Random(8)" not in mutant.text and "Random(6)" not in mutant.text
        assert 'raise ValueError(f"no {1 + 1} values")' in mutant.text


def test_the_seed_draws_and_every_function_has_its_turn():
    one, two, other = (mutate.draw(40, seed, "minipost/methods/grpo.py") for seed in (0, 0, 1))
    assert one == two != other and len({m.key for m in one}) == 40
    assert {m.function for m in one[:4]} == {"loss", "loss_grad", "divergence", "train"}
    assert len({m.function for m in mutate.draw(30, 5, "minipost/ops.py")}) > 15


def test_the_quickest_tests_that_call_it_come_first_and_within_their_time():
    mutant = mutate.draw(1, 0, "minipost/methods/grpo.py")[0]
    here, elsewhere = f"minipost/methods/grpo.py:{mutant.function}", "minipost/ops.py:pick"
    calls = {"slow": [20.0, [here]], "quick": [0.1, [here, elsewhere]], "other": [0.0, [elsewhere]],
             "middle": [2.0, [here]]}
    assert mutate.tests_for(mutant, calls, 10)[0] == ["quick", "middle"]
    assert mutate.tests_for(mutant, calls, 30)[0] == ["quick", "middle", "slow"]
    assert mutate.tests_for(mutant, calls, 30)[1:] == (["tests/test_grpo.py"],
                                                       ["tests/test_ranks.py"])
    none, named, further = mutate.tests_for(mutant, {}, 10)
    assert not none and named == ["tests/test_grpo.py", "tests/test_cli.py", "tests/test_resume.py"]
    assert further == ["tests/test_ranks.py"]


def test_only_explained_survivors_pass(capsys):
    mutant = mutate.draw(1, 0, "minipost/ops.py")[0]
    line = {**asdict(mutant), "file": mutant.path, "verdict": "survived"}
    known = {(mutant.path, mutant.function, mutant.before, mutant.after): "because"}
    assert mutate.report([line, {**line, "verdict": "killed"}], known, 1.0) == 0
    assert "explained: because" in capsys.readouterr().out
    assert mutate.report([line], {}, 1.0) == 1
    said = capsys.readouterr().out
    assert "nothing explains it" in said and f"+ {mutant.after}" in said
    assert "1 survivor not explained" in said


def test_each_explanation_is_of_a_line_that_is_still_there():
    """So it goes when its line goes."""
    entries = json.loads((mutate.ROOT / mutate.EXPLAINED).read_text(encoding="utf-8"))
    for entry in entries:
        assert sorted(entry) == ["after", "before", "file", "function", "reason"], entry
        text = (mutate.ROOT / entry["file"]).read_text(encoding="utf-8")
        lines = [line.strip() for line in text.splitlines()]
        assert all(line in lines for line in entry["before"].split("\n")), entry
        assert entry["reason"].endswith(".")


@pytest.fixture
def child(tmp_path):
    """child(work) -> how `work` ended in a process of its own, and what it wrote."""
    return lambda work, seconds=20: mutate.inside(tmp_path, seconds, work)


def test_a_child_that_hangs_is_ended_and_one_that_fails_says_so(child):
    assert child(lambda note: note.write_text("done") and 0) == (0, "done")
    assert child(lambda note: 1) == (1, "")
    assert child(lambda note: 1 / 0)[0] == 70

    def hang(note):
        while True:
            pass

    assert child(hang, 0.3) == (None, "")
