"""SFT: the cost of an answer is minus the log of its chance."""

import math

import pytest
import torch
from fakes import ANSWERS, Echo, Letters, logp_of, randn, sequences, tiny
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.methods import sft
from minipost.optim import Learner
from minipost.rollout import logprobs
from minipost.run import Run


def test_sft_equals_cross_entropy_and_log_v_when_uniform():
    model, seqs = tiny(), sequences(5)
    count = int(seqs.mask.sum())
    value = sft.loss(logprobs(model, seqs), seqs.mask, count=count)[0]
    expected = torch.nn.functional.cross_entropy(
        model(seqs.inputs)[seqs.mask], seqs.targets[seqs.mask])
    assert torch.allclose(value, expected)
    uniform = torch.full(seqs.mask.shape, -torch.log(torch.tensor(11.0)))
    assert sft.loss(uniform, seqs.mask, count=count)[0] == pytest.approx(2.3978953)


def test_an_answer_that_does_not_fit_the_context_is_refused():
    task = Echo()
    run = Run(Learner(tiny(context=8)), Letters(), task, task.reward)
    task.demonstrate = lambda problem, rng: "a" * 6
    with pytest.raises(MinipostError, match=r"a prompt of 2 tokens \('.'\) and a response of 7 "
                       r"\('aaaaaa'\) do not fit the model's context of 8$"):
        next(sft.train(run, sft.Config(batch_size=2)))
    task.demonstrate = lambda problem, rng: "a" * 5
    next(sft.train(run, sft.Config(batch_size=2)))
    assert run.tokens == 2 * 6


seeds = st.integers(0, 10_000)


@given(seeds)
def test_fine_tuning_costs_minus_the_log_of_an_answers_chance(seed):
    """Each chance a product of two softmaxes by hand; over all nine answers they add up to one."""
    table, mask, total = randn(seed, 4, 3), torch.ones(1, 2, dtype=torch.bool), 0.0
    weight = [[math.exp(x) for x in row] for row in table.tolist()]
    for k, (first, second) in enumerate(ANSWERS):
        chance = (weight[0][first] / sum(weight[0])
                  * weight[1 + first][second] / sum(weight[1 + first]))
        cost = float(sft.loss(logp_of(table)[k : k + 1], mask, count=1)[0])
        assert cost == pytest.approx(-math.log(chance))
        total += math.exp(-cost)
    assert total == pytest.approx(1)
