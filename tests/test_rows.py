"""Rows of a file: what is read, what is left out, what is held out."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipost.datasets.rows import File, read
from minipost.errors import MinipostError


@pytest.mark.parametrize("row, part", [
    ({"completion": "b", "label": 1}, "expected true or false under 'label', found 1"),
    ({"completion": "b"}, "found None"), ({"label": True}, "non-empty string under 'completion'"),
    ({"completion": "", "label": True}, "non-empty string under 'completion'"),
])
def test_a_row_without_a_label_among_labelled_ones(tmp_path, row, part):
    path = tmp_path / "rows.jsonl"
    good = {"prompt": "a", "completion": "b", "label": False}
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, {"prompt": "a", **row}, good)))
    with pytest.raises(MinipostError, match="line 2: ") as caught:
        read(str(path))
    assert part in str(caught.value)


def test_of_judged_answers_to_one_prompt_all_are_held_out(tmp_path):
    rows = [{"prompt": "a", "completion": c, "label": c == "b"} for c in "bcd"]
    for name, prompt in (("train", "e"), ("test", "a")):
        (tmp_path / name).write_text("".join(json.dumps({**r, "prompt": prompt}) + "\n" for r
                                             in rows))
    task = File(str(tmp_path / "train"), str(tmp_path / "test"))
    assert sorted(p.columns["completion"] for p in task.heldout(9)) == ["b", "c", "d"]
    plain = tmp_path / "plain"
    plain.write_text("".join(json.dumps({"prompt": "a", "completion": c}) + "\n" for c in "bcd"))
    assert len(File(str(tmp_path / "train"), str(plain)).heldout(9)) == 1


GOOD = b'{"prompt": "a", "completion": "b"}\n'


def test_the_odd_row_out_is_the_one_that_is_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    plain = [{"prompt": str(k), "completion": "b"} for k in range(9)]
    odd = [{"prompt": "x", "completion": "b", "label": True}, {"prompt": "y", "reward": 9}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*odd, *plain, "no object"]))
    rows, said = read(str(path), True)
    assert rows == tuple(plain)
    assert [int(s.partition("line ")[2].partition(":")[0]) for s in said] == [1, 2, 12]
    # Without completions a reward is a column like any other.
    path.write_text("".join(json.dumps({"prompt": str(k), "reward": 5}) + "\n" for k in range(9)))
    assert len(read(str(path), False)[0]) == 9


def test_a_pair_without_a_prompt_begins_with_it(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"chosen": "Praise the soup. Fresh!", "rejected": "Praise the soup. Nasty."},
            {"chosen": "7+5=12", "rejected": "7+5=13", "x": 1},
            {"prompt": "", "chosen": "ab", "rejected": "ac"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(str(path))[0] == (
        {"prompt": "Praise the soup.", "chosen": " Fresh!", "rejected": " Nasty."},
        {"prompt": "7+5=1", "chosen": "2", "rejected": "3", "x": 1},
        {"prompt": "", "chosen": "ab", "rejected": "ac"})


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=30) | st.sampled_from([GOOD, b"\r\n", b'{"prompt": "c"}'])
                | st.dictionaries(st.sampled_from(["prompt", "completion", "x"]),
                                  st.text(max_size=3) | st.none() | st.floats())
                .map(lambda row: json.dumps(row).encode()), max_size=4))
def test_jsonl_of_any_bytes(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"\n".join(lines))
    read.cache_clear()
    try:
        rows = read(str(path))[0]
    except MinipostError as error:
        assert str(path) in str(error)
    else:
        assert rows and all(isinstance(row["prompt"], str) for row in rows)
