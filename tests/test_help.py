"""--help: every option in words and in a group; names of TRL's; readers that go away."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from fakes import helped_text, names

from minipost import contract, doctor, evaluate, methods, solve, test_time, train
from minipost.cli import help, inference, options, trl
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.tasks import TASKS

COMMANDS = {"train": train.Options, "evaluate": evaluate.Measured, "solve": solve.Options,
            "doctor": doctor.Options, "chat": solve.Chat, "method": inference.Measured}
HELPS = [(train.main, "--algo", "grpo"), (evaluate.main,), (evaluate.main, "--method", "tot"),
         (solve.main, "--method", "tot"), (solve.main, "--chat"),
         (doctor.main, "--task", "countdown")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_one_group(name):
    usual = COMMANDS[name]()
    said = [flag.split()[0] for rows in help.grouped(usual).values() for flag, _ in rows]
    assert sorted(said) == sorted(f"--{each.replace('_', '-')}" for each in names(COMMANDS[name]))
    assert all(text for rows in help.grouped(usual).values() for _, text in rows)


@pytest.mark.parametrize("kind", [
    *(methods.load(name).Config for name in methods.names()),
    *(test_time.load(name).Config for name in test_time.names()), *TASKS.values()],
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_setting_of_a_method_or_a_task_has_a_comment(kind):
    """It is the setting's words in --help."""
    said = help.words(kind)
    assert not [f.name for f in fields(kind) if not said.get(f.name)]


def test_no_group_names_an_option_that_there_is_not():
    known = set().union(*map(names, COMMANDS.values())) | {"report"}
    grouped = [name for group in help.GROUPS.values() for name in group]
    assert set(grouped) <= known and len(grouped) == len(set(grouped))


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("command", HELPS, ids=lambda c: " ".join(["", *c[1:]]))
def test_help_fits_the_terminal(capsys, monkeypatch, columns, command):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = helped_text(capsys, *command)
    assert "options options" not in text and text.startswith("usage: python -m minipost.")
    titles = re.findall(r"^([\w (),-]+) options:", text, re.MULTILINE)
    assert len(titles) == len(set(titles)) >= 2 and titles[-1] == "run"
    told = text[text.index(f"\n{titles[0]} options:"):]     # what stands before may be an equation
    for line in told.splitlines():
        assert len(line) <= min(columns, 100) or len(line.split()) <= 2, line


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("main, package", [(train.main, methods), (solve.main, test_time)])
def test_every_method_is_listed_with_what_it_is(capsys, monkeypatch, columns, main, package):
    monkeypatch.setenv("COLUMNS", str(columns))
    told = helped_text(capsys, main).partition(" NAME, one of:\n")[2]
    rows = re.findall(r"^  (\S+)\s+(\S[^\n]*(?:\n {4,}.*)*)", told, re.MULTILINE)
    assert [name for name, _ in rows] == package.names()
    found = {name: " ".join(text.split()) for name, text in rows}
    assert found == contract.titles(package)
    assert all(text and "(" not in text and "http" not in text for text in found.values())
    for line in told.splitlines():
        assert len(line) <= min(columns, 100), line


def test_a_title_leaves_out_the_name_and_the_paper():
    found = contract.titles(methods)
    assert found["grpo"] == "Group Relative Policy Optimization"
    assert found["self-critical"] == "Self-critical sequence training"
    assert found["reward"] == "Reward model: Bradley-Terry on preferred pairs"


def test_help_says_type_default_and_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = " ".join(helped_text(capsys, train.main, "--algo", "grpo", "--task", "facts").split())
    for part in ("--group-size INT answers per prompt (G), at least 2 (default: 8)",
                 "--kl {exact,k3} over the whole", "--merge {True,False} save whole models",
                 "--reward [STR ...] functions to add up", "--data FILE problems of yours",
                 "--log [{tensorboard,wandb,trackio} ...]", "--overwrite replace the run",
                 "method options: Group-relative", "--out STR run directory"):
        assert part in text, part


def test_words_are_those_of_the_class_that_has_the_last_say():
    @dataclass
    class Outer:
        a: int = 1  # of a
        b: str = "#"  # of b, see #3

    @dataclass
    class Inner(Outer):
        b: str = "x"  # of b anew
        c: bool = True  # of c

    assert help.words(Inner) == {"a": "of a", "b": "of b anew", "c": "of c"}
    assert help.words(Outer)["b"] == "of b, see #3"


# ---- flags of TRL's name

def ours():
    """Every setting that some command line of ours has."""
    flags = {flag.split()[0][2:].replace("-", "_") for flag in options.FIRST}
    config = [methods.load(name).Config for name in methods.names()]
    config += [test_time.load(name).Config for name in test_time.names()]
    return flags | {"resume", "overwrite", "algo", "json"} | set().union(
        *map(names, [*COMMANDS.values(), File, *config]))


def test_only_flags_of_ours_are_recommended():
    known = ours()
    for theirs, candidates in trl.ARGUMENTS.items():
        assert set(candidates) <= known, theirs
    for theirs, sentence in trl.INSTEAD.items():
        named = re.findall(r"`--([a-z-]+)`", sentence)
        assert named or sentence.startswith("leave it out"), theirs
        assert {name.replace("-", "_") for name in named} <= known, theirs
        assert theirs not in known and theirs not in trl.ARGUMENTS
    assert not set(trl.ARGUMENTS) & known - {"max_length"}


def test_names_that_trl_has():
    """The two tables name arguments of TRL and transformers, now or before."""
    config = pytest.importorskip("trl", reason="TRL is not installed")
    known = set()
    for name in ("GRPOConfig", "DPOConfig", "SFTConfig", "RLOOConfig", "ModelConfig",
                 "ScriptArguments"):
        known |= {f.name for f in fields(getattr(config, name))}
    former = {"response_length", "num_ppo_epochs", "kl_coef", "init_kl_coef", "target_kl",
              "cliprange", "cliprange_value", "missing_eos_penalty", "reward_model_path",
              "max_seq_length", "max_prompt_length", "overwrite_output_dir", "torch_dtype",
              "warmup_ratio", "resume_from_checkpoint"}  # of PPO's config, or renamed since
    elsewhere = {"reward_funcs", "train_file", "validation_file", "num_processes", "ref_model",
                 "push_to_hub", "trust_remote_code", "dataset_text_field"}  # of scripts, launchers
    assert {*trl.ARGUMENTS, *trl.INSTEAD} - known <= former | elsewhere


@pytest.mark.parametrize("flag, said", [
    ("--learning-rate", "use --lr"), ("--learning_rate=1e-6", "use --lr"),
    ("--num_generations", "use --group-size"), ("--max_completion_length", "use --max-new-tokens"),
    ("--max_steps", "use --steps"), ("--kl-coef", "use --beta"), ("--epsilon", "use --clip"),
    ("--cliprange", "use --clip"), ("--lora-r", "use --lora"), ("--output_dir", "use --out"),
    ("--num-train-epochs", "use --data-epochs"), ("--warmup-ratio", "use --warmup-steps"),
    ("--per_device_train_batch_size", "use --minibatch-size or --batch-size"),
    ("--gradient_accumulation_steps", "leave it out"), ("--bf16", "use --dtype bfloat16"),
    ("--logging-steps", "leave it out"), ("--model_name_or_path", "use --model"),
    ("--report_to", "use --log"), ("--cliprange-value", "which this command does not have"),
])
def test_a_flag_of_trls_name_is_answered_by_ours(capsys, flag, said):
    assert train.main(["--algo", "grpo", flag, "2"]) == 1
    found = capsys.readouterr().err
    assert found.count("\n") == 1 and found.startswith(f"error: {flag.partition('=')[0]}".replace(
        "_", "-")) and "a name of TRL's" in found and said in found, found
    assert "`" not in found


def test_a_name_that_is_also_ours_is_taken(capsys):
    for argv in (["--algo", "dapo", "--epsilon-high", "1"], ["--algo", "ppo", "--target-kl", "1"]):
        assert train.main(argv) == 1
        assert "use --clip-high" in (said := capsys.readouterr().err) or "use --kl-target" in said
    trl.refuse(["--seed", "1", "--temperature=1", "--lora-alpha", "--gamma", "learning-rate"], [])
    trl.refuse(["--max-length", "9"], [], {"max_length"})
    with pytest.raises(MinipostError, match="which this command does not have"):
        trl.refuse(["--num-generations"], [methods.load("sft").Config()])


def test_underscores_are_dashes(rows):
    settings = train.settings_of(["--algo", "grpo", "--group_size", "3", "--max_new_tokens=7",
                                  "--out", "a_b"])
    assert (settings.config.group_size, settings.options.max_new_tokens,
            settings.options.out) == (3, 7, "a_b")
    settings = train.settings_of(["--algo", "sft", "--data", str(rows), "--max_length", "9"])
    assert settings.task.max_length == 9


# ---- a reader that goes away

@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise there")
@pytest.mark.parametrize("arguments", [
    *(["-m", f"minipost.{door}", "--help"] for door in ("train", "evaluate", "solve", "doctor",
                                                        "prove")),
    ["-m", "minipost", "--help"], ["-m", "minipost", "prove", "--help"],
    ["-m", "minipost.train", "--algo", "grpo", "--help"],
    ["-m", "minipost.solve", "--method", "tot", "--help"],
    ["-m", "minipost.prove", "--algo", "sft", "--samples", "2", "--workers", "1", "--out", "OUT"],
    ["-m", "minipost.evaluate", "--model", "MODEL", "--task", "countdown", "--n", "2",
     "--workers", "1", "--max-new-tokens", "4"],
    ["-m", "minipost.solve", "--model", "MODEL", "--method", "cot", "--max-new-tokens", "4"],
    ["-m", "minipost.doctor", "--model", "MODEL", "--task", "countdown", "--prompts", "2"],
    ["-m", "minipost.train", "--algo", "sft", "--model", "MODEL", "--task", "countdown", "--steps",
     "1", "--eval-n", "2", "--workers", "1", "--max-new-tokens", "4", "--out", "OUT"],
], ids=lambda a: " ".join(a[1:4]))
def test_a_reader_that_goes_away_is_no_error(arguments, tiny, tmp_path):
    """As in `... --help | head -1`: nothing is printed on it."""
    named = {"MODEL": str(tiny), "OUT": str(tmp_path / "out")}
    process = subprocess.Popen(
        [sys.executable, *(named.get(each, each) for each in arguments)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=str(tmp_path), env=environment())
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(120) in (0, 1) and not said
    if "minipost.train" in arguments and "--steps" in arguments:
        assert (tmp_path / "out" / "summary.json").exists()


def environment():
    """With a buffer, as usual: what is in it meets the closed pipe at the end."""
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            "PYTHONPATH": str(Path(train.__file__).parents[1])}
