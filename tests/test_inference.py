"""The command lines of the test-time methods."""

import json

import pytest
from fakes import helped_text

from minipost import checkpoint, evaluate, solve, test_time
from minipost.gpt import RewardModel


@pytest.fixture(scope="module")
def verifier(tmp_path_factory, tiny):
    """The directory of an untrained reward model on the tiny model."""
    model, _ = checkpoint.load(tiny)
    directory = tmp_path_factory.mktemp("verifier")
    checkpoint.save(directory / "model", RewardModel(model), tiny)
    return directory / "model"


QUICK = {"self-consistency": ["--group-size", "2", "--curve", "1"],
         "best-of-n": ["--group-size", "2"],
         "tot": ["--branching", "2", "--expansions", "3"],
         "mcts": ["--simulations", "2", "--branching", "2"],
         "uct": ["--simulations", "2", "--branching", "2"],
         "speculative-rejection": ["--group-size", "3", "--memory", "2", "--depth", "3"],
         "particles": ["--particles", "2", "--depth", "3"],
         "adaptive-consistency": ["--group-size", "3"],
         "universal-self-consistency": ["--group-size", "3"],
         "self-polish": ["--rewordings", "2"],
         "by-difficulty": ["--budget", "2", "--attempts", "2", "--training", "5"],
         "budget-forcing": ["--budget", "2", "--curve", "1", "--cuts", "1"],
         "memory": ["--length", "4", "--things", "2", "--lives", "2", "--trials", "2"],
         "graph-of-thoughts": ["--group-size", "1"], "self-feedback": ["--attempts", "2"],
         "beam": ["--width", "1", "--branching", "2", "--depth", "3"], "cot": ["--shots", "1"]}


def arguments(method, tiny, verifier, *more):
    needs = ["--verifier", str(verifier)] if test_time.load(method).VERIFIER else []
    return ["--method", method, "--model", str(tiny), "--max-new-tokens", "6", *needs,
            *QUICK.get(method, []), *more]


@pytest.mark.parametrize("method", test_time.names())
def test_evaluate_writes_a_summary_and_an_untrained_model_breaks_nothing(method, tiny, verifier,
                                                                         tmp_path,
                                                                        capsys):
    command = arguments(method, tiny, verifier, "--n", "2", "--workers", "1")
    assert evaluate.main([*command, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"name", "task", "seed", "metric", "before", "after", "seconds", "tokens",
            "all"} <= set(summary)
    assert summary["tokens"] > 0 and summary["name"] == method
    assert len(summary["pairs"]) == len(test_time.load(method).PAIRS)
    assert summary["before"]["n"] == summary["after"]["n"] > 0
    assert all(0 <= row["score"]["low"] <= row["score"]["high"] <= 1
               and row["tokens per problem"] >= 0
               for row in summary["all"].values())
    assert "held-out problem 1" in shown and "tokens" in shown
    assert evaluate.main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["all"] == summary["all"] and set(data["arms"]) == set(summary["all"])


def test_samples_that_arms_share_count_once(tiny, verifier, capsys):
    command = arguments("best-of-n", tiny, verifier, "--n", "2", "--workers", "1", "--json")
    assert evaluate.main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    cost = [2 * row["tokens per problem"] for row in summary["all"].values()]
    assert summary["tokens"] == max(cost) < sum(cost)


@pytest.mark.parametrize("main, flags", [(evaluate.main, ["--n", "2", "--workers", "1"]),
                                         (solve.main, [])])
def test_a_task_without_held_out_problems_is_one_sentence(main, flags, tiny, verifier, capsys):
    command = arguments("self-consistency", tiny, verifier, "--task", "facts", "--kinds", "capital")
    assert main([*command, *flags]) == 1
    error = capsys.readouterr().err
    assert "the task facts holds out no problems" in error and error.count("\n") == 1


@pytest.mark.parametrize("method, flags, pairs", [
    ("budget-forcing", ["--waits", "0"], {"vote, tokens of waits 0 -> waits 0"}),
    ("universal-self-consistency", ["--forms", "False"], {
        "1 sample -> universal", "vote by value -> universal",
        "universal -> universal, turned round"})])
def test_pairs_are_of_the_arms_that_were_measured(method, flags, pairs, tiny, verifier, capsys):
    command = arguments(method, tiny, verifier, "--n", "2", "--workers", "1", "--json", *flags)
    assert evaluate.main(command) == 0
    assert set(json.loads(capsys.readouterr().out)["pairs"]) == pairs


@pytest.mark.parametrize("method", test_time.names())
def test_solve_shows_the_working_as_text_and_as_data(method, tiny, verifier, capsys):
    command = arguments(method, tiny, verifier, "--index", "1")
    assert solve.main(command) == 0
    assert "tokens sampled" in capsys.readouterr().out
    assert solve.main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"method", "problem", "answer", "right", "tokens", "working", "settings"} <= set(data)
    assert solve.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == data          # the same seed, the same answer


def test_a_problem_of_ones_own(tiny, verifier, capsys):
    for method, problem, shown in (("tot", "4 9 10 13", "Reach 24 from 4 9 10 13:"),
                                   ("self-feedback", "7+5-3", "7+5-3=? Think:")):
        assert solve.main(arguments(method, tiny, verifier, "--problem", problem)) == 0
        assert capsys.readouterr().out.startswith(shown)


@pytest.mark.parametrize("said", ["right", "other"])
def test_a_life_is_right_where_its_own_last_question_was_answered(said, tiny, verifier, capsys,
                                                                  monkeypatch):
    def live(streams, answer, how, size, rng):
        question, code, told = streams[0][-1]
        return [[{"question": question, "recalled": [], "said": code if said == "right" else "x",
                  "right": code, "told": told}]]

    monkeypatch.setattr("minipost.test_time.memory.live", live)
    assert solve.main(arguments("memory", tiny, verifier, "--json")) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["right"] == (said == "right")
    assert data["problem"] == data["working"]["episodes"][-1]["question"] + "?"


@pytest.mark.parametrize("command, sentence", [
    (["--method", "tot", "--problem", "4 9"], "expected 4 whole numbers"),
    (["--method", "memory", "--problem", "x"], "takes no --problem"),
    (["--method", "tot", "--index", "100"], "expected 0 to 99"),
    (["--method", "tot", "--max-new-tokens", "500"], "context of"),
    (["--method", "tot", "--task", "recall"], "no question for a judge"),
    (["--method", "best-of-n", "--verifier", "nowhere"], "nowhere"),
    (["--method", "self-consistency", "--task", "calculator"], "only react asks it"),
])
def test_bad_input_is_one_sentence(command, sentence, tiny, capsys):
    assert solve.main([*command, "--model", str(tiny),
                       *([] if "--max-new-tokens" in command else ["--max-new-tokens", "6"])]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


@pytest.mark.parametrize("flag, value",
                         [("--width", "0"), ("--max-new-tokens", "0"), ("--temperature", "-1"),
                          ("--temperature", "nan"), ("--votes", "0"), ("--n", "0"),
                          ("--workers", "-1"), ("--show", "-1")])
def test_senseless_settings_are_refused(flag, value, capsys):
    assert evaluate.main(["--method", "tot", flag, value]) == 1
    assert f"{flag[2:].replace('-', '_')} is {value}" in capsys.readouterr().err
    assert solve.main(["--method", "tot", "--index", "-1"]) == 1
    assert "index is -1" in capsys.readouterr().err


def test_help_names_every_method_and_every_knob(capsys):
    shown = helped_text(capsys, solve.main)
    assert all(name in shown for name in test_time.names())
    for method in test_time.names():
        with pytest.raises(SystemExit):
            solve.main(["--method", method, "--help"])
        shown = capsys.readouterr().out
        assert "--temperature" in shown and "--index" in shown


def test_a_search_by_a_value_refuses_a_task_whose_tool_it_does_not_ask(tiny, verifier, capsys,
                                                                       monkeypatch):
    monkeypatch.setattr("minipost.run.Run.sample", None)        # before anything is measured
    command = ["--model", str(tiny), "--value", str(verifier), "--n", "2", "--workers", "1"]
    assert evaluate.main([*command, "--task", "calculator"]) == 1
    assert "of the task calculator a tool has a say" in capsys.readouterr().err


def test_the_directory_of_a_training_run_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"algo": "grpo"}')
    (tmp_path / "summary.json").write_text("{}")
    assert evaluate.main(["--method", "cot", "--out", str(tmp_path), "--n", "1"]) == 1
    assert "holds a run of minipost.train" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == "{}"
