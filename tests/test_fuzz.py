"""Hostile files and texts: every reader opens them or refuses them in one sentence."""

import pytest

from minipost import checkpoint
from minipost.layout import vocabulary_file
from minipost.tokenizer import Tokenizer
from scripts import fuzz


@pytest.mark.parametrize("name", fuzz.FUZZERS)
def test_a_reader_opens_or_refuses(name):
    record = fuzz.FUZZERS[name](150, seed=3)
    assert record.inputs == 150 and record.opened > 3
    assert not record.crashes, record.crashes[0]
    assert record.sentence < 400 and record.memory < 512


@pytest.mark.parametrize("name, owner, reader", [
    ("config", checkpoint, "read_config"), ("generation", vocabulary_file, "is_id"),
    ("tokenizer", Tokenizer, "load"), ("weights", checkpoint, "check_tensor"),
])
def test_the_fuzzer_sees_a_reader_that_crashes(monkeypatch, name, owner, reader):
    real = fuzz.look

    def look(*arguments):
        def broken(*arguments, **options):
            raise KeyError("planted")
        monkeypatch.setattr(owner, reader, broken)
        return real(*arguments)

    monkeypatch.setattr(fuzz, "look", look)
    assert fuzz.FUZZERS[name](20, seed=0).crashes


def test_a_crash_makes_the_exit_code_one(monkeypatch, capsys):
    assert fuzz.main(["--n", "3", "--only", "problems"]) == 0
    monkeypatch.setattr(fuzz, "use", None)
    monkeypatch.setattr(Tokenizer, "load", None)
    assert fuzz.main(["--n", "3", "--only", "tokenizer"]) == 1
    assert "3 crashes" in capsys.readouterr().out
