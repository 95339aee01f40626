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


def test_both_verifiers_are_bayes_rule_where_they_err_independently():
    """Two models that hear of the same answer independently: the posterior odds, up to a number."""
    prior, heard = 0.3, {"yes": (0.8, 0.4), "no": (0.2, 0.6)}   # chance if right, if wrong
    worth, exact = {}, {}
    for words in itertools.product(heard, repeat=2):
        right = prior * math.prod(heard[w][0] for w in words)
        wrong = (1 - prior) * math.prod(heard[w][1] for w in words)
        exact[words] = math.log(right / wrong)
        alone = [prior * heard[w][0] / (prior * heard[w][0] + (1 - prior) * heard[w][1])
                 for w in words]
        worth[words] = best_of_n.both([[alone[0]]], [[alone[1]]])[0][0]
    gaps = {round(worth[words] - exact[words], 9) for words in worth}
    assert len(gaps) == 1


def test_a_certain_chance_stays_finite():
    assert math.isfinite(best_of_n.both([[0.0, 1.0]], [[1.0, 0.0]])[0][0])


class Plain(Task):
    def parse(self, text):
        return text


class Two(Digits):
    """Tools with two verifiers: the usual one prefers large digits, the other small ones."""

    def verified(self, prompts, answers, directory=""):
        return [[0.0, (int(text) + 1) / 11 if not directory else 1 - (int(text) + 1) / 40]
                for text in answers]


def test_the_outcome_verifier_is_asked_for_the_whole_alone_and_chooses_with_the_other():
    problems = [Problem("5")]
    cfg = best_of_n.Config(group_size=3, aggregate="last", outcome_verifier="other")
    arms = {a.name: a for a in best_of_n.arms(problems, Two("352", Plain()), cfg)}
    assert arms["verifier"].result.texts == ["5"]
    assert arms["outcome verifier"].result.texts == ["2"]
    assert arms["both verifiers"].result.texts == ["5"]
    texts, _ = best_of_n.solve(problems, Two("352"), cfg)
    assert texts == ["5"]
    without = best_of_n.arms(problems, Two("352", Plain()), best_of_n.Config(group_size=3))
    assert not {"both verifiers", "outcome verifier"} & {a.name for a in without}
