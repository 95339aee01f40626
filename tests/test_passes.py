"""pass@k: exact where right answers can be listed, from samples elsewhere."""

import math
import random

import pytest
import torch

from minipost.datasets.rewards import Added, Part
from minipost.errors import MinipostError
from minipost.measure import passes
from minipost.rollout import logprobs, pack
from minipost.tasks.base import Problem
from tests.fakes import BOS, EOS, Echo, make_run, tiny

RIGHT = ("ab", "b", "", "abcde")  # the last is longer than the four tokens that a sample may have


def certain(model=None):
    """A run whose model gives PAD and BOS no probability: no answer has two spellings in ids."""
    model = model or tiny()
    model.unused = torch.arange(11) < 2
    return make_run(Listed(), model)


class Listed(Echo):
    """Only the texts in RIGHT are right, whatever the prompt."""

    def answers(self, problem):
        return RIGHT

    def reward(self, prompts, completions, **columns):
        return [float(text in RIGHT) for text in completions]


def test_a_model_that_may_end_in_several_ways_is_asked_about_each():
    """Where the letter h ends an answer too, each right one has the chances of both endings."""
    run = certain()
    one, = passes.chances(run, [Problem("b")])
    run.vocabulary.eos = frozenset([EOS, 10])
    found, = passes.chances(run, [Problem("b")])
    ids = [[3 + "abcdefgh".index(c) for c in text] for text in RIGHT[:3]]
    with torch.no_grad():
        by_end = [float(logprobs(run.policy.module, pack(
            [[BOS, 4]] * 3, [row + [end] for row in ids], 0)).sum(1).exp().sum())
            for end in (EOS, 10)]
    assert one == pytest.approx(by_end[0]) and found == pytest.approx(sum(by_end))


class Unlisted(Listed):
    answers = None


def chance(model, prompt, text):
    """pi(text, EOS | prompt), a factor at a time."""
    ids, total = [BOS, 3 + "abcdefgh".index(prompt)], 1.0
    for token in [*(3 + "abcdefgh".index(c) for c in text), EOS]:
        with torch.no_grad():
            total *= float(model(torch.tensor([ids]))[0, -1].softmax(-1)[token])
        ids.append(token)
    return total


def test_the_exact_chance_is_the_sum_over_right_answers(monkeypatch):
    monkeypatch.setattr(passes, "ROWS", 5)
    model = tiny()
    run = make_run(Listed(), model)
    problems = run.task.heldout(4)
    expected = [sum(chance(model, p.prompt, text) for text in RIGHT[:3]) for p in problems]
    assert passes.chances(run, problems) == pytest.approx(expected, rel=1e-9)
    found = passes.measure(run, problems, [1, 3])
    assert found["pass@1"].value == pytest.approx(sum(expected) / 4, rel=1e-9)
    assert found["pass@3"].value == pytest.approx(
        sum(1 - (1 - p) ** 3 for p in expected) / 4, rel=1e-9)
    assert found["pass@3"].n == 4 and found["pass@3"].high <= 1


def test_samples_agree_with_the_exact_chance():
    """Answers in four tokens, EOS among them: both count the same.  4 standard errors."""
    n, run = 3000, certain()
    problems = run.task.heldout(4)
    exact = passes.chances(run, problems)
    for c, p in zip(passes.counts(run, problems, n), exact, strict=True):
        assert abs(c / n - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert min(exact) > 0.005


def test_where_nothing_is_listed_samples_are_drawn():
    run = make_run(Unlisted())
    problems = run.task.heldout(3)
    c = passes.counts(run, problems, 6)
    found = passes.measure(run, problems, [1, 6])
    assert found["pass@1"].value == pytest.approx(sum(c) / 18)
    assert found["pass@6"].value == pytest.approx(sum(map(bool, c)) / 3)
    assert passes.measure(run, problems, [1], samples=6)["pass@1"] == found["pass@1"]
    with pytest.raises(MinipostError, match="pass@6 takes at least 6 samples"):
        passes.measure(run, problems, [1, 6], samples=5)
    with pytest.raises(MinipostError, match="cannot be listed here, so pass@20000 takes 20,000"):
        passes.measure(run, problems, [1, 20_000])
    listed = make_run(Listed())
    assert passes.measure(listed, problems, [6], samples=6)["pass@6"] == found["pass@6"]


def test_another_reward_than_the_tasks_own_is_asked_of_samples():
    run = make_run(Listed())
    run.reward = lambda prompts, completions, **columns: [0.0] * len(completions)
    assert passes.chances(run, run.task.heldout(2)) is None
    assert passes.measure(run, run.task.heldout(2), [1, 8])["pass@8"].value == 0


def test_a_problem_with_a_sample_without_a_reward_is_left_out():
    run, none = make_run(Unlisted()), {"a"}
    run.reward = Added([Part("mine", lambda prompts, completions: [
        None if prompt in none else float(text in RIGHT)
        for prompt, text in zip(prompts, completions)], {})])
    problems = [Problem(prompt) for prompt in "abc"]
    assert passes.counts(run, problems, 6) == passes.counts(make_run(Unlisted()), problems, 6)[1:]
    assert passes.measure(run, problems, [6])["pass@6"].n == 2
    none |= {"b", "c"}
    with pytest.raises(MinipostError, match="of each of the 3 problems there is a sample without"):
        passes.counts(run, problems, 6)


def test_a_reward_between_0_and_1_has_no_pass():
    run = make_run()
    with pytest.raises(MinipostError, match="echo is not 0 or 1"):
        passes.measure(run, run.task.heldout(4), [40])


@pytest.mark.parametrize("seed", range(3))
def test_measuring_draws_the_same_twice_and_counts_no_tokens(seed):
    run = make_run(Unlisted(), seed=random.Random(seed).randrange(100))
    with run.aside():
        first = passes.counts(run, run.task.heldout(4), 5)
        assert passes.counts(run, run.task.heldout(4), 5) == first
    assert run.tokens == 0
