"""Universal self-consistency: what is asked, what is taken, and where it is a vote."""

import random
import re

import pytest
from fakes import Echo
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.measure.texts import Texts
from minipost.tasks import choose as lists
from minipost.tasks.choose import Choose
from minipost.test_time import universal_self_consistency as universal


class Chooser:
    """A model with given samples in turn, whose choice is reply(the entries of a list)."""

    def __init__(self, drawn, reply, task=None):
        self.drawn, self.reply, self.task = [list(row) for row in drawn], reply, task or Choose()
        self.tokens, self.asked = 0, []

    arm = Texts.arm

    def sample(self, texts, n):
        self.tokens += 10 * n * len(texts)
        return [[row[k % len(row)] for k in range(n)] for _, row in zip(texts, self.drawn)]

    def greedy(self, texts):
        self.asked += texts
        self.tokens += len(texts)
        return [self.reply(re.findall("^[0-9]: (.*)$", text, re.MULTILINE)) for text in texts]

    def right(self, problems, answers):
        return self.task.reward([""] * len(answers), answers, [p.columns["good"] for p in problems],
                                [()] * len(answers))


def always(text):
    return lambda entries: text


FORMS = st.builds(lambda total, seed: lists.formed(total, random.Random(seed))[1],
                  st.integers(10, 14), st.integers(0, 99))
SAMPLES = st.lists(st.one_of(FORMS, st.sampled_from(["12", "none", "-3"])), min_size=1,
                   max_size=lists.MOST)
CFG = universal.Config(group_size=4)


def solved(drawn, reply, n=None):
    tools = Chooser([[f"Answer: {entry}" for entry in drawn]], reply)
    (answer,), (working,) = universal.solve(Choose().heldout(1), tools,
                                            universal.Config(group_size=n or len(drawn)))
    return answer, working, tools


def test_a_single_sample_is_the_answer_and_nothing_is_asked():
    answer, working, tools = solved(["3+4", "9"], always("Answer: 2"), n=1)
    assert answer == "Answer: 3+4" and tools.asked == [] and tools.tokens == 10
    assert working["chosen"] == 0 and working["reply"] == ""


@pytest.mark.parametrize("reply", ["Answer: 1", "", "Answer: 0", "Answer: 4", "Answer: -1", "2",
                                   "Answer: two", "Most: 2\n3"])
def test_who_always_says_the_first_or_nothing_takes_the_first_sample(reply):
    assert solved(["3+4", "9", "2+5"], always(reply))[0] == "Answer: 3+4"


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_answer_is_the_one_that_is_named(k):
    entries = ["3+4", "9", "2+5"]
    answer, working, tools = solved(entries, always(f"Most: 9\nAnswer: {k}"))
    assert answer == f"Answer: {entries[k - 1]}" and working["chosen"] == k - 1
    assert tools.asked == ["Choose:\n1: 3+4\n2: 9\n3: 2+5\nMost agree on:\n"]
    assert universal.show(working)[k - 1].startswith("->")


@given(SAMPLES)
def test_a_perfect_choice_is_the_vote_by_value(drawn):
    """Up to ties, of which both take the first."""
    answer, _, tools = solved(drawn, lists.reply)
    values = [tools.task.ballot(f"Answer: {entry}") for entry in drawn]
    known = [v for v in values if v is not None]
    expected = max(known, key=known.count) if known else values[0]
    assert tools.task.ballot(answer) == expected


@given(SAMPLES, st.randoms(use_true_random=False))
def test_a_perfect_choice_does_not_mind_the_order(drawn, rng):
    """Where no two values tie."""
    values = [Choose().ballot(f"Answer: {entry}") for entry in drawn]
    most = sorted((values.count(v) for v in set(values) - {None}), reverse=True)
    if not most or most[:2] == most[:1] * 2:
        return
    shuffled = rng.sample(drawn, len(drawn))
    first, other = (Choose().ballot(solved(each, lists.reply)[0]) for each in (drawn, shuffled))
    assert first == other


def test_the_arms_tell_votes_by_text_and_by_value_and_the_choice_apart():
    """Wrong answers alike to the letter win the vote by text, right ones in many forms the rest."""
    problem, = Choose().heldout(1)
    total, = problem.columns["good"]
    drawn = [f"Answer: {total + 1}", f"Answer: {total}+0", f"Answer: {total + 1}",
             f"Answer: {total + 3}-3", f"Answer: {total + 2}-2"]
    tools = Chooser([drawn], lists.reply)
    found = {arm.name: arm for arm in universal.arms([problem], tools,
                                                     universal.Config(group_size=5))}
    right = {name: arm.result.rewards[0] for name, arm in found.items()}
    assert list(found) == [f"{name}{mode}" for mode in ("", ", plain") for name in (
        "1 sample", "vote by text", "vote by value", "universal", "universal, turned round",
        "the same turned round")]
    for mode in ("", ", plain"):
        assert right[f"1 sample{mode}"] == right[f"vote by text{mode}"] == 0
        assert right[f"vote by value{mode}"] == right[f"universal{mode}"] == 1
        assert right[f"the same turned round{mode}"] == 1
        assert found[f"1 sample{mode}"].tokens == 10 and found[f"vote by text{mode}"].tokens == 50
        assert found[f"universal{mode}"].tokens == 51 == found[f"universal, turned round{mode}"
                                                               ].tokens


def test_who_always_says_the_first_is_seen_to_mind_the_order():
    problem, = Choose().heldout(1)
    tools = Chooser([["Answer: 3", "Answer: 4"]], always("Answer: 1"))
    found = {arm.name: arm.result for arm in universal.arms([problem], tools,
                                                           universal.Config(group_size=2))}
    assert found["the same turned round"].rewards == [0.0]
    assert found["universal, turned round"].texts == ["Answer: 4"]


def test_what_cannot_be_listed_is_refused_in_a_sentence():
    with pytest.raises(MinipostError, match="echo has no form for a list of answers"):
        universal.choose(Echo().heldout(1), [["a", "b"]], None, Echo())
    with pytest.raises(MinipostError, match="at most 6 answers, not 7"):
        solved(["1"] * 7, always(""))
