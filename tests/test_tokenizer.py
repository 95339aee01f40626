"""The tokenizer: every text survives, digits stand alone, control tokens cannot be smuggled in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tokenizer import BOS, EOS, PAD, Tokenizer
from scripts.pretrain import tokenizer

WORDS = tokenizer()


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_round_trip(text):
    assert WORDS.decode(WORDS.encode(text)) == text


@settings(max_examples=200)
@given(st.text("0123456789+-*/=:() \nAx", max_size=30))
def test_digits_and_signs_are_tokens_of_their_own(text):
    pieces = [WORDS.decode([i]) for i in WORDS.encode(text)]
    assert all(len(p.strip()) == 1 for p in pieces if any(c in "0123456789+-*/=:()" for c in p))
    assert "".join(pieces) == text


def test_size_and_control_tokens():
    ids = [WORDS.id(token) for token in (PAD, BOS, EOS)]
    assert len(set(ids)) == 3 and None not in ids
    assert WORDS.vocab_size == 512
    for token in (PAD, BOS, EOS):
        assert not set(WORDS.encode(f"a{token}b")) & set(ids)
        assert WORDS.decode(WORDS.encode(f"a{token}b")) == f"a{token}b"
    assert WORDS.decode([*ids, *WORDS.encode("x")]) == "x"


def test_what_it_learnt_is_shorter_than_bytes_and_always_the_same():
    prompt = "What is the capital of Norway?\n"
    assert len(WORDS.encode(prompt)) < len(prompt) / 2
    assert tokenizer().backend.to_str() == WORDS.backend.to_str()


def test_half_a_surrogate_pair_and_a_broken_file_are_refused(tmp_path):
    with pytest.raises(MinipostError, match="not valid Unicode"):
        WORDS.encode("a\ud800")
    with pytest.raises(MinipostError, match="nothing.json: no such file"):
        Tokenizer.load(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(MinipostError, match="broken.json: not a tokenizer"):
        Tokenizer.load(tmp_path / "broken.json")
