"""The tokenizer: every text survives, digits stand alone, control tokens cannot be smuggled in."""


import json
import re

import foreign
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from minipost.errors import MinipostError
from minipost.tokenizer import BOS, EOS, PAD, Tokenizer, Vocabulary, guarded, unlike
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
    with pytest.raises(MinipostError, match="broken.json: cannot be read"):
        Tokenizer.load(tmp_path / "broken.json")


# ---- what stands before a text, and text that goes on behind other text

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
MADE = {name: make() for name, make in (foreign.PREFIXED | foreign.PLAIN).items()}


def opened(backend, folder):
    """The Vocabulary of a tokenizer that was saved and read again."""
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return Vocabulary(tokenizer, tokenizer.before, [2], 0)


def test_the_template_says_what_stands_before_a_prompt(tmp_path):
    assert WORDS.before == [WORDS.id(BOS)] and WORDS.behind == []
    for name, before in {"old llama": [1], "llama3": [1], "smollm": [], "unigram": [1]}.items():
        vocabulary = opened(MADE[name], tmp_path)
        assert vocabulary.before == before
        assert vocabulary.prompt("a 12") == MADE[name].encode("a 12").ids
        assert vocabulary.prompt("") == before


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """read(name) -> the Vocabulary of a tokenizer in MADE."""
    found = {name: opened(backend, tmp_path_factory.mktemp("words"))
             for name, backend in MADE.items()}
    return found.get


@pytest.mark.parametrize("name", MADE)
@given(data=st.data())
def test_an_answer_goes_on_behind_its_prompt_without_a_further_space(read, name, data):
    """It is the same text when decoded, and behind the prompt both are the text in one."""
    texts = ASCII if name == "unigram" else ANY             # which has no bytes for what is rare
    prompt, answer = (data.draw(texts).replace("▁", "") for _ in range(2))
    words = read(name)
    assert words.decode(words.response(answer)) == answer
    together = words.tokenizer.encode(prompt + answer)
    if prompt:
        assert words.decode(words.prompt(prompt) + words.response(answer)) == \
            words.decode(together)


def test_one_space_is_one_space(read):
    for name in foreign.PREFIXED:
        words = read(name)
        spaced, bare = ([words.tokenizer.backend.id_to_token(i) for i in words.response(text)]
                        for text in (" 12", "12"))
        assert all(words.decode(words.response(t)) == t for t in (" 12", "12", "  12", " "))
        assert "".join(spaced[:-1]).replace("Ġ", "▁") == "▁12" and "".join(bare[:-1]) == "12"
    for name in foreign.PLAIN:                              # one way to read all texts, as ever
        assert read(name).tokenizer.inside.to_str() == read(name).tokenizer.backend.to_str() or \
            name == "never"
        assert read(name).response(" 12")[:-1] == read(name).tokenizer.encode(" 12")


def test_kind_tells_vocabularies_apart_by_the_ids_they_give(read, tmp_path):
    words = read("llama3")
    bare = Backend.from_str(words.tokenizer.backend.to_str())
    bare.post_processor, bare.decoder = None, None
    same = Vocabulary(Tokenizer(bare), [1], [2], 7)         # other words for the same ids
    assert same.kind() == words.kind() != Vocabulary(Tokenizer(bare), [], [2], 0).kind()
    more = Vocabulary(Tokenizer(bare), [1], [2, 5], 0)
    assert more.kind() != words.kind() and unlike(same, words) == ""
    assert unlike(words, more) == "answers end with [2] and with [2, 5] (eos_token_id)"
    assert unlike(words, Vocabulary(Tokenizer(bare), [], [2], 0)) == "texts have other ids"
    bare.add_special_tokens(["<think>"])
    assert Vocabulary(Tokenizer(bare), [1], [2], 0).kind() != words.kind()


# ---- control tokens that belong to the user's data

TAGS = ["<think>", "</think>", "<｜tool▁é｜>"]


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """Our tokenizer with further control tokens, and PAD and EOS of its own."""
    backend = Backend.from_str(WORDS.backend.to_str())
    backend.add_special_tokens(TAGS)
    words = opened(backend, tmp_path_factory.mktemp("tagged"))
    return Vocabulary(words.tokenizer, words.before, [2], 0, {0})


def test_a_reward_sees_control_tokens_but_not_those_of_the_frame(tagged):
    ids = [tagged.tokenizer.id(token) for token in TAGS]
    assert ids == [512, 513, 514]
    x = tagged.tokenizer.encode("é 12")
    assert tagged.decode([1, ids[0], *x, ids[1], *x, 0, ids[2], 2]) == \
        "<think>é 12</think>é 12<｜tool▁é｜>"
    assert tagged.decode([]) == "" and tagged.tokenizer.decode([*ids, *x]) == "é 12"


@given(st.lists(st.sampled_from([*TAGS, "7+5", " é", "<", "think>", "\n"]), max_size=6))
def test_a_text_of_the_users_is_read_as_tokens_or_as_characters(tagged, pieces):
    text = "".join(pieces)
    tokens, plain = tagged.response(text, control=True), tagged.response(text)
    assert tagged.decode(tokens) == tagged.decode(plain) == text
    assert [i for i in tokens if i >= 512] == [
        tagged.tokenizer.id(token) for token in re.findall("|".join(TAGS), text)]
    assert max(plain, default=0) < 512
    assert tagged.prompt(text, control=True) == [1, *tokens[:-1]]
    assert set(tagged.spelt(text)) == {token for token in TAGS if token in text}


def test_what_is_wrong_with_a_text(tagged):
    text = "a</think> b<think>"
    assert tagged.spelt(text) == ["</think>", "<think>"]
    assert "'</think>'; say --control-tokens tokens" in tagged.complaint(text, "stop")
    assert "--control-tokens plain" in tagged.complaint(text, "stop")
    assert tagged.complaint(text, "tokens") == tagged.complaint(text, "plain") == ""
    for frame in (PAD, BOS, EOS):
        for choice in ("stop", "tokens"):
            assert f"{frame!r}, which is put where it belongs" in tagged.complaint(
                f"a<think>{frame}"[7 if choice == "stop" else 0:], choice)
        assert tagged.complaint(frame, "plain") == ""


def test_a_tag_behind_a_prompt_of_a_tokenizer_with_spaces(tmp_path):
    backend = foreign.old_llama()
    backend.add_special_tokens(["<think>"])
    words = opened(backend, tmp_path)
    think = words.tokenizer.id("<think>")
    ids = words.response("<think>12", control=True)
    assert ids[0] == think and words.decode(ids) == "<think>12"


# ---- descriptions that are refused

def described(**change):
    return {**json.loads(WORDS.backend.to_str()), **change}


def replace(content, pattern=None):
    return {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}


BPE = json.loads(WORDS.backend.to_str())["model"]


@pytest.mark.parametrize("change, part", [
    ({"model": {**BPE, "dropout": 0.1}}, "'dropout': 0.1; expected 0 or null"),
    ({"model": {**BPE, "continuing_subword_prefix": "##"}}, "': ##; expected null or ''"),
    ({"model": {**BPE, "colour": 1}}, "'colour': 1; expected only dropout, unk_token"),
    ({"pre_tokenizer": {"type": "Punctuation", "behavior": "x"}}, "expected 'Removed' or"),
    ({"model": {**BPE, "merges": [["a", "\u0120far"]]}}, "makes a token that it does not have"),
    ({"model": {**BPE, "vocab": {**BPE["vocab"], "zz": 3}}}, "'vocab'"),
    ({"model": {**BPE, "vocab": {**BPE["vocab"], "zz": -1}}}, "'vocab'"),
    ({"model": {"type": "Neural"}}, "of the kind 'Neural'"), ({"model": {"type": ["BPE"]}}, "kind"),
    ({"model": {"type": "BPE", "vocab": {}}}, "lacks 'merges'"), ({"model": []}, "no model"),
    ({"normalizer": {"type": "Sequence", "normalizers": [replace("aaaaaaaaaa")] * 3}}, "100 times"),
    ({"decoder": {"type": "Sequence", "decoders": [replace("a" * 50)] * 2}}, "100 times"),
    ({"normalizer": replace("", {"String": ""})}, "'pattern'"),
    ({"normalizer": replace("", {"Regex": "(a{1000}){1000}"})}, "'pattern'"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}, "charsmap"),
    ({"normalizer": {"type": "Sequence", "normalizers": 3}}, "a list of normalizers"),
    *(({"post_processor": {"type": kind, "sep": ["a", 5], "cls": ["b", 6]}},
       "write a TemplateProcessing of what stands before a prompt")
      for kind in ("BertProcessing", "RobertaProcessing")),
    ({"post_processor": {"type": "TemplateProcessing", "single": []}}, "lacks"),
    ({"pre_tokenizer": {"type": "Metaspace", "replacement": "ab"}}, "'replacement'"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
                        "invert": False}}, "library says"),
    ({"added_tokens": [{"id": 1}]}, "object of id, content"),
    ({"added_tokens": 3}, "added_tokens are 3; expected a list"),
])
def test_a_description_of_unknown_or_harmful_parts_is_refused(tmp_path, capfd, change, part):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(described(**change)))
    with pytest.raises(MinipostError) as error:
        Tokenizer.load(path)
    assert "/tokenizer.json: cannot be read (" in str(error.value)
    assert part in str(error.value) and "choose another model" in str(error.value)
    assert "panicked" not in capfd.readouterr().err


def test_a_panic_of_the_library_is_a_sentence():
    class PanicException(BaseException):
        pass

    def panics(*arguments, **options):
        raise PanicException("index out of range")

    with pytest.raises(MinipostError, match="library says: index out of range"):
        guarded(panics, "a")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(interrupted, "a")
