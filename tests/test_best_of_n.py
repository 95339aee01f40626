"""The best of n against its exact law (invariants 44 and 45)."""

import itertools
import math
from collections import Counter

import pytest
from fakes import Digits

from minipost.tasks.base import Problem, Task
from minipost.test_time import best_of_n

LAW = {0.0: 0.2, 1.0: 0.5, 2.5: 0.3}                            # a score and its chance


def best_law(n):
    """The exact law of the best of n scores, by enumeration."""
    law = Counter()
    for scores in itertools.product(LAW, repeat=n):
        law[scores[best_of_n.best(scores)]] += math.prod(LAW[s] for s in scores)
    return law


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_best_of_n_has_the_nth_power_of_the_distribution_and_its_kl_is_bounded(n):
    law = best_law(n)
    for score in LAW:
        below = sum(chance for s, chance in LAW.items() if s <= score)
        assert sum(c for s, c in law.items() if s <= score) == pytest.approx(below**n)
    kl = sum(chance * math.log(chance / LAW[score]) for score, chance in law.items())
    assert kl <= math.log(n) - (n - 1) / n + 1e-12
    assert n == 1 or kl > 0.1


def test_against_an_exact_checker_it_is_pass_at_n():
    p, chances = 0.3, []
    for n in (1, 2, 4, 6):
        total = 0.0
        for right in itertools.product((1.0, 0.0), repeat=n):
            total += right[best_of_n.best(right)] * math.prod(p if r else 1 - p for r in right)
        assert total == pytest.approx(1 - (1 - p) ** n)
        chances.append(total)
    assert chances == sorted(chances)


def test_the_first_of_equal_scores_is_best_and_nan_never():
    assert best_of_n.best([1.0, 3.0, 3.0]) == 1
    assert best_of_n.best([math.nan, -5.0]) == 1
    assert best_of_n.best([-math.inf, -math.inf]) == 0


def test_support_counts_those_who_agree():
    rows = [["a", None, "b", "a"]]
    assert best_of_n.support(rows) == [[2.0, -math.inf, 1.0, 2.0]]
    assert best_of_n.support(rows, [[0.5, 9.0, 2.0, 0.25]]) == [[0.75, -math.inf, 2.0, 0.75]]


def test_own_verdicts_choose_the_sample_that_is_worth_most_and_are_paid_for():
    class Judged(Task):
        def questions(self, problem, text):
            return []

        def parse(self, text):
            return text

    problems = [Problem("5"), Problem("7")]
    tools = Digits("352" "167", Judged())
    arms = {arm.name: arm for arm
            in best_of_n.arms(problems, tools, best_of_n.Config(group_size=3))}
    chosen = arms["own verdicts"]
    assert (chosen.tokens, chosen.result.rewards, chosen.result.texts) == (66, [1.0, 1.0],
                                                                           ["5", "7"])
    assert arms["vote"].tokens == 60
    del Judged.questions
    tools = Digits("352" "167", Judged())
    assert "own verdicts" not in {arm.name for arm in
                                  best_of_n.arms(problems, tools, best_of_n.Config(group_size=3))}
