"""The tables and the plot of the test-time methods, from made-up measurements."""

import json
from argparse import Namespace

import pytest
from fakes import Babble

from minipost.cli import inference
from minipost.measure.stats import Score, interval, share
from scripts import bench_test_time, compute_optimal


def score(value, n=100):
    return vars(interval([1.0] * round(value * n) + [0.0] * (n - round(value * n))))


def test_every_command_of_the_plot_names_arms_that_its_method_has(monkeypatch, tmp_path):
    """Each arm is asked of the method that makes it, the trained model's of the trained model."""
    asked = []

    def run(command):
        asked.append(command)
        if "minipost.train" in command:
            out = command[command.index("--out") + 1]
            (tmp_path / out).mkdir(parents=True, exist_ok=True)
            (tmp_path / out / "model").mkdir()
            (tmp_path / out / "model" / "config.json").write_text("{}")
            (tmp_path / out / "summary.json").write_text("{}")
            return ""
        arms = {"score": score(0.25), "tokens per problem": 1000.0 - len(asked)}
        return json.dumps({"all": dict.fromkeys(
            {arm for _, curves in compute_optimal.CURVES.values() for row in curves.values()
             for _, arm in row}, arms)})

    monkeypatch.setattr(compute_optimal, "run", run)
    model = tmp_path / "thinker"
    model.mkdir()
    (model / "config.json").write_text("{}")
    args = Namespace(model=model, n=7, runs=tmp_path / "runs")
    args.runs.mkdir()
    for title, (task, curves) in compute_optimal.CURVES.items():
        found = compute_optimal.points(task, curves, args)
        assert {name: len(row) for name, row in found.items()} == {
            name: len(row) for name, row in curves.items()}
        for row in found.values():                              # a curve goes from left to right
            assert [tokens for tokens, _ in row] == sorted(tokens for tokens, _ in row)
    commands = [" ".join(command) for command in asked]
    assert len(set(commands)) == len(commands)                  # nothing is measured twice
    trained = [c for c in commands if "minipost.train" in c]
    assert len(trained) == 2 and all("--algo grpo" in c for c in trained)
    assert sum("grpo-" in c and "minipost.evaluate" in c for c in commands) == 2
    before = len(asked)
    for task, curves in compute_optimal.CURVES.values():
        compute_optimal.points(task, curves, args)
    assert len(asked) == before                                 # nor made again
    (model / "config.json").write_text("another model")
    compute_optimal.trained(task, args)
    assert "minipost.train" in asked[-1] and len(asked) == before + 1


def test_the_arms_that_the_tables_name_exist():
    """Every arm that a table or the plot takes is one that its command yields."""
    wanted = {(command, arm) for command, *arms,
              _ in bench_test_time.GAME_ROWS.values() for arm in arms
              if arm}
    wanted |= {pair for _, curves in compute_optimal.CURVES.values() for row in curves.values()
               for pair in row}
    yielded = {}
    for command, arm in wanted:
        if command not in yielded:
            found = inference.settings_of(["--method", *command.split()], "test",
                                          inference.Measured)
            tools, asked = Babble(found.task, ["x"]), found.task.heldout(2)
            yielded[command] = {each.name for each in found.method.arms(asked, tools, found.config)}
        assert arm in yielded[command], (command, arm)
    assert len(yielded) > 10


def test_the_plot_is_the_same_for_the_same_points(tmp_path):
    pytest.importorskip("matplotlib")
    panels = {title: {name: [(10.0 * k + 10, interval([1.0, 0.0, 1.0])) for k in range(len(row))]
                      for name, row in curves.items()}
              for title, (_, curves) in compute_optimal.CURVES.items()}
    compute_optimal.draw(panels, tmp_path / "a.svg")
    compute_optimal.draw(panels, tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text() and text.startswith("<?xml")


def test_seeds_are_averaged_by_problem(monkeypatch, tmp_path):
    runs = iter([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])

    class Done:
        def __init__(self, command, **options):
            first = next(runs)
            arms = {"1 sample": [0.0] * 4, "mcts": first, "other": [1.0, 0.0, 1.0, 1.0]}
            self.stdout = json.dumps({
                "metric": "accuracy, held-out: 1 sample -> mcts", "seconds": 3.0,
                "pairs": {"mcts -> other": {}},
                "all": {arm: {"tokens per problem": 50.0} for arm in arms},
                "arms": {arm: {"rewards": rewards} for arm, rewards in arms.items()}})

    monkeypatch.setattr(bench_test_time.subprocess, "run", Done)
    monkeypatch.setattr(bench_test_time, "METHODS", {"mcts --n 4": (0, 1)})
    monkeypatch.setattr(bench_test_time, "_done", {})
    written = []
    monkeypatch.setattr(bench_test_time, "write",
                        lambda out, part, lines: written.append("\n".join(lines)))
    bench_test_time.test_time(Namespace(quick=False, out=None))
    assert f"| **mcts** | {share([0.5, 0.0, 1.0, 1.0])} | 50 | +0.625" in written[-1]
    assert "n 4, seeds 0, 1; 3-3 s each" in written[-1]
    assert "Paired: other less mcts, +0.125 [" in written[-1]


def test_a_model_is_trained_anew_if_what_it_starts_from_has_changed(monkeypatch, tmp_path):
    """Also where that is another such model."""
    made, start = [], "--algo sft --task arithmetic --model"
    monkeypatch.setattr(bench_test_time, "ROOT", tmp_path)
    monkeypatch.setattr(bench_test_time, "LEARNT", {
        "second": f"{start} runs/test-time/first/model", "first": f"{start} base"})
    monkeypatch.setattr(bench_test_time, "to_do", lambda directory, wanted, origin: (
        "nothing" if (directory / "origin").is_file()
        and (directory / "origin").read_text() == origin else "start"))

    def run(command, check):
        of, out = (tmp_path / command[command.index(flag) + 1] for flag in ("--model", "--out"))
        (out / "model").mkdir(exist_ok=True)
        weights = (of / "model.safetensors").read_bytes()
        (out / "model" / "model.safetensors").write_bytes(weights + b"+")
        made.append(out.name)

    monkeypatch.setattr(bench_test_time.subprocess, "run", run)
    (tmp_path / "base").mkdir()
    for weights in (b"one", b"two"):
        (tmp_path / "base" / "model.safetensors").write_bytes(weights)
        for _ in range(2):
            bench_test_time.learn("mcts --model runs/test-time/second/model")
        bench_test_time.learn("mcts")
    assert made == ["first", "second"] * 2


def test_tokens_at_equal_accuracy_lie_between_the_points():
    def point(tokens, value):
        return tokens, Score(value, value, value, 100)

    row = [point(100, 0.2), point(400, 0.6), point(800, 0.5), point(1600, 0.9)]
    assert compute_optimal.needed(row, 0.4) == pytest.approx(200)       # half way up, in logs
    assert compute_optimal.needed(row, 0.6) == pytest.approx(400)
    assert compute_optimal.needed(row, 0.7) == pytest.approx(800 * 2**0.5)
    assert compute_optimal.needed(row, 0.1) == 100 and compute_optimal.needed(row, 0.95) is None
    said = compute_optimal.saved([point(150, 0.4), point(900, 0.95)], row)
    assert "0.400 with 150 tokens, where best of n takes 200" in said
    assert said.endswith("0.950 with 900 tokens, where best of n takes more than its last point")
