"""Budget forcing: what is put in, where, and how often."""

import random
import re

import pytest
from fakes import Babble
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.search import Search
from minipost.test_time import budget_forcing

WAIT, END = " no", "Answer:"


def always(text, more, over):
    """There is room for whatever is put in."""
    return True


class Thinker:
    """A model whose next line follows from the text before it, as at temperature 0."""

    def __init__(self, seed):
        self.seed, self.asked = seed, []

    def next(self, text):
        rng = random.Random(f"{self.seed} {text}")
        kind = rng.random()
        if kind < 0.3:
            return f"{END} {rng.randrange(9)}"
        return f"x{rng.randrange(9)}\n" if kind < 0.95 else "silent"

    def step(self, texts, n):
        self.asked += texts
        return [[self.next(text)] * n for text in texts]

    def sample(self, texts, n):
        return [[f" {len(text)}"] * n for text in texts]

    def plain(self, prompt):
        """What it says by itself."""
        text = ""
        while (more := self.next(prompt + text)).endswith("\n"):
            text += more
        return text + more

    def forced(self, waits, budget, prompts=("?",)):
        return budget_forcing.search(list(prompts), self.step, self.sample, heard=always, mark="\n",
                                     waits=waits, budget=budget, wait=WAIT, end=END)


SEEDS, WAITS, BUDGETS = st.integers(0, 10_000), st.integers(0, 4), st.integers(0, 6)


@given(SEEDS)
def test_without_a_wait_and_within_the_budget_it_is_the_plain_answer(seed):
    found, = Thinker(seed).forced(0, 1000)
    assert found == (plain := Thinker(seed).plain("?"), plain.count("\n"), 0)


@given(SEEDS, WAITS)
def test_a_wait_stands_exactly_where_the_end_stood(seed, waits):
    """Take each wait away, and the model ends there by itself; nothing else has changed."""
    model = Thinker(seed)
    (text, lines, put), = model.forced(waits, 1000)
    assert put == text.count(WAIT) <= waits and lines == text.count("\n")
    for found in re.finditer(WAIT, text):
        assert not model.next("?" + text[: found.start()] + "\n").endswith("\n")
    assert END not in text[: text.rfind("\n") + 1]
    assert put == waits or lines == 0          # only where nothing was thought is no wait put in
    assert not model.next("?" + text[: text.rfind("\n") + 1]).endswith("\n")


@given(SEEDS, WAITS, BUDGETS)
def test_the_budget_is_kept_and_then_the_answer_is_asked_for_at_once(seed, waits, budget):
    model = Thinker(seed)
    (text, lines, put), = model.forced(waits, budget)
    (free, free_lines, _), = model.forced(waits, 1000)
    assert lines == min(budget, free_lines) and text.count("\n") == lines
    if free_lines < budget:
        assert text == free
    else:
        thought = text[: text.rfind("\n") + 1]
        assert text == f"{thought}{END} {len('?' + thought + END)}"
        # The thought is that of the free one up to there, but for waits that come later.
        assert free.startswith(thought.removesuffix("\n"))
    assert put == text.count(WAIT) <= waits


@given(SEEDS, WAITS, BUDGETS)
def test_prompts_do_not_touch_each_other_and_no_line_is_asked_for_twice(seed, waits, budget):
    model, prompts = Thinker(seed), ["?", "!", "so?"]
    assert model.forced(waits, budget, prompts) == [
        Thinker(seed).forced(waits, budget, [p])[0] for p in prompts]
    assert len(model.asked) == len(set(model.asked))


def test_an_end_is_known_by_how_its_line_begins_too():
    """"Answer:" with a mark behind it ends the thought, as one without does."""
    words = iter(["x\n", "Answer: 1\n", "y\n", "Answer: 2\n"])
    found = budget_forcing.search(["?"], lambda texts, n: [[next(words)] for _ in texts],
                                  lambda texts, n: [], heard=always, mark="\n", waits=1, budget=9,
                                  wait=WAIT, end=END)
    assert found == [("x no\ny\nAnswer: 2\n", 2, 1)]


@pytest.mark.parametrize("room, text, put", [
    (20, "x no\ny no\nz\nAnswer: forced", 2), (19, "x no\ny no\nz\n", 2),
    (10, "x no\ny\nAnswer: 1", 1), (5, "x\nAnswer: 1", 0)])
def test_what_leaves_no_room_to_go_on_is_not_put_in(room, text, put):
    """Of a wait there is the text that it makes, with what it replaces taken away."""
    words, seen = iter(["x\n", "Answer: 1", "y\n", "Answer: 1", "z\n"]), []

    def heard(text, more, over):
        seen.append(text.removesuffix(over) + more)
        return len(text) + len(more) - len(over) <= room

    found, = budget_forcing.search(
        ["?"], lambda texts, n: [[next(words)] for _ in texts],
        lambda texts, n: [[" forced"] for _ in texts], heard=heard, mark="\n", waits=2, budget=3,
        wait=WAIT, end=END)
    assert found[0] == text and found[2] == put
    assert seen == ["?x no\n", "?x no\ny no\n", "?x no\ny no\nz\nAnswer:"][: len(seen)]


def test_the_arms_measure_what_they_name_and_the_vote_spends_as_much():
    problems = Search().sample(3, random.Random(0))
    tools = Babble(Search(), ["x\n", "Answer: 1", "y\n", "z\n", "Answer: 2"])
    cfg = budget_forcing.Config(waits=2, budget=8, curve=(1,), cuts=(3,))
    arms = {arm.name: arm for arm in budget_forcing.arms(problems, tools, cfg)}
    assert list(arms) == ["as it ends", "waits 1", "waits 2", "waits 2, cut at 3",
                          "vote, tokens of waits 2"]
    for name, waits, most in (("as it ends", 0, 8), ("waits 1", 1, 8), ("waits 2", 2, 8),
                              ("waits 2, cut at 3", 2, 3)):
        for working in arms[name].workings:
            assert working["waits"] <= waits and working["lines of thought"] <= most
    assert max(w["waits"] for w in arms["waits 2"].workings) == 2
    vote = arms["vote, tokens of waits 2"]
    assert vote.tokens >= arms["waits 2"].tokens > vote.tokens - len(problems)


def test_without_waits_the_arms_that_are_compared_are_one():
    tools = Babble(Search(), ["x\n", "Answer: 1", "y\n", "z\n", "Answer: 2"])
    cfg = budget_forcing.Config(waits=0, curve=(0,), cuts=(1,))
    found = list(budget_forcing.arms(Search().sample(3, random.Random(0)), tools, cfg))
    assert [arm.name for arm in found] == ["as it ends", "waits 0", "waits 0, cut at 1",
                                           "vote, tokens of waits 0"]
    assert found[0].result == found[1].result and found[0].tokens == found[1].tokens


@pytest.mark.parametrize("name, values", [("curve", (1, -1)), ("cuts", (10_001,))])
def test_numbers_that_nobody_can_wait_for_are_refused(name, values):
    with pytest.raises(MinipostError, match=f"{name} is .*; expected numbers from 0 to 10000"):
        budget_forcing.Config(**{name: values})
