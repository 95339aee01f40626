"""--max-length and --on-long-row: stop, skip, or cut the ends of answers."""

import json

import pytest
import torch
from fakes import Letters, make_run, tiny

from minipost import train
from minipost.checks.data import long_rows
from minipost.datasets.fitting import fitted
from minipost.datasets.preferences import file_pairs
from minipost.datasets.rows import File, read
from minipost.errors import MinipostError
from minipost.layout import tensor_file

ANSWERS = ("abcde", "ab", "hgfedcba", "abc")  # with BOS, a prompt of 2 letters and EOS: 9, 6, 12, 7


def file(folder, rows, **how):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return File(str(path), **how)


def rows_of(answers=ANSWERS, key="completion"):
    letters = "abcdefgh"
    return [{"prompt": letters[k % 8] + letters[k // 8], key: answers[k % len(answers)]}
            for k in range(48)]


def look(task, reads=("completion",), room=2):
    return fitted(task, tiny(context=32), Letters(), room, reads)


def test_stop_says_how_many_there_are_and_which_is_the_longest(tmp_path):
    with pytest.raises(MinipostError, match=r"24 of 48 rows do not fit --max-length 7; the longest "
                       r"is .*rows.jsonl, line \d+, with 12 tokens"):
        look(file(tmp_path, rows_of(), max_length=7))


def test_skip_leaves_them_out_and_says_how_many(tmp_path):
    found = look(file(tmp_path, rows_of(), max_length=7, on_long_row="skip"))
    assert {row["completion"] for row in found.rows} == {"ab", "abc"}
    said, = (s for s in found.skipped() if s.startswith("skipped"))
    assert "skipped 24 of 48 rows" in said and "do not fit --max-length 7" in said
    data = file(tmp_path, rows_of()).data
    with pytest.raises(MinipostError, match="line 1: is odd$"):  # which is another matter
        read(data, check=lambda problem: "is odd", skip_long=True)


def test_truncate_cuts_the_ends_of_answers_and_learns_no_end_there(tmp_path):
    task = look(file(tmp_path, rows_of(), max_length=7, on_long_row="truncate"))
    said, = (s for s in task.skipped() if "are cut" in s)
    assert "24 of 48 rows are longer than 7 tokens" in said and said.endswith("has 12")
    run = make_run(task, tiny(context=32))
    problems = [row.problem() for row in task.rows[:4]]
    seqs = run.encode(problems, [p.columns["completion"] for p in problems])
    learnt = [ids[mask].tolist() for ids, mask in zip(seqs.targets, seqs.mask)]
    whole = [Letters().response(text) for text in ANSWERS]
    assert learnt == [whole[0][:4], whole[1], whole[2][:4], whole[3]]
    ends = [ids[-1] in Letters.eos for ids in learnt]
    assert ends == [False, True, False, True] and seqs.tokens.shape[1] == 7


def test_both_answers_of_a_pair_are_cut(tmp_path):
    pairs = [{**row, "chosen": "abcde", "rejected": "hgfed"} for row in rows_of(key="other")]
    pairs[3] |= {"chosen": "abcde", "rejected": "abcdf"}  # equal as far as the limit goes
    task = look(file(tmp_path, pairs, max_length=6, on_long_row="truncate"), ("chosen", "rejected"))
    assert len(task.rows) == 47 and "line 4: the two answers are equal" in task.skipped()[0]
    found = file_pairs(make_run(task, tiny(context=32)), [task.rows[0].problem()])
    assert found.chosen.mask.sum() == found.rejected.mask.sum() == 3
    assert not any(torch.isin(side.targets[side.mask], torch.tensor([*Letters.eos])).any()
                   for side in (found.chosen, found.rejected))


def test_a_prompt_is_never_cut(tmp_path):
    """It would ask something else; a row of which nothing would be learnt is left out."""
    rows = [*rows_of(), {"prompt": "a" * 9, "completion": "b"}]
    task = look(file(tmp_path, rows, max_length=7, on_long_row="truncate"))
    assert len(task.rows) == 48 and "nothing is left of it when it is cut" in task.skipped()[0]


def test_a_method_that_samples_bounds_the_prompt_with_its_longest_answer(tmp_path):
    rows = [*rows_of(key="other"), {"prompt": "abcdefgh"}]
    with pytest.raises(MinipostError, match="line 49: a prompt of 9 tokens .* a response of up to "
                       "4 do not fit --max-length 10"):
        look(file(tmp_path, rows, max_length=10), (), 4)
    assert len(look(file(tmp_path, rows, max_length=10, on_long_row="truncate"), (), 4).rows) == 48
    assert len(look(file(tmp_path, rows, max_length=13), (), 4).rows) == 49


def test_the_context_bounds_a_larger_max_length(tmp_path):
    assert file(tmp_path, rows_of(), max_length=99).longest(32) == 32
    assert file(tmp_path, rows_of()).longest(32) == 32


def test_a_run_that_truncates_and_one_that_resumes(command, tmp_path, capsys):
    arguments = command("sft", "--steps", 2, "--batch-size", 4, "--max-length", 9,
                        "--on-long-row", "truncate")
    assert train.main(arguments) == 0
    said = capsys.readouterr().out
    assert "the ends of their answers are cut" in said
    saved = json.loads((tmp_path / "run/config.json").read_text())["task"]
    assert (saved["max_length"], saved["on_long_row"]) == (9, "truncate")
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    assert tensor_file.load_state(tmp_path / "run/state/state.safetensors")[1]["step"] == 3


@pytest.mark.parametrize("flags, said", [
    (("--max-length", -1), "max_length is -1; expected a number of tokens"),
    (("--task", "facts", "--max-length", 9), "--max-length goes with --data"),
    (("--task", "facts", "--on-long-row", "skip"), "--on-long-row goes with --data")])
def test_what_is_wrong_is_said(command, capsys, flags, said):
    assert train.main(command("sft", *flags)) == 1
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("over, choice, status, part", [
    ([], "stop", "ok", "none of 9 rows has more than 7 tokens"),
    ([2, 5], "truncate", "warning", "the longest 12: the ends of their answers are cut"),
    ([2], "skip", "warning", "they are left out"), ([2], "stop", "warning", "a run stops at them")])
def test_the_doctor_says_how_many_would_be_cut(over, choice, status, part):
    found = long_rows(over, 9, 7, choice)
    assert found.status == status and part in found.sentence
