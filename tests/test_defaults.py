"""Defaults follow the size of the model; the nano checkpoints' stay, and a flag wins."""

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

import minipost
from minipost import methods, train
from minipost.checkpoint import load
from minipost.cli import defaults
from minipost.datasets.rows import File
from minipost.errors import MinipostError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", [
    "base", "chooser", "polisher", "seeker", "student", "thinker", "verifier"])
def test_nano_checkpoints_keep_their_defaults(name):
    argv = ["--algo", "grpo", "--model", str(ROOT / "checkpoints" / name), "--task", "arithmetic"]
    settings = train.settings_of(argv)
    assert defaults.for_size(settings, argv, "cpu") == (settings, "")
    assert 0 < defaults.parameters(settings.options.model) <= defaults.LARGE


def test_parameters_are_those_of_the_model(tiny):
    model, _ = load(tiny, "cpu", "float32")
    assert defaults.parameters(tiny) == sum(p.numel() for p in model.parameters())
    assert defaults.parameters(tiny / "nothing" if isinstance(tiny, Path) else "/nothing") == 0


@pytest.mark.parametrize("algo, lr", [("grpo", 1e-6), ("dpo", 1e-6), ("kto", 1e-6), ("sft", 1e-5),
                                      ("reward", 1e-5), ("distill", 1e-5)])
def test_a_large_model_has_small_rates_and_one_process(monkeypatch, tiny, algo, lr):
    monkeypatch.setattr(defaults, "LARGE", 100)
    argv = ["--algo", algo, "--model", str(tiny), "--task", "wording"]
    settings, line = defaults.for_size(train.settings_of(argv), argv, "cpu")
    assert settings.config.lr == lr and settings.options.workers == 1
    assert settings.options.eval_n == 64
    assert f"--lr {lr:g}" in line and "more than 0M" in line and "any flag wins" in line
    argv += ["--lr", "0.5", "--eval-n=9", "--room", "3", "--workers", "2"]
    settings, line = defaults.for_size(train.settings_of(argv), argv, "cpu")
    assert (settings.config.lr, settings.options.eval_n, settings.options.max_new_tokens,
            settings.options.workers) == (0.5, 9, 3, 2)
    assert line == "" or "--lr" not in line


def test_a_run_says_which_defaults_it_has(monkeypatch, command, tmp_path, capsys):
    monkeypatch.setattr(defaults, "LARGE", 100)
    assert train.main(command("sft", "--steps", 1, "--batch-size", 2)) == 0
    assert "more than 0M: --micro-batch-size 4 --lr 1e-05; any flag" in capsys.readouterr().out


def test_a_methods_large_rate_is_one_of_the_fields_usual_ones():
    assert {methods.load(name).LARGE_LR for name in methods.names()} == {1e-6, 1e-5}


@pytest.mark.parametrize("algo, device, shape", [
    ("grpo", "cpu", {"prompts": 4, "group_size": 4, "steps": 40}),
    ("grpo", "cuda", {"prompts": 16, "group_size": 8}), ("ppo", "cpu", {"prompts": 16}),
    ("dpo", "cpu", {"pairs": 4, "steps": 100, "beta": 0.1}), ("dpo", "cuda", {"pairs": 32}),
    ("orpo", "cpu", {"lam": 0.1}), ("kto", "cpu", {"beta": 0.1}),
    ("sft", "cpu", {"batch_size": 8, "steps": 100}), ("kto", "cpu", {"batch_size": 8}),
    ("mdpo", "cpu", {"prompts": 8, "group_size": 2}), ("trpo", "cpu", {"prompts": 4}),
    ("rft", "cpu", {"prompts": 16, "group_size": 4, "batch_size": 8}),
])
def test_a_step_of_a_large_model_is_small(monkeypatch, tiny, algo, device, shape):
    monkeypatch.setattr(defaults, "LARGE", 100)
    argv = ["--algo", algo, "--model", str(tiny), "--task", "arithmetic"]
    settings, line = defaults.for_size(train.settings_of(argv), argv, device)
    assert {name: getattr(settings.config, name) for name in shape} == shape
    assert all(f"--{name.replace('_', '-')} {value}" in line for name, value in shape.items())
    assert settings.options.micro_batch_size == (64 if device == "cuda" else 4)


def test_prompts_follow_a_group_size_that_is_given(monkeypatch, tiny):
    monkeypatch.setattr(defaults, "LARGE", 100)
    argv = ["--algo", "grpo", "--model", str(tiny), "--task", "arithmetic", "--group-size", "8"]
    settings, _ = defaults.for_size(train.settings_of(argv), argv, "cpu")
    assert (settings.config.prompts, settings.config.group_size) == (2, 8)


@pytest.mark.parametrize("algo", methods.names())
def test_every_method_takes_the_defaults_of_a_large_model(monkeypatch, tiny, algo):
    """RLAIF refuses settings that its learner does not heed, and a default is none of those."""
    monkeypatch.setattr(defaults, "LARGE", 100)
    argv = ["--algo", algo, "--model", str(tiny), "--task", "wording"]
    settings, _ = defaults.for_size(train.settings_of(argv), argv, "cpu")
    assert settings.config.steps <= defaults.STEPS


def test_a_large_model_goes_once_through_its_rows(monkeypatch, command, tmp_path, capsys):
    monkeypatch.setattr(defaults, "LARGE", 100)
    assert train.main(command("sft")) == 0
    said = capsys.readouterr().out
    assert "--data-epochs 1" in said and "over 35 rows, 8 in a step: 5 steps" in said


# ---- --data-epochs

def steps_made(folder):
    return len((folder / "run" / "metrics.jsonl").read_text().splitlines())


def test_steps_follow_from_the_rows(command, tmp_path, capsys):
    """35 of 40 rows are trained on: 2.5 times 35 in batches of 16 are 6 steps, the last not full.
    """
    assert train.main(command("sft", "--batch-size", 16, "--data-epochs", "2.5",
                              "--schedule", "linear", "--warmup-steps", 0)) == 0
    said = capsys.readouterr().out
    assert "--data-epochs 2.5 over 35 rows, 16 in a step: 6 steps" in said and "steps 6," in said
    lines = [json.loads(line) for line in
             (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [round(line["learning_rate"] / lines[0]["learning_rate"], 6) for line in lines] == [
        round(1 - k / 6, 6) for k in range(6)]
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["method"]["steps"] == 6 and saved["options"]["data_epochs"] == 2.5


def test_a_run_of_epochs_goes_on_to_the_same_bytes(command, tmp_path, stopping, capsys):
    arguments = command("sft", "--batch-size", 16, "--data-epochs", 2)
    assert train.main(arguments) == 0
    whole = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    stopping(2)
    assert train.main([*arguments, "--overwrite"]) == 130
    stopping(-1)
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    assert steps_made(tmp_path) == 5
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == whole
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "7"]) == 0
    assert steps_made(tmp_path) == 7


@pytest.mark.parametrize("flags, said", [
    (("--steps", 3), "--steps and --data-epochs exclude each other"),
    (("--task", "arithmetic"), "goes through no finite list of rows on arithmetic here"),
])
def test_epochs_need_rows_and_no_steps(command, capsys, flags, said):
    assert train.main(command("grpo", "--data-epochs", 1, *flags)) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def answers(n):
    """n rows of two answers each, the first of worth 1."""
    return [{"prompt": f"{k}=?", "completion": f" {k + other}", "reward": 1.0 - other}
            for k in range(n) for other in (0, 1)]


@pytest.mark.parametrize("algo, data, rows, each", [
    ("kto", [{"prompt": f"{k}=?", "chosen": " a", "rejected": " b"} for k in range(20)], 18, 4),
    ("oreo", answers(20), 36, 8), ("rft", answers(20), 18, 8), ("rft", [], 32, 8),
    ("math-shepherd", [], 10, 8), ("dpo", [], 20, 6), ("grpo", [], 20, 5), ("rlaif", [], 20, 5),
])
def test_what_a_step_takes_of_the_rows(tiny, tmp_path, algo, data, rows, each):
    """KTO takes pairs apart, RFT learns from right answers alone, Math-Shepherd from sampled ones.
    """
    path = tmp_path / "rows.jsonl"
    data = data or [{"prompt": f"{k}=?", "completion": " 1"} for k in range(22)]
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    method = methods.load(algo)
    sizes = {"batch_size": 8, "pairs": 6, "prompts": 5}
    if algo == "rft":
        sizes |= {"prompts": 16, "group_size": 2}
    known = {f.name for f in fields(method.Config)}
    config = method.Config(**{k: v for k, v in sizes.items() if k in known})
    run = SimpleNamespace(task=File(str(path)))
    assert method.rows(run, config) == (rows, each)


def test_epochs_from_python(tiny):
    data = [{"prompt": f"{k}=?", "completion": f" {k}"} for k in range(20)]
    run = minipost.open(tiny, data=data, max_new_tokens=4)
    assert len(list(minipost.train(run, "sft", data_epochs=2, batch_size=8))) == 5
    with pytest.raises(MinipostError, match="steps and data_epochs exclude each other"):
        minipost.train(run, "sft", data_epochs=2, steps=8)
    with pytest.raises(MinipostError, match="data_epochs is -1; expected a number above 0"):
        minipost.train(run, "sft", data_epochs=-1)
