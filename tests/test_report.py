"""Runs and their reports: what a run leaves for its page, and the command minipost.report."""

import json
import os
import random
import shutil

import pytest
import torch

from minipost import checkpoint, evaluate, methods, report, test_time, train
from minipost.cli import samples
from minipost.measure.watch import pieces, steps_to_watch
from minipost.run import Run

SMALL = ("--prompts", 3, "--group-size", 4)


def table(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(run, kind):
    return [row for row in table(run / "report.jsonl") if row["kind"] == kind]


def test_a_piece_is_what_the_text_grows_by():
    """Of any ids, also of parts of a letter and of EOS: as if each beginning was read."""
    vocabulary = checkpoint.load("checkpoints/base")[1]
    rng, size = random.Random(0), vocabulary.tokenizer.backend.get_vocab_size()
    texts = ["12+5-3=?\n", "\u00e9t\u00e9 \u65e5\u672c", "Answer: 4"]
    for k in range(60):
        ids = vocabulary.response(texts[k % 3]) if k % 4 else rng.choices(range(size), k=12)
        ids = [*ids, *vocabulary.response(texts[k % 2])][: rng.randrange(1, 30)]
        found, before = [], ""
        for n, i in enumerate(ids):
            text = vocabulary.decode(ids[: n + 1])
            if i in vocabulary.eos:
                found.append(vocabulary.tokenizer.control[i])
            elif text.endswith("\ufffd") and n + 1 < len(ids):
                found.append("")
            else:
                found.append(text[len(before):])
                before = text
        assert pieces(vocabulary, ids) == found


# ---- which steps

@pytest.mark.parametrize("total", [1, 2, 3, 8, 40, 1500])
def test_first_and_last_step_and_few_between_are_watched(total):
    found = steps_to_watch(total)
    assert {1, total} <= found and len(found) <= 9 and min(found) >= 1 and max(found) == total


def test_stages_have_steps_of_their_own():
    found = steps_to_watch(300, (100, 200), first=60)
    assert {60, 100, 200, 300} <= {*found, 60} and 61 in found and len(found) <= 12


def test_pieces_of_letters_add_up(words):
    class Vocabulary:
        eos, tokenizer = frozenset(), words
        decode = staticmethod(lambda ids: words.decode(ids))
    ids = words.encode("héhé straße 北京 z")
    found = pieces(Vocabulary, ids)
    assert len(found) == len(ids) and "".join(found) == words.decode(ids)
    assert "\ufffd" not in "".join(found)


# ---- what a run leaves

def test_a_run_leaves_answers_with_numbers(command, tmp_path, reward, capsys):
    assert train.main([*command("grpo", *SMALL, "--steps", 3), "--reward", reward]) == 0
    run = tmp_path / "run"
    assert capsys.readouterr().out.splitlines()[-1] == f"the report: {run}/report.html"
    groups, lines = rows(run, "group"), table(run / "metrics.jsonl")
    assert {group["step"] for group in groups} == {1, 2, 3}
    for group in groups:
        answers = group["answers"]
        assert len(answers) == 4 and group["prompt"].endswith("+5=?")
        assert abs(sum(a["advantage"] for a in answers)) < 1e-2
        gains = [a["advantage"] for a in answers]
        assert gains == sorted(gains, reverse=True)
        for a in answers:
            shown = a["tokens"][:-1] if a["finished"] else a["tokens"]
            assert "".join(shown) == a["text"] and len(a["tokens"]) == a["length"] <= 4
            assert a["reward"] == pytest.approx(len(a["text"]) / 9, abs=1e-3)
            for name in ("logp", "ratio", "kl", "entropy"):
                assert len(a[name]) == a["length"]
            assert all(x <= 0 for x in a["logp"]) and all(x > 0 for x in a["entropy"])
    first = [a for group in groups if group["step"] == 1 for a in group["answers"]]
    assert len({tuple(a["entropy"]) for a in first}) == len({tuple(a["logp"]) for a in first}) > 1
    assert all(abs(x) < 1e-4 for a in first for x in a["ratio"] + a["kl"])
    assert any(abs(x) > 1e-6 for g in groups if g["step"] == 3 for a in g["answers"]
               for x in a["ratio"])
    about, = rows(run, "run")
    assert about["differs"]["group_size"] == [4, 8] and "lr" not in about["differs"]
    assert about["steps"] == 3 and about["versions"]["torch"] == torch.__version__
    pairs, = rows(run, "pairs")
    assert pairs["n"] == 3 == len(pairs["rows"]) and len(lines) == 3
    text = (run / "report.html").read_text()
    assert "grpo" in text and "Answers, token by token" in text


def test_the_widest_group_and_the_first_are_kept(command, tmp_path):
    (tmp_path / "r.py").write_text(
        "def f(prompts, completions, **columns):\n"
        "    last = prompts[-1]\n"
        "    return [k % 2 if p == last else 0.5 for k, p in enumerate(prompts)]\n")
    assert train.main([*command("grpo", *SMALL, "--steps", 1),
                       "--reward", f"{tmp_path}/r.py:f"]) == 0
    widest, first = rows(tmp_path / "run", "group")
    assert {a["reward"] for a in widest["answers"]} == {0.0, 1.0}
    assert {a["reward"] for a in first["answers"]} == {0.5}


@pytest.mark.parametrize("algo", [name for name in methods.names()
                                  if methods.load(name).ON_POLICY])
def test_every_method_with_a_rollout_leaves_answers(command, tmp_path, reward, algo):
    size = ("--group-size", 2) if hasattr(methods.load(algo).Config, "group_size") else ()
    more = {"r1-zero": ("--format", 0, "--language", 0), "gdpo": ("--format", 0, "--language", 0),
            "process-grpo": ("--task", "arithmetic")}.get(algo, ())
    code = train.main([*command(algo, "--steps", 1, "--prompts", 3, *size, *more), "--reward",
                       reward])
    assert code == 0
    groups = rows(tmp_path / "run", "group")
    assert groups and all(a["tokens"] for group in groups for a in group["answers"])
    answer = groups[0]["answers"][0]
    assert ("value" in answer) == (algo in ("ppo", "a2c"))
    assert ("advantages" in answer) == (algo in ("ppo", "a2c", "prime", "reinforce-pp", "vineppo",
                                                   "process-grpo"))


@pytest.mark.parametrize("algo, by", [("oreo", "critic"), ("reward", "reward model"),
                                      ("prm", "reward model")])
def test_scorers_judge_answers_after_every_step(command, tmp_path, reward, algo, by):
    flags = command(algo, "--steps", 1, "--prompts", 3, "--group-size", 2, "--task", "arithmetic",
                    "--terms", 2, "--reward", reward)
    assert train.main(flags) == 0
    judged, = rows(tmp_path / "run", "judged")
    assert judged["by"] == by
    for answer in judged["answers"]:
        assert len(answer["value"]) == len(answer["tokens"])
        assert answer["steps"][-1]["value"] == answer["value"][-1]
        assert "".join(s["text"] for s in answer["steps"]) == answer["text"]


def test_no_report(command, tmp_path, reward, capsys):
    assert train.main([*command("grpo", *SMALL, "--steps", 1, "--report", "False"), "--reward",
                       reward]) == 0
    assert not list((tmp_path / "run").glob("report*"))
    assert "the report" not in capsys.readouterr().out


def test_a_report_changes_nothing_that_is_learnt(command, tmp_path, reward):
    flags = [*command("ppo", "--prompts", 3, "--steps", 2), "--reward", reward]
    weights = []
    for word in ("True", "False"):
        assert train.main([*flags, "--report", word, "--overwrite"]) == 0
        weights.append((tmp_path / "run/model/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_stopped_run_leaves_what_a_whole_one_does(command, tmp_path, reward, stopping,
                                                    monkeypatch):
    flags = [*command("grpo", *SMALL, "--steps", 4), "--reward", reward]
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train.main(flags) == 0
    shutil.move(run, whole)
    with monkeypatch.context():
        stopping(2)
        assert train.main(flags) == 130
    monkeypatch.undo()
    assert "Not finished: 2 of 4 steps" in (run / "report.html").read_text()
    with open(run / "report.jsonl", "a") as file:  # of a step that was lost
        file.write(json.dumps({"kind": "group", "step": 3, "prompt": "lost", "answers": []}) + "\n")
    assert train.main(["--resume", str(run), "--reward", reward]) == 0
    assert rows(run, "group") == rows(whole, "group") and rows(run, "pairs") == rows(whole, "pairs")
    assert rows(run, "resume") == [{"kind": "resume", "step": 2}]


def test_a_longer_stage_begins_where_it_began(command, wide, tmp_path, stopping, monkeypatch):
    """PPO learns a reward first; a resumed run watches the steps that the whole one watches."""
    flags = command("ppo", "--task", "wording", "--steps", 12, "--sft-steps", 1,
                    "--reward-steps", 1, "--prompts", 2)
    flags[flags.index("--model") + 1] = str(wide)
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train.main(flags) == 0
    shutil.move(run, whole)
    assert [group["step"] for group in rows(whole, "group")] == [3, 4, 5, 6, 8, 10, 14]
    with monkeypatch.context():
        stopping(9)
        assert train.main(flags) == 130
    monkeypatch.undo()
    assert train.main(["--resume", str(run)]) == 0
    assert rows(run, "group") == rows(whole, "group")


def test_two_workers_leave_what_one_does(command, tmp_path, reward, python):
    flags = command("grpo", *SMALL, "--steps", 1, "--reward", reward)
    at = flags.index("--workers") + 1
    groups = []
    for workers in "12":
        flags[at] = workers
        done = python("-m", "minipost.train", *flags, "--overwrite")
        assert done.returncode == 0, done.stderr
        groups.append(rows(tmp_path / "run", "group"))
    assert len(groups[0]) == len(groups[1])
    for one, two in zip(*groups):
        for a, b in zip(one["answers"], two["answers"]):
            assert a["text"] == b["text"]
            assert a["entropy"] == pytest.approx(b["entropy"], rel=1e-2, abs=1e-4)


def test_a_page_that_fails_costs_no_run(command, tmp_path, reward, monkeypatch, capsys):
    def fails(directory):
        raise RuntimeError("of any kind")
    monkeypatch.setattr(samples.page, "write", fails)
    (tmp_path / "run").mkdir()
    assert train.main([*command("grpo", *SMALL, "--steps", 1), "--reward", reward]) == 0
    said = capsys.readouterr().out
    assert "the report could not be written (RuntimeError: of any kind)" in said
    assert (tmp_path / "run/summary.json").exists() and (tmp_path / "run/model").exists()


def test_samples_that_cannot_be_written_cost_no_run(command, tmp_path, reward, monkeypatch, capsys):
    from minipost.cli.directory import Directory
    from minipost.errors import MinipostError

    def fails(self, found):
        raise MinipostError("the disk is full")
    monkeypatch.setattr(Directory, "keep_samples", fails)
    assert train.main([*command("grpo", *SMALL, "--steps", 1), "--reward", reward]) == 0
    assert "no samples for the report: the disk is full" in capsys.readouterr().out
    assert (tmp_path / "run/report.html").exists()


# ---- test-time methods

@pytest.mark.parametrize("name", test_time.names())
def test_every_test_time_method_has_a_page(name, wide, tmp_path, capsys):
    knobs = {"memory": ["--length", "4", "--things", "2", "--lives", "2"],
             "tot": ["--branching", "2", "--expansions", "2", "--votes", "1"],
             "mcts": ["--branching", "2", "--simulations", "3", "--votes", "1", "--depth", "2"],
             "uct": ["--branching", "2", "--simulations", "3", "--votes", "1"],
             "self-consistency": ["--group-size", "3", "--curve", "1"],
             "adaptive-consistency": ["--group-size", "3"],
             "universal-self-consistency": ["--group-size", "3"],
             "by-difficulty": ["--budget", "2", "--attempts", "2", "--training", "5"],
             "budget-forcing": ["--budget", "2", "--curve", "1", "--cuts", "1"],
             "best-of-n": ["--group-size", "2"], "beam": ["--width", "1", "--branching", "2"],
             "speculative-rejection": ["--group-size", "2"],
             "particles": ["--particles", "2"]}.get(name, [])
    if test_time.load(name).VERIFIER:  # their verifiers are of another vocabulary
        wide = "checkpoints/thinker"
    out = tmp_path / "run"
    assert evaluate.main(["--method", name, "--model", str(wide), "--n", "2", "--workers", "1",
                          "--max-new-tokens", "8", "--out", str(out), *knobs]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"the report: {out}/report.html"
    found = rows(out, "working")
    assert found and {row["arm"] for row in found} and all("working" in row for row in found)
    assert "How answers came about" in (out / "report.html").read_text()


# ---- the command

@pytest.fixture
def run(command, tmp_path):
    assert train.main(command("sft", "--steps", 2)) == 0
    return tmp_path / "run"


def test_the_page_of_one_run_and_of_two(run, tmp_path, capsys):
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "report.html")
    assert (run / "report.html").read_bytes() == before
    shutil.copytree(run, tmp_path / "other")
    assert report.main([str(run), str(tmp_path / "other"), "--out",
                        str(tmp_path / "two.html")]) == 0
    assert "2 runs compared" in (tmp_path / "two.html").read_text()
    capsys.readouterr()
    assert report.main([str(run), "--json"]) == 0
    found, = json.loads(capsys.readouterr().out)
    assert found["method"] == "sft" and found["step"] == 2 and found["health"]


@pytest.mark.parametrize("flags, part", [
    (["{run}", "{run}"], "say where with --out"),
    (["{run}", "{run}", "--follow", "--out", "x.html"], "rewrites the page of one run"),
    (["{run}", "{run}/", "--json"], "the run is named twice"),
    (["{run}/model"], "is no run"), (["{run}/nowhere"], "there is no such folder"),
    (["{run}", "--out", "{run}/no/where.html"], "could not be written"),
])
def test_what_cannot_be_shown_gets_one_sentence(run, capsys, flags, part):
    capsys.readouterr()
    assert report.main([flag.format(run=run) for flag in flags]) == 1
    said = capsys.readouterr().err
    assert part in said and len(said.strip().splitlines()) == 1


def test_a_page_that_follows_a_run(run, monkeypatch, capsys):
    """While a process holds the run the page reads itself again; the last page does not."""
    fcntl = pytest.importorskip("fcntl")
    holder, pages = os.open(run, os.O_RDONLY), []
    fcntl.flock(holder, fcntl.LOCK_EX)
    lines = (run / "metrics.jsonl").read_text()

    def later(seconds):
        pages.append((run / "report.html").read_text())
        with open(run / "metrics.jsonl", "a") as file:
            file.write(lines.splitlines()[-1].replace('"step": 2', f'"step": {len(pages) + 2}')
                       + "\n")
        if len(pages) == 2:
            os.close(holder)
    monkeypatch.setattr(report.time, "sleep", later)
    (run / "summary.json").rename(run / "kept")
    capsys.readouterr()
    assert report.main([str(run), "--follow"]) == 0
    assert [f"{k} of 2 steps" in text for k, text in zip((2, 3), pages)] == [True, True]
    assert all('http-equiv="refresh"' in text for text in pages)
    last = (run / "report.html").read_text()
    assert 'http-equiv="refresh"' not in last and "4 of 2 steps" in last
    assert "no process is at work in this run" in capsys.readouterr().out
    monkeypatch.setattr(report.time, "sleep", lambda _: 1 / 0)
    (run / "kept").rename(run / "summary.json")
    assert report.main([str(run), "--follow"]) == 0
    assert "the run is over" in capsys.readouterr().out


def test_ctrl_c_ends_following(run, monkeypatch):
    def stopped(seconds):
        raise KeyboardInterrupt
    monkeypatch.setattr(report, "at_work", lambda _: True)
    monkeypatch.setattr(report.time, "sleep", stopped)
    assert report.main([str(run), "--follow"]) == 0
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text()


def test_a_run_from_python_keeps_nothing():
    assert Run(None, None, None, None).watches == []
