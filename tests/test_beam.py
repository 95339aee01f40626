"""Beam search over steps against exhaustive search."""

import itertools
import math
import random

import pytest
import torch
from fakes import Babble, Echo, Letters, make_run, small
from hypothesis import given
from hypothesis import strategies as st

from minipost.measure.results import evaluate
from minipost.measure.stats import beginnings
from minipost.measure.texts import Texts
from minipost.run import Run
from minipost.tasks.base import Problem
from minipost.test_time import beam


class Tree:
    """Steps are single digits below `width`, `depth` of them; the last has no mark."""

    def __init__(self, seed, width=3, depth=3):
        self.rng, self.width, self.depth = random.Random(seed), width, depth
        self.worth, self.asked, self.judged = {}, 0, []

    def sample(self, texts, n):
        self.asked += len(texts) * n
        nexts = [[f"{k % self.width}" + ("," if text.count(",") < self.depth - 1 else "")
                  for k in range(n)] for text in texts]
        return nexts

    def value(self, texts):
        self.judged += texts
        return [self.worth.setdefault(text, self.rng.random()) for text in texts]


def found_by(prompts, sample, value, **options):
    """The search by a value of the whole text."""
    return beam.beam(prompts, sample, lambda rows: value([
        prompts[k] + text for k, text, _ in rows]), **options)


def leaves(tree):
    return [",".join(map(str, path)) for path in
            itertools.product(range(tree.width), repeat=tree.depth)]


@given(st.integers(0, 10_000))
def test_without_bounds_it_is_exhaustive_search(seed):
    tree = Tree(seed)
    found, = found_by(["?"], tree.sample, tree.value, mark=",", width=99, branching=3, depth=9)
    assert found == max(leaves(tree), key=lambda text: tree.worth["?" + text])
    assert len(tree.judged) == len(set(tree.judged)) == 3 + 9 + 27


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5))
def test_it_keeps_the_best_and_spends_what_it_says(seed, width, branching):
    tree = Tree(seed, width=4)
    found, = found_by(["?"], tree.sample, tree.value, mark=",", width=width, branching=branching,
                       depth=9)
    kept, spent, asked = [""], 0, tree.asked
    for _ in range(3):
        spent += len(kept) * branching
        nexts = {text + more for text in kept for more in tree.sample([text], branching)[0]}
        kept = sorted(nexts, key=lambda text: -tree.worth["?" + text])[:width]
    assert found == kept[0] and asked == spent
    assert len(tree.judged) == len(set(tree.judged))


def test_finished_answers_wait_for_better_ones_and_win_over_unfinished():
    worth = {"a": 5.0, "b,": 1.0, "b,c": 9.0, "x,": 3.0, "x,x,": 4.0}

    def sample(texts, n):
        return [{"": ["a", "b,"], "b,": ["c", "c"], "x": ["x,"]}[text][:n] for text in texts]

    def value(texts):
        return [worth[text] for text in texts]

    assert found_by([""], sample, value, mark=",", width=2, branching=2, depth=5) == ["b,c"]
    assert found_by([""], sample, value, mark=",", width=1, branching=2, depth=5) == ["a"]

    worth["b,c"] = 2.0
    assert found_by([""], sample, value, mark=",", width=2, branching=2, depth=5) == ["a"]
    worth |= {"a": 0.5, "b,": 8.0}
    assert found_by([""], sample, value, mark=",", width=2, branching=2, depth=1) == ["a"]

    def endless(texts, n):
        return [["x,"] * n for _ in texts]

    assert found_by(["", ""], endless, lambda texts: [1.0] * len(texts), mark=",", width=2,
                     branching=2,
                depth=3) == ["x,x,x,"] * 2
    nothing = found_by([""], lambda texts, n: [[""] * n for _ in texts],
                        lambda texts: [0.0] * len(texts),
                   mark=",", width=2, branching=2, depth=3)
    assert nothing == [""]


def test_searching_with_an_exact_value_finds_better_answers(monkeypatch):
    run, problems = make_run(max_new_tokens=5), Echo().sample(40, random.Random(0))
    before = evaluate(run, problems, 1.0)

    class Exact(torch.nn.Module):
        """The reward itself, as far as tokens tell: the share of the prompt's letter."""

        def at(self, tokens, where, prompts):
            same = (tokens[:, 2:] == tokens[:, 1:2]).double().cumsum(1)
            count = torch.arange(1, tokens.shape[1] - 1).clamp(min=3)
            return torch.nn.functional.pad(same / count, (2, 0))[where]

    after = beam.measure(problems, Texts(run, verifier=Exact(), stream="search"), 2, 8)
    assert sum(after.rewards) > 2 * sum(before.rewards)
    letters = [p.columns["letter"] for p in problems]
    assert after.rewards == Echo().reward(None, after.texts, letters)

    class Steps(Echo):
        step_end = "c"

    class GoOn(torch.nn.Module):
        """Best is what may go on."""

        def at(self, tokens, where, prompts):
            return (tokens == 3 + Letters.letters.index("c")).double()[where]

    run, seen = make_run(Steps(), small(), max_new_tokens=5), []
    whole = Run.complete
    monkeypatch.setattr(Run, "complete", lambda self, asked, n, **options: seen.append(
        (len(asked), n, options["stop"])) or whole(self, asked, n, **options))
    texts = beam.measure(problems, Texts(run, verifier=GoOn(), stream="search"), 3, 9).texts
    assert seen[0] == (40, 9, {3 + Letters.letters.index("c")}) and len(seen) > 2
    assert sum(text.endswith("c") for text in texts) > 30 and max(map(len, texts)) <= 5


class Prm(Babble):
    """A process reward model: of a step it says whether that one is right, whatever came before.

    A step is one digit, an odd one is wrong; three of them make an answer.
    """

    def __init__(self):
        super().__init__(None, [""])
        self.mark, self.seen = ",", []

    def step(self, texts, n):
        return [[f"{k}" + ("," if text.count(",") < 2 else "") for k in range(n)] for text in texts]

    def verified(self, prompts, answers):
        """Of a finished answer the whole has a chance too, that of its last step."""
        self.seen += answers
        steps = [[0.2 if int(digit) % 2 else 0.9 - int(digit) / 100
                  for digit in answer.strip(",").split(",")] for answer in answers]
        return [[*found, found[-1]] for found in steps]

    def value(self, texts):
        """After the last token alone, which thinks most of a 4."""
        return [float(text.strip(",").endswith("4")) for text in texts]


@pytest.mark.parametrize("how, answer", [("min", "0,0,0"), ("product", "0,0,0"),
                                         ("last", "0,0,0"), ("value", "4,4,4")])
def test_what_a_beginning_is_worth(how, answer):
    tools = Prm()
    (found,), (working,) = beam.solve([Problem("?")], tools, beam.Config(
        width=2, branching=5, aggregate=how))
    assert found == answer
    assert working["value"] == pytest.approx({"min": 0.9, "last": 0.9, "product": 0.9**4,
                                              "value": 1.0}[how])
    assert bool(tools.seen) == (how != "value")


def test_the_least_and_the_product_remember_a_wrong_step_and_the_last_does_not():
    """After a wrong step a model that errs no more is worth what the wrong step is worth."""
    chances = Prm().verified(["?"] * 4, ["1,0,", "0,2,", "1,0,0", "0,2,2"])
    going = [True, True, False, False]
    wrong, right, *whole = beginnings(chances, going, "min")
    assert (wrong, right) == (0.2, 0.88) and whole == [0.2, 0.88]
    assert beginnings(chances, going, "product") == pytest.approx(
        [0.18, 0.792, 0.2 * 0.9**3, 0.9 * 0.88**3])
    wrong, right, *_ = beginnings(chances, going, "last")
    assert wrong == 0.9 > right
    assert beginnings([[0.3]], [True]) == [0.3]     # a beginning without a step has the whole's
    assert beam.Config().aggregate == "min"


def test_a_search_by_a_value_goes_by_the_value():
    tools = Prm()
    tools.run, tools.right = None, lambda problems, answers, none: [1.0] * len(answers)
    assert beam.measure([Problem("?")], tools, 2, 5).texts == ["4,4,4"] and not tools.seen


def test_an_answer_without_a_reward_is_left_out():
    tools = Prm()
    tools.run, tools.right = None, lambda problems, answers, none: [math.nan, 1.0] if none else None
    found = beam.measure([Problem("?"), Problem("!")], tools, 2, 5)
    assert found.rows == [1] and found.rewards == [1.0]
