"""The command lines: help, what a run writes, rewards of one's own, evaluation."""

import json
import re
from statistics import fmean

import pytest
from fakes import explained, helped, names

import minipost
from minipost import checkpoint, evaluate, methods, page, train
from minipost.cli.console import Console
from minipost.cli.defaults import for_run
from minipost.datasets.named import load_reward
from minipost.datasets.rows import File
from minipost.errors import Descent, MinipostError
from minipost.optim import Learner
from minipost.page import health
from minipost.tasks import TASKS

GRPO = ("--steps", 2, "--prompts", 2, "--group-size", 4)


@pytest.mark.parametrize("name, made, said", [
    ("step", lambda *given: 0.0, "no step changed the model: no update was made"),
    ("summed_norm", lambda of: float("nan"), "no step changed the model: all 2 updates were left"),
])
def test_a_run_without_an_update_says_so(command, tmp_path, reward, capsys, monkeypatch, name,
                                         made, said):
    """A method that forgets its step, and a loss of NaN."""
    flags = [*command("grpo", "--steps", 2, "--prompts", 2, "--group-size", 2), "--reward", reward]
    assert train.main(flags) == 0
    assert "no step changed" not in capsys.readouterr().out
    monkeypatch.setattr(Learner, name, made)
    assert train.main([*flags, "--overwrite"]) == 0
    found = capsys.readouterr().out
    assert said in found and found.count("not at --lr") == 2 * (name == "summed_norm")
    run = page.load(tmp_path / "run")
    assert page.verdict(run)[0] == "bad"
    assert all("--lr" not in f.sentence for f in health.examine(run) if f.check == "updates")


@pytest.mark.parametrize("algo", methods.names())
def test_help_explains_every_knob(capsys, algo):
    flags = helped(capsys, train.main, "--algo", algo)
    explained(flags, names(methods.load(algo).Config) | names(train.Options))


@pytest.mark.parametrize("task", TASKS)
def test_help_explains_every_knob_of_a_task(capsys, task):
    flags = helped(capsys, train.main, "--algo", "sft", "--task", task)
    explained(flags, names(TASKS[task]))


def test_a_reward_model_is_refused_where_nothing_asks_it(capsys, command):
    """It was ignored in silence."""
    for algo in ("sft", "rlaif", "r1-zero"):
        assert train.main([*command(algo), "--reward-model", "nowhere"]) == 1
        assert f"{algo} does not learn from a score; leave out --reward-model" in (
            " ".join(capsys.readouterr().err.split()))


def test_a_run_that_was_cut_short_shows_the_stages_that_it_reached(capsys):
    score = {"value": 0.5}
    Console().stages({"all": {"greedy, held-out": {"before": score, "after": score}}},
                     [{"step": 2, "eval/held-out/greedy": 0.25}], {2: "first", 4: "second"})
    assert capsys.readouterr().out.split()[-4:] == ["held-out", "0.500", "0.250", "0.500"]


def test_help_without_a_method_names_them_all(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and all(algo in said for algo in methods.names())
    assert "--resume" in said and "--data" in said


def test_no_two_knobs_share_a_name():
    """All of them become flags of one command line, beside those that it has itself."""
    common = names(train.Options) | {"algo", "task", "resume", "help"} | names(File)
    for algo in methods.names():
        config = names(methods.load(algo).Config)
        assert not config & common
        for task in TASKS.values():
            assert not names(task) & (config | common)


def test_a_run_writes_what_the_design_says(command, tmp_path, reward):
    assert train.main([*command("grpo", *GRPO, "--seed", 3), "--reward", reward]) == 0
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.json", "metrics.jsonl", "summary.json", "rewards.json", "model", "state",
        "report.html", "report.jsonl"}
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == {"name", "task", "seed", "metric", "before", "after", "seconds",
                            "tokens", "skipped", "all", "gain", "asked"}
    each = json.loads((run / "rewards.json").read_text())
    assert set(each) == set(summary["all"])
    for name, scores in summary["all"].items():
        for when in ("before", "after"):
            assert fmean(each[name][when]) == pytest.approx(scores[when]["value"])
            assert len(each[name][when]) == scores[when]["n"]
    assert [summary[key] for key in ("name", "task", "seed")] == ["grpo", "file", 3]
    for when in ("before", "after"):
        score = summary[when]
        assert set(score) == {"value", "low", "high", "n"}
        assert score["low"] <= score["value"] <= score["high"] and score["n"] == 3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert summary["tokens"] == rows[-1]["num_tokens"] > 0
    config = json.loads((run / "config.json").read_text())
    assert config["options"]["seed"] == 3 and config["method"]["group_size"] == 4
    assert config["task"]["name"] == "file"
    checkpoint.load(run / "model")


def test_a_demo_is_named_after_its_directory(command, tmp_path):
    out = tmp_path / "demo-cot"
    assert train.main([*command("sft", "--steps", 1, "--batch-size", 2), "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["name"] == "cot"


def test_answers_are_shown_beside_their_own_problems(command, tmp_path, capsys, monkeypatch):
    """Also for a task whose headline is not its held-out problems."""
    monkeypatch.setattr(File, "splits", lambda task, n: {"taught": task.training()[:n]},
                        raising=False)
    assert train.main(command("sft", "--steps", 1, "--batch-size", 2)) == 0
    said = capsys.readouterr().out
    shown = re.findall(r"^\s*(\d+\+5=\?)", said, re.MULTILINE)
    assert shown == [File(str(command("sft")[5])).training()[0].prompt]


def test_rewards_of_ones_own_add_up_and_none_does_not_apply(command, tmp_path):
    """`odd` speaks of rows with letter b or d only; both see every column and the same texts."""
    path = tmp_path / "mine.py"
    path.write_text("""def always(prompts, completions, letter, completion, **columns):
    assert len(prompts) == len(completions) == len(letter) == len(completion) and set(
        columns) <= {"completion_ids", "trainer_state", "log_metric", "log_extra"}
    return [1.0] * len(prompts)

def odd(prompts, completions, letter, **columns):
    return [2.0 if x in "bd" else None for x in letter]
""")
    arguments = command("grpo", *GRPO, "--reward", f"{path}:always", f"{path}:odd")
    assert train.main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {row["reward"] for row in rows} <= {1.0, 2.0, 3.0}
    prompts = [f"{n}+5=?" for n in range(4)]
    both = load_reward((f"{path}:always", f"{path}:odd"), None)
    columns = {"letter": ["a", "b", "c", "d"], "completion": [""] * 4}
    assert both(prompts, [""] * 4, **columns) == [1.0, 3.0, 1.0, 3.0]
    alone = load_reward((f"{path}:odd", f"{path}:odd"), None)
    assert alone(prompts, [""] * 4, **columns) == [None, 4.0, None, 4.0]


def test_held_out_rows_of_a_file_of_their_own(command, tmp_path, rows):
    path = tmp_path / "held.jsonl"
    path.write_text("".join(rows.read_text().splitlines(keepends=True)[:5]))
    task = File(str(rows), str(path))
    held = {problem.prompt for problem in task.heldout(99)}
    assert held == {f"{n}+5=?" for n in range(5)}
    assert not held & {problem.prompt for problem in task.training()}
    assert len(task.training()) == 35
    arguments = command("sft", "--steps", 1, "--batch-size", 2, "--eval-data", path, "--eval-n", 99)
    assert train.main(arguments) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["after"]["n"] == 5


# ---- evaluate

def test_evaluate_measures_a_model(capsys, tiny):
    arguments = ["--model", str(tiny), "--workers", "1", "--max-new-tokens", "4", "--task",
                 "arithmetic"]
    knobs = ["--terms", "3", "--direct", "True", "--n", "6"]
    assert evaluate.main([*arguments, *knobs, "--json"]) == 0
    row, = json.loads(capsys.readouterr().out)
    assert (row["task"], row["split"]) == ("arithmetic", "held-out")
    assert row["greedy"] == row["sampled"] == {
        "value": 0.0, "low": 0.0, "high": pytest.approx(0.390334, abs=1e-6), "n": 6}
    assert evaluate.main([*arguments, *knobs]) == 0
    assert "| arithmetic | held-out | 6 | 0.000 [0.000, 0.390] |" in capsys.readouterr().out


def test_evaluate_gives_pass_at_k(capsys, tiny):
    arguments = ["--model", str(tiny), "--workers", "1", "--max-new-tokens", "4", "--task",
                 "arithmetic", "--terms", "3", "--direct", "True", "--n", "6"]
    assert evaluate.main([*arguments, "--pass-at", "1,1000000", "--json"]) == 0
    row, = json.loads(capsys.readouterr().out)
    once, many = row["pass@1"]["value"], row["pass@1000000"]["value"]
    assert 0 < once < 0.01 < many <= 1  # although no sample is right
    assert evaluate.main([*arguments, "--pass-at", "1,2", "--samples", "2"]) == 0
    assert "| pass@1 [95%] | pass@2 [95%] |" in capsys.readouterr().out
    for wrong in ("0", "1,,2", "x", "1 8"):
        assert evaluate.main([*arguments, "--pass-at", wrong]) == 1
        assert "expected whole numbers from 1 on" in capsys.readouterr().err


def test_evaluate_searches_with_what_oreo_saved(command, tmp_path, tiny, reward, capsys):
    """The value lies beside the policy; with width and branching of 1 the search is one sample."""
    flags = ("--steps", 2, "--prompts", 3, "--group-size", 2, "--batch-size", 4, "--task",
             "arithmetic",
             "--reward", reward)
    assert train.main(command("oreo", *flags)) == 0
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.json", "metrics.jsonl", "summary.json", "rewards.json", "model", "critic", "state",
        "report.html", "report.jsonl"}
    capsys.readouterr()
    arguments = ["--model", str(run / "model"), "--value", str(run / "critic"), "--workers", "1",
                 "--max-new-tokens", "4", "--task", "arithmetic", "--n", "3"]
    assert evaluate.main([*arguments, "--json"]) == 0
    row, = json.loads(capsys.readouterr().out)
    assert row["beam"]["n"] == 3 and set(row) == {"task", "split", "greedy", "sampled", "beam"}
    assert evaluate.main(arguments) == 0
    assert "| greedy [95%] | sampled [95%] | beam [95%] |" in capsys.readouterr().out
    assert evaluate.main([*arguments, "--width", "0"]) == 1
    assert "width is 0; expected at least 1" in capsys.readouterr().err
    assert evaluate.main([*arguments[:2], "--value", str(tiny), *arguments[4:]]) == 1
    assert "a reward model is a" in capsys.readouterr().err


def test_a_method_may_have_a_start_and_knobs_of_its_own():
    def start(*arguments):
        settings = train.settings_of(["--algo", *arguments])
        return settings.options.model, settings.task.direct

    assert start("distill") == ("checkpoints/student", True)
    assert start("distill", "--model", "m", "--direct", "False") == ("m", False)
    assert start("distill", "--task", "arithmetic") == ("checkpoints/student", False)
    assert start("sft", "--task", "arithmetic") == ("checkpoints/base", False)


@pytest.mark.parametrize("task, given, expected", [
    (None, 48, 64), (None, 80, 80), ("arithmetic", 48, 48), ("arithmetic", 9, 9),
])
def test_the_cards_table_leaves_room_for_its_longest_answers(monkeypatch, tiny, task, given,
                                                            expected):
    """A task that is named is measured at the length that train uses."""
    from minipost.measure import results

    seen = []
    monkeypatch.setattr(results, "results", lambda run, parts: seen.append(run) or {})
    flags = ["--max-new-tokens", str(given), *(["--task", task] if task else [])]
    with pytest.raises(IndexError):                         # of a table without rows
        evaluate.table(["--model", str(tiny), "--workers", "1", *flags])
    assert {run.max_new_tokens for run in seen} == {expected}
    assert evaluate.Measured().max_new_tokens == train.Options().max_new_tokens == 48


# ---- flags that do nothing alone

@pytest.mark.parametrize("flags, said", [
    ("sft --lora-targets q_proj", "--lora-targets goes with --lora, the rank of the adapters; "
     "without it all weights learn"),
    ("sft --lora-alpha 8", "--lora-alpha goes with --lora"),
    ("sft --sampler-url http://x", "--sampler-url goes with --sampler vllm"),
    ("sft --replay-share 0.2", "--replay-share goes with --replay"),
    ("grpo --rollout-format parquet", "--rollout-format goes with --keep-rollouts"),
    ("grpo --reward a.py:f --reward b.py:g", "--reward is given 2 times; give it once, with all "
     "its values behind it"),
    ("grpo --log wandb --log=trackio", "--log is given 2 times"),
    ("sft --data a --data b", "--data is given 2 times; give it once, with one value"),
    ("sft --task facts --task polish", "--task is given 2 times"),
])
def test_a_flag_that_would_do_nothing_is_refused(flags, said):
    with pytest.raises(MinipostError) as error:
        train.settings_of(["--algo", *flags.split()])
    assert str(error.value).startswith(said)


def test_a_flag_beside_the_one_that_it_goes_with_is_taken():
    for flags in ("sft --lora 2 --lora-targets q_proj v_proj --lora-alpha 8", "sft --replay facts "
                  "--replay-share 0.2", "grpo --keep-rollouts 2 --rollout-format parquet",
                  "grpo --sampler vllm --sampler-url http://x", "grpo --steps 3 --steps 4"):
        train.settings_of(["--algo", *flags.split()])


@pytest.mark.parametrize("flags, said", [
    ("--cap 3", "--cap goes with --correct truncated or masked; with --correct clip it does"),
    ("--correct none --clip 0.1", "--clip goes with --correct clip; with --correct none it does"),
    ("--correct masked --clip 0.1", "--clip goes with --correct clip"),
    ("--correct none --cap 3", "--cap goes with --correct truncated or masked"),
    ("--correct masked-answers --cap 3", ""), ("--correct truncated --cap 3", ""),
    ("--clip 0.1", ""), ("--sampler vllm --cap 3", ""), ("--correct clip --clip 0.1", ""),
])
def test_a_bound_of_ratios_goes_with_what_uses_it(flags, said):
    argv = ["--algo", "gdpo", *flags.split()]
    settings = train.settings_of(argv)
    if not said:
        for_run(settings, argv, "cpu")
        return
    with pytest.raises(MinipostError) as error:
        for_run(settings, argv, "cpu")
    assert str(error.value).startswith(said)


def test_merge_goes_with_adapters(tiny, rows):
    with pytest.raises(MinipostError, match="merge adds adapters .* there are none: .* is a "
                                            "whole model"):
        minipost.open(tiny, data=str(rows), merge=True)
    minipost.open(tiny, data=str(rows), merge=True, lora=2)


def test_what_guides_no_search_is_refused():
    for flags, said in ((("--width", "8"), "--width goes with --value"),
                        (("--samples", "8"), "--samples goes with --pass-at")):
        with pytest.raises(MinipostError, match=said):
            evaluate.table(["--task", "facts", *flags])


# ---- what a run says that teaches nothing

REWARDS = {"none": "None", "constant": "0.5", "of the prompt": "float(len(prompts[k]) % 7)",
           "right": "float(k)"}


@pytest.mark.parametrize("algo, kind, said", [
    ("grpo", "none", "no reward function applies to any answer of this run, so they taught"),
    ("grpo", "constant", "in no step did the rewards tell answers apart"),
    ("grpo", "of the prompt", "in no step did the rewards tell answers apart"),
    ("reinforce", "constant", "in no step did the rewards tell answers apart"),
    ("ppo", "constant", "in no step did the rewards tell answers apart"),
    ("dapo", "constant", "in no step did the rewards tell answers apart"),
    ("dapo", "none", "in no step did the rewards tell answers apart"),       # it keeps no answer
    ("grpo", "right", ""), ("ppo", "right", ""), ("reinforce", "of the prompt", ""),
])
def test_a_run_that_can_learn_nothing_says_so(command, tmp_path, capsys, algo, kind, said):
    """Also where nothing is measured before and after; it ended like any other."""
    path, size = tmp_path / "r.py", [] if algo == "ppo" else ["--group-size", 2]
    path.write_text("def f(prompts, completions, **columns):\n"
                    f"    return [{REWARDS[kind]} for k in range(len(prompts))]\n")
    assert train.main(command(algo, "--steps", 2, "--prompts", 3, *size, "--eval-n", 0,
                              "--reward", f"{path}:f")) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert any(line.startswith(said) for line in lines) if said else not any(
        "so they " in line for line in lines)


@pytest.mark.parametrize("algo, steps, said", [
    ("sft", 10, "--warmup-steps 20: the learning rate climbs in 10 of the 10 steps and ends at 50% "
     "of its peak"),
    ("sft", 30, "--warmup-steps 20: the learning rate climbs in 20 of the 30 steps"),
    ("sft", 40, ""), ("grpo", 1, ""), ("rft", 10, ""), ("trpo", 1, "")])
def test_a_warm_up_of_most_of_the_steps_is_said(algo, steps, said):
    config = methods.load(algo).Config(steps=steps)
    found = config.slow_start() if isinstance(config, Descent) else ""
    assert found.startswith(said) and bool(found) == bool(said)


def test_a_long_warm_up_is_said_when_a_run_begins(command, capsys):
    for steps, told in ((3, True), (40, False)):
        assert train.main(command("sft", "--steps", steps, "--batch-size", 1, "--overwrite")) == 0
        assert ("--warmup-steps 20: the learning" in capsys.readouterr().out) == told
