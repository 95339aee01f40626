"""Defaults follow the size of the model; the nano checkpoints' stay, and a flag wins."""

from pathlib import Path

import pytest

from minipost import methods, train
from minipost.checkpoint import load
from minipost.cli import defaults

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["base", "seeker", "student", "thinker", "verifier"])
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
    assert "parameters, more than 0M: --lr 1e-05; any flag wins" in capsys.readouterr().out


def test_a_methods_large_rate_is_one_of_the_fields_usual_ones():
    assert {methods.load(name).LARGE_LR for name in methods.names()} == {1e-6, 1e-5}
