"""Files of rows in other formats than JSONL: the same rows, and one sentence where they are bad."""

import datetime
import json
import sys

import pytest

from minipost import train
from minipost.cli import options
from minipost.cli.directory import made_from
from minipost.datasets.rows import File, read
from minipost.errors import MinipostError

ROWS = [{"prompt": f"{k}+5=?", "completion": f" {k + 5}", "letter": "abcd"[k % 4]}
        for k in range(24)]


def parquet(path, rows, **types):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    names = {key: None for row in rows for key in row}
    writer.write_table(pa.table({key: pa.array([row.get(key) for row in rows], types.get(key))
                                 for key in names}), path)
    return str(path)


def saved(path, rows, shards=2, split=None):
    """A data set as `save_to_disk` of the package `datasets` writes it."""
    pa = pytest.importorskip("pyarrow")
    home = path / split if split else path
    home.mkdir(parents=True)
    names = [f"data-{k:05}-of-{shards:05}.arrow" for k in range(shards)]
    for k, name in enumerate(names):
        table = pa.Table.from_pylist(rows[k * len(rows) // shards : (k + 1) * len(rows) // shards])
        with pa.OSFile(str(home / name), "wb") as sink, pa.ipc.new_stream(
                sink, table.schema) as writer:
            writer.write_table(table)
    (home / "state.json").write_text(json.dumps(
        {"_data_files": [{"filename": name} for name in names], "_format_type": None}))
    (home / "dataset_info.json").write_text("{}")
    if split:
        (path / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    return str(path)


def listed(path, rows):
    path.write_text(json.dumps(rows, indent=1))
    return str(path)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


WRITERS = {"listed": listed, "parquet": parquet, "saved": saved,
           "split": lambda path, rows: saved(path, rows, split="train")}


@pytest.mark.parametrize("how", WRITERS)
def test_the_same_rows_in_every_format(tmp_path, how):
    path = WRITERS[how](tmp_path / "data", ROWS)
    rows, complaints = read(path)
    assert [dict(row) for row in rows] == ROWS and complaints == ()
    assert rows[2].problem().place == f"{path}, row 3"
    one, other = File(path), File(jsonl(tmp_path / "rows.jsonl", ROWS))
    assert one.training() == other.training() and one.heldout(9) == other.heldout(9)


@pytest.mark.parametrize("how", WRITERS)
def test_a_bad_row_of_every_format_is_named_and_can_be_skipped(tmp_path, how):
    rows = [*ROWS[:4], {"prompt": "", "letter": "c"}, *ROWS[4:], {"letter": "a"}]
    path = WRITERS[how](tmp_path / "data", rows)
    with pytest.raises(MinipostError, match=r"data, row 26: expected a string under 'prompt'"):
        read(path)
    found, complaints = read(path, skip=True)
    assert [dict(row) for row in found] == ROWS
    assert [said.partition(": ")[0] for said in complaints] == [f"{path}, row 5", f"{path}, row 26"]


def test_a_null_is_a_missing_value_where_rows_are_looked_at(tmp_path):
    """A column of a reward function keeps it."""
    path = parquet(tmp_path / "data", [*ROWS, {**ROWS[0], "letter": None, "chosen": None}])
    rows, _ = read(path)
    assert rows[-1] == {**ROWS[0], "letter": None}


def test_values_that_json_lacks(tmp_path):
    rows = [{**row, "day": datetime.date(2026, 1, 1 + k), "steps": [{"say": "a", "n": k}]}
            for k, row in enumerate(ROWS)]
    found, _ = read(parquet(tmp_path / "data", rows))
    assert [dict(row) for row in found] == rows


def test_text_of_parquet_that_is_not_utf8_is_a_bad_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    raw = pa.array([b"a", b"\xff", b"c"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    writer.write_table(pa.table({"prompt": text}), tmp_path / "data")
    with pytest.raises(MinipostError, match="data.*(row 2: holds a value|could not be read)"):
        read(str(tmp_path / "data"))


@pytest.mark.parametrize("content, part", [
    (b'[{"prompt": "a"},\n {"prompt": "b"} {"prompt": "c"}]', r"row 2: expected a comma or \]"),
    (b'[{"prompt": "a"}] 7', "goes on behind its list with '7'"),
    (b'[{"prompt": "a"},\n\n {"prompt": "b]', "row 2, about line 3: expected one JSON object"),
    (b'[{"prompt": "a"},]', "row 2, about line 1: expected one JSON object, found ']'"),
    (b'[{"prompt": "a"}', "row 1: expected a comma or ] behind it, found ''"),
    (b"[\xff]", "not UTF-8 text at byte 1"), (b"[]", "holds no rows$"), (b"[", "row 1, about line"),
    (b'[{"prompt": "a", "prompt": "b"}]', "row 1: .*the key 'prompt' stands twice"),
    (b'[{"prompt": "a"}, {"prompt": NaN}]', "row 2: .*NaN is not a JSON number"),
    (b'[7, {"prompt": "a"}]', "row 1: expected a JSON object, found int"),
    (b"PAR1\x15\x04", "could not be read by pyarrow"), (b"ARROW1..", "could not be read by"),
    (b"\xff\xff\xff\xff\x10", "could not be read by pyarrow"),
])
def test_a_damaged_file(tmp_path, content, part):
    if content[:1] in b"PA\xff":
        pytest.importorskip("pyarrow")
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(MinipostError, match=part):
        read(str(tmp_path / "data"))


def test_a_row_of_a_list_that_breaks_our_rules_alone_can_be_skipped(tmp_path):
    (tmp_path / "data").write_text(
        '[{"prompt": "a"}, {"prompt": NaN}, {"prompt": "b", "prompt": "c"}, {"prompt": "d"}]')
    rows, complaints = read(str(tmp_path / "data"), skip=True)
    assert [row["prompt"] for row in rows] == ["a", "d"] and len(complaints) == 2


def test_without_pyarrow_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "data").write_bytes(b"PAR1")
    with pytest.raises(MinipostError, match=r"data: Parquet .* pip install 'minipost\[data\]'"):
        read(str(tmp_path / "data"))


def test_a_column_that_stands_twice(tmp_path):
    pa = pytest.importorskip("pyarrow")
    with pa.OSFile(str(tmp_path / "data"), "wb") as sink:
        table = pa.table([["a"], ["b"]], names=["prompt", "prompt"])
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(MinipostError, match="data: has the column 'prompt' twice"):
        read(str(tmp_path / "data"))


def test_a_small_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    path = parquet(tmp_path / "data", [{"prompt": "a" * 1000}] * 1000)
    monkeypatch.setattr("minipost.datasets.formats.MOST", 100_000)
    with pytest.raises(MinipostError, match="unpacks to 1,000 rows of .* bytes; at most"):
        read(path)


@pytest.mark.parametrize("name, text, part", [
    ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "names of Arrow files under"),
    ("state.json", '{"_data_files": 3}', "expected the names of Arrow files"),
    ("state.json", '{"_data_files": [{"filename": "gone"}]}', "gone: no such file"),
    ("state.json", '{"_indices_data_files": [{"filename": "i"}]}', "is a selection of rows"),
    ("dataset_dict.json", '{"splits": ["train", "test"]}', "splits train, test; name one, such as"),
    ("dataset_dict.json", '{"splits": ["../train"]}', "expected names under 'splits'"),
    ("x.parquet", "", "without state.json; .* Parquet files can be named one by one"),
])
def test_a_directory_that_is_no_data_set(tmp_path, name, text, part):
    (tmp_path / name).write_text(text)
    with pytest.raises(MinipostError, match=part):
        read(str(tmp_path))


# ---- what is nearly JSONL

OBJECT = '{\n  "prompt": "a",\n  "completion": "b"\n}\n'


@pytest.mark.parametrize("content, part", [
    ("prompt,completion\na,b\n", "looks like CSV, not JSON; pandas.read_csv(FILE).to_json("),
    ("prompt\tcompletion\na\tb\n", "pandas.read_csv(FILE, sep='\\t').to_json('rows.jsonl'"),
    (OBJECT * 2, "holds objects over several lines; jq -c . FILE > rows.jsonl writes each on one"),
    (OBJECT, "is one object over several lines; jq -c . FILE > rows.jsonl"),
    ('{"data": [{"prompt": "a"}]}',
     "is one object with rows under 'data'; jq -c '.\"data\"[]' FILE"),
    ('{\n"data": [\n{"prompt": "a"},\n{"prompt": "b"}]}', "is one object with rows under 'data'"),
    ('{"data": [\n{"prompt": "a"},\n{"prompt": "b"}]}', "is one object with rows under 'data'"),
    ('{"prompt": ["a", "b"], "completion": ["c", "d"]}',
     "holds a list for each column; pandas.read_json(FILE).to_json('rows.jsonl', orient='records'"),
    ('{"question": {"0": "a"}, "answer": {"0": "c"}}', "holds a list for each column"),
    ("{'prompt': 'a', 'x': None}\n" * 3,
     "line 1: expected one JSON object, found \"{'prompt': 'a', 'x': None}\"; "
     "it is written as Python, and json.dumps(row) writes JSON"),
    ("[{'prompt': 'a'},\n{'prompt': 'b'}]", "it is written as Python"),
    ('{"prompt": "a"},\n' * 3,
     "line 1: expected one JSON object, found '{\"prompt\": \"a\"},'; take the comma behind it "
     "away"),
    ('{"prompt": "a", "x": ' + "[" * 9999 + "]" * 9999 + "}\n", "too deep in each other"),
    ('{"prompt": "é"}\n',
     "line 1: not UTF-8 text; if it is Latin-1, iconv -f LATIN1 -t UTF-8 FILE"),
    ('[{"prompt": "é"},\n{"prompt": "a"}]', "at byte 13; if it is Latin-1, iconv"),
])
def test_what_is_nearly_jsonl_is_told_how_to_become_that(tmp_path, content, part):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(MinipostError) as caught:
        read(str(path))
    assert str(path) in str(caught.value) and part in str(caught.value)
    assert " ... " not in str(caught.value)


@pytest.mark.parametrize("rows", [
    [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
    [{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant",
                                                                    "content": "b"}]}],
    [{"prompt": "a", "data": [{"prompt": "b"}]}, {"prompt": "a", "x": ["y"]}],
    [{"prompt": "a", "x": ["y"]}],
    [{"prompt": {"role": "user", "content": "a"}, "completion": {"role": "assistant",
                                                                 "content": "b"}}],
])
def test_a_row_that_stands_alone_is_a_row(tmp_path, rows):
    assert len(read(jsonl(tmp_path / "rows.jsonl", rows))[0]) == len(rows)


def test_rows_behind_a_line_of_something_else_are_read(tmp_path):
    for first in ("prompt,completion", "{", '{"prompt": "a", "compl'):
        path = tmp_path / "rows.jsonl"
        path.write_text(first + '\n{"prompt": "a"}\n{"prompt": "b"}\n')
        assert len(read(str(path), skip=True)[0]) == 2


# ---- --columns

def test_columns_have_other_names(tmp_path):
    rows = [{"question": row["prompt"], "answer": row["completion"], "prompt": "old"}
            for row in ROWS]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    found, _ = read(path, columns="question:prompt, answer:completion,prompt:old")
    assert [dict(row) for row in found] == [
        {"prompt": row["prompt"], "completion": row["completion"], "old": "old"} for row in ROWS]
    swapped, _ = read(path, columns="question:prompt,prompt:question")
    assert swapped[0]["question"] == "old" and swapped[0]["prompt"] == ROWS[0]["prompt"]


@pytest.mark.parametrize("columns, part", [
    ("question", "expected OLD:NEW"), ("question:", "expected OLD:NEW"), (",", "expected OLD:NEW"),
    ("a:b,a:c", "each name once"), ("a:c,b:c", "each name once"),
    ("answer:prompt", r"line 1: has both 'answer' and 'prompt'"),
    ("quest:completion", "no row has 'quest', which --columns quest:completion names; the keys "
     "are 'answer', 'prompt'"),
    ("question:answer", "write --columns answer:question if the two are swapped, else leave "
     "question:answer out"),
])
def test_columns_that_cannot_be_renamed(tmp_path, columns, part):
    path = jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": "b"}] * 3)
    with pytest.raises(MinipostError, match=part):
        read(path, columns=columns)


def test_the_command_line_renames_columns_of_both_files(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [{"question": row["prompt"]} for row in ROWS])
    test = jsonl(tmp_path / "test.jsonl", [{"question": "9?"}, {"question": "8?"}])
    task = train.settings_of(["--algo", "grpo", "--data", path, "--eval-data", test, "--columns",
                              "question:prompt"]).task
    assert task.columns == "question:prompt" and len(task.rows) == 24
    assert {p.prompt for p in task.heldout(9)} == {"9?", "8?"}
    with pytest.raises(MinipostError, match="--columns goes with --data"):
        train.settings_of(["--algo", "grpo", "--columns", "question:prompt"])


def test_swapped_names_are_told_before_what_the_rows_then_lack(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}] * 30)
    with pytest.raises(MinipostError, match="write --columns question:prompt if the two are sw"):
        read(path, columns="prompt:question")


def test_one_of_two_files_may_have_the_new_name_already(tmp_path):
    old = jsonl(tmp_path / "old.jsonl", [{"question": f"{k}?"} for k in range(40)])
    new = jsonl(tmp_path / "new.jsonl", [{"prompt": f"{k}!"} for k in range(40)])
    for pair in ((old, new), (new, old)):
        assert File(*pair, columns="question:prompt").rows
    for pair in ((new, ""), (new, new)):
        with pytest.raises(MinipostError, match="no row has 'question'.*rows have 'prompt'"):
            File(*pair, columns="question:prompt")


def test_the_help_says_the_names_in_the_order_that_is_read():
    assert [flag for flag in options.FIRST if "columns" in flag] == ["--columns OLD:NEW"]


def test_a_run_knows_the_files_of_its_data_set(tmp_path, tiny):
    path = saved(tmp_path / "data", ROWS)
    settings = train.settings_of(["--algo", "sft", "--model", str(tiny), "--data", path])
    made = made_from(settings)
    assert sum("arrow" in name for name in made) == 2
