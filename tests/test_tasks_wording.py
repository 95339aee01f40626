"""The wording task: its gold reward by hand, its splits, its demonstrations and principles."""

import random
from collections import Counter

import pytest
from hypothesis import given, strategies as st

from minipost.errors import MinipostError
from minipost.tasks.base import Problem, is_held_out
from minipost.tasks.wording import (
    FITTING, HELD_OUT, KIND, KINDS, MOST, PRINCIPLES, RUDE, TRAINING, Wording, gold,
)

TASK = Wording()
SOUP = Problem("Praise the soup. Avoid: ripe, sweet.\n", {"thing": "soup", "avoid": ("ripe", "sweet")})
WORDS = sorted({word for words in FITTING.values() for word in words} | set(RUDE) | {"soup", "the"})
said = st.lists(st.sampled_from(WORDS), max_size=12)


def reward(text, problem=SOUP):
    value, = TASK.reward([problem.prompt], [text],
                         **{key: [value] for key, value in problem.columns.items()})
    return value


# ---- the gold reward

@pytest.mark.parametrize("text, sixths", [
    ("fresh crisp tasty rich spicy warm", 6),               # the docstring's example
    ("", 0), ("   \n", 0), ("fresh", 1), ("fresh crisp", 2), (" fresh\n crisp ", 2),
    ("fresh fresh", 0),                                     # a repetition costs what it earned
    ("sweet", -1), ("fresh sweet", 0),                      # to be avoided
    ("ugly", -1), ("kind", -1), ("soup", -1), ("Fresh", -1), ("fresh,", -1),
    ("fresh crisp tasty rich spicy warm juicy", 5),         # a seventh word, though it fits
    ("ugly fresh crisp tasty rich spicy warm", 3),          # it pushes a sixth fitting one out
    ("fresh ugly crisp sweet kind warm", 0), ("ugly nasty lousy", -3),
])
def test_gold_by_hand(text, sixths):
    assert reward(text) == sixths / MOST


@given(said)
def test_gold_is_counted_word_by_word(words):
    """From left to right: +1/6 for a new fitting word among the first six, -1/6 for any other."""
    total, seen = 0, set()
    for place, word in enumerate(words):
        fits = (word in FITTING["food"] and word not in ("ripe", "sweet") and word not in seen
                and place < MOST)
        total += 1 if fits else -1
        seen.add(word)
    assert reward(" ".join(words)) == pytest.approx(total / MOST)
    assert -len(words) / MOST <= reward(" ".join(words)) <= 1.0


@given(said, st.sampled_from(WORDS))
def test_each_further_word_costs_or_earns_a_sixth(words, word):
    change = gold([*words, word], "soup", ("ripe", "sweet")) - gold(words, "soup", ("ripe", "sweet"))
    assert abs(change) == pytest.approx(1 / MOST)


@given(said.filter(lambda words: len(words) <= MOST), st.randoms())
def test_up_to_six_words_may_stand_in_any_order(words, rng):
    value = gold(words, "soup", ("ripe", "sweet"))
    rng.shuffle(words)
    assert gold(words, "soup", ("ripe", "sweet")) == value


def test_every_problem_can_earn_everything():
    for problem in TRAINING + HELD_OUT:
        fitting = [w for w in FITTING[KIND[problem.columns["thing"]]]
                   if w not in problem.columns["avoid"]]
        assert len(fitting) >= 8                            # demonstrate takes up to 8
        assert reward(" ".join(fitting[:MOST]), problem) == 1.0


def test_reward_takes_columns_as_lists():
    baker = Problem("", {"thing": "baker", "avoid": ("kind", "wise")})
    assert TASK.reward(["", ""], ["brave", "brave"], thing=["baker", "soup"],
                       avoid=[baker.columns["avoid"], ("ripe", "sweet")]) == [1 / 6, -1 / 6]
    with pytest.raises(ValueError):
        TASK.reward([""], ["a", "b"], thing=["soup"], avoid=[("ripe", "sweet")])


# ---- the words

def test_no_word_fits_two_kinds_and_none_is_rude():
    words = Counter(word for fitting in FITTING.values() for word in fitting)
    assert max(words.values()) == 1 and not set(words) & set(RUDE)
    assert all(len(things.split()) == len(fitting.split()) == 10
               for things, fitting in KINDS.values())
    assert len(KIND) == 40


# ---- splits

def test_splits_share_no_problem_and_prompts_say_what_columns_hold():
    prompts = [p.prompt for p in TRAINING + HELD_OUT]
    assert len(set(prompts)) == len(prompts) == 40 * 45
    assert 120 <= len(HELD_OUT) <= 240
    for held, problems in ((False, TRAINING), (True, HELD_OUT)):
        for problem in problems:
            thing, (first, second) = problem.columns["thing"], problem.columns["avoid"]
            assert problem.prompt == f"Praise the {thing}. Avoid: {first}, {second}.\n"
            assert is_held_out([thing, first, second]) == held
            assert {first, second} < set(FITTING[KIND[thing]])


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
    means = [mean_gold(faults) for faults in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(low < high - 0.1 for high, low in zip(means, means[1:])), means
    assert means[0] > 0.5 and means[-1] < -0.6


@pytest.mark.parametrize("faults", [0.0, 0.5, 1.0])
def test_a_demonstration_has_2_to_8_words_with_faults_of_every_kind(faults):
    rng, found = random.Random(2), Counter()
    for problem in TASK.sample(800, rng):
        words = TASK.demonstrate(problem, rng, faults).split()
        assert 2 <= len(words) <= 8
        fitting, avoid = FITTING[KIND[problem.columns["thing"]]], problem.columns["avoid"]
        for k, word in enumerate(words):
            found["repeated" if word in words[:k] else "rude" if word in RUDE else "avoid"
                  if word in avoid else "fitting" if word in fitting else "other"] += 1
    if faults == 0:
        assert set(found) == {"fitting"}
    elif faults == 1:
        assert set(found) == {"repeated", "rude", "avoid", "other"}
    else:
        assert all(found[kind] > 100 for kind in ("repeated", "rude", "avoid", "fitting", "other"))


def test_demonstrations_follow_from_the_generator():
    assert TASK.demonstrate(SOUP) == TASK.demonstrate(SOUP)
    assert (TASK.demonstrate(SOUP, random.Random(5)) == TASK.demonstrate(SOUP, random.Random(5))
            != TASK.demonstrate(SOUP, random.Random(6)))


# ---- principles

@given(said)
def test_merit_under_each_principle(words):
    text = " ".join(words)
    assert TASK.merit(SOUP, text, "fitting") == reward(text)
    assert TASK.merit(SOUP, text, "brief") == -len(words)
    assert TASK.merit(SOUP, text, "polite") == -sum(word in RUDE for word in words)


def test_principles_disagree():
    long, short, rude = "fresh crisp tasty", "fresh", "fresh crisp tasty rich ugly"
    merit = {name: [TASK.merit(SOUP, text, name) for text in (long, short, rude)]
             for name in PRINCIPLES}
    assert set(TASK.principles) == set(PRINCIPLES) == {"fitting", "brief", "polite"}
    best = {name: max(range(3), key=lambda k: values[k]) for name, values in merit.items()}
    assert best["fitting"] == 0 and best["brief"] == 1
    assert merit["polite"][2] < merit["polite"][0] == merit["polite"][1]


# ---- knobs and parsing

@given(st.text())
def test_parse_never_raises(text):
    found = TASK.parse(text)
    assert found == (tuple(text.split()) or None)
    assert reward(text) <= 1.0


@pytest.mark.parametrize("noise", [-0.1, 0.5, 1.0, float("nan"), float("inf")])
def test_noise_that_makes_no_sense_is_refused(noise):
    with pytest.raises(MinipostError, match="noise is .*; expected at least 0, less than 0.5"):
        Wording(noise=noise)


def test_the_reward_is_hidden_and_noise_does_not_touch_it():
    assert TASK.hidden and Wording(noise=0.4).reward([""], ["fresh"], thing=["soup"],
                                                     avoid=[("ripe", "sweet")]) == [1 / 6]
