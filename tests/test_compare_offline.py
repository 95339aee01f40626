"""The comparison on fixed sets: what the methods are given, on fabricated results what is said."""

import argparse
import json

import pytest

from minipost import methods, parallel, train
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.measure.stats import interval
from scripts import compare_offline as offline


def score(right, n=400):
    return interval([1.0] * right + [0.0] * (n - right))


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(model="checkpoints/base", prompts=3, group_size=2, steps=0, seeds=2,
                              eval_n=9, workers=1, runs=tmp_path)


def test_every_method_is_given_the_same_answers(args, tmp_path, monkeypatch):
    said = [(f"{k}=? ", [(f"right {k}", True), (f"wrong {k}", False), (f"wrong {k}", False),
                         *([(f"too {k}", True)] if k % 2 else [])]) for k in range(40)]
    said[0] = ("0=? ", [("all right", True)] * 9)
    monkeypatch.setattr(offline, "answers", lambda *rest: said)
    monkeypatch.setattr(parallel, "launch", lambda work, workers: work())
    offline.collect(args, None, 0, tmp_path)
    rows = {path.stem: [json.loads(line) for line in path.read_text().splitlines()]
            for path in tmp_path.glob("*.jsonl")}
    given = [(prompt, text, good) for prompt, texts in said[:-offline.SPARE] for text,
             good in texts]
    assert [tuple(row.values()) for row in rows["answers"]] == given
    assert {row["prompt"] for row in rows["answers-spare"]} == {p for p, _ in said[24:]}
    assert {row["prompt"] for row in rows["pairs"]} == {p for p, _ in said[1:24]}
    for row in rows["pairs"]:
        texts = dict(said)[row["prompt"]]
        assert (row["chosen"], True) in texts and (row["rejected"], False) in texts
    per = [row["chosen"] for row in rows["pairs"] if row["prompt"] == "1=? "]
    assert per == ["right 1", "too 1"]                      # each answer in one pair
    assert [tuple(row.values()) for row in rows["texts"]] == [row[:2] for row in given]
    for kind in offline.KINDS:
        File(str(tmp_path / f"{kind}.jsonl"), str(tmp_path / f"{kind}-spare.jsonl"))
    before = offline.digest(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("{}")
    assert offline.digest(tmp_path) != before


PAIRED = ("dpo", "rpo")


@pytest.mark.parametrize("algo", offline.METHODS)
def test_every_method_makes_as_many_steps_on_as_many_answers(
        args, tmp_path, algo, monkeypatch):
    said = [(f"{k}=? ", [("b", True), ("wrong", False)]) for k in range(40)]
    monkeypatch.setattr(offline, "answers", lambda *rest: said)
    monkeypatch.setattr(parallel, "launch", lambda work, workers: work())
    offline.collect(args, None, 0, tmp_path)
    given = offline.flags(args, offline.SETTINGS["countdown"], tmp_path, algo, 1)
    found = train.settings_of(given)
    config, task = found.config, found.task
    count = 2 * config.pairs if algo in PAIRED else config.batch_size
    assert (config.steps, count, found.options.seed) == (200, 64, 1)
    assert task.data.endswith("pairs.jsonl" if algo in PAIRED else
                              "texts.jsonl" if algo == "sft" else "answers.jsonl")
    task.fitted(getattr(methods.load(algo), "READS", ()), None)  # or it refuses what it is given
    if algo == "sft":
        assert task.demonstrate(task.training()[0]) == "b"


def results(**right):
    return {algo: [{"sampled": score(k), "greedy": score(k + 5), **(
        {"beam": score(k + 100)} if algo == "oreo" else {})} for k in values]
        for algo, values in right.items()}


def test_what_is_said(args):
    found = results(start=(100, 104), sft=(110, 112), kto=(198, 202), dpo=(300, 302),
                    oreo=(200, 200))
    said = offline.verdict(found)
    assert said.startswith("OREO's policy is ahead of start and sft beyond the interval; not told "
                           "from kto; behind dpo beyond the interval.")
    assert "Value-guided beam less greedy, of OREO: +0.238 [+0." in said
    rows = offline.rows(found)
    assert [row[0] for row in rows] == ["dpo", "kto", "oreo", "sft", "start"] or \
        [row[0] for row in rows] == ["dpo", "oreo", "kto", "sft", "start"]
    table = {row[0]: row for row in rows}
    assert table["oreo"][2] == "" and table["oreo"][4].startswith("0.750") and table["sft"][4] == ""
    assert table["dpo"][2].startswith("-0.253") and table["start"][4] == ""
    lines = offline.report(args, {"countdown": found}, [])
    assert any("`make compare-offline`" in line for line in lines)
    assert "`countdown`, 200 steps, 9 held-out problems:" in lines


def test_bad_options(capsys):
    for wrong in (["--tasks", "wording"], ["--group-size", "1"], ["--seeds", "0"]):
        with pytest.raises(SystemExit):
            offline.start(wrong)
        assert wrong[1] in capsys.readouterr().err


def test_a_measurement_that_fails_is_one_sentence(args):
    with pytest.raises(MinipostError, match="no-such-model"):
        offline.measure(args, offline.SETTINGS["countdown"], 0, "no-such-model")
