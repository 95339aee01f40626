"""What a run shows: text that is hostile, terminals of all kinds, a group of answers."""

import json
import os
import re
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from hostile import TEXTS

from minipost import checkpoint, methods, parallel, solve, train
from minipost.checks.model import Finding
from minipost.cli import session
from minipost.cli.console import Console, broken, line
from minipost.errors import MinipostError, visible_json
from minipost.measure.results import Arm, Result
from minipost.measure.watch import Example
from minipost.tasks.base import Problem
from minipost.tokenizer import Tokenizer
from tests.fakes import make_run

SCORE = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}


def safe(text):
    """Whether nothing in it steers a terminal: no control character, no bidi mark, no escape."""
    return all(c.isprintable() or c == "\n" for c in text)


def shows(console, text):
    """Everything that a Console prints, of a text in every place."""
    summary = {"all": {text: {"before": SCORE, "after": SCORE}}, "asked": {text: SCORE},
               "before": SCORE, "after": SCORE, "gain": SCORE, "seconds": 1.0, "tokens": 2}
    found = Result.of([0.0, 1.0], [text, text])
    problem = Problem(f"{text}?")
    row = {"step": 1, "prompt": text, "reward": 1.0, "advantage": 0.5}
    console.say(text)
    console.tell(text)
    console.scores(text, {text: {text: found}})
    console.side_by_side([problem, problem], found, found, text, 2)
    console.group([{**row, "completion": text}, {**row, "reward": 0.0, "completion": "x"}])
    console.look(text, summary)
    console.trace([{"step": 1, text: 2.0}], [text])
    console.stages({"all": {f"greedy, {text}": {"before": SCORE, "after": SCORE}}},
                   [{"step": 1, f"eval/{text}/greedy": 0.5}], {1: text})
    console.arms({text: Arm.of(text, 8, [0.0], [text], [{}]),
                  "b": Arm.of("b", 8, [1.0], [text], [{}])}, text)
    console.findings([Finding(text, "ok", text), Finding(text, "fault", text, text, text)], 1.0)
    console.result(summary, text)


def test_side_by_side_stands_what_is_of_one_problem(capsys):
    """Before, the third problem has no reward, after, the first has none."""
    problems = [Problem(name) for name in "abc"]
    before = Result.of([0.0, 1.0], ["old a", "old b"], [0, 1])
    after = Result.of([0.0, 1.0], ["new b", "new c"], [1, 2])
    Console().side_by_side(problems, before, after, "held-out", 3)
    said = capsys.readouterr().out
    assert "of 1 answers 0 got better and 1 got worse" in said
    assert "old b" in said and "new b" in said and "old a" not in said and "new c" not in said
    assert session.gain(before, after)["gain"]["value"] == -1
    assert session.gain(before, Result.of([1.0], ["new c"], [2])) == {}
    whole = Result.of([1.0, 1.0, 1.0], ["new a", "new b", "new c"])
    assert session.gain(before, whole)["gain"]["value"] == 0.5


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_steers_a_screen(capsys, monkeypatch, text):
    for columns in ("40", "2000"):
        monkeypatch.setenv("COLUMNS", columns)
        shows(Console(), text)
        said = capsys.readouterr().out
        assert safe(said)
    assert re.sub(r"\s", "", text[:60]) in re.sub(r"\s", "", said) or not text.isprintable()


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_steers_a_terminal(capsys, monkeypatch, text):
    """With the colours of our own, which are the same whatever the text is."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "2000")
    escapes = []
    for each in ("harmless", text):
        shows(Console(), each)
        said = capsys.readouterr().out
        escapes.append(set(re.findall("\x1b[^a-zA-Z]*.?", said)))
        assert safe(re.sub(r"\x1b\[[0-9;]*m", "", said))
    assert escapes[0] and escapes[1] == escapes[0]


def test_hostile_rows_of_a_file(tmp_path, monkeypatch, capsys, words):
    """They are prompts, answers before and after, and answers of a group."""
    checkpoint.create(tmp_path / "model", tiny_model(context=1024), words)
    for name, more in (("rows", "?"), ("held", "")):
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"prompt": text + more, "completion": text}) + "\n" for text in TEXTS))
    monkeypatch.setattr(Tokenizer, "decode",
                        lambda self, ids, *hidden: TEXTS[sum(ids) % len(TEXTS)])
    (tmp_path / "mine.py").write_text("def f(completions, **columns):\n"
                                      "    return [len(text) / 99 for text in completions]\n")
    shared = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "rows.jsonl"),
              "--eval-data", str(tmp_path / "held.jsonl"), "--out", str(tmp_path / "run"),
              "--steps", "1", "--workers", "1", "--max-new-tokens", "4", "--show", "50",
              "--control-tokens", "plain"]
    assert train.main([*shared, "--algo", "grpo", "--prompts", "2", "--group-size", "4",
                       "--reward", f"{tmp_path}/mine.py:f"]) == 0
    said = capsys.readouterr()
    assert safe(said.out) and safe(said.err)
    assert "a prompt and its 4 answers" in said.out and "[bold red]loud" in said.out


@pytest.mark.parametrize("text", TEXTS[-12:])
def test_what_is_solved(tiny, capsys, monkeypatch, text):
    working = {"steps": [text]}
    monkeypatch.setattr(parallel, "launch", lambda work, workers: (text, working, 1, text, 0))
    flags = ["--method", "cot", "--model", str(tiny)]
    for more in ([], ["--json"]):
        assert solve.main([*flags, *more]) == 0
        assert safe(said := capsys.readouterr().out)
    assert json.loads(said)["answer"] == text
    assert json.loads(visible_json(json.dumps({"a": text}, ensure_ascii=False))) == {"a": text}
    assert safe(visible_json(json.dumps({"a": text}, ensure_ascii=False)))


def test_an_error_of_a_worker_is_safe(capfd):
    def fails():
        if parallel.rank():
            raise RuntimeError(TEXTS[-3])
        time.sleep(0.5)
        return 0

    with suppress(MinipostError):                           # rank 0 may notice, or not
        parallel.launch(fails, 2)
    assert "worker 1" in (said := capfd.readouterr().err) and safe(said)


# ---- a group of answers

GROUPS = [name for name in methods.names() if methods.load(name).ON_POLICY and hasattr(
    methods.load(name).Config(), "group_size")]


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_is_shown_after_training(command, reward, tmp_path, capsys, name):
    assert {"grpo", "dr-grpo", "dapo", "rloo", "trpo", "r1-zero"} <= set(GROUPS)
    ruled = name in ("r1-zero", "gdpo")
    more = [] if ruled else ["--reward", reward]
    task = ["--task", "search"] if ruled else (
        ["--task", "arithmetic"] if name == "process-grpo" else [])
    assert train.main([*command(name, "--steps", 2, "--prompts", 3, "--group-size", 4,
                                "--keep-rollouts", 1, *task), *more]) == 0
    rows = [json.loads(row) for row in (tmp_path / "run" / "rollouts" / "000001.jsonl")
            .read_text().splitlines()]
    said = capsys.readouterr().out
    assert said.count("step 1, a prompt and its 4 answers: ") + said.count(
        "step 2, a prompt and its 4 answers: ") == 1
    if "step 1, a prompt" not in said:                      # all groups of the first step tie
        assert all(len({row["reward"] for row in rows[k : k + 4]}) == 1
                   for k in range(0, len(rows), 4))
        return
    groups = [rows[k : k + 4] for k in range(0, len(rows), 4)]
    spread = [len({row["reward"] for row in group}) for group in groups]
    assert max(spread) > 1 or name == "r1-zero"
    told = said[said.index("a prompt and its 4 answers"):]
    best = next(group for group in groups if group[0]["prompt"].strip() in told[:400])
    for row in best:
        assert f"{row['reward']:.3g}" in told and f"{row['advantage']:+.2f}" in told


@pytest.mark.parametrize("name", ["sft", "dpo", "reinforce", "ppo"])
def test_a_method_without_groups_says_nothing_of_them(command, reward, capsys, name):
    flags = {"dpo": ("--task", "wording"), "reinforce": ("--group-size", 1)}.get(name, ())
    more = ["--reward", reward] if name in ("reinforce", "ppo") else []
    assert train.main([*command(name, "--steps", 1, *flags), *more]) == 0
    assert "a prompt and its" not in capsys.readouterr().out


def test_the_group_whose_rewards_differ_most(capsys):
    run = make_run()
    example = Example(run)
    run.watches.append(example)
    problems = run.task.heldout(3)
    rollout = run.sample(problems, 3, temperature=1.0)
    ties = torch.tensor([1.0] * 9)
    run.keep(problems, rollout, ties, ties * 0)
    assert len(example.rows) == 3 and example.rows[0]["step"] == 1
    nan = float("nan")
    reward = torch.tensor([nan, nan, 9, 0, 1, 1, 0, 5, 0])
    run.step = 4
    run.keep(problems, rollout, reward, reward - 2)
    assert [row["reward"] for row in example.rows] == [0, 5, 0]
    assert [row["advantage"] for row in example.rows] == [-2, 3, -2]
    assert example.rows[0]["step"] == 5
    assert [row["completion"] for row in example.rows] == run.texts(rollout)[6:9]
    assert example.rows[0]["prompt"] == problems[2].prompt
    run.step = 5
    run.keep(problems, rollout, reward * 9, reward)         # the first of them stays
    assert example.rows[0]["step"] == 5
    Console().group(example.rows)
    said = capsys.readouterr().out
    shown = re.findall(r"(\d) x +([05]) +([-+]\d\.00)", said)
    assert shown[0] == ("1", "5", "+3.00") and "likelier" in said
    assert sum(int(count) for count, *_ in shown) == 3 and {each[1:] for each in shown[1:]} == {
        ("0", "-2.00")}


def test_groups_that_tie_say_so_and_long_ones_are_cut(capsys):
    row = {"step": 1, "prompt": "p", "reward": 1.0, "advantage": 0.0}
    Console().group([{**row, "completion": f"{k:02} " + "word " * 99} for k in range(30)])
    said = capsys.readouterr().out
    assert "nothing was learnt from them" in " ".join(said.split()) and "... 22 more" in said
    assert said.count("1 x") == 8 and "00 word" in said and "29 word" in said
    assert len(said.splitlines()) < 45
    Console().group([])
    assert not capsys.readouterr().out


def test_what_to_look_at_says_whether_it_is_chance(capsys):
    summary = {"before": SCORE, "after": {**SCORE, "value": 0.75}, "asked": {"vote of 3, x": SCORE}}
    for low, n, said in ((0.01, 9, "more than chance"), (-0.01, 9, "may be chance"),
                         (0.01, 4, "may be chance")):
        gain = {"value": 0.25, "low": low, "high": 0.5, "n": n}
        Console().look("greedy, held-out", {**summary, "gain": gain})
        found = capsys.readouterr().out
        assert said in found and found.startswith("look at greedy, held-out: from 0.500 to 0.750")
        assert "vote of 3 gave 0.500 before" in found
    rose = {"sampled, held-out": {"before": SCORE, "after": {**SCORE, "value": 1.0},
                                  "gain": {**gain, "low": 0.1, "n": 9}}}
    Console().look("greedy, held-out", {**summary, "gain": gain, "all": rose,
                                        "metric": "greedy reward, held-out"})
    assert "look at sampled, held-out too: from 0.500 to 1.000" in capsys.readouterr().out


# ---- terminals

@pytest.mark.parametrize("columns", [40, 80, 120])
def test_tables_fit_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    many = ("reward", "surrogate", "predicted", "kl", "backtracks", "cg_residual", "entropy")
    console = Console()
    console.trace([{"step": k, **dict.fromkeys(many, 0.000123)} for k in range(3)], many)
    console.result({"all": {"greedy, held-out": {"before": SCORE, "after": SCORE}},
                    "asked": {"any of 33 right, held-out": SCORE}, "seconds": 1.0, "tokens": 2},
                   "d")
    arms = {f"best of n, tokens of b={k}, any of 5": Arm.of("", 999999, [0.0, 1.0], ["", ""], [])
            for k in range(3)}
    console.arms(arms, next(iter(arms)))
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if not line.endswith("everything is in d")]
    assert max(map(len, lines)) <= columns and "…" not in said
    for part in ("0.000123", "0.500 [0.250, 0.750]", "cg_", "+0.000 [-0.490, +0.490]"):
        assert part in " ".join(said.split()), part
    assert "999999" not in said and "500,000" in said


def test_names_of_columns_break_between_their_parts():
    assert broken("completions/mean_length", 12) == "completions/\nmean_length"
    assert broken("cg_residual", 8) == "cg_\nresidual" and broken("kl", 1) == "kl"
    assert broken("before [95%]", 30) == "before [95%]" and broken("", 4) == ""


def test_the_live_line_leaves_out_what_does_not_fit():
    metrics = {"reward": 0.5, "kl": 0.1, "entropy": 2.0, "odd": 1.0}
    assert line(metrics, 1234) == "reward 0.500  kl 0.100  entropy 2.000  1,234 tok/s"
    assert line(metrics, 1234, 40) == "reward 0.500  kl 0.100  entropy 2.000"
    assert line(metrics, 1234, 5) == "reward 0.500"


@pytest.mark.skipif(os.name != "posix", reason="there are no such terminals")
@pytest.mark.parametrize("columns, settings", [
    (80, {"TERM": "xterm-256color"}), (40, {"TERM": "xterm-256color"}), (80, {"TERM": "dumb"}),
    (80, {"TERM": "xterm", "NO_COLOR": "1"})])
def test_a_run_on_a_terminal(command, reward, columns, settings):
    """It hung in its first step: the live line wrote to itself."""
    code, said = on_terminal(
        ["-m", "minipost.train", *command("grpo", "--steps", 3, "--prompts", 2, "--group-size", 4),
         "--reward", reward], columns, settings)
    assert code == 0, said[-500:]
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said)
    assert "3/3" in shown and "everything is in" in shown and safe(shown.replace("\r", ""))
    assert ("step 3/3  reward" in shown) == (settings["TERM"] == "dumb")  # plain lines there
    assert ("\x1b[2K" in said) == (settings["TERM"] != "dumb")  # the line is drawn again
    colours = re.findall(r"\x1b\[[0-9;]*(?:3[0-9]|38;[0-9;]+)m", said)
    assert bool(colours) == ("NO_COLOR" not in settings and settings["TERM"] != "dumb")


def on_terminal(arguments, columns, settings):
    """(exit code, output) of a Python on a terminal of so many columns."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    hidden = ("COLUMNS", "FORCE_COLOR", "NO_COLOR")
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, env={
            **{name: value for name, value in os.environ.items() if name not in hidden},
            "PYTHONPATH": str(Path(train.__file__).parents[1]), **settings})
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
            assert len(said) < 2**20
    except OSError:  # Linux says so at the end
        pass
    finally:
        os.close(ours)
    return process.wait(60), said.decode(errors="replace")
