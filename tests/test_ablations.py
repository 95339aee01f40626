"""What one part of a method adds: the arms of `make ablations` and their table."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from minipost import train
from minipost.measure.stats import interval
from scripts import ablations

ARMS = [(question, arm) for question in ablations.QUESTIONS for arm in question.arms]


@pytest.mark.parametrize("question, arm", ARMS, ids=[f"{q.name}: {arm}" for q, arm in ARMS])
def test_arms_are_runs_that_differ_in_one_part(question, arm):
    settings, control = (train.settings_of(ablations.arguments(question, each, 0))
                         for each in (arm, next(iter(question.arms))))
    own = {word.removeprefix("--").replace("-", "_") for one in (arm, next(iter(question.arms)))
           for word in shlex.split(question.arms[one]) if word.startswith("--")}
    assert settings.task == control.task
    for ours, theirs in ((settings.options, control.options), (settings.config, control.config)):
        if type(ours) is type(theirs):
            ours, theirs = asdict(ours), asdict(theirs)
            assert {name for name in ours if ours[name] != theirs[name]} <= own


def fabricate(question, arm, seed, values, logged):
    folder = ablations.place(question, arm, seed)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({
        "tokens": 1000, "all": {question.metric: {
            "before": asdict(interval([0.0] * len(values))), "after": asdict(interval(values))}}}))
    (folder / "rewards.json").write_text(json.dumps({question.metric: {
        "before": [0.0] * len(values), "after": values}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": k, **logged}) + "\n"
                                                  for k in range(1, 4)))


def test_the_table_has_every_arm_with_its_difference(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "FOLDER", tmp_path)
    for question in ablations.QUESTIONS:
        for k, arm in enumerate(question.arms):
            for seed in range(question.seeds):
                fabricate(question, arm, seed, [1.0] * (50 + 8 * k) + [0.0] * (50 - 8 * k),
                          dict.fromkeys(question.also.values(), 0.25))
    text = "\n".join(ablations.report())
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    lines = [line for line in lines if not line.startswith("| ---")]
    rows = [(question, arm) for question in ablations.QUESTIONS
            for arm in ((ablations.START,) if question.start else ()) + (*question.arms,)]
    for (question, arm), line in zip(rows, lines, strict=True):
        asked, name, _, less, also, tokens, flags = (cell.strip() for cell in line[1:-1].split("|"))
        begins, start = name == ablations.START, next(iter(question.arms))
        assert bool(asked) == (begins or arm == start and not question.start)
        assert not asked or asked.startswith(question.asked)
        assert name == arm and (tokens, bool(flags)) == (("0", False) if begins else
                                                         ("1,000", True))
        assert bool(less) == (not asked)
        assert begins or all(f"{what} 0.250 [" in also for what in question.also)


def test_where_runs_begin_is_the_control_of_some_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "FOLDER", tmp_path)
    question = next(each for each in ablations.QUESTIONS if each.start and len(each.arms) > 1)
    for k, arm in enumerate(question.arms):
        for seed in range(question.seeds):
            fabricate(question, arm, seed, [1.0] * (60 + k) + [0.0] * (40 - k),
                      dict.fromkeys(question.also.values(), 0.25))
    first, second, third, *_ = ablations.rows(question)
    assert first[2].startswith("0.000 [0.000, ") and first[3] == "" and first[5] == "0"
    assert second[3].startswith("+0.600 [") and third[3].startswith("+0.610 [")


def test_the_intervals_are_those_of_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "FOLDER", tmp_path)
    question = next(each for each in ablations.QUESTIONS if each.name == "tool-use")
    one, other = question.arms
    for seed in range(question.seeds):
        fabricate(question, one, seed, [1.0] * 90 + [0.0] * 10, {})
        fabricate(question, other, seed, [1.0] * 100, {})
    first, second = ablations.rows(question)
    assert first[0] == f"{question.asked} (3 seeds)" and first[3] == "" and second[0] == ""
    assert second[3].startswith("+0.100 [+0.0") and "no effect" not in second[3]
    question = ablations.QUESTIONS[0]
    for k, arm in enumerate(question.arms):
        for seed in range(question.seeds):
            fabricate(question, arm, seed, [-0.5, 0.5] * 50,
                      dict.fromkeys(question.also.values(), 0.25))
    rows = ablations.rows(question)
    assert rows[1][3].endswith("(no effect seen)") and rows[0][2].startswith("0.000 [-0.")


def test_the_makefile_makes_it():
    assert "ablations: $(VENV)/.core" in Path("Makefile").read_text()
