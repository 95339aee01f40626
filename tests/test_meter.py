"""The metrics of a step."""

import pytest
import torch
from fakes import make_run

from minipost.measure.meter import Meter, describe
from minipost.methods import (
    cispo,
    dapo,
    dr_grpo,
    grpo,
    gspo,
    reinforce,
    rloo,
    sapo,
    self_critical,
)


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


@pytest.mark.parametrize("method", [cispo, dapo, dr_grpo, grpo, gspo, reinforce, rloo, sapo,
                                    self_critical])
def test_the_entropy_is_of_all_answers_and_not_of_those_that_are_trained_on(method):
    """All groups but the last tie, so most answers have no gradient, or are dropped."""
    run, seen = make_run(), []
    knobs = dict(prompts=4, group_size=3, **({"beta": 0.0} if method in (grpo, rloo) else {}))
    sample = run.rollout
    run.rollout = lambda *given, **more: seen.append(sample(*given, **more)) or seen[-1]
    run.score = lambda problems, rollout, none=False: (rollout.prompt == 3).double() * (
        torch.arange(len(rollout)) % 2)
    logged = next(method.train(run, method.Config(**knobs)))
    tokens = [-float(x) for x in seen[0].logp[seen[0].mask]]
    assert logged["entropy"] == pytest.approx(sum(tokens) / len(tokens))
