"""Continuations of texts: where they end, how long they are, that each call draws afresh."""

import itertools

from fakes import Letters, make_run, small
from hypothesis import given
from hypothesis import strategies as st

from minipost.sampler import Sampler, ends
from minipost.tasks.base import Problem


class Bytes:
    """A vocabulary whose tokens are any pieces of bytes."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids):
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


@given(st.text("a\n\né北", max_size=12), st.sampled_from(["\n", "\n\n", "é", "a\n"]), st.data())
def test_a_step_ends_in_the_token_that_holds_the_last_byte_of_its_mark(text, mark, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)))) & set(range(len(raw))))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)])]
    expected, at = [], raw.find(mark.encode())
    while at >= 0:
        at += len(mark.encode())
        expected.append(next(k for k in range(len(pieces)) if len(b"".join(pieces[: k + 1])) >= at))
        at = raw.find(mark.encode(), at)
    assert ends(Bytes(pieces), range(len(pieces)), mark) == expected


@given(st.lists(st.sampled_from(["a", "b", "##", "#", "é", "aé#"]), max_size=8))
def test_marks_end_where_growing_prefixes_say(pieces):
    """The short cut, that only some tokens can end a mark, changes nothing."""
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    ids = list("".join(pieces).encode())
    for mark in ("#", "##", "é", "b", "ab"):
        slow = []
        for k in range(len(ids)):
            slow += [k] * (Bytes().decode(ids[: k + 1]).count(mark) - len(slow))
        assert ends(Bytes(), ids, mark) == slow


def test_continuations_end_at_the_mark_and_are_drawn_afresh_each_time():
    run = make_run(max_new_tokens=6)
    sample = Sampler(run, mark="c")
    first, second = sample(["ab", "a"], 40), sample(["ab", "a"], 40)
    assert [len(said) for said in first] == [40, 40] and first != second
    assert any(text.endswith("c") for said in first for text in said)
    for text in itertools.chain(*first):
        assert "c" not in text[:-1]
    again = Sampler(run, mark="c")
    assert again(["ab", "a"], 40) == first and again(["ab", "a"], 40) == second
    assert run.tokens == 0
    whole = Sampler(run)(["ab"], 40)[0]
    assert any("c" in text[:-1] for text in whole)
    with run.aside():
        plain = run.sample([Problem("ab")], 40, temperature=1.0, purpose="search 1")
    assert whole == run.texts(plain)


def test_what_ends_an_answer_is_no_text_whatever_the_tokenizer_shows():
    """An EOS that the tokenizer does not know as a control token would stay in it."""
    class Shown(Letters):
        def decode(self, ids):
            return "".join("<eos>" if i in self.eos else super(Shown, self).decode([i])
                           for i in ids)

    run = make_run(max_new_tokens=6)
    before = Sampler(run)(["ab"], 40)
    run.vocabulary = Shown()
    assert Sampler(run)(["ab"], 40) == before
    assert "<eos>" in run.vocabulary.decode([3, 2])


def test_an_answer_has_so_many_tokens_in_all_its_steps():
    """run.max_new_tokens of them however often it is gone on with, and no more than the context
    holds."""
    run = make_run(model=small(), max_new_tokens=6)
    assert run.policy.module.config.max_position_embeddings == 16
    sample, texts, longest = Sampler(run, "c"), ["ab", "abcdefgabcdefga", "abcdefgabcde"], 0
    said = sample(texts, 200)
    assert said[1] == [""] * 200                            # BOS and 15 letters fill the context
    assert max(map(len, said[0])) == 6 and max(map(len, said[2])) == 3
    beginnings = [texts[0] + more for more in set(said[0]) if more.endswith("c")]
    assert len(beginnings) > 2
    for _ in range(4):
        nexts = sample(beginnings, 100)
        for text, found in zip(beginnings, nexts):
            longest = max(longest, *(len(text) - 2 + len(more) for more in found))
        beginnings = list({text + more for text, found in zip(beginnings, nexts) for more in found
                           if more.endswith("c")})[:20] or beginnings
    assert longest == 6
    assert max(map(len, sample(texts[:1], 200)[0])) == 6    # of a text that ended at once, too


def test_a_mark_of_several_tokens_ends_a_continuation_too():
    run = make_run(max_new_tokens=6)
    said = Sampler(run, "ca")(["ab"], 300)[0]
    assert all("ca" not in text[:-2] for text in said) and any(text.endswith("ca") for text in said)


def test_what_somebody_else_wrote_counts_towards_the_length_of_an_answer():
    run = make_run(max_new_tokens=6)
    sample = Sampler(run, mark="c")
    text = next(found for found, in (sample(["ab"], 1)[:1] for _ in range(99))
                if found[0].endswith("c") and len(found[0]) < 4)[0]
    assert sample.heard("ab" + text, "de")
    left = 6 - len(text) - 2
    for said, in sample(["ab" + text + "de"] * 40, 1):
        assert len(said) <= left
    assert max(len(said) for said, in sample(["ab" + text + "de"] * 40, 1)) == left
    assert not sample.heard("ab" + text, "d" * (6 - len(text)))         # no room to go on
    assert sample.heard("ab" + text, "d" * (6 - len(text)), over="c")   # over a letter there is
    assert sample.made["ab" + text[:-1] + "d" * (6 - len(text))] == 5
