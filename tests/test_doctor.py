"""The doctor's command line, on set-ups that are healthy and on others that are not."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from fakes import explained, helped, names

from minipost import checkpoint, doctor
from minipost.checks import model as checkup
from minipost.checks.model import FAULT, NONE, OK, WARNING
from minipost.cli.console import Console
from minipost.gpt import RewardModel
from minipost.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def diagnose(capsys, tiny, rows):
    """diagnose(*flags) -> (exit code, {check: row}, the whole) of a run with --json on the tiny
    model."""
    def start(*flags):
        problems = [] if {"--task", "--data"} & set(flags) else ["--data", str(rows)]
        model = [] if "--model" in flags else ["--model", str(tiny)]
        capsys.readouterr()
        code = doctor.main([*model, *problems, "--max-new-tokens", "4", "--prompts", "3", "--json",
                            *map(str, flags)])
        whole = json.loads(capsys.readouterr().out)
        assert all("\n" not in row["finding"] for row in whole["checks"])
        assert len({row["check"] for row in whole["checks"]}) == len(whole["checks"])
        return code, {row["check"]: row for row in whole["checks"]}, whole
    return start


def test_a_healthy_set_up_has_no_fault(diagnose):
    code, found, whole = diagnose()
    assert code == 0 and whole["faults"] == 0 and whole["task"] == "file"
    assert whole["warnings"] == sum(row["status"] == WARNING for row in found.values()) > 0
    assert found["sampler and trainer"]["status"] == found["padding"]["status"] == OK
    assert found["cut answers"]["status"] == WARNING       # an untrained model does not stop
    assert found["chosen and rejected"]["status"] == NONE


@pytest.mark.parametrize("task", TASKS)
def test_the_base_model_has_no_fault_on_any_task(diagnose, task):
    code, found, _ = diagnose("--model", ROOT / "checkpoints/base", "--task", task,
                              "--max-new-tokens", 48,
                              "--prompts", 16)
    assert code == 0
    assert "of 1, 3 and 12 rows" in found["micro-batches"]["finding"]
    wrong = {name for name, row in found.items() if row["status"] == WARNING}
    # What the corpus never showed it cannot answer; nothing else is to be said.
    expected = {"facts": {"reward spread"}, "recall": {"reward spread", "parsed answers"},
                "search": {"reward spread", "parsed answers", "cut answers"},
                "calculator": {"reward spread", "parsed answers", "cut answers"},
                "dialogue": {"reward spread", "parsed answers", "cut answers"},
                "polish": {"reward spread"},
                # whose demonstrations slip on purpose, and whose lists are long
                "choose": {"reward spread", "reference answers", "parsed answers", "cut answers"}}
    assert wrong == expected.get(task, set())


def test_samples_in_bfloat16_differ_by_rounding_alone(diagnose):
    code, found, _ = diagnose("--model", ROOT / "checkpoints/base", "--task", "countdown",
                              "--max-new-tokens", 48,
                              "--dtype", "bfloat16")
    assert code == 0 and found["sampler and trainer"]["status"] == OK


def test_a_reward_function_of_ones_own_that_fails(diagnose, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def reward(prompts, completions, answer, **columns):\n"
                    "    return [0.0] * len(prompts)\n"
                    "def same(completions, **columns):\n    return [1.0] * len(completions)\n"
                    "def late(**columns):\n    while True: pass\n"
                    "def rude(completions, **columns):\n    import os, torch\n"
                    "    os.chdir('/')\n    torch.set_grad_enabled(False)\n"
                    "    return [len(text) for text in completions]\n")
    code, found, _ = diagnose("--reward", f"{path}:reward")
    assert code == 1 and found["reward function"]["status"] == FAULT
    assert "missing a required argument: 'answer'" in found["reward function"]["finding"]
    assert "reward spread" not in found
    code, found, _ = diagnose("--reward", f"{path}:same")
    assert code == 1 and found["reference answers"]["status"] == FAULT
    assert found["reward function"]["status"] == OK
    code, found, _ = diagnose("--reward", f"{path}:late", "--reward-timeout", 0.05)
    assert code == 1 and "late took more than 0.05 s" in found["reward function"]["finding"]
    code, found, _ = diagnose("--reward", f"{path}:rude")
    assert found["reward function"]["status"] == WARNING
    assert "the working folder, torch's gradient mode" in found["reward function"]["finding"]


def test_one_answer_that_most_rows_have(diagnose, tmp_path):
    path = tmp_path / "yes.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{k}?", "completion": "no" if k % 4 == 0 else
                                          "yes"}) for k in range(60)))
    _, found, _ = diagnose("--data", path)
    assert found["one answer to all"]["status"] == WARNING
    assert "'yes' to every problem earns 0.7" in found["one answer to all"]["finding"]


def test_prompts_that_do_not_fit(diagnose, tmp_path):
    """Those that do are sampled; with none there is nothing to sample."""
    path, longer = tmp_path / "long.jsonl", tmp_path / "longer.jsonl"
    lines = [json.dumps({"prompt": f"{k} " + "x" * (80 if k < 30 else 5),
                         "completion": "y" * (70 if k % 2
else 1)}) for k in range(60)]
    path.write_text("\n".join(lines))
    code, found, _ = diagnose("--data", path, "--prompts", 16)
    assert code == 1 and "prompts with a response of up to 4 tokens" in found["context"]["finding"]
    assert found["padding"]["status"] == OK
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines[30:]))
    code, found, _ = diagnose("--data", path)
    assert code == 1 and "given answers with their prompts pass" in found["context"]["finding"]
    longer.write_text("\n".join(lines[:30]))
    code, found, _ = diagnose("--data", longer)
    assert code == 1 and found["samples"]["status"] == NONE and "padding" not in found


def test_rows_that_a_run_cannot_use_are_named(diagnose, tmp_path):
    """At any line; --on-bad-row skip leaves them out, and nothing else speaks of them."""
    path = tmp_path / "long.jsonl"
    lines = [json.dumps({"prompt": f"{k}?", "completion": "yes"}) for k in range(40)]
    lines[30] = json.dumps({"prompt": "30?", "completion": "y" * 99})
    path.write_text("\n".join(lines))
    code, found, _ = diagnose("--data", path, "--rows", 9)
    assert code == 1 and found["rows for this model"]["status"] == FAULT
    said = found["rows for this model"]["finding"]
    assert "1 of 40 rows" in said and f"{path}, line 31: a prompt of 4 tokens" in said
    code, found, _ = diagnose("--data", path, "--on-bad-row", "skip")
    assert code == 0 and found["rows for this model"]["status"] == WARNING
    assert found["context"]["status"] == OK


def test_an_empty_prompt_without_a_bos(diagnose, tiny, tmp_path):
    bare, path = tmp_path / "bare", tmp_path / "empty.jsonl"
    shutil.copytree(tiny, bare)
    for name, change in (("tokenizer", {"post_processor": None}),
                         ("tokenizer_config", {"add_bos_token": False})):
        raw = json.loads((bare / f"{name}.json").read_text())
        (bare / f"{name}.json").write_text(json.dumps({**raw, **change}))
    path.write_text("".join(json.dumps({"prompt": "" if k % 3 else f"{k}?", "completion": "yes"})
                            + "\n" for k in range(60)))
    code, found, _ = diagnose("--data", path, "--model", bare, "--prompts", 16)
    assert code == 1 and f"{path}, line 2: an empty prompt needs a BOS" in \
        found["rows for this model"]["finding"]
    assert found["padding"]["status"] == OK


def test_how_prompts_and_answers_are_divided(diagnose, tmp_path):
    path = tmp_path / "pairs.jsonl"

    def looked(text):
        path.write_text("".join(json.dumps({"chosen": f"{k}? {text}so good", "rejected":
                                            f"{k}? {text}so bad"}) + "\n" for k in range(60)))
        return diagnose("--data", path)[1]["prompts of pairs"]

    assert looked("")["status"] == WARNING and "'0? so' + ' good'" in looked("")["finding"]
    assert looked("Answer: ")["status"] == OK
    path.write_text("".join(json.dumps({"prompt": f"{k} + 5", "completion": f"{k} + 5 is 12"})
                            + "\n" for k in range(60)))
    code, found, _ = diagnose("--data", path)
    assert code == 1 and found["answers with prompts"]["status"] == FAULT


def test_pairs_of_a_file_and_a_reward_model(diagnose, tiny, tmp_path):
    path, scores = tmp_path / "pairs.jsonl", tmp_path / "scores"
    path.write_text("".join(json.dumps({"prompt": f"{k}?", "chosen": "yes", "rejected": "no"})
                            + "\n"
                            for k in range(40)))
    policy, vocabulary = checkpoint.load(tiny)
    judge = RewardModel(policy)
    with torch.no_grad():
        judge.score.weight.copy_(torch.linspace(-1, 1, 16))
    checkpoint.save(scores, judge, tiny)
    code, found, _ = diagnose("--data", path, "--reward-model", scores)
    assert code == 0
    assert found["reward model"]["status"] == found["reward model's PAD"]["status"] == OK
    assert "was chosen" in found["reward model's ranks"]["finding"]
    assert found["reward function"]["status"] == NONE
    assert found["length of chosen"]["status"] == WARNING
    code, found, _ = diagnose("--data", path, "--reward", write_length(tmp_path), "--reward-model",
                              scores)
    assert code == 0 and "reference answers" in found
    code, found, _ = diagnose("--task", "arithmetic", "--terms", 2, "--reward-model", scores,
                              "--reward",
                              write_length(tmp_path))
    assert "earns more" in found["reward model's ranks"]["finding"]


def write_length(folder):
    path = folder / "length.py"
    path.write_text("def length(completions, **columns):\n"
                    "    return [len(c) / 9 for c in completions]\n")
    return f"{path}:length"


def test_held_out_rows_and_skipped_rows_of_a_file(diagnose, rows, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text() + "no JSON\n")
    _, found, _ = diagnose("--data", bad, "--on-bad-row", "skip")
    assert "skipped 1 of 41 rows" in found["rows"]["finding"]
    held = tmp_path / "held.jsonl"
    held.write_text("".join(rows.read_text().splitlines(keepends=True)[:9]))
    _, found, _ = diagnose("--data", rows, "--eval-data", held)
    said = found["held-out prompts"]["finding"]
    assert "9 of 40 rows of --data have a prompt of --eval-data" in said


def test_the_doctor_writes_nothing(diagnose, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()}
    diagnose()
    assert os.listdir(tmp_path) == []
    assert {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()} == before


@pytest.mark.parametrize("flags, part", [
    (["--model", "nowhere", "--task", "facts"], "no such model directory"),
    (["--model", "nowhere"], "one of --task and --data"),
    (["--task", "facts", "--data", "x"], "--task and --data exclude each other"),
    (["--task", "facts", "--on-bad-row", "skip"], "goes with --data"),
    (["--data", "nowhere"], "nowhere: no such file"),
    (["--task", "facts", "--reward", "nowhere.py:f"], "expected FILE.py:FUNCTION"),
])
def test_input_that_is_wrong_ends_in_one_sentence(capsys, flags, part):
    assert doctor.main(flags) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and part in err


@pytest.mark.parametrize("knob", ["group_size", "temperature", "prompts", "max_new_tokens",
                                  "micro_batch_size", "rows"])
def test_a_knob_out_of_bounds(capsys, knob):
    assert doctor.main(["--task", "facts", f"--{knob.replace('_', '-')}", "0"]) == 1
    assert f"error: {knob} is 0" in capsys.readouterr().err


def test_help_explains_every_knob_of_the_doctor(capsys):
    explained(helped(capsys, doctor.main, "--task", "arithmetic"),
              names(doctor.Options) | names(TASKS["arithmetic"]))
    assert doctor.main([]) == 2 and "--task NAME --help" in capsys.readouterr().out


def test_the_screen_is_readable_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found = [checkup.Finding("a check", FAULT, "nine of ten " * 9, "it [matters]",
                             "use --max-new-tokens 9"),
             checkup.Finding("another", OK, "well"), checkup.Finding("third", NONE, "no pairs")]
    Console().findings(found, 1.24)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    whole = re.sub(r"\s+", " ", " ".join(lines))
    assert "FAULT a check: nine of ten" in whole
    assert "so it [matters]; use --max-new-tokens 9." in whole
    assert whole.index("another") < whole.index("third") < whole.index("a check")
    assert "1 ok, 1 n/a, warnings: 0, faults: 1; 1.2 s" in whole


def test_the_examples_of_the_page_run(capsys, tiny, tmp_path, monkeypatch):
    """Its commands, with paths that exist; the reward function stands there too."""
    text = (ROOT / "docs/own-data.md").read_text()
    commands = re.findall(r"^python -m minipost\.doctor (.*?)(?:  .*)?$", text, re.MULTILINE)
    assert len(commands) >= 3
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(re.search(r"# mine.py\n(.*?)```", text, re.DOTALL)[1])
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": f"{k}+5=?", "answer": str(k + 5)})
                                          + "\n"
                                          for k in range(40)))
    Path("pairs.jsonl").write_text("".join(json.dumps({"prompt": f"{k}?", "chosen": "yes",
                                                       "rejected": "no"})
                                           + "\n" for k in range(40)))
    policy, _ = checkpoint.load(ROOT / "checkpoints/base")
    checkpoint.save("runs/reward-wording-0/model", RewardModel(policy), ROOT / "checkpoints/base")
    os.symlink(ROOT / "checkpoints", "checkpoints")
    for command in commands:
        code = doctor.main(command.replace("path/to/llama", str(tiny)).split())
        out, err = capsys.readouterr()
        assert not err and ('"faults": ' if "--json" in command else "faults: ") in out, command
        assert code == ("--reward-model" in command)        # a fresh one scores all answers alike


def test_rows_that_are_too_long_are_counted_and_no_fault_where_they_are_cut(diagnose, tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": f"{k}+1=", "completion": " 1" * (61 if k < 4 else 1)} for k in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for choice, status in (("stop", "fault"), ("skip", "ok"), ("truncate", "ok")):
        _, found, _ = diagnose("--data", path, "--on-long-row", choice)
        assert found["long rows"]["status"] == "warning"
        assert "4 of 40 rows" in found["long rows"]["finding"]
        assert found["context"]["status"] == status
        assert (found["rows for this model"]["status"] == "ok") == (choice != "stop")
