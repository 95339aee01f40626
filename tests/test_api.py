"""minipost from Python, and from a wheel in any folder."""

import copy
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy
import pytest
import torch

import minipost
from minipost import MinipostError, __main__, api, checkpoint
from minipost.cli.options import SetUp, shipped_models
from minipost.errors import LONGEST
from minipost.methods import grpo
from minipost.train import main

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def opened(**settings):
    given = {"task": "arithmetic", "terms": 3, "max_new_tokens": 12, "device": "cpu", **settings}
    return minipost.open(ROOT / "checkpoints" / "student", **given)


def weights(run):
    return run.policy.flat.clone()


FEW = dict(steps=2, prompts=4, group_size=2, minibatch_size=8)


def test_five_lines_train_and_save(tmp_path):
    run = opened()
    before = weights(run)
    lines = list(minipost.train(run, "grpo", **FEW))
    assert [line["step"] for line in lines] == [1, 2] and lines[1]["num_tokens"] == run.tokens
    assert not torch.equal(before, weights(run))
    run.save(tmp_path / "out")
    again, _ = checkpoint.load(tmp_path / "out")
    assert all(map(torch.equal, again.parameters(), run.policy.module.parameters()))


def test_python_and_the_command_line_train_the_same_model(tmp_path):
    run = opened(seed=3)
    for _ in minipost.train(run, "grpo", **FEW):
        pass
    assert main(["--algo", "grpo", "--task", "arithmetic", "--terms", "3", "--max-new-tokens", "12",
                 "--model", str(ROOT / "checkpoints" / "student"), "--seed", "3", "--device", "cpu",
                 "--steps", "2", "--prompts", "4", "--group-size", "2", "--minibatch-size", "8",
                 "--eval-n", "2", "--workers", "1", "--out", str(tmp_path / "run")]) == 0
    theirs, _ = checkpoint.load(tmp_path / "run" / "model")
    assert all(map(torch.equal, theirs.parameters(), run.policy.module.parameters()))


def test_a_function_is_the_reward():
    """Also where the task hides its own."""
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((len(prompts), sorted(columns)))
        return [float(len(text)) for text in completions]

    run = opened(reward=reward)
    line = next(minipost.train(run, "rloo", steps=1, prompts=4, group_size=2))
    assert seen[0][0] == 8 and line["reward"] > 0
    assert not minipost.open(ROOT / "checkpoints" / "student", task="wording",
                             reward=reward).hidden


def test_a_second_training_goes_on_from_the_weights_with_other_problems(monkeypatch):
    drawn, run = [], opened()
    sample = run.task.sample
    monkeypatch.setattr(type(run.task), "sample", lambda self, n, rng: drawn.append(
        [p.prompt for p in sample(n, rng)]) or sample(n, rng))
    for _ in minipost.train(run, "grpo", **FEW):
        pass
    between = weights(run)
    learn = minipost.train(run, "ppo", steps=1, prompts=4, minibatch_size=4)
    assert torch.equal(weights(run), between) and run.step == 2     # nothing runs until it is asked
    assert next(learn)["step"] == 1 and run.policy.updates > 0
    assert "critic" in run.learners and drawn[0] != drawn[-1]
    for _ in minipost.train(run, "grpo", **FEW):
        pass
    assert set(run.learners) == {"policy"}


def test_an_earlier_training_of_a_run_ends_where_another_begins():
    """It shares the run's step and parts, so it would go on with those of the other."""
    run = opened()
    first = minipost.train(run, "grpo", **FEW | {"steps": 3})
    done = minipost.train(run, "sft", steps=1, batch_size=2)
    assert next(first)["step"] == 1
    assert [line["step"] for line in minipost.train(run, "sft", steps=2, batch_size=2)] == [1, 2]
    with pytest.raises(MinipostError, match="another training of this run has begun"):
        next(first)
    assert next(done)["step"] == 1
    assert [*minipost.train(run, "sft", steps=1, batch_size=2)] and not [*done]


def test_defaults_follow_the_size_of_the_model(monkeypatch):
    """As on the command line; what is named stands."""
    small = opened()
    assert next(minipost.train(small, "grpo", **FEW))["learning_rate"] == 2e-4
    monkeypatch.setattr("minipost.cli.defaults.LARGE", 1000)
    large = minipost.open(ROOT / "checkpoints" / "student", task="arithmetic", device="cpu")
    assert large.max_new_tokens == large.policy.module.context // 2
    assert opened().max_new_tokens == 12
    assert next(minipost.train(opened(), "grpo", **FEW))["learning_rate"] == 1e-6
    assert next(minipost.train(opened(), "grpo", lr=0.5, **FEW))["learning_rate"] == 0.5


def test_what_ends_an_answer_is_saved(tmp_path):
    """Such as the end of a turn, which a chat template brings."""
    run = opened()
    run.vocabulary.end = 7
    run.save(tmp_path / "out")
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert said["eos_token_id"][-1] == 7


def test_what_is_measured_and_answered():
    run = opened()
    tokens = run.tokens
    found = minipost.evaluate(run, n=6)["held-out"]
    assert set(found) == {"greedy", "sampled"} and found["greedy"].n == 6
    first, again = run.answer(["1+2=? Answer:"] * 2)
    assert first == again and isinstance(first, str) and run.tokens == tokens


def test_rows_of_a_file(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "1+{k}=?", "completion": " {k + 1}"}}\n'
                            for k in range(30)))
    run = minipost.open(ROOT / "checkpoints" / "student", data=rows, device="cpu")
    assert next(minipost.train(run, "sft", steps=1, batch_size=2))["loss"] > 0


def test_rows_of_a_list_and_functions_in_a_list():
    """A function may be async, and what it logs is a metric."""
    async def late(prompts, answer, log_metric, **columns):
        log_metric("seen", len(prompts))
        return [float(a) for a in answer]

    def one(prompts, **columns):
        return [1.0] * len(prompts)

    rows = [{"prompt": f"1+{k}=?", "answer": k + 1} for k in range(30)]
    run = minipost.open(ROOT / "checkpoints" / "student", data=rows, reward=[late, one],
                        max_new_tokens=4, device="cpu")
    line = next(minipost.train(run, "grpo", steps=1, prompts=4, group_size=2, minibatch_size=8))
    assert line["seen"] == 8 and line["rewards/one"] == 1.0
    assert line["reward"] == pytest.approx(line["rewards/late"] + 1)
    held = [{"prompt": "8+8=?", "answer": 16}]
    run = minipost.open(ROOT / "checkpoints" / "student", data=rows, eval_data=held, reward=late,
                        max_new_tokens=4, device="cpu")
    assert minipost.evaluate(run)["held-out"]["greedy"].n == 1
    assert copy.deepcopy(run.task).training() == run.task.training()


def test_a_list_of_settings_is_whole():
    with pytest.raises(MinipostError) as error:
        opened(term=3)
    said = str(error.value)
    assert len(said) > LONGEST and api.OPENED - {"model", "reward"} <= {*said.replace(
        ",", "").split()}


def test_too_few_rows_name_only_what_python_has():
    run = minipost.open(ROOT / "checkpoints" / "student", device="cpu",
                        data=[{"prompt": "1+1=?", "completion": " 2"}] * 20)
    with pytest.raises(MinipostError) as error:
        minipost.train(run, "sft", steps=1)
    assert str(error.value).endswith("are enough; name eval_data")


def test_a_method_goes_by_either_name(run):
    for name in ("dr_grpo", "dr-grpo"):
        minipost.train(run, name, steps=1)


@pytest.mark.parametrize("work, said", [
    (lambda: minipost.open(), "give one of task and data"),
    (lambda: minipost.open(task="facts", data="x"), "give one of task and data"),
    (lambda: minipost.open(task="facts", eval_data=[{"prompt": "x"}]), "eval_data goes with data"),
    (lambda: minipost.open(task="sums"), "there is no task 'sums'; there are arithmetic"),
    (lambda: opened(term=3), "there is no setting 'term'"),
    (lambda: opened(reward=[len, "a.py:f"]), "reward holds functions and names"),
    (lambda: minipost.open(data=[{"prompt": "a"}, 3]), "data, row 2: expected a dict, found int"),
    (lambda: minipost.open(data=[{"prompt": {1}}]), "data, row 1: not writable as JSON"),
    (lambda: minipost.open("nowhere", task="facts"), "nowhere: no such model directory"),
    (lambda: minipost.train(opened(), "gpro"), "there is no method 'gpro'; there are a2c"),
    (lambda: minipost.train(opened(), "grpo", step=1), "grpo has no setting 'step'; it has beta"),
    (lambda: opened().save("x", "critic"), "the run has trained no 'critic'; it has policy"),
])
def test_what_is_wrong_is_said(work, said):
    with pytest.raises(MinipostError) as error:
        work()
    assert str(error.value).startswith(said)


# ---- values of another kind

@pytest.fixture(scope="module")
def run():
    return opened()


@pytest.mark.parametrize("settings, said", [
    (dict(steps="1"), "steps is '1'; expected a whole number"),
    (dict(steps=1.5), "steps is 1.5; expected a whole number"),
    (dict(steps=True), "steps is True; expected a whole number"),
    (dict(lr="1e-4"), "lr is '1e-4'; expected a number"),
    (dict(lr=True), "lr is True; expected a number"),
    (dict(schedule="line"), "schedule is 'line'; expected one of constant, linear, cosine"),
    (dict(replay=3), "replay is 3; expected a text"),
    (dict(data_epochs="1"), "data_epochs is '1'; expected a number above 0"),
    (dict(learning_rate=1), "learning_rate is a name of TRL's; use lr"),
    (dict(max_steps=3), "max_steps is a name of TRL's; use steps"),
    (dict(num_train_epochs=3), "num_train_epochs is a name of TRL's; use data_epochs for passes "
     "over data, steps for steps"),
    (dict(max_completion_length=9), "max_completion_length is a name of TRL's; here it is "
     "max_new_tokens, a setting of minipost.open"),
    (dict(seed=3), "seed is a setting of minipost.open"),
    (dict(eval_strategy="steps"), "sft has no setting 'eval_strategy'; it has batch_size"),
])
def test_a_setting_of_another_kind_is_named(run, settings, said):
    with pytest.raises(MinipostError) as error:
        minipost.train(run, "sft", **settings)
    assert str(error.value).startswith(said)


def test_a_whole_number_passes_for_any_number(run):
    for line in minipost.train(run, "sft", steps=1, batch_size=numpy.int64(2), lr=1):
        assert line["loss"] > 0


@pytest.mark.parametrize("settings, said", [
    (dict(max_new_tokens="12"), "max_new_tokens is '12'; expected a whole number"),
    (dict(max_new_tokens=12.5), "max_new_tokens is 12.5; expected a whole number"),
    (dict(seed=True), "seed is True; expected a whole number"),
    (dict(device="gpu"), "device is 'gpu'; expected one of auto, cpu, cuda, mps"),
    (dict(chat=1), "chat is 1; expected True or False"),
    (dict(terms="3"), "terms is '3'; expected a whole number"),
    (dict(lora_targets="q_proj"), "lora_targets is 'q_proj'; expected a list of texts"),
    (dict(lora_targets=["q_proj"]), "lora_targets goes with lora, the rank of the adapters"),
    (dict(reward=5), "reward is 5; expected a function, a name, or a list"),
    (dict(reward=[len, 5]), "reward is [<built-in function len>, 5]; expected"),
    (dict(learning_rate=1), "learning_rate is a name of TRL's; here it is lr, a setting of "
     "minipost.train"), (dict(lr=1), "lr is a setting of minipost.train"),
    (dict(lora_r=4), "lora_r is a name of TRL's; use lora"),
    (dict(use_peft=True), "use_peft is a name of TRL's; use lora 16, or another rank"),
])
def test_an_option_of_another_kind_is_named(settings, said):
    with pytest.raises(MinipostError) as error:
        opened(**settings)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("work", [minipost.evaluate, lambda run: minipost.train(run, "sft")])
@pytest.mark.parametrize("run", ["checkpoints/base", None])
def test_what_is_no_run_is_named(work, run):
    with pytest.raises(MinipostError, match=f"run is {run!r}; expected a run from minipost.open"):
        work(run)


@pytest.mark.parametrize("n", [0, -1, "4", 2.5, True, None])
def test_how_many_problems_is_a_whole_number(run, n):
    with pytest.raises(MinipostError, match="expected a whole number of at least 1"):
        minipost.evaluate(run, n=n)


@pytest.mark.parametrize("prompts, said", [
    ("1+2=?", "prompts is '1+2=?'; expected a list of texts"), (None, "prompts is None"),
    (5, "prompts is 5"), ({"role": "user"}, "prompts is {'role': 'user'}"),
    ([{"role": "user", "content": "a"}], "prompts is [{'role': 'user', 'content': 'a'}]"),
    ([5], "prompt 1 is 5; expected a text or a list of messages"),
    (["a", None], "prompt 2 is None"), ([[]], "prompt 1 is []"),
    (["a", ["b"]], "prompt 2: message 1 under 'prompt' is no object"),
    ([[{"role": "user", "content": 3}]], "prompt 1: message 1 under 'prompt' has '3' under"),
])
def test_prompts_stand_in_a_list(run, prompts, said):
    with pytest.raises(MinipostError) as error:
        run.answer(prompts)
    assert str(error.value).startswith(said)


def test_prompts_may_be_none_or_come_one_by_one(run):
    assert run.answer([]) == [] == run.answer(())
    assert run.answer(text for text in ["1+2=?"]) == run.answer(["1+2=?"])
    for temperature in ("1", -1, float("nan"), True):
        with pytest.raises(MinipostError, match="temperature is .*; expected a number of at"):
            run.answer(["1+2=?"], temperature=temperature)


def test_a_run_is_saved_over_no_run(run, tmp_path, monkeypatch):
    """Over a model of ours it may be."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text('{"algo": "sft"}')
    for left in ("metrics.jsonl", "state"):
        (tmp_path / "run" / left).mkdir()
        with pytest.raises(MinipostError, match="run: holds a run of minipost.train, whose "):
            run.save(tmp_path / "run")
        (tmp_path / "run" / left).rmdir()
    with pytest.raises(MinipostError, match="run: holds a run of minipost.train, whose "):
        run.save(tmp_path / "run")
    assert (tmp_path / "run/config.json").read_text() == '{"algo": "sft"}'
    monkeypatch.chdir(tmp_path)
    for name in ("", None, 5):
        with pytest.raises(MinipostError, match="expected the name of a folder"):
            run.save(name)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    run.save("model")
    run.save("model")


def test_rows_of_a_list_are_named_by_their_number():
    """And no sentence tells of a file or of a flag."""
    rows = [{"prompt": f"1+{k}=?", "completion": " 1"} for k in range(40)]
    student = ROOT / "checkpoints" / "student"

    def said(rows, **settings):
        with pytest.raises(MinipostError) as error:
            run = minipost.open(student, data=rows, device="cpu", **settings)
            next(minipost.train(run, "sft", steps=1, batch_size=2))
        assert "/" not in str(error.value) and "--" not in str(error.value)
        return str(error.value)

    assert said([*rows[:30], {"prompt": 3}]).startswith("data, row 31: expected a string under")
    assert said(rows[:1]).startswith("data: its 1 row asks 1 question, too few to hold out one")
    assert said([]).startswith("data: holds no rows")
    assert said(5).startswith("data is 5; expected the path of a file or a list of dicts")
    assert said(rows, eval_data=[{}]).startswith("eval_data, row 1: expected a string under")
    long = {"prompt": "1 " * 300, "completion": "2"}
    assert said([*rows, long]).startswith("data, row 41: a prompt of")
    assert "on_long_row skip leaves them out" in said([*rows, long, {**long, "prompt": "2 " * 400}])


def test_the_package_offers_what_it_says():
    assert minipost.open is api.open_model and callable(minipost.evaluate)
    with pytest.raises(AttributeError, match="no attribute 'close'"):
        minipost.close  # noqa: B018


# ---- one command, and a wheel

def test_the_command_finds_its_doors(capsys, monkeypatch):
    for door in __main__.DOORS:
        assert f"minipost {door} " in __main__.__doc__
    asked = []
    monkeypatch.setattr("minipost.doctor.main", lambda argv: asked.append(argv) or 7)
    assert __main__.main(["doctor", "--task", "facts"]) == 7 and asked == [["--task", "facts"]]
    assert __main__.main([]) == 0 and "minipost train" in capsys.readouterr().out
    assert __main__.main(["--version"]) == 0 and minipost.__version__ in capsys.readouterr().out
    assert __main__.main(["trian"]) == 1
    assert "there is no command 'trian'" in capsys.readouterr().err


def test_models_that_come_with_minipost_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = shipped_models(SetUp())
    assert setting.model == str(ROOT / "checkpoints" / "base")
    (tmp_path / "checkpoints" / "base").mkdir(parents=True)     # the folder's own comes first
    assert shipped_models(SetUp()).model == "checkpoints/base"
    assert shipped_models(SetUp(model="checkpoints/mine")).model == "checkpoints/mine"
    assert shipped_models(grpo.Config()) == grpo.Config()


def test_the_wheel_holds_every_package():
    there = {"minipost", *(f"minipost.{path.parent.relative_to(ROOT / 'minipost').as_posix()}"
                           for path in (ROOT / "minipost").glob("*/__init__.py"))}
    packed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert packed == there | {"minipost.checkpoints", "minipost.data"}


def test_a_wheel_works_in_an_empty_folder(tmp_path):
    """Models and data travel in it; nothing of the checkout is seen."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 68:
        pytest.skip("setuptools is older than what builds minipost")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("minipost", "checkpoints", "data", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)     # what a build leaves stays out of the checkout
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    made = subprocess.run([sys.executable, "-c", "from setuptools import build_meta as b; import "
                           f"sys; print(b.build_wheel({str(tmp_path)!r}))"], cwd=source, env=quiet,
                          capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    wheel, = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    env = {**quiet, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "minipost", "train", "--algo", "grpo", "--steps", "1", "--prompts",
         "2", "--group-size", "2", "--eval-n", "2", "--ask", "0", "--workers", "1"], cwd=empty,
        env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(site / "minipost/checkpoints/thinker") in (
        empty / "runs/grpo-arithmetic-0/config.json").read_text()
    asked = subprocess.run(
        [sys.executable, "-c", "from minipost.tasks import countdown, facts; "
         "print(len(countdown._hands_24()), len(facts.rows()) > 0, facts.PATH)"], cwd=empty,
        env=env, capture_output=True, text=True)
    assert asked.stdout.split() == ["100", "True", str(site / "minipost/data/simple_tasks.jsonl")]


def test_rows_may_come_one_by_one():
    run = minipost.open("checkpoints/base", data=({"prompt": f"{k}+1=?", "completion": f" {k + 1}"}
                                                  for k in range(40)))
    assert len(run.task.training()) > 25 and run.problems(1)[0].prompt.endswith("+1=?")
    with pytest.raises(MinipostError, match="^data is .*expected the path of a file or a list"):
        minipost.open("checkpoints/base", data={"prompt": "1+1=?"})
