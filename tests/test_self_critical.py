"""Self-critical training: the greedy answer as baseline."""

import torch
from fakes import ANSWERS, expected, mean_slope, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev

seeds = st.integers(0, 10_000)


@given(seeds)
@settings(max_examples=10)
def test_the_greedy_answer_as_baseline_is_unbiased(seed):
    table, reward = randn(seed, 4, 3), randn(seed + 1, 9)
    logp = table.log_softmax(-1)
    first = int(logp[0].argmax())
    greedy = ANSWERS.index((first, int(logp[1 + first].argmax())))
    truth = jacrev(lambda x: expected(reward, x))(table)
    found = mean_slope(table, lambda rows: reward[rows] - reward[greedy])
    assert torch.allclose(found, truth, atol=1e-12)
