"""The metrics of a step."""

import pytest
import torch
from fakes import make_run

from minipost.measure.meter import Meter, describe


def test_the_meter_adds_pieces_and_averages_updates():
    meter = Meter("a", "b")
    for piece in (1.0, 2.0, 3.0):
        meter.add(a=piece)
    assert meter.means(2) == {"a": 3.0, "b": 0.0}
    with pytest.raises(KeyError):
        meter.add(c=1.0)


def test_lengths_of_right_and_wrong_answers_are_told_apart_where_rewards_tell_them():
    run = make_run()
    rollout = run.sample(run.problems(3), 2, temperature=1.0)
    lengths = rollout.lengths.double()
    assert len(set(lengths.tolist())) > 2
    name = "completions/mean_length"
    found = describe(rollout, torch.tensor([1.0, 0, 0, 1, 0, 0]), 2)
    right, wrong = lengths[[0, 3]].mean(), lengths[[1, 2, 4, 5]].mean()
    assert right != wrong
    assert (found[f"{name}/right"], found[f"{name}/wrong"]) == (
        pytest.approx(float(right)), pytest.approx(float(wrong)))
    for others in ([1.0] * 6, [0.0] * 6, [0.5, 1, 0, 0, 1, 0]):
        assert {key for key in describe(rollout, torch.tensor(others), 2) if name in key} == {name}
