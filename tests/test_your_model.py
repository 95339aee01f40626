"""docs/your-model.md: each block that is marked runs, on a tiny model, in the order of the page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_model
from test_chat_runs import TEMPLATES
from tokenizers.pre_tokenizers import ByteLevel

from minipost import checkpoint
from minipost.tokenizer import Tokenizer
from scripts.real import rows

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "your-model.md").read_text()
BLOCKS = re.findall(r"<!-- run -->\n```(python)?\n(.*?)```", PAGE, re.S)


@pytest.fixture
def folder(tmp_path):
    """A folder with a chat model where the page has one, and the command `minipost`."""
    words = Tokenizer.train([m["content"] for row in rows(20)["sft"] for m in row["prompt"]], 300)
    words.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    words.backend.pre_tokenizer = ByteLevel(add_prefix_space=False)     # as llama.cpp knows it
    model = tmp_path / "runs/smollm2"
    checkpoint.create(model, tiny_model(context=256, vocab=words.backend.get_vocab_size()),
                      Tokenizer(words.backend))
    (model / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    (tmp_path / "bin").mkdir()
    for name, more in (("minipost", " -m minipost"), ("python", "")):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable}{more} "$@"\n')
        command.chmod(0o755)
    return tmp_path


def test_every_block_runs_in_order(folder):
    pytest.importorskip("gguf", reason="the extra 'gguf' installs it")
    pytest.importorskip("peft", reason="the extra 'interop' installs it")
    assert len(BLOCKS) == 7
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
           "PYTHONPATH": str(ROOT)}
    said = []
    for kind, text in BLOCKS:
        how = [sys.executable, "-c", text] if kind else ["sh", "-ec", text]
        done = subprocess.run(how, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (text, done.stdout[-1500:], done.stderr[-1500:])
        said.append(done.stdout)
    assert len((folder / "runs/rows/dpo.jsonl").read_text().splitlines()) == 500
    assert "FAULT" not in said[1], said[1]
    assert "which alone learn" in said[2] and "everything is in runs/dpo" in said[2]
    assert said[5].strip().endswith("LlamaForCausalLM")
    assert (folder / "runs/dpo.gguf").stat().st_size > 10_000
