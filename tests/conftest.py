"""A tiny model directory, a JSONL file and reward functions for the tests that need whole runs."""

import inspect
import json
import os
import signal
import subprocess
import sys
from functools import wraps
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from minipost import checkpoint, train
from minipost.cli import session
from minipost.errors import LONGEST
from minipost.gpt import GPT, GPTConfig
from minipost.tokenizer import Tokenizer

torch.set_num_threads(1)
settings.register_profile("minipost", deadline=None, max_examples=40)
settings.load_profile("minipost")

TEXTS = ["7+5=? Answer: 12", "What is the capital of France?\nParis", "héhé straße 北京 ١٢٣"]


def tiny_model(tied=True, context=64, vocab=280, **shape):
    """A GPT with grouped queries and a head wider than hidden/heads, far from uniform."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12,
             "max_position_embeddings": context, "tie_word_embeddings": tied, **shape}
    model = GPT(GPTConfig(vocab, **shape)).initialise(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="session")
def words():
    return Tokenizer.train(TEXTS, 280)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, words):
    """The directory of a tiny untrained model; not to be written to."""
    directory = tmp_path_factory.mktemp("tiny")
    checkpoint.create(directory, tiny_model(), words)
    return directory


@pytest.fixture(scope="session")
def wide(tmp_path_factory, words):
    """The same with room for a question to a judge."""
    directory = tmp_path_factory.mktemp("wide")
    checkpoint.create(directory, tiny_model(context=256), words)
    return directory


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A JSONL file of 40 prompts with completions and a column `letter`."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}+5=?", "completion": f" {n + 5}",
                                        "letter": "abcd"[n % 4]}) + "\n" for n in range(40)))
    return path


@pytest.fixture(scope="session")
def python():
    """python(*arguments) -> the finished process, with returncode, stdout and stderr."""
    def start(*arguments):
        root = Path(checkpoint.__file__).parents[1]
        return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True,
                              text=True, env={**os.environ, "PYTHONPATH": str(root)}, timeout=300,
                              start_new_session=True)
    return start


@pytest.fixture
def reward(tmp_path):
    """A reward file with `length`, which tells most completions of an untrained model apart."""
    path = tmp_path / "reward.py"
    path.write_text("def length(completions, **columns):\n"
                    "    return [len(text) / 9 for text in completions]\n")
    return f"{path}:length"


@pytest.fixture
def command(tiny, rows, tmp_path):
    """command(algo, *flags) -> the arguments of a short run into tmp_path/run on one worker.

    The problems are those of `rows`, unless the flags name a task or a file.
    """
    def arguments(algo, *flags):
        problems = [] if {"--task", "--data"} & {*map(str, flags)} else ["--data", str(rows)]
        return ["--algo", algo, "--model", str(tiny), *problems, "--out", str(tmp_path / "run"),
                "--workers", "1", "--max-new-tokens", "4", "--eval-n", "3", "--show", "1",
                *map(str, flags)]
    return arguments


@pytest.fixture
def fails(capsys):
    """fails(arguments, *parts): the command says one whole sentence that holds these parts."""
    def check(arguments, *parts, main=train.main):
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < LONGEST + 9
        for part in parts:
            assert str(part) in said
    return check


@pytest.fixture
def spy(monkeypatch):
    """spy(owner, name) -> a list that receives (arguments by name, result) of every call."""
    def watch(owner, name):
        real, calls = getattr(owner, name), []

        @wraps(real)
        def called(*args, **kwargs):
            result = real(*args, **kwargs)
            calls.append((inspect.signature(real).bind(*args, **kwargs).arguments, result))
            return result
        monkeypatch.setattr(owner, name, called)
        return calls
    return watch


@pytest.fixture
def stopping(monkeypatch):
    """stopping(k): runs that start from now on get a SIGINT while they make step k."""
    log = session.Session.log

    def stop_after(k):
        def logging(of, metrics):
            log(of, metrics)
            if of.run.step == k:
                os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(session.Session, "log", logging)
    return stop_after
