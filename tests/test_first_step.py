"""What comes before the first step: how long it takes is said, and --eval-n 0 leaves it out."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from minipost import methods, train
from minipost.cli import session
from minipost.errors import MinipostError
from minipost.measure import results

GROUPS = ("--steps", 2, "--prompts", 2, "--group-size", 2)


@pytest.mark.parametrize("n, m", [(64, 256), (5, 10), (400, 2)])
def test_a_bilinear_cost_is_forecast_exactly(monkeypatch, n, m):
    """From five short measurements, the first of which warms up and does not count."""
    clock, asked, reward = [0.0], [], lambda: None
    monkeypatch.setattr(results.time, "perf_counter", lambda: clock[0])
    run = SimpleNamespace(max_new_tokens=m, reward=reward)

    def cost(n, m):
        return 0.5 + 0.25 * n + 0.125 * m + 0.0625 * n * m

    def measure(splits):
        rows, tokens = len(splits["held-out"]), run.max_new_tokens
        asked.append((rows, tokens))
        assert run.reward(["p"] * 3, ["a", "b", "c"], column=[1, 2, 3]) == [0, 1, 2]
        clock[0] += cost(rows, tokens) + 100 * (len(asked) == 1)

    assert results.forecast(run, {"held-out": range(n)}, measure) == cost(n, m)
    assert (run.max_new_tokens, run.reward) == (m, reward)
    assert sum(rows * tokens for rows, tokens in asked) < 70


def test_nothing_is_forecast_of_few_problems_or_where_few_cannot_be_measured():
    run = SimpleNamespace(max_new_tokens=9, reward=3)

    def refuse(splits):
        raise MinipostError("no pair of them can be ranked")

    assert results.forecast(run, {"held-out": range(4)}, refuse) is None
    assert results.forecast(run, {"held-out": range(5)}, refuse) is None
    assert (run.max_new_tokens, run.reward) == (9, 3)


@pytest.mark.parametrize("n, part", [(3, "measuring 3 held-out problems first; the first step"),
                                     (5, "measuring 5 held-out problems first, about ")])
def test_a_run_of_a_large_model_says_what_comes_first(command, monkeypatch, tmp_path, reward,
                                                      capsys, n, part):
    """And the forecast changes no number of the run."""
    flags = ("--reward", reward, "--eval-n", n)
    assert train.main(command("grpo", *GROUPS, *flags)) == 0
    said, lines = capsys.readouterr().out, (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "measuring" not in said
    monkeypatch.setattr(session, "LARGE", 100)
    assert train.main(command("grpo", *GROUPS, *flags, "--overwrite")) == 0
    said = capsys.readouterr().out
    assert said.index(part) < said.index("before: held-out")
    again = (tmp_path / "run" / "metrics.jsonl").read_text()
    for a, b in zip(lines.splitlines(), again.splitlines(), strict=True):
        assert {**json.loads(a), "seconds": 0} == {**json.loads(b), "seconds": 0}


@pytest.mark.parametrize("algo, flags", [
    ("grpo", GROUPS), ("sft", ("--steps", 2, "--batch-size", 4)),
    ("reward", ("--steps", 2, "--prompts", 2, "--task", "wording"))])
def test_eval_n_0_measures_nothing_and_the_summary_says_so(command, monkeypatch, tmp_path, capsys,
                                                           algo, flags):
    def refuse(*_):
        raise AssertionError("something was measured")

    load = methods.load
    monkeypatch.setattr(methods, "load", lambda name: replace(load(name), measure=refuse))
    assert train.main(command(algo, *flags, "--eval-n", 0)) == 0
    said = capsys.readouterr().out
    assert "nothing was measured before or after (--eval-n 0)" in said and "before:" not in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["all"] == summary["asked"] == {} and "before" not in summary
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "3"]) == 0


@pytest.mark.parametrize("flag", ["--ask", "--eval-every"])
def test_eval_n_0_with_what_measures(command, capsys, flag):
    assert train.main(command("sft", "--eval-n", 0, flag, 2)) == 1
    assert f"{flag} measures held-out problems" in " ".join(capsys.readouterr().err.split())
