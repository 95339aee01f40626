"""The checks of a GPU, on a CPU at a tiny size: what is right, what is wrong, what is left out."""

import json
import subprocess
import time
from argparse import Namespace
from dataclasses import dataclass

import pytest
import torch

from minipost import train
from minipost.engine import decode_cuda
from scripts import device
from scripts.device import OK, SKIPPED, WRONG

QUICK = ["--device", "cpu", "--quick"]


@pytest.fixture
def on():
    return device.setting(Namespace(device="cpu", quick=True))


def test_without_a_gpu_it_says_so_in_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1 and "no GPU was found" in err


def test_the_whole_program_runs_on_a_cpu(tmp_path, capsys, monkeypatch):
    for name in ("shard", "lora"):  # processes of their own, below
        monkeypatch.setitem(device.CHECKS, name, lambda on: (SKIPPED, "not here"))
    assert device.main([*QUICK, "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["card"] == "a CPU"
    states = {name: state for name, state, *_ in found["found"]}
    assert states == {"forward": OK, "bfloat16": OK, "graphs": OK, "memory": SKIPPED,
                      "shard": SKIPPED, "lora": SKIPPED}
    assert "| graphs | ok |" in capsys.readouterr().out
    assert decode_cuda.DEVICES == ("cuda",)


def test_wrong_decoding_is_found(on, monkeypatch, capsys):
    rotate = decode_cuda.rotate
    monkeypatch.setattr(decode_cuda, "rotate", lambda x, cos, sin: rotate(x, cos, -sin))
    with device.decoding_as_a_gpu_does("cpu"):
        assert device.graphs(on)[0] == WRONG
    monkeypatch.setattr(device, "CHECKS", {"graphs": device.graphs})
    assert device.main(QUICK) == 1 and "WRONG" in capsys.readouterr().out


def test_another_gradient_is_found(on, monkeypatch):
    assert device.forward(on)[0] == OK
    real, calls = device.logprobs, []

    def second_is_off(model, seqs):
        calls.append(model)
        return real(model, seqs) * (1.01 if len(calls) == 2 else 1.0)

    monkeypatch.setattr(device, "logprobs", second_is_off)
    assert device.forward(on)[0] == WRONG


def test_a_check_that_fails_takes_no_other_with_it(on):
    def full(on):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def late(on):
        raise subprocess.TimeoutExpired("x", 1)

    assert device.found_by(full, on) == [(WRONG, "OutOfMemoryError: CUDA out of memory")]
    assert device.found_by(late, on) == [(WRONG, "not done in time")]
    assert device.found_by(lambda on: (OK, "fine"), on) == [(OK, "fine")]


def test_no_check_begins_late(on, monkeypatch):
    begun = time.monotonic() - device.LAST_BEGIN - 1
    late = device.Setting(on.device, on.shapes, on.job, begun)
    assert device.found_by(lambda on: (OK, "fine"), late) == [(SKIPPED, "no time was left")]
    assert {state for state, _ in device.memory(late)} == {SKIPPED}
    assert device.LAST_BEGIN < device.END <= 480


def test_a_flag_that_is_not_there_is_left_out_and_one_that_is_runs(on, monkeypatch):
    assert device.trained(on, "nothing_like_it", [])[0] == SKIPPED
    state, said = device.trained(on, "seed", ["--seed", "3"])
    assert (state, said.split(",")[0]) == (OK, "2 steps"), said
    monkeypatch.setattr(device.subprocess, "run", lambda *given, **options:
                        subprocess.CompletedProcess(given, 1, "", "error: a\nerror: seed is -3\n"))
    assert device.trained(on, "seed", []) == (WRONG, "the run ended with 1: error: seed is -3")


def test_what_is_measured_is_held_to_what_is_computed(on, monkeypatch):
    """As on a GPU, whose memory is made up here."""
    @dataclass
    class Taken:
        bytes: float

    taken = Taken(0.0)
    gpu = device.Setting("cuda", on.shapes, on.job, on.begun)
    for name, found in {"empty_cache": None, "reset_peak_memory_stats": None,
                        "memory_allocated": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: taken.bytes)
    way = device.Way()
    _, said = device.memory_of(gpu, "tiny", on.shapes["tiny"], way)
    assert "taken 0.00 GB" in said and "with KL" in said
    taken.bytes = 1e12
    assert device.memory_of(gpu, "tiny", on.shapes["tiny"], way)[0] == WRONG


def test_shard_and_lora_are_options_that_train_may_have(on, monkeypatch):
    """They are asked of the options, so that a version without them leaves them out."""
    asked = []
    monkeypatch.setattr(device, "trained", lambda on, name, *rest: asked.append((name, rest)) or (
        OK, ""))
    device.shard(on), device.lora(on)
    assert [name for name, _ in asked] == ["shard", "lora"]
    assert "torch.distributed.run" in asked[0][1][1] and asked[1][1] == (["--lora", "4"],)
    assert "seed" in {field.name for field in device.fields(train.Options)}
