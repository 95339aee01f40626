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
    for name in ("shard", "lora", "methods"):  # processes of their own, below
        monkeypatch.setitem(device.CHECKS, name, lambda on: (SKIPPED, "not here"))
    assert device.main([*QUICK, "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["card"].startswith("a CPU; torch ")
    states = {name: state for name, state, *_ in found["found"]}
    assert states == {"forward": OK, "bfloat16": OK, "graphs": OK, "memory": SKIPPED,
                      "fits": SKIPPED, "shard": SKIPPED, "lora": SKIPPED,
                      "methods": SKIPPED}
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
    late = device.replace(on, begun=begun)
    assert device.found_by(lambda on: (OK, "fine"), late) == [(SKIPPED, "no time was left")]
    assert {state for state, _ in device.memory(late) + device.fits(late)} == {SKIPPED}
    assert device.LAST_BEGIN < device.END <= 480


def test_a_flag_that_is_not_there_is_left_out_and_one_that_is_runs(on, monkeypatch):
    assert device.trained(on, "nothing_like_it", [])[0] == SKIPPED
    state, said = device.trained(on, "seed", ["--seed", "3"])
    assert (state, said.split(",")[0]) == (OK, "2 steps"), said
    monkeypatch.setattr(device.subprocess, "run", lambda *given, **options:
                        subprocess.CompletedProcess(given, 1, "", "error: a\nerror: seed is -3\n"))
    assert device.trained(on, "seed", []) == (WRONG, "the run ended with 1: error: seed is -3")


@pytest.mark.parametrize("errors, said", [
    ("", "nothing was said"),
    ("a warning\nit went wrong\n", "it went wrong"),
    ("Traceback\n  in f\nModuleNotFoundError: No module named 'tyro'\n====\nx.ChildFailedError: \n",
     "ModuleNotFoundError: No module named 'tyro'"),
    ("[rank0]: Traceback\n[rank0]: RuntimeError: no\nE1127 12:00 failed (exitcode: 1)\n====",
     "[rank0]: RuntimeError: no"),
])
def test_the_complaint_is_the_line_that_names_the_error(errors, said):
    assert device.complaint(errors) == said


def test_the_largest_gap_of_two_rows():
    row = {"loss": 2.0, "seconds": 1.0, "step": 3, "grad_norm": 0.5}
    assert device.largest_gap({**row, "seconds": 9.0}, row) == (0.0, "loss")
    assert device.largest_gap({**row, "grad_norm": 0.6}, row) == (pytest.approx(0.2), "grad_norm")
    for found in ({**row, "loss": float("nan")}, {"grad_norm": 0.5}):
        assert device.largest_gap(found, row) == (float("inf"), "loss")


def test_a_method_that_differs_or_ends_early_is_named(on, monkeypatch):
    on = device.replace(on, device="cuda", methods=("sft", "dpo"))
    rows = {("sft", "cuda", ()): {"loss": 1.0}, ("sft", "cpu", ()): {"loss": 1.0},
            ("dpo", "cuda", ()): {"loss": 2.0}, ("dpo", "cpu", ()): {"loss": 2.01},
            ("sft", "cuda", ("--dtype", "bfloat16", "--lora", "4")): {"loss": 7.0},
            ("dpo", "cuda", ("--dtype", "bfloat16", "--lora", "4")): {"loss": 7.0}}
    monkeypatch.setattr(device, "first_row", lambda on, *run: rows[run[:-1]])
    state, said = device.methods_of(on)
    assert state == OK and said.startswith("6 runs end") and "loss of dpo" in said
    rows["dpo", "cpu", ()] = {"loss": 2.1}
    assert device.methods_of(on) == (WRONG, "dpo: loss differs by 4.8e-02 of it")
    rows["dpo", "cpu", ()] = "Error: no"
    assert device.methods_of(on) == (WRONG, "dpo cpu: Error: no")


def test_the_first_row_of_a_demo_or_why_there_is_none(on, tmp_path, monkeypatch):
    late = device.replace(on, begun=time.monotonic() - device.END)
    assert device.first_row(late, "sft", "cpu", (), tmp_path / "a") == "not done in time"
    said = device.first_row(on, "sft", "cpu", ("--lr", "-1"), tmp_path / "b")
    assert said.startswith("error: ") and "lr" in said
    assert device.first_row(on, "dpo", "cpu", (), tmp_path / "c")["loss"] > 0


def test_what_is_measured_is_held_to_what_is_computed(on, monkeypatch):
    """As on a GPU, whose memory is made up here."""
    @dataclass
    class Taken:
        bytes: float

    taken = Taken(0.0)
    gpu = device.replace(on, device="cuda")
    for name, found in {"empty_cache": None, "reset_peak_memory_stats": None,
                        "memory_allocated": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: taken.bytes)
    way = device.Way()
    _, said = device.memory_of(gpu, "tiny", on.shapes["tiny"], way)
    assert "taken 0.00 GB" in said and "tiny, the defaults, 72 tokens" in said
    taken.bytes = 1e12
    assert device.memory_of(gpu, "tiny", on.shapes["tiny"], way)[0] == WRONG


def test_a_size_that_does_not_fit_is_wrong_and_the_next_is_tried(on, monkeypatch):
    tried = []

    def full(run, cfg):
        tried.append(run.policy.module.bytes_per_token)
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(device.grpo, "train", full)
    two = device.replace(on, sizes={"a": device.TINY, "b": device.TINY})
    assert device.fits(two) == [(WRONG, f"{name}, the defaults: CUDA out of memory")
                                for name in "ab"]
    device.memory(on)
    assert tried[0] < tried[2]  # with --gradient-checkpointing, and without


def test_shard_and_lora_are_options_that_train_may_have(on, monkeypatch):
    """They are asked of the options, so that a version without them leaves them out."""
    asked = []
    monkeypatch.setattr(device, "trained", lambda on, name, *rest: asked.append((name, rest)) or (
        OK, ""))
    device.shard(on), device.lora(on)
    assert [name for name, _ in asked] == ["shard", "lora"]
    assert "torch.distributed.run" in asked[0][1][1] and asked[1][1] == (["--lora", "4"],)
    assert "seed" in {field.name for field in device.fields(train.Options)}
