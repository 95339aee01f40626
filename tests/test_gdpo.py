"""GDPO: what rules that are normalised apart tell that their sum does not."""

import math

import pytest
import torch
from fakes import EOS, Echo, f64, randn, toy

from minipost import ops
from minipost.datasets import named
from minipost.datasets.rewards import Added, Part
from minipost.errors import MinipostError
from minipost.methods import gdpo, grpo, r1_zero


def test_with_one_rule_it_is_grpo_up_to_a_scale():
    reward = randn(0, 12)
    ours, theirs = gdpo.apart({"a": reward}, {"a": 3.0}, 4), ops.group_normalised(reward, 4)
    ratio = ours / theirs
    assert torch.allclose(ratio, ratio[:1].expand(12)) and ratio[0] > 0
    assert float(ours.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_the_sum_makes_one_rule_and_two_alike_where_apart_they_differ():
    """The paper's example: in groups of two, keeping one rule or both ahead of nothing."""
    rules = {"a": f64([0, 1, 0, 1]), "b": f64([0, 0, 0, 1])}
    both = rules["a"] + rules["b"]
    summed = ops.group_normalised(both, 2)
    assert float(summed[1]) == pytest.approx(float(summed[3]), rel=1e-3)
    ours = gdpo.apart(rules, {"a": 1.0, "b": 1.0}, 2)
    assert float(ours[3]) == pytest.approx(2 * float(ours[1]), rel=1e-3)


def test_the_size_of_a_rule_does_not_count_and_its_weight_does():
    rules = {"a": randn(1, 12), "b": randn(2, 12)}
    weights = {"a": 1.0, "b": 0.5}
    ours = gdpo.apart(rules, weights, 4)
    scaled = gdpo.apart({"a": 100 * rules["a"] + 7, "b": rules["b"]}, weights, 4)
    assert torch.allclose(ours, scaled, atol=1e-2)
    assert not torch.allclose(ours, gdpo.apart(rules, {"a": 1.0, "b": 5.0}, 4), atol=1e-1)


def test_a_rule_that_ties_or_does_not_apply_says_nothing():
    rules = {"a": f64([1, 2, 3, 5]), "b": f64([1, 1, 1, 1])}
    alone = gdpo.apart({"a": rules["a"]}, {"a": 1.0}, 4)
    assert torch.equal(gdpo.apart(rules, {"a": 1.0, "b": 9.0}, 4), alone)
    nan = torch.nan
    part = gdpo.apart({"a": f64([1, 2, 3, 5]), "b": f64([nan, 1, nan, 0])},
                      {"a": 1.0, "b": 1.0}, 4)
    assert part.isfinite().all()


def several(*weights):
    """A run whose reward is of two functions."""
    run = toy(Echo())

    def length(completions, **columns):
        return [len(text) / 4 for text in completions]

    run.reward = Added([Part("own", Echo().reward, {}, weights[0]),
                        Part("length", length, {}, weights[1])])
    return run


def test_functions_of_a_user_are_rules_with_their_weights():
    run = several(2.0, 0.5)
    cfg = gdpo.Config(prompts=4, group_size=4, minibatch_size=16)
    rules = gdpo.Rules(run, cfg)
    problems = run.problems(4)
    rollout = run.sample(problems, 4, temperature=1.0)
    score, plain = rules(problems, rollout), run.grade(problems, rollout)
    assert torch.allclose(score, plain)
    assert set(rules.found) == {"own", "length"} and rules.weights == {"own": 2.0, "length": 0.5}
    run = several(2.0, 0.5)
    metrics = next(gdpo.train(run, cfg))
    own, length = (run.said.metrics()[f"rewards/{name}"] for name in ("own", "length"))
    assert own == pytest.approx(float(rules.found["own"].mean()))
    assert metrics["reward"] == pytest.approx(2 * own + 0.5 * length)


def test_functions_are_asked_as_in_other_methods():
    """They get TRL's further arguments, once a step, and their columns go to rows that are kept.

    Here their names are those of the run's own metrics, which they do not overwrite.
    """
    asked = []

    def step(completions, trainer_state, completion_ids, log_metric, log_extra, **columns):
        asked.append((trainer_state.global_step, completion_ids))
        log_metric("texts", len(completions))
        log_extra("size", [len(text) for text in completions])
        return [50.0 + len(text) for text in completions]

    def loss(completions, log_extra, **columns):
        log_extra("first", [text[:1] for text in completions])
        return [None] * len(completions)

    run = toy(Echo(), keep_rollouts=1)
    run.reward, run.step = Added([Part("step", step, {}), Part("loss", loss, {})]), 3
    metrics = next(gdpo.train(run, gdpo.Config(prompts=4, group_size=4, minibatch_size=16)))
    (step_, ids), = asked
    assert step_ == 3 and len(ids) == 16 and any(row[-1] == EOS for row in ids)
    said = run.said.metrics()
    assert said["texts"] == 16 and said["rewards/step"] > 50 and "rewards/loss" not in said
    assert "step" not in metrics and abs(metrics["loss"]) < 1
    assert all(map(math.isfinite, metrics.values()))
    assert len(run.kept) == 16
    for row in run.kept:
        assert (row["size"], row["first"]) == (len(row["completion"]), row["completion"][:1])


@pytest.mark.parametrize("method", [gdpo, r1_zero])
def test_the_only_function_is_told_the_ids_that_were_sampled(method):
    """Of answers that were cut they have no EOS."""
    found = []

    def mine(completions, completion_ids, **columns):
        found.extend(completion_ids)
        return [0.0] * len(completions)

    run = toy(Echo())
    run.reward = Added([Part("mine", mine, {})])
    next(method.train(run, method.Config(prompts=4, group_size=4, format=0.0)))
    assert len(found) == 16 and not all(ids[-1] == EOS for ids in found)


def test_a_rule_of_the_task_that_applies_to_no_answer_is_not_logged():
    run = toy(Echo())
    run.reward = Added([Part("mine", lambda completions, **columns: [None] * len(completions), {})])
    metrics = next(gdpo.train(run, gdpo.Config(prompts=4, group_size=4, format=0.0)))
    assert "accuracy" not in metrics and metrics["unscored_ratio"] == 1
    assert all(map(math.isfinite, metrics.values()))


def test_its_step_is_grpos_with_other_advantages(monkeypatch):
    cfg = gdpo.Config(prompts=4, group_size=4, minibatch_size=16, lr=1e-2)
    one, other, plain = several(1.0, 1.0), several(1.0, 1.0), several(1.0, 1.0)
    rules = gdpo.Rules(other, cfg)
    for run, learn in ((one, gdpo.train(one, cfg)), (plain, grpo.train(plain, cfg)), (
            other, grpo.train(other, cfg, rules, advantages=rules.advantages))):
        next(learn)
    assert torch.equal(one.policy.flat, other.policy.flat)
    assert not torch.equal(one.policy.flat, plain.policy.flat)


def test_nothing_to_pay_for_is_refused():
    with pytest.raises(MinipostError, match="no rule has a weight"):
        gdpo.check(toy(Echo()), gdpo.Config(accuracy=0.0, format=0.0))
    with pytest.raises(MinipostError, match="no rule 'format'"):
        gdpo.check(toy(Echo()), gdpo.Config())
    with pytest.raises(MinipostError, match="format is 7, the weight of a rule of the task, and"):
        gdpo.check(several(1.0, 1.0), gdpo.Config(format=7.0))
    assert named.divided(f"{__file__}:f=2").weight == 2         # the form that the sentence names
