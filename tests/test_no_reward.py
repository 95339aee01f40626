"""None from every reward function: the answer has no reward, and teaches nothing."""

import math

import pytest
import torch
from fakes import Steps, drive, toy

from minipost import methods
from minipost.datasets.rewards import NONE, Added, Part
from minipost.errors import MinipostError
from minipost.methods.rloo import leave_one_out

ALL = [name for name in methods.names() if methods.load(name).ON_POLICY]


def stepped(name, applies):
    """(metrics of the second step, how far the weights moved).

    applies(prompt, text): whether there is a reward.
    """
    run = toy(Steps())
    own = run.task.reward

    def reward(prompts, completions, **columns):
        values = own(prompts, completions, **columns)
        return [value if applies(prompt, text) else None
                for prompt, text, value in zip(prompts, completions, values)]

    run.reward, method = Added([Part("mine", reward, {})]), methods.load(name)
    settings = {"prompts": 6, "group_size": 4, "lr": 1e-2, "beta": 0.0, "fisher": 8, "least": 0.2}
    known = method.Config.__dataclass_fields__
    config = method.Config(**{k: v for k, v in settings.items() if k in known})
    before = run.policy.master.clone()
    metrics = drive(run, method.train(run, config), 2)[-1]
    return metrics, float((run.policy.master - before).abs().max())


@pytest.mark.parametrize("name", NONE)
def test_answers_without_a_reward_teach_nothing(name):
    metrics, moved = stepped(name, lambda prompt, text: ord(prompt[0]) % 2 or len(text) % 2)
    assert moved > 0 and all(map(math.isfinite, metrics.values()))
    assert 0 < metrics["unscored_ratio"] < 1
    metrics, moved = stepped(name, lambda prompt, text: False)
    assert moved == 0 and metrics["unscored_ratio"] == 1
    assert all(map(math.isfinite, metrics.values()))


PIPELINES = {"r1-zero", "r1", "rlaif", "direct-rlaif", "gdpo"}


@pytest.mark.parametrize("name", sorted({*ALL} - {*NONE} - PIPELINES))
def test_other_methods_refuse_with_the_row(name):
    with pytest.raises(MinipostError, match="mine returned None for row 0 .* leave an answer"):
        stepped(name, lambda prompt, text: False)


def test_siblings_without_a_reward_are_not_counted_among_those_left():
    reward = torch.tensor([1.0, math.nan, 4.0, 7.0, math.nan, 2.0], dtype=torch.float64)
    found = leave_one_out(reward, 6)
    assert torch.equal(found[[1, 4]], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found[[0, 2, 3, 5]], leave_one_out(reward[[0, 2, 3, 5]], 4))
