"""scripts.bench scale: which points are measured, what a process gives, what the table says."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minipost import checkpoint, parallel
from scripts import bench_scale as scale
from scripts.alternate import Bench, Failed
from scripts.bench_peer import Digits
from scripts.bench_scale import SCALES, TRIAL, Point, Row

TINY, = TRIAL
LEAST = {"sampling": 0.01, "step": 0.04}


def result(*steps):
    return {"steps": list(steps), "sampling": [s / 2 for s in steps], "peak": 2**30, "others": 0.0,
            "seconds": 9.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    scale.create(folder, replace(TINY.config, vocab_size=600))
    return folder


def test_one_thing_grows_at_a_time():
    for size in SCALES:
        points = size.points()
        assert points[0] == size.centre and len(points) == len(set(points)) == 5
        for point in points[1:]:
            grown = [axis for axis in scale.AXES
                     if getattr(point, axis) != getattr(size.centre, axis)]
            assert len(grown) == 1 and point.prompts == size.centre.prompts


def test_the_sizes_are_those_of_their_names():
    for size, parameters in zip(SCALES, (0.86e6, 12e6, 135e6)):
        c = size.config
        heads = c.num_attention_heads + 2 * c.num_key_value_heads
        layer = c.hidden_size * ((heads + c.num_attention_heads) * c.head_dim
                                 + 3 * c.intermediate_size)
        found = c.num_hidden_layers * layer + c.vocab_size * c.hidden_size
        assert abs(found / parameters - 1) < 0.03
        longest = max(p.prompt_tokens + p.new_tokens for p in size.points())
        assert longest <= c.max_position_embeddings


def test_a_prompt_of_digits_has_its_tokens_and_every_id_is_a_token(model):
    gpt, words = checkpoint.load(model)
    assert gpt.unused is None and words.tokenizer.vocab_size == 600
    prompt = Digits(11).sample(1)[0].prompt
    ids = words.prompt(prompt)
    assert len(ids) == 12 and words.decode(ids[1:]) == prompt


def test_steps_are_enough_after_some_seconds_or_one_long_one():
    assert not scale.enough([]) and not scale.enough([scale.LONG - 1, scale.ENOUGH / 2])
    assert scale.enough([scale.LONG]) and scale.enough([0.1, scale.ENOUGH])
    assert scale.enough([0.1] * scale.STEPS)


def test_the_first_of_several_steps_is_left_out():
    assert scale.seconds(result(9.0, 1.0, 2.0, 3.0), "steps") == 2.0
    assert scale.seconds(result(30.0), "steps") == 30.0


@pytest.mark.parametrize("world", [1, 2])
def test_our_process_makes_steps_of_the_whole_length(model, monkeypatch, world):
    monkeypatch.setattr(scale, "STEPS", 2)
    monkeypatch.setattr(scale, "limit_memory", lambda processes: None)
    monkeypatch.setattr(parallel, "default_workers", lambda device: world)
    before = torch.get_num_threads()
    found = scale.own(SimpleNamespace(model=model), Point(1, 4, 4, 5))
    torch.set_num_threads(before)
    assert found["length"] == 5 and len(found["steps"]) == len(found["sampling"]) == 2
    assert all(0 < s < t for s, t in zip(found["sampling"], found["steps"]))


@pytest.mark.parametrize("said,cell", [("RuntimeError: ... can't allocate memory", "GiB"),
                                       ("KeyError: 'x'", "failed: KeyError: 'x'")])
def test_a_process_that_fails_has_its_reason_in_the_table(tmp_path, monkeypatch, said, cell):
    def measure(command, watch):
        if "peer" in command:
            raise Failed(said)
        Path(command[command.index("--out") + 1]).write_text(json.dumps(result(1.0, 2.0)))
        return {"peak": 2**30, "others": 0.0, "seconds": 9.0}

    monkeypatch.setattr(scale, "measure", measure)
    found = scale.both(Bench(tmp_path, "", True), TINY, TINY.centre, {"own": 1.0, "peer": 1.0})
    cells = Row("tiny", TINY.centre, LEAST, found).cells()
    assert cells[4] == "2.00 s" and cell in cells[5] and cells[6] == "" and cells[7] == "2%"


def test_a_process_that_is_ended_says_after_how_long(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SHORTEST", 0.2)
    monkeypatch.setattr(scale, "LIMIT", 0)
    monkeypatch.setattr(scale, "command", lambda side, folder, size, point, limit, out: [
        "timeout", f"{limit}", sys.executable, "-c", "import time; time.sleep(20)"])
    found = scale.both(Bench(tmp_path, "", True), TINY, TINY.centre, {"own": 1.0, "peer": 1.0})
    assert found == {"own": "over 0 s", "peer": "over 0 s"}


def test_what_does_not_fit_the_budget_is_left_out_by_name(tmp_path, monkeypatch, capsys):
    written, measured = {}, []

    def both(bench, size, point, needed):
        measured.append(point)
        return {"own": result(0.1, 0.2), "peer": result(0.3, 0.4)}

    monkeypatch.setattr(scale, "both", both)
    monkeypatch.setattr(scale, "create", lambda folder, config: None)
    monkeypatch.setattr(scale, "find_spec", lambda name: name != "matplotlib")
    monkeypatch.setattr(scale, "RESULTS", tmp_path / "scale.json")
    monkeypatch.setattr(scale, "floor_of", lambda config, point: {
        "sampling": 1.0, "step": 1e6 if point.new_tokens == 1024 else 0.01})
    monkeypatch.setattr(scale, "machine", lambda *packages: "Machine: x.")
    monkeypatch.setattr(scale, "write",
                        lambda out, part, lines: written.update({part: "\n".join(lines)}))
    args = SimpleNamespace(quick=True, rest=False, model="", out=tmp_path / "report.md")
    scale.scale(args)
    long = replace(TINY.centre, new_tokens=1024)
    assert set(measured) == set(TINY.points()) - {long}
    text = written["scale"]
    assert f"tiny, {long} (about " in text and text.count("| tiny |") == len(measured)
    assert "| 200 ms | 400 ms | 2.00 | 5% |" in text and "no plot" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "scale.json").read_text())) == len(measured)
    # What was left out, with more time: the other points stand.
    monkeypatch.setattr(scale, "floor_of", lambda config, point: LEAST)
    del measured[:]
    args.rest = True
    scale.scale(args)
    assert measured == [long] and written["scale"].count("| tiny |") == len(TINY.points())


def test_the_plot_has_a_line_for_each_side_and_the_floor(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [Row(size.name, point, LEAST, {"own": result(1.0, 2.0), "peer": "over 60 s"})
            for size in SCALES for point in size.points()]
    scale.draw(tmp_path / "scale.svg", rows)
    text = (tmp_path / "scale.svg").read_text()
    assert text.count("<svg") == 1 and "matrix products" in text
