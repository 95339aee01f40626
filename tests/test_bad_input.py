"""What is wrong outside ends in one sentence and exit code 1, and costs nothing saved before."""

import errno
import json
import math
import os
import resource
import shutil
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minipost import (
    checkpoint,
    doctor,
    evaluate,
    files,
    methods,
    solve,
    test_time,
    train,
)
from minipost.cli import directory, inference, session
from minipost.datasets.rows import File
from minipost.errors import MOST, MinipostError, visible
from minipost.gpt import RewardModel
from minipost.layout import tensor_file
from minipost.methods import sft
from minipost.tasks import TASKS
from minipost.tasks.arithmetic import Arithmetic
from minipost.tokenizer import Tokenizer

GRPO = ("--steps", 2, "--prompts", 2, "--group-size", 4)


# ---- models

@pytest.mark.parametrize("damage, part", [
    ("missing", "no such model directory"), ("a run", "broken: is a run; name"),
    ("no weights", "has no weights; expected model.safetensors in it"),
    ("truncated", "model.safetensors: is cut short: it has 5,000 of its"),
    ("truncated list", "is cut short, in its list of tensors; fetch it again"),
    ("truncated length", "is cut short, to 7 bytes; fetch it again"),
    ("pointer", "is a pointer of Git LFS"), ("part", "1 of the 1 files of weights that model.saf"),
    ("not JSON", "config.json"),
    ("no tokenizer", "tokenizer.json"),
])
def test_model_directory(command, fails, tiny, tmp_path, damage, part):
    broken = tmp_path / "broken"
    if damage != "missing":
        shutil.copytree(tiny, broken)
    if damage == "no weights":
        (broken / "model.safetensors").unlink()
    if damage.startswith("truncated"):
        os.truncate(broken / "model.safetensors", {"truncated list": 99, "truncated length": 7}.get(
            damage, 5000))
    if damage == "pointer":
        (broken / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    if damage == "part":
        (broken / "model.safetensors").unlink()
        (broken / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}')
    if damage == "a run":
        (broken / "model").mkdir()
        (broken / "config.json").write_text('{"algo": "sft"}')
        part = f"{part} {broken / 'model'}"
    if damage == "not JSON":
        (broken / "config.json").write_text('{"model_type": "llama", ')
    if damage == "no tokenizer":
        (broken / "tokenizer.json").unlink()
    fails([*command("sft"), "--model", broken], broken, part)
    fails(["--model", broken, "--workers", 1], broken, part, main=evaluate.main)
    assert not (tmp_path / "run").exists()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_config_json_of_any_content(tmp_path_factory, tiny, data):
    raw = json.loads((tiny / "config.json").read_text())
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda part: st.lists(part, max_size=2) | st.dictionaries(st.text(max_size=3), part))
    for key in data.draw(st.lists(st.sampled_from(sorted(raw)), min_size=1, max_size=3)):
        if data.draw(st.booleans()):
            raw.pop(key, None)
        else:
            raw[key] = data.draw(anything)
    directory = tmp_path_factory.getbasetemp() / "fuzzed"
    if not directory.exists():
        shutil.copytree(tiny, directory, ignore=shutil.ignore_patterns("generation_config.json"))
    (directory / "config.json").write_text(json.dumps(raw))
    try:
        checkpoint.load(directory)
    except MinipostError as error:
        assert str(directory) in str(error)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_json_file_of_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        assert isinstance(files.read_json(path), dict)
    except MinipostError as error:
        assert str(path) in str(error)


# ---- data

GOOD = b'{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize("line, part", [
    (b"prompt: a", "expected one JSON object"), (b'{"prompt": "a"', "expected one JSON object"),
    (b'["prompt"]', "found list"), (b'"prompt"', "found str"), (b"null", "found NoneType"),
    (b'{"completion": "b"}', "'prompt'"), (b'{"prompt": 3}', "'prompt'"),
    (b'{"prompt": "a", "completion": ["b"]}', "'completion'"), (b'{"prompt": "a"}', "'completion'"),
    (b'{"prompt": "a", "completion": ""}', "'completion', found ''"),
    (b'{"prompt": "a", "prompt": "b"}', "twice"), (b'{"prompt": "a", "x": NaN}', "NaN"),
    (b'{"prompt": "a", "x": -Infinity}', "Infinity"), (b'{"prompt": "\xff"}', "UTF-8"),
    (b'{"prompt": "\\ud800"}', "surrogate"), (b'\xef\xbb\xbf{"prompt": "a"}', "BOM"),
    (b"[" * 100_000, "expected one JSON object"),
    (b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}", "expected one JSON object"),
])
def test_a_bad_row_is_named_by_file_and_line(command, fails, tmp_path, line, part):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    fails([*command("sft", "--data", path)], f"{path}, line 3:", part)
    fails([*command("sft"), "--eval-data", path], f"{path}, line 3:", part)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content, part", [(b"", "no rows"), (b"\n \n", "no rows"),
                                           (GOOD, "its 1 row asks 1 question, too few")])
def test_a_file_with_too_little(command, fails, tmp_path, content, part):
    path = tmp_path / "short.jsonl"
    path.write_bytes(content)
    fails([*command("sft", "--data", path)], path, part)


def test_a_file_that_is_not_there(command, fails, tmp_path):
    fails([*command("sft", "--data", tmp_path / "nowhere")], "nowhere: no such file")
    fails([*command("sft", "--data", tmp_path)], tmp_path, "directory")


def test_rows_without_completions(command, fails, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "{n}"}}\n' for n in range(40)))
    fails([*command("grpo", *GRPO, "--data", path)], path, "--reward")


PAIR = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


def third_line_fails(command, fails, folder, algo, good, line, part):
    """A bad line among good ones is named, and nothing is written."""
    path = folder / "rows.jsonl"
    many = b"".join(good.replace(b'"a"', b'"a%d"' % n) for n in range(40))
    path.write_bytes(good + b"\n" + line + b"\n" + many)
    fails([*command(algo, "--data", path)], f"{path}, line 3:", part)
    assert not (folder / "run").exists()


@pytest.mark.parametrize("algo", ["reward", "dpo"])
@pytest.mark.parametrize("line, part", [
    (b'{"prompt": "a", "chosen": "b"}', "'rejected', found None"),
    (b'{"prompt": "a", "rejected": "b"}', "'chosen', found None"),
    (b'{"prompt": "a", "chosen": "", "rejected": "c"}', "'chosen', found ''"),
    (b'{"prompt": "a", "chosen": "b", "rejected": ""}', "'rejected', found ''"),
    (b'{"prompt": "a", "chosen": "b", "rejected": 3}', "'rejected', found 3"),
    (b'{"prompt": "a", "chosen": "b", "rejected": "b"}', "equal"),
    (b'{"prompt": "a", "completion": "b"}', "'chosen', found None"), (b'{"prompt": "a"}', "chosen"),
    (b'{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}', "'chosen' holds half"),
    (b'{"chosen": "a", "rejected": "b"}', "begin alike"),
    (b'{"chosen": "a b", "rejected": "a b c"}', "begin alike"),
    (b'{"prompt": null, "chosen": "a", "rejected": "b"}', "'prompt', found None"),
])
def test_a_row_that_is_no_pair_among_pairs(command, fails, tmp_path, algo, line, part):
    third_line_fails(command, fails, tmp_path, algo, PAIR, line, part)


ANSWER = b'{"prompt": "a", "completion": "b", "reward": 0.5}\n'


@pytest.mark.parametrize("algo", ["oreo", "rft"])
@pytest.mark.parametrize("line, part", [
    (b'{"prompt": "a", "completion": "b"}', "'reward', found None"),
    (b'{"prompt": "a", "reward": 1}', "'completion', found None"),
    (b'{"prompt": "a", "completion": "", "reward": 1}', "'completion', found ''"),
    (b'{"prompt": "a", "completion": "b", "reward": true}', "'reward', found True"),
    (b'{"prompt": "a", "completion": "b", "reward": "1"}', "'reward', found '1'"),
    (b'{"prompt": "a", "completion": "b", "reward": 1.01}',
     "within 0..1 under 'reward', found 1.01"),
    (b'{"prompt": "a", "completion": "b", "reward": -1e-9}', "within 0..1"),
    (b'{"prompt": "a", "completion": "b", "reward": NaN}', "NaN"),
    (b'{"prompt": "a", "completion": "b", "label": true}', "has 'label', which most rows lack"),
    (b'{"prompt": "a", "chosen": "b", "rejected": "c"}', "has 'chosen', which most rows lack"),
])
def test_an_answer_without_a_reward_among_such(command, fails, tmp_path, algo, line, part):
    third_line_fails(command, fails, tmp_path, algo, ANSWER, line, part)


@pytest.mark.parametrize("algo", ["oreo", "rft"])
def test_what_cannot_be_learnt_from_is_said_before_anything_is_written(command, fails, tmp_path,
                                                                      algo):
    path, rows = tmp_path / "answers.jsonl", []
    for k in range(40):
        rows.append({"prompt": f"{k}", "completion": "b", "reward": 1.0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fails([*command(algo, "--iterations", 2, "--data", path)], "iterations is 2", "given once")
    fails(command(algo, "--iterations", 9, "--steps", 8), "iterations is 9", "at most one per step")
    if algo == "rft":
        fails([*command(algo, "--hint", True, "--data", path)], "tells no hints")
        fails(command(algo, "--hint", True, "--task", "countdown"), "tells no hints")
    rows[7]["completion"] = "x" * 300
    rows[7]["prompt"] = "7 is long"
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps(rows[3]))
    fails([*command(algo, "--data", path), "--eval-data", held], "'7 is long'", "context of 64")
    assert not (tmp_path / "run").exists()


LONG = {"sft": {"completion": "b"}, "kto": {"completion": "b", "label": True},
        "rft": {"completion": "b", "reward": 1}, "oreo": {"completion": "b", "label": True},
        **dict.fromkeys(["dpo", "reward", "plackett-luce"], {"chosen": "b", "rejected": "c"})}


@pytest.mark.parametrize("algo", LONG)
def test_a_row_too_long_is_named_before_the_first_step_or_skipped(command, fails, tmp_path, capsys,
                                                                  algo):
    """In whatever step it would have been dealt.  (The context is 64.)"""
    path, row = tmp_path / "long.jsonl", LONG[algo]
    rows = [{"prompt": f"{k}?", **row} for k in range(60)]
    rows[20] = {"prompt": "20?", **row, next(iter(row)): "x" * 99}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps({**row, "prompt": f"held {k}"}) + "\n"
                            for k, row in enumerate(rows[18:22])))
    size = {"dpo": "--pairs", "reward": "--prompts", "plackett-luce": "--prompts"}
    flags = [*command(algo, "--steps", 30, size.get(algo, "--batch-size"), 2, "--data", path)]
    fails(flags, f"{path}, line 21: a prompt of 4 tokens ('20?')", "the model's context of 64")
    assert not (tmp_path / "run").exists()
    assert train.main([*map(str, flags), "--eval-data", str(held), "--on-bad-row", "skip"]) == 0
    said = capsys.readouterr().out
    assert "skipped 1 of 60 rows" in said and "skipped 1 of 4 rows" in said


def test_who_does_not_learn_answers_has_no_need_of_room_for_them(command, tmp_path, reward):
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{k}?", "completion": "x" * 99, "label": "easy"})
                            + "\n" for k in range(60)))
    assert train.main([*command("grpo", *GRPO, "--data", str(path)), "--reward", reward]) == 0


def test_answers_that_repeat_their_prompts_are_not_learnt(command, fails, tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{k}+5=?", "completion": f"{k}+5=? 12"}) + "\n"
                            for k in range(60)))
    fails([*command("sft", "--data", path)], "in 60 of 60 rows the answer begins with the whole "
          "prompt (line 1: '0+5=? 12')")
    assert not (tmp_path / "run").exists()


def test_rows_that_ask_what_is_held_out_are_left_out_and_counted(command, tmp_path, capsys, rows):
    held = tmp_path / "held.jsonl"
    held.write_text(rows.read_text().splitlines()[7].replace("=?", "=?  ") + "\n")
    assert train.main([*command("sft", "--steps", 1, "--batch-size", 4), "--eval-data",
                       str(held)]) == 0
    assert f"left out 1 of 40 rows of {rows}: their questions are held out in {held}" in \
        capsys.readouterr().out


def test_some_rows_without_completions(command, fails, tmp_path):
    """Most have none, so none is demanded of a row; but SFT learns from nothing else."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{k}?", **({} if k > 20 else {
        "completion": "b"})}) + "\n" for k in range(60)))
    fails([*command("sft", "--data", path)], f"{path}, line 22: the row has no completion")
    assert not (tmp_path / "run").exists()


def test_a_reward_and_a_label_say_the_same_twice_or_not_the_same(command, fails, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"".join(ANSWER.replace(b"}", b', "label": true}').replace(
        b'"a"', b'"a%d"' % n) for n in range(40)))
    fails([*command("oreo", "--data", path)], f"{path}, line 1:", "both 'label' and 'reward'")


def test_skipped_rows_are_counted_and_reported(command, tmp_path, capsys):
    path, test = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    bad = [b"no JSON", b"[]", b'{"prompt": "\xff"}', b'{"prompt": "c"}',
           b'{"prompt": "c", "completion": ""}', "{}".encode("utf-16")]
    good = [GOOD.strip().replace(b'"a"', b'"%d"' % n) for n in range(5)]
    path.write_bytes(b"\n".join([b"\xef\xbb\xbf" + good[0], bad[0], b"", *bad[1:], *good[1:]]))
    test.write_bytes(GOOD)
    assert train.main(command("sft", "--steps", 1, "--batch-size", 4, "--on-bad-row", "skip",
                              "--data", path, "--eval-data", test)) == 0
    said = capsys.readouterr().out
    assert (f"skipped 6 of 11 rows of {path}; the first was {path}, line 2: expected one JSON"
            in said)
    assert said.count("\nskipped") == 1
    saved = json.loads((tmp_path / "run/config.json").read_text())["task"]
    assert saved["on_bad_row"] == "skip"
    task = File(str(path), str(test), "skip")
    assert [row.prompt for row in task.training()] == list("01234")


def test_nothing_is_left_when_all_rows_are_skipped(command, fails, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x\ny\n")
    fails([*command("sft", "--on-bad-row", "skip", "--data", path)], "no rows", "skipped 2",
          "line 1: expected one JSON object")
    fails(["--algo", "sft", "--on-bad-row", "skip"], "--on-bad-row goes with --data")


@pytest.mark.parametrize("algo", ["reward", "dpo"])
def test_a_first_row_that_is_no_pair(command, fails, tmp_path, algo):
    path = tmp_path / "pairs.jsonl"
    rows = [PAIR.replace(b'"a"', b'"%d"' % n) for n in range(40)]
    path.write_bytes(b"".join([b'{"prompt": "a"}\n', *rows]))
    fails([*command(algo, "--data", path)], f"{path}, line 1:", "'chosen', found None")
    assert not (tmp_path / "run").exists()


# ---- prompts and rewards

@pytest.mark.parametrize("algo", ["sft", "grpo"])
def test_a_prompt_longer_than_the_context(command, fails, rows, tmp_path, algo):
    path = tmp_path / "long.jsonl"
    path.write_text(rows.read_text() + json.dumps({"prompt": "x" * 70, "completion": "b"}) + "\n")
    fails([*command(algo, "--data", path)], "71 tokens", "context of 64", "xxx")
    fails([*command(algo), "--max-new-tokens", 64], "context of 64", "--max-new-tokens")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("body, part", [
    ("raise RuntimeError('no\\nluck')", "RuntimeError: no luck"), ("return [1.0]", "1 values for"),
    ("return [float('nan')] * len(prompts)", "returned nan for row 0"),
    ("return [float('inf')] * len(prompts)", "returned inf for row 0"),
    ("return ['1.0'] * len(prompts)", "returned '1.0' for row 0"), ("return None", "NoneType"),
    ("return [None] * len(prompts)", "returned None for row 0"),
])
def test_a_reward_function_that_breaks_its_contract(command, fails, tmp_path, body, part):
    path = tmp_path / "broken.py"
    path.write_text(f"def broken(prompts, completions, **columns):\n    {body}\n")
    fails([*command("grpo", *GRPO), "--reward", f"{path}:broken"], "reward function broken", part)
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.parametrize("name, part", [
    ("nowhere.py:f", "nowhere.py"), ("f", "FILE.py:FUNCTION"), ("good.py:other", "other"),
    ("good.py:number", "number is of type int; expected a function"), ("typo.py:f", "SyntaxError"),
    ("raises.py:f", "KeyError"),
])
def test_a_reward_function_that_is_not_there(command, fails, tmp_path, monkeypatch, name, part):
    (tmp_path / "good.py").write_text("number = 3\n")
    (tmp_path / "typo.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text("{}['x']\n")
    monkeypatch.chdir(tmp_path)
    fails([*command("grpo", *GRPO), "--reward", name], part)


def test_of_several_reward_functions_the_broken_one_is_named(command, fails, tmp_path, reward):
    path = tmp_path / "broken.py"
    path.write_text("def short(completions, **columns):\n    return [1.0]\n")
    fails([*command("grpo", *GRPO), "--reward", reward, f"{path}:short"],
          "reward function short returned")


# ---- reward models

@pytest.fixture
def scorer(tiny, tmp_path):
    """The directory of a reward model that reads what the tiny model writes."""
    trunk, _ = checkpoint.load(tiny)
    model = RewardModel(trunk)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(3))
    checkpoint.save(tmp_path / "scorer", model, tiny)
    return tmp_path / "scorer"


@pytest.mark.parametrize("damage, part", [
    ("missing", "no such model directory"), ("language model", "reward model is a"),
    ("tokenizer", "tokenizer differs"), ("inf", "not finite"),
    ("huge", "the reward model's score is nan for the completion"),
])
def test_a_reward_model_that_cannot_score(command, fails, tiny, scorer, tmp_path, damage, part):
    if damage == "missing":
        shutil.rmtree(scorer)
    if damage == "language model":
        shutil.rmtree(scorer)
        shutil.copytree(tiny, scorer)
    if damage == "tokenizer":
        Tokenizer.train(["other words"] * 3, 280).backend.save(str(scorer / "tokenizer.json"))
    if damage in ("inf", "huge"):
        tensors = load_file(scorer / "model.safetensors")
        tensors["score.weight"].fill_(math.inf if damage == "inf" else 3e38)
        save_file(tensors, scorer / "model.safetensors", metadata={"format": "pt"})
        (scorer / "digests.json").unlink()
    named = () if damage == "huge" else (scorer,)
    fails(command("grpo", *GRPO, "--task", "wording", "--reward-model", scorer), *named, part)
    assert not (tmp_path / "run/model").exists()


def test_a_reward_model_is_no_policy(command, fails, scorer):
    fails([*command("sft"), "--model", scorer], scorer, "is a reward model")


@pytest.mark.parametrize("algo", ["grpo", "dapo"])
def test_a_hidden_reward_scores_no_learner(command, fails, algo):
    fails(command(algo, "--steps", 1, "--prompts", 2, "--group-size", 2, "--task", "wording"),
          "the reward of wording is hidden", "--algo reward --task wording", "--reward-model")


def test_a_verifier_on_a_task_that_cannot_label_for_it(command, fails, tmp_path):
    fails(command("prm", "--steps", 1, "--task", "facts"), "facts cannot check steps")
    path = tmp_path / "large.py"
    path.write_text("def large(completions, **columns):\n"
                    "    return [len(text) + 1 for text in completions]\n")
    fails([*command("orm", "--steps", 1), "--reward", f"{path}:large"], "within 0..1")
    assert not (tmp_path / "run/model").exists()


# ---- what is printed

@pytest.mark.parametrize("text, shown", [
    ("plain ∑ 北京 é", "plain ∑ 北京 é"), ("\x1b[31mred", "\\x1b[31mred"), ("a\x9bb", "a\\x9bb"),
    ("\u202egnp.exe", "\\u202egnp.exe"), ("\ud800", "\\ud800"), ("a\rb\tc", "a\\rb\\tc"),
    ("two\nlines", "two\nlines"), ("\u2028", "\\u2028"), ("\U000e0041", "\\U000e0041"),
])
def test_what_steers_a_terminal_is_spelled_out(text, shown):
    assert visible(text) == shown and visible(shown) == shown


@given(st.text())
def test_a_message_is_one_short_printable_line(text):
    said = str(MinipostError(f"{text}: found {text}; expected less"))
    assert len(said) <= 300 and said.endswith("expected less")
    long = f"/{'deep/' * 40}rows.jsonl"
    said = str(MinipostError(f"{long}, line 3: found a, while {long}, line 4: has b"))
    assert said.count("/rows.jsonl, line") == 2 and ": found a, while ..." in said
    assert visible(said) == said and "\n" not in said


# ---- options

@pytest.mark.parametrize("flags, part", [
    (("--grop-size", "4"), "--group-size"), (("--max-gradnorm", "4"), "--max-grad-norm"),
    (("--group-size", "many"), "--group-size"), (("--device", "abacus"), "--device"),
    (("--dtype", "float7"), "--dtype"), (("--kl", "k9"), "exact"),
])
def test_a_wrong_flag_is_answered_with_the_right_one(command, capsys, flags, part):
    with pytest.raises(SystemExit) as stop:
        train.main([*command("grpo"), *flags])
    assert stop.value.code != 0
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("flags, part", [
    (("--group-size", "1"), "group_size is 1; expected at least 2"),
    (("--micro-batch-size", "0"), "micro_batch_size is 0"),
    (("--max-new-tokens", "0"), "max_new_tokens is 0"), (("--eval-n", "-1"), "eval_n is -1"),
    (("--seed", "-1"), "seed is -1; expected at least 0"),
    (("--lr", "1e38"), "lr is 1e+38; expected at most 1000000000"),
    (("--temperature", "1e-40"), "temperature is 1e-40; expected at least 1e-18"),
    (("--beta", "-1e-40"), "beta is -1e-40"), (("--lr", "nan"), "lr is nan"),
    (("--workers", "65"), "workers is 65; expected at most 64"),
    (("--group-size", "10001"), "group_size is 10001; expected at most 10000"),
])
def test_a_number_out_of_bounds_ends_in_one_sentence(command, fails, flags, part):
    fails([*command("grpo"), *flags], part)


def every_settings():
    """All dataclasses whose fields are options of a command."""
    for folder in (methods, test_time):
        for name in folder.names():
            yield folder.load(name).Config
    yield from TASKS.values()
    yield from (train.Options, evaluate.Measured, inference.Measured, solve.Options, doctor.Options)


@pytest.mark.parametrize("cls", [*every_settings()], ids=lambda cls: cls.__module__)
def test_every_number_has_an_upper_bound(cls):
    """A thousand million is too much of anything that is not done one after another."""
    for field in fields(cls):
        if field.type in (int, float, "int", "float"):
            whole = field.type in (int, "int")
            most = 2**63 - 1 if field.name == "seed" else MOST.get(field.name, 10**6)
            with pytest.raises(MinipostError, match=field.name):
                cls(**{field.name: most + 1 if whole else 1.1e9})


@pytest.mark.parametrize("arguments, part", [
    (["--algo", "grop"], "grpo"), (["--algo", "grpo", "--task", "countdwn"], "countdown"),
])
def test_an_unknown_method_or_task(capsys, arguments, part):
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code != 0
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("arguments, part", [
    (["--steps", "3"], "--algo is missing"), (["--algo", "sft", "--eval-data", "x"], "--data"),
    (["--algo", "sft", "--task", "facts", "--data", "x"], "exclude"),
    (["--resume=runs/x"], "runs/x/config.json"), (["--resume"], "--resume RUN_DIRECTORY"),
    (["--resume", "runs/x", "--lr", "9"], "not '--lr'"), (["--resume", "nowhere"], "nowhere"),
])
def test_flags_that_do_not_go_together(fails, arguments, part):
    fails(arguments, part)


@pytest.mark.parametrize("arguments, part", [
    (["--task", "chess"], "arithmetic"), (["--knob", "0"], "--knob"),
])
def test_evaluate_names_what_is_wrong(capsys, tiny, arguments, part):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--model", str(tiny), "--workers", "1", *arguments])
    assert stop.value.code == 2 and part in capsys.readouterr().err


def test_the_knobs_of_a_task_need_the_task(capsys, tiny):
    assert evaluate.main(["--model", str(tiny), "--terms", "3"]) == 1
    said = "error: --terms is a knob of a task; name the task with --task\n"
    assert capsys.readouterr().err == said


def test_a_device_that_is_not_there(command, fails, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fails([*command("sft"), "--device", "cuda"], "--device cuda")


# ---- writing

def test_an_out_directory_that_cannot_be_made(command, fails, tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        fails([*command("sft", "--steps", 1), "--out", out], out, "directory")
    assert (tmp_path / "file").read_text() == "kept"


def fill_disk(monkeypatch, what, n):
    """Let the disk fill at the n-th call of `what` from now on."""
    module, name = what.rsplit(".", 1)
    module = {"os": os, "tensor_file": tensor_file}[module]
    real, calls = getattr(module, name), []

    def limited(*arguments, **options):
        calls.append(name)
        if len(calls) > n:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, limited)
    return calls


@pytest.mark.parametrize("what", ["os.fsync", "os.replace", "tensor_file.save_file"])
def test_a_disk_that_fills_at_any_moment_leaves_a_run_to_resume(
        command, fails, tmp_path, monkeypatch, what):
    run, arguments = tmp_path / "run", command("sft", "--steps", 2, "--batch-size", 4,
                                               "--save-every", 1, "--report", False)
    with monkeypatch.context() as patch:
        calls = fill_disk(patch, what, 1000)
        assert train.main(arguments) == 0
    last = (run / "model/model.safetensors").read_bytes()
    for n in range(len(calls)):
        shutil.rmtree(run)
        with monkeypatch.context() as patch:
            fill_disk(patch, what, n)
            fails(arguments, "No space left on device")
        assert not list(run.rglob(".*"))
        if (run / "state/state.safetensors").exists():
            checkpoint.load(run / "model")
            assert train.main(["--resume", str(run)]) == 0
            assert (run / "model/model.safetensors").read_bytes() == last


def test_a_log_that_cannot_be_written(command, fails, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(directory, "open", full, raising=False)
    fails(command("sft", "--steps", 1, "--batch-size", 4), "metrics.jsonl", "No space left")


def test_files_that_grow_past_the_limit(command, fails, tmp_path):
    """The system itself refuses the state, which is three times as large as the model."""
    run, arguments = tmp_path / "run", command("sft", "--steps", 2, "--batch-size", 4)
    assert train.main(arguments) == 0
    model, state = (run / "model/model.safetensors"), (run / "state/state.safetensors")
    kept = model.read_bytes(), state.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept[0]) + 10_000, hard))
    try:
        with pytest.raises(MinipostError, match="too large"):
            tensor_file.save_state(state, {"x": torch.zeros(len(kept[1]))}, {})
        fails([*arguments, "--overwrite"], "run/state/state.safetensors", "too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert model.read_bytes() == kept[0]
    assert not list(run.rglob(".*"))


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_an_earlier_run_survives_a_failed_one(command, fails, tmp_path, calls):
    """Even --overwrite deletes nothing before the first save; the third call is the first step."""
    run, arguments = tmp_path / "run", command("sft", "--steps", 2, "--batch-size", 4)
    assert train.main(arguments) == 0
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    path = tmp_path / "late.py"
    path.write_text(f"""calls = []
def late(completions, **columns):
    calls.append(1)
    assert len(calls) <= {calls}, "late"
    return [1.0] * len(completions)
""")
    fails([*command("grpo", *GRPO), "--reward", f"{path}:late", "--overwrite"],
          "AssertionError: late")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept
    assert train.main(["--resume", str(run)]) == 0


# ---- numbers

def test_gradients_that_stay_not_finite_end_the_run(command, fails, tmp_path, monkeypatch):
    def broken(logp, mask, *, count):
        value, metrics = loss(logp, mask, count=count)
        return value * (math.nan if len(calls) > 1 else 1.0), metrics

    def log(of, metrics):
        real(of, metrics)
        calls.append(of.run.step)

    loss, real, calls = sft.loss, session.Session.log, []
    monkeypatch.setattr(sft, "loss", broken)
    monkeypatch.setattr(session.Session, "log", log)
    fails(command("sft", "--steps", 20, "--batch-size", 4, "--save-every", 1), "not finite 5 steps")
    assert calls == [1, 2, 3, 4, 5, 6]
    model, _ = checkpoint.load(tmp_path / "run/model")
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["grad_norm"] is None for line in lines] == [False] * 2 + [True] * 4


def test_a_model_that_overflows_replaces_nothing(command, fails, tmp_path, monkeypatch):
    def overflow(of, metrics):
        if of.run.step == 2:
            of.run.policy.flat[0] = math.inf
        real(of, metrics)

    real = session.Session.log
    monkeypatch.setattr(session.Session, "log", overflow)
    fails(command("sft", "--steps", 3, "--batch-size", 4, "--save-every", 1), "not saved",
          "not finite")
    checkpoint.load(tmp_path / "run/model")
    tensors, facts = tensor_file.load_state(tmp_path / "run/state/state.safetensors")
    assert facts["step"] == 1 and torch.isfinite(tensors["learner/policy/weights"]).all()


# ---- other processes

def test_an_error_in_another_rank_is_said(python, tmp_path):
    """The sentence of a rank that fails alone reaches the user through rank 0."""
    script = tmp_path / "script.py"
    script.write_text("""
import os, torch
from minipost import parallel, train
from minipost.errors import MinipostError

def raises():
    parallel.all_reduce(torch.ones(1))  # all are connected; before that gloo prints lines itself
    if parallel.rank() == 1:
        raise MinipostError("the second half is broken")
    parallel.all_reduce(torch.ones(1))

def dies():
    parallel.all_reduce(torch.ones(1))
    if parallel.rank() == 1:
        os._exit(9)
    parallel.all_reduce(torch.ones(1))

for work in (raises, dies):
    assert train.fail_in_one_sentence(lambda: parallel.launch(work, 3)) == 1
""")
    done = python(script)
    one, other = done.stderr.splitlines()
    assert done.returncode == 0
    assert one == "error: the second half is broken"
    assert other.startswith("error: a worker process died")


def test_out_goes_with_a_way_to_answer(fails):
    fails(["--task", "facts", "--out", "x"], "--out goes with --method", main=evaluate.main)


def test_a_task_without_held_out_problems_is_named(command, fails, monkeypatch):
    monkeypatch.setattr(Arithmetic, "heldout", lambda task, n: [])
    flags = command("grpo", "--task", "arithmetic", "--terms", 2, "--steps", 1, "--prompts", 2,
                    "--group-size", 2)
    said = "the task arithmetic holds out no problems"
    fails(flags, said, "--eval-n 0")
    for more in ((), ("--method", "self-consistency")):
        fails([*more, "--task", "arithmetic", "--workers", 1], said, main=evaluate.main)
    assert train.main([*flags, "--eval-n", "0"]) == 0
