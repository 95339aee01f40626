"""Rollouts that a run keeps, runs of other formats that are resumed, files that are measured."""

import json

import pytest

from minipost import evaluate, train
from minipost.errors import MinipostError
from minipost.run import Run

CODE = """import asyncio
def length(completions, completion_ids, trainer_state, log_metric, log_extra, **columns):
    log_metric("at", trainer_state.global_step + trainer_state.epoch / 100)
    log_extra("ids", completion_ids)
    log_extra("odd", [object if k == 0 else float("nan") for k in range(len(completions))])
    return [len(text) / 9 for text in completions]
async def letters(completions, letter, **columns):
    await asyncio.sleep(0)
    return [None if each == "a" else text.count("1") for each, text in zip(letter, completions)]
"""


@pytest.fixture
def rewards(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    return [f"{tmp_path}/mine.py:{name}" for name in ("length=0.8", "letters")]


def table(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_kept_of_a_step(command, tmp_path, rewards):
    assert train.main([*command("grpo", "--steps", 4, "--prompts", 3, "--group-size", 4,
                                "--keep-rollouts", 2), "--reward", *rewards]) == 0
    run = tmp_path / "run"
    assert [path.name for path in sorted((run / "rollouts").iterdir())] == [
        "000002.jsonl", "000004.jsonl"]
    rows, step = table(run / "rollouts/000004.jsonl"), table(run / "metrics.jsonl")[3]
    assert len(rows) == 12 and {row["step"] for row in rows} == {4}
    for row in rows:
        length, letters = row["rewards/length"], row["rewards/letters"]
        assert length == len(row["completion"]) / 9 and len(row["ids"]) == row["tokens"]
        assert row["reward"] == pytest.approx(0.8 * length + (letters or 0))
        assert "rows.jsonl, line" in row["place"]
        assert row["logp"] < 0 and row["odd"] in (None, "<class 'object'>")
    assert sum(row["reward"] for row in rows) / 12 == pytest.approx(step["reward"])
    assert sum(row["rewards/length"] for row in rows) / 12 == pytest.approx(step["rewards/length"])
    epoch = 3 * 3 / len(train.saved_in(run)[0].task.training())
    assert step["at"] == pytest.approx(3 + epoch / 100)
    for k in range(0, 12, 4):  # advantages of a group, in the order of its rewards
        group = rows[k : k + 4]
        assert abs(sum(row["advantage"] for row in group)) < 1e-5
        assert len({row["prompt"] for row in group}) == 1


@pytest.mark.parametrize("algo", ["dapo", "dr-grpo", "rloo", "ppo", "reinforce", "reinforce-pp",
                                  "a2c", "self-critical", "trpo", "gspo", "cispo", "sapo",
                                  "entropy", "vineppo"])
def test_every_method_with_a_rollout_keeps_it(command, tmp_path, reward, algo):
    size = () if algo == "ppo" else ("--group-size", 2)
    assert train.main([*command(algo, "--steps", 1, "--prompts", 3, *size, "--keep-rollouts", 1),
                       "--reward", reward]) == 0
    rows = table(tmp_path / "run/rollouts/000001.jsonl")
    assert rows and all(row["reward"] is not None and row["advantage"] is not None for row in rows)


def test_a_method_that_hands_nothing_over(command, tmp_path, reward, monkeypatch, capsys):
    """Such as one of a user's own that does not call run.keep."""
    asked = command("grpo", "--steps", 2, "--prompts", 2, "--group-size", 2, "--keep-rollouts", 2,
                    "--reward", reward)
    said = "no rollouts are kept: grpo hands none over (run.keep)"
    assert train.main(asked) == 0 and said not in capsys.readouterr().out
    monkeypatch.setattr(Run, "keep", lambda *_: None)
    assert train.main([*asked, "--overwrite"]) == 0 and said in capsys.readouterr().out


def test_a_method_without_a_rollout_is_told_so():
    with pytest.raises(MinipostError, match="--keep-rollouts 2: sft does not learn from a rollout"):
        train.settings_of(["--algo", "sft", "--keep-rollouts", "2"])


@pytest.mark.parametrize("name", ["step", "eval/held-out/sampled"])
def test_a_metric_of_the_run_s_own_name(command, capsys, tmp_path, name):
    (tmp_path / "mine.py").write_text("def f(completions, log_metric, **columns):\n"
                                      f"    log_metric('{name}', 1)\n"
                                      "    return [len(c) for c in completions]\n")
    assert train.main([*command("grpo", "--steps", 1, "--prompts", 2, "--group-size", 2),
                       "--reward", f"{tmp_path}/mine.py:f"]) == 1
    assert f"logs the metric '{name}', which is one of the run's own" in capsys.readouterr().err


def test_parquet_of_rollouts(command, tmp_path, rewards):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert train.main([*command("grpo", "--steps", 1, "--prompts", 2, "--group-size", 2,
                                "--keep-rollouts", 1, "--rollout-format", "parquet"),
                       "--reward", *rewards]) == 0
    rows = parquet.read_table(tmp_path / "run/rollouts/000001.parquet").to_pylist()
    assert len(rows) == 4 and rows[0]["odd"] == "<class 'object'>" and rows[1]["step"] == 1


@pytest.mark.parametrize("format", ["json", "parquet"])
def test_a_stopped_run_ends_as_one_that_was_not(tiny, rows, tmp_path, rewards, stopping, format,
                                               monkeypatch):
    """Its rollouts of steps that it makes again are made again."""
    listed = [json.loads(line) for line in rows.read_text().splitlines()]
    data = tmp_path / "data"
    if format == "json":
        data.write_text(json.dumps(listed))
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet
        parquet.write_table(pa.Table.from_pylist(listed), data)

    def start(out):
        return train.main(["--algo", "grpo", "--model", str(tiny), "--data", str(data), "--columns",
                           "prompt:prompt,completion:answer", "--out", str(out), "--workers", "1",
                           "--max-new-tokens", "4", "--eval-n", "3", "--show", "0", "--steps", "5",
                           "--prompts", "2", "--group-size", "3", "--keep-rollouts", "2",
                           "--reward", *rewards])

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert start(whole) == 0
    with monkeypatch.context():
        stopping(3)
        assert start(stopped) == 130
    monkeypatch.undo()
    late = stopped / "rollouts/000008.jsonl"
    late.write_text("of a step that was lost")
    changed = [rewards[0].replace("0.8", "0.7"), rewards[1]]
    assert train.main(["--resume", str(stopped), "--reward", *changed]) == 1
    assert late.exists()
    assert train.main(["--resume", str(stopped), "--reward", *rewards]) == 0
    assert not late.exists()
    names = ["model/model.safetensors", "rollouts/000002.jsonl", "rollouts/000004.jsonl"]
    for name in names:
        assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name
    logs = [[{k: v for k, v in line.items() if k != "seconds"}
             for line in table(run / "metrics.jsonl")] for run in (whole, stopped)]
    assert logs[0] == logs[1] and len(logs[0]) == 5


# ---- evaluate --data

def test_all_rows_of_a_file_are_measured(tiny, rows, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def f(completions, completion, completion_ids, **columns):\n"
                                      "    return [float(len(c) > 3) for c in completions]\n")
    flags = ["--data", str(rows), "--model", str(tiny), "--max-new-tokens", "4", "--workers", "1",
             "--json", "--device", "cpu"]
    assert evaluate.main([*flags, "--reward", f"{tmp_path}/mine.py:f", "--pass-at", "1,3",
                          "--samples", "4"]) == 0
    found, = json.loads(capsys.readouterr().out)
    assert {found[name]["n"] for name in ("greedy", "sampled", "pass@1", "pass@3")} == {40}
    assert found["pass@1"]["value"] <= found["pass@3"]["value"]
    assert evaluate.main([*flags, "--n", "7"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)[0]["greedy"]["n"] == 7 and "7 of 40 rows are measured" in said.err


@pytest.mark.parametrize("flags, part", [
    (["--reward", "x.py:f"], "--reward goes with --data or --task"),
    (["--data", "{rows}", "--eval-data", "{rows}"], "all rows of --data are measured"),
    (["--data", "{rows}", "--reward", "nowhere.py:f"], "there is no such file"),
    (["--data", "{rows}", "--max-new-tokens", "60"], "do not fit the model's context"),
])
def test_what_cannot_be_measured(tiny, rows, capsys, flags, part):
    flags = [flag.format(rows=rows) for flag in flags]
    assert evaluate.main([*flags, "--model", str(tiny), "--workers", "1"]) == 1
    assert part in capsys.readouterr().err
