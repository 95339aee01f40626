"""Particles against the laws that they sample from."""

import math
import random
from collections import Counter

import pytest
from fakes import Babble, Echo
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.base import Problem
from minipost.test_time import particles


class Coins:
    """Answers of two tosses; `odds` gives the chance of each beginning."""

    def __init__(self, seed, odds):
        self.rng, self.odds, self.steps = random.Random(seed), odds, 0

    def step(self, texts, n):
        assert n == 1
        self.steps += len(texts)
        return [[self.rng.choice("ab") + (";" if text == "?" else "")] for text in texts]

    def chance(self, rows):
        return [self.odds[text.replace(";", "")] for _, text, _ in rows]

    def run(self, **options):
        options = {"particles": 64, "tau": 1.0, "resample": "softmax", "depth": 9, **options}
        (swarm,), (rounds,) = particles.search(["?"], self.step, self.chance, mark=";", **options)
        return swarm, rounds


ODDS = {"a": 0.75, "b": 0.5, "aa": 0.6, "ab": 0.3, "ba": 0.9, "bb": 0.1}


def test_a_round_is_drawn_by_the_odds():
    """Of 4000 first steps three in four go on from a, whose odds are 3 to 1."""
    coins = Coins(0, ODDS)
    swarm, (first, second) = coins.run(particles=4000)
    assert coins.steps == 2 * 4000
    share = Counter(text[0] for text, _, _ in swarm)["a"] / 4000
    assert abs(share - 3 / 4) < 0.03                            # 4 standard deviations
    assert all(w in (pytest.approx(math.log(3)), 0.0) for _, w in first)
    assert [i for i, _ in second] == list(range(4000))          # nobody is drawn when all are done
    for text, going, weight in swarm:
        p = ODDS[text.replace(";", "")]
        assert not going and weight == pytest.approx(math.log(p / (1 - p)))


@given(st.integers(0, 99))
def test_a_high_temperature_prefers_nobody_and_a_low_one_copies_the_best(seed):
    swarm, (first, _) = Coins(seed, ODDS).run(particles=8, tau=1e-9)
    assert len({w for _, w in first}) == 1                      # all from one of the best
    assert first[0][1] == pytest.approx(math.log(3)) or all(
        text[0] == "b" for text, _, _ in swarm)
    _, (first, _) = Coins(seed, ODDS).run(particles=200, tau=1e9)
    share = sum(w > 0 for _, w in first) / 200
    assert 0.25 < share < 0.75                                  # as many as were tossed


@given(st.integers(0, 99), st.sampled_from([4, 8, 12]))
def test_the_beam_keeps_the_best_quarter(seed, n):
    coins, drawn = Coins(seed, ODDS), []

    def step(texts, k):
        found = coins.step(texts, k)
        drawn.append([text + more for text, (more,) in zip(texts, found)])
        return found

    (swarm,), (rounds,) = particles.search(["?"], step, coins.chance, mark=";", particles=n,
                                           tau=1.0, resample="top", depth=9)
    best = sorted(drawn[0], key=lambda text: -ODDS[text[1]])[: n // 4]
    assert Counter(text[:3] for text in drawn[1]) == Counter(best * 4)
    assert len(swarm) == n


@given(st.integers(0, 99), st.integers(1, 9))
def test_without_resampling_everybody_goes_his_own_way(seed, n):
    coins, other = Coins(seed, ODDS), random.Random(seed)
    swarm, rounds = coins.run(particles=n, resample="never")
    firsts = [other.choice("ab") for _ in range(n)]
    assert [text for text, _, _ in swarm] == [f"{a};{other.choice('ab')}" for a in firsts]
    assert all([i for i, _ in made] == list(range(n)) for made in rounds)


def test_a_chance_of_a_beginning_leaves_out_what_is_said_of_the_whole():
    class Tools(Babble):
        def verified(self, prompts, answers):
            return [[0.9, 0.2 if answer.startswith("b") else 0.8, 0.1] for answer in answers]

    tools = Tools(Echo(), ["a\n", "b\n", "c", "d"])
    (answer,), (working,) = particles.solve([Problem("a", {"letter": "a"})], tools,
                                            particles.Config(particles=2, resample="never"))
    assert answer == "a\nc" and working["weight"] == pytest.approx(math.log(0.1 / 0.9))
    assert [w for _, w in working["rounds of particles"][0]] == pytest.approx(
        [math.log(0.8 / 0.2), math.log(0.2 / 0.8)])
    assert particles.show(working) == [
        "step 1: 2 of 2 go on; log-odds -1.39 to 1.39", "step 2: 2 of 2 go on; log-odds -2.20 to "
        "-2.20", "answer, log-odds -2.20: 'a\\nc'"]
    tools.verifier = None
    with pytest.raises(MinipostError, match="--verifier DIR"):
        particles.solve([Problem("a")], tools, particles.Config())
