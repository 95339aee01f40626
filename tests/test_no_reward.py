"""None from every reward function: the answer has no reward, and teaches nothing."""

import math
import re
from pathlib import Path

import pytest
import torch
from fakes import Steps, drive, toy
from ranks import judge

from minipost import methods
from minipost.datasets.rewards import NONE, Added, Part
from minipost.errors import MinipostError
from minipost.measure.asked import asked
from minipost.measure.results import evaluate
from minipost.methods import direct_rlaif
from minipost.ops import leave_one_out

SETTINGS = {"mixer": {"start": 0, "delta": 2, "every": 1}, "iterated-rlhf": {"rounds": 1},
            "es": {"temperature": 1.0, "sigma": 0.3}, "gdpo": {"format": 0.0}}


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
    run.total = 2
    settings = {"steps": 2, "prompts": 6, "group_size": 4, "lr": 1e-2, "fisher": 8,
                "least": 0.2, "branches": 2, "sft_steps": 0, "reward_steps": 1, "population": 4,
                "cold_steps": 1, "warmup_steps": 0, "beta": 0.0 if name in NONE else 0.1,
                **SETTINGS.get(name, {})}
    known = method.Config.__dataclass_fields__
    config = method.Config(**{k: v for k, v in settings.items() if k in known})
    run.step, before = getattr(config, "cold_steps", 0), run.policy.master.clone()
    metrics = drive(run, method.train(run, config), 2)[-1]
    return metrics, float((run.policy.master - before).abs().max())


@pytest.mark.parametrize("name", NONE)
def test_answers_without_a_reward_teach_nothing(name):
    metrics, moved = stepped(name, lambda prompt, text: ord(prompt[0]) % 2 or len(text) % 2)
    assert moved > 0 and all(map(math.isfinite, metrics.values()))
    assert 0 < metrics["unscored_ratio"] < 1
    metrics, moved = stepped(name, lambda prompt, text: False)
    assert metrics["unscored_ratio"] == 1
    assert moved == 0 or name == "mixer"        # which learns known answers' beginnings as well
    assert all(map(math.isfinite, metrics.values()))


# These need a task, a judge, a teacher or rules of their own.
ELSEWHERE = {"r1-zero", "r1", "rlaif", "direct-rlaif", "distill", "step-by-step", "sdpo", "satori"}
# Nobody's reward is learnt from: it is logged, or nobody asks for it.
UNPAID = {"sft", "ttrl", "intuitor"}


@pytest.mark.parametrize("name", sorted({*methods.names()} - {*NONE} - ELSEWHERE - UNPAID))
def test_other_methods_refuse_with_the_row(name):
    with pytest.raises(MinipostError, match="mine returned None for row 0 .* leave an answer"):
        stepped(name, lambda prompt, text: False)


@pytest.mark.parametrize("name", sorted(UNPAID))
def test_what_is_only_logged_is_left_out(name):
    """No answer has a reward, and all metrics are numbers; some have, and their mean is logged."""
    metrics, moved = stepped(name, lambda prompt, text: False)
    assert moved > 0 and "accuracy" not in metrics and all(map(math.isfinite, metrics.values()))
    metrics, _ = stepped(name, lambda prompt, text: ord(prompt[0]) % 2)
    assert all(map(math.isfinite, metrics.values())) and ("accuracy" in metrics) == (name != "sft")


def test_the_documentation_names_the_same_methods():
    text = (Path(__file__).parents[1] / "docs/own-data.md").read_text()
    listed = text.partition("against its siblings leave it out (")[2].partition(")")[0]
    assert re.findall("`([a-z0-9-]+)`", listed) == [*NONE]


def test_a_judge_is_compared_with_the_answers_that_have_a_reward():
    run, none = toy(Steps()), math.nan
    lead = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]] * 2, dtype=torch.float64)
    verdicts = direct_rlaif.Verdicts(run, None, 2)
    verdicts.watch(lead, torch.tensor([[0.0, 1.0], [none, none]], dtype=torch.float64))
    assert verdicts.seen == {"gold": 0.5, "agreement": 0.0, "position_bias": 0.5}
    verdicts.watch(lead, torch.full((2, 2), none, dtype=torch.float64))
    assert verdicts.seen == {"position_bias": 0.5}

    problems, labeller = run.problems(4), judge()
    rollout = run.sample(problems, 2, temperature=1.0)
    for applies, logged in ((lambda k: False, False), (lambda k: k < 4, True)):
        run.reward = Added([Part("mine", lambda completions, **columns: [
            float(k) if applies(k) else None for k in range(len(completions))], {})])
        labeller(run, problems, rollout)
        assert ("agreement" in labeller.seen) == logged
        assert all(map(math.isfinite, labeller.seen.values()))


def test_answers_without_a_reward_are_not_measured():
    """--ask, as the measurement itself: of three prompts one has no reward, and then none has."""
    run = toy(Steps())
    own, problems = run.task.reward, Steps().heldout(3)

    def mine(applies):
        return Added([Part("mine", lambda prompts, completions, **columns: [
            value if applies(p) else None for p, value in zip(
                prompts, own(prompts, completions, **columns))], {})])

    run.reward = mine(lambda prompt: prompt != "b")
    for found in (evaluate(run, problems, 1.0), *asked(run, problems, 3).values()):
        assert list(found.rows) == [0, 2] and len(found.rewards) == len(found.texts) == 2
    run.reward = mine(lambda prompt: False)
    with pytest.raises(MinipostError, match="applies to none of the 3 held-out problems"):
        asked(run, problems, 3)


def test_siblings_without_a_reward_are_not_counted_among_those_left():
    reward = torch.tensor([1.0, math.nan, 4.0, 7.0, math.nan, 2.0], dtype=torch.float64)
    found = leave_one_out(reward, 6)
    assert torch.equal(found[[1, 4]], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found[[0, 2, 3, 5]], leave_one_out(reward[[0, 2, 3, 5]], 4))
