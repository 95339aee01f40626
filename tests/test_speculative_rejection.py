"""Speculative rejection against best of n."""

import random
from types import SimpleNamespace

import pytest
from fakes import Babble, Echo
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.base import Problem
from minipost.test_time import speculative_rejection as spec


class Writers:
    """Answers of `length` steps; each step is a number within 0..1, its own chance.

    The first steps differ, since a writer is known by them.
    """

    def __init__(self, seed, n, length):
        rng = random.Random(seed)
        self.length, self.sampled = length, 0
        self.lines = [[f"{rng.random():.3f}{w:02}" for _ in range(length)] for w in range(n)]

    def step(self, texts, n):
        """Each text goes on as the writer whose lines it holds; who begins is next in turn."""
        assert n == 1
        found = []
        for text in texts:
            self.sampled += 1
            lines = text.removeprefix("?").split(";")[:-1]
            mine = next(w for w in self.lines if w[: len(lines)] == lines) if lines else \
                self.lines[self.sampled - 1]
            last = len(lines) + 1 == self.length
            found.append([mine[len(lines)] + ("" if last else ";")])
        return found

    def run(self, score, n, **options):
        options = {"alpha": 0.5, "memory": 8, "depth": 32, **options}
        mine, = spec.search(["?"], self.step, score, mark=";", group_size=n, **options)
        return mine


def least(rows):
    return [min(map(float, text.rstrip(";").split(";"))) for _, text, _ in rows]


@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 5))
def test_without_rejection_it_is_best_of_n(seed, n, length):
    writers = Writers(seed, n, length)
    mine = writers.run(least, n, alpha=0.0)
    assert [a.text for a in mine] == [";".join(lines) for lines in writers.lines]
    assert not any(a.rejected or a.going for a in mine) and writers.sampled == n * length


@given(st.integers(0, 999), st.integers(2, 12), st.integers(2, 5),
       st.sampled_from([0.2, 0.5, 0.9]), st.integers(1, 30))
def test_it_spends_less_and_keeps_what_begins_best(seed, n, length, alpha, memory):
    writers = Writers(seed, n, length)
    mine = writers.run(least, n, alpha=alpha, memory=memory)
    assert writers.sampled == sum(a.steps for a in mine) <= n * length
    left = [a for a in mine if not a.rejected]
    assert left and not any(a.going for a in left) and all(a.going for a in mine if a.rejected)
    counts = [n]
    for k in range(1, max(a.rejected for a in mine) + 1):
        gone = [a for a in mine if a.rejected == k]
        assert len(gone) == int(alpha * counts[-1]) >= 1
        assert len({a.steps for a in gone}) == 1                # they were all as far
        worst = max(a.score for a in gone)                      # nobody who stayed was worse then
        for other in mine:
            if not 0 < other.rejected <= k:
                lines = other.text.split(";")[: gone[0].steps]
                assert min(map(float, lines)) >= worst
        assert counts[-1] * gone[0].steps >= memory
        counts.append(counts[-1] - len(gone))
    for a in left:
        assert a.score == min(map(float, a.text.split(";")))


@pytest.mark.parametrize("alpha, n, gone", [(0.29, 100, 29), (0.7, 10, 7), (0.57, 100, 57),
                                            (0.29, 99, 28)])
def test_the_share_of_the_alpha_that_was_written_is_rejected(alpha, n, gone):
    mine = Writers(0, n, 2).run(least, n, alpha=alpha, memory=n)
    assert sum(a.rejected == 1 for a in mine) == gone


@given(st.integers(0, 999), st.integers(2, 12))
def test_a_score_that_the_beginning_settles_loses_nothing(seed, n):
    """If what begins better ends better, the answer is that of best of n."""
    def first(rows):
        return [float(text.split(";")[0]) for _, text, _ in rows]

    found = []
    for alpha in (0.0, 0.5):
        mine = Writers(seed, n, 4).run(first, n, alpha=alpha, memory=1)
        found.append(max((a for a in mine if not a.rejected), key=lambda a: a.score).text)
    assert found[0] == found[1]


def test_the_score_of_a_beginning_leaves_out_what_is_said_of_the_whole():
    """A verifier's last number is about a finished answer."""
    class Tools(Babble):
        def verified(self, prompts, answers):
            return [[0.9, 0.2 if answer.startswith("b") else 0.8, 0.1] for answer in answers]

    tools = Tools(Echo(), ["a\n", "b\n", "c", "d"])
    cfg = spec.Config(group_size=2, memory=1, alpha=0.5, score="verifier")
    (answer,), (working,) = spec.solve([Problem("a", {"letter": "a"})], tools, cfg)
    assert answer == "a\nc" and working["chosen"] == 0
    assert [a["score"] for a in working["samples"]] == [0.1, 0.2]
    assert spec.show(working)[1].endswith("rejected in round 1")


def test_own_verdicts_are_asked_of_what_stands_there():
    class Tools(Babble):
        def worth(self, states, votes, known):
            assert votes == 5
            return [0.9 if text.startswith("b") else 0.4 for _, text in states]

    tools = Tools(Echo(), ["a\n", "b\n", "c"])
    cfg = spec.Config(group_size=2, memory=1, votes=5)
    (answer,), (working,) = spec.solve([Problem("a", {"letter": "a"})], tools, cfg)
    assert answer == "b\nc" and [a["rejected"] for a in working["samples"]] == [1, 0]


def test_it_asks_for_a_reward_model():
    with pytest.raises(MinipostError, match="--verifier DIR"):
        spec.solve([Problem("a")], SimpleNamespace(verifier=None),
                   spec.Config(score="verifier"))
