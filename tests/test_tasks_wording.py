"""The wording task: its gold reward by hand, its splits, its demonstrations and principles."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.base import Problem, is_held_out
from minipost.tasks.wording import (
    FITTING,
    HELD_OUT,
    KIND,
    KINDS,
    MOST,
    NAMES,
    PRINCIPLES,
    RUDE,
    TRAINING,
    Wording,
)

TASK = Wording()
SOUP = Problem("Praise the soup for Anna.\n", {"thing": "soup"})
WORDS = sorted({word for words in FITTING.values() for word in words} | set(RUDE) | {"soup", "the"})
said = st.lists(st.sampled_from(WORDS), max_size=12) | st.lists(
    st.sampled_from([*FITTING["food"], "ugly", "calm"]), max_size=12)  # with many repetitions


def reward(text, problem=SOUP):
    value, = TASK.reward([problem.prompt], [text], thing=[problem.columns["thing"]])
    return value


def fitting(problem):
    return FITTING[KIND[problem.columns["thing"]]]


# ---- the gold reward

@pytest.mark.parametrize("text, eighths", [
    ("fresh creamy rich tasty", 4),                         # the docstring's example
    ("", 0), ("   \n", 0), ("fresh", 1), (" fresh\n warm ", 2),
    ("fresh fresh", 1), ("fresh warm fresh fresh", 2),      # said again: nothing earned or lost
    ("ugly", -1), ("ugly ugly", -2), ("kind", -1), ("sturdy", -1), ("soup", -1), ("Fresh", -1),
    ("fresh,", -1),
    ("fresh crisp sweet rich tasty ripe spicy warm", 8),
    ("fresh crisp sweet rich tasty ripe spicy warm juicy", 7),      # a ninth word, though it fits
    ("ugly fresh crisp sweet rich tasty ripe spicy warm", 5),       # pushes a fitting one out
    ("fresh ugly warm kind", 0), ("ugly nasty lousy", -3),
])
def test_gold_by_hand(text, eighths):
    assert reward(text) == eighths / 8


@given(said)
def test_gold_is_counted_word_by_word(words):
    """From left to right: +1 for a new fitting word among the first eight, 0 again, else -1."""
    total, seen = 0, set()
    for place, word in enumerate(words):
        total += (word not in seen) if word in FITTING["food"] and place < 8 else -1
        seen.add(word)
    assert reward(" ".join(words)) == pytest.approx(total / 8)
    assert -len(words) / 8 <= reward(" ".join(words)) <= 1.0


@given(said, st.sampled_from(WORDS))
def test_each_further_word_costs_or_earns_an_eighth_unless_said_before(words, word):
    change = reward(" ".join([*words, word])) - reward(" ".join(words))
    again = word in words and word in FITTING["food"] and len(words) < MOST
    assert abs(change) == pytest.approx(0 if again else 1 / MOST)


@given(said.filter(lambda words: len(words) <= MOST), st.randoms(use_true_random=False))
def test_up_to_eight_words_may_stand_in_any_order(words, rng):
    value = reward(" ".join(words))
    rng.shuffle(words)
    assert reward(" ".join(words)) == value


def test_every_problem_can_earn_everything():
    for problem in TRAINING + HELD_OUT:
        assert len(set(fitting(problem))) == 10             # demonstrate takes up to 8 of them
        assert reward(" ".join(fitting(problem)[:MOST]), problem) == 1.0


def test_reward_takes_columns_as_lists():
    assert TASK.reward(["", ""], ["brave", "brave"], thing=["baker", "soup"]) == [1 / 8, -1 / 8]
    with pytest.raises(ValueError):
        TASK.reward([""], ["a", "b"], thing=["soup"])


# ---- the words

def test_no_word_fits_two_kinds_and_none_is_rude():
    words = Counter(word for fitting in FITTING.values() for word in fitting)
    assert max(words.values()) == 1 and not set(words) & set(RUDE)
    assert all(len(things.split()) == len(fitting.split()) == 10
               for things, fitting in KINDS.values())
    assert len(KIND) == 40


# ---- splits

def test_splits_share_no_problem():
    prompts = [p.prompt for p in TRAINING + HELD_OUT]
    assert len(set(prompts)) == len(prompts) == 40 * 30 == 40 * len(set(NAMES))
    assert 200 <= len(HELD_OUT) <= 400
    for held, problems in ((False, TRAINING), (True, HELD_OUT)):
        for problem in problems:
            thing, name = problem.columns["thing"], problem.prompt.split()[-1].strip(".")
            assert problem.prompt == f"Praise the {thing} for {name}.\n"
            assert is_held_out([thing, name], share=4) == held


def test_held_out_problems_are_never_sampled():
    held = {p.prompt for p in TASK.heldout(10**6)}
    drawn = {p.prompt for p in TASK.sample(20_000, random.Random(0))}
    assert len(held) == len(HELD_OUT) and not held & drawn
    assert len(drawn) > 0.99 * len(TRAINING)


def test_the_held_out_order_is_fixed_and_mixed():
    assert TASK.heldout(40) == TASK.heldout(99)[:40]
    assert {KIND[p.columns["thing"]] for p in TASK.heldout(40)} == set(KINDS)


# ---- demonstrations

def mean_gold(faults):
    rng, values = random.Random(1), []
    for problem in TASK.sample(1500, rng):
        values.append(reward(TASK.demonstrate(problem, rng, faults), problem))
    return sum(values) / len(values)


def test_more_faults_earn_less():
    """Without faults each of 2 to 8 words earns an eighth, with nothing else each costs one."""
    means = [mean_gold(faults) for faults in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(low < high - 0.2 for high, low in zip(means, means[1:])), means
    assert [means[0], means[-1]] == pytest.approx([5 / 8, -5 / 8], abs=0.03)


@pytest.mark.parametrize("faults", [0.0, 0.5, 1.0])
def test_a_demonstration_has_2_to_8_words_with_faults_of_every_kind(faults):
    rng, found, lengths = random.Random(2), Counter(), Counter()
    for problem in TASK.sample(800, rng):
        words = TASK.demonstrate(problem, rng, faults).split()
        lengths[len(words)] += 1
        for k, word in enumerate(words):
            found["repeated" if word in words[:k] else "rude" if word in RUDE else "fitting"
                  if word in fitting(problem) else "other"] += 1
    assert set(lengths) == set(range(2, MOST + 1)) and min(lengths.values()) > 60
    total = sum(found.values())
    assert found["fitting"] / total == pytest.approx(1 - faults, abs=0.03)
    if faults:
        assert found["other"] > 300 and found["rude"] > 300 and found["repeated"] > 30
        assert found["repeated"] / total < 0.2 * faults     # most by chance, among few rude words
        assert found["rude"] / found["other"] == pytest.approx(1, abs=0.4)


def test_demonstrations_follow_from_the_generator():
    assert TASK.demonstrate(SOUP) == TASK.demonstrate(SOUP)
    assert (TASK.demonstrate(SOUP, random.Random(5)) == TASK.demonstrate(SOUP, random.Random(5))
            != TASK.demonstrate(SOUP, random.Random(6)))


# ---- principles

@given(said)
def test_merit_under_each_principle(words):
    text = " ".join(words)
    good = len({word for word in words[:MOST] if word in FITTING["food"]})
    assert TASK.merit(SOUP, text, "fitting") == good - (len(words) - good)
    assert TASK.merit(SOUP, text, "fitting") <= MOST * reward(text)     # stricter on repetitions
    assert TASK.merit(SOUP, text, "brief") == -len(words)
    assert TASK.merit(SOUP, text, "polite") == -sum(word in RUDE for word in words)


def test_principles_disagree():
    texts = "fresh crisp warm", "fresh", "fresh crisp warm rich ripe ugly"
    merit = {name: [TASK.merit(SOUP, text, name) for text in texts] for name in PRINCIPLES}
    assert set(TASK.principles) == set(merit) == {"fitting", "brief", "polite"}
    assert [values.index(max(values)) for values in merit.values()] == [2, 1, 0]
    assert merit["polite"][0] == merit["polite"][1]


# ---- knobs and parsing

@given(st.text())
def test_parse_never_raises(text):
    assert TASK.parse(text) == (tuple(text.split()) or None)
    assert reward(text) <= 1.0


@pytest.mark.parametrize("noise", [-0.1, 0.5, 1.0, float("nan"), float("inf")])
def test_noise_that_makes_no_sense_is_refused(noise):
    with pytest.raises(MinipostError, match="noise is .*; expected at least 0, less than 0.5"):
        Wording(noise=noise)


def test_the_reward_is_hidden_and_noise_does_not_touch_it():
    assert TASK.hidden
    assert Wording(noise=0.4).reward([""], ["fresh"], thing=["soup"]) == [1 / 8]
