"""Evolution strategies: the step by hand, its mean, the noise, and weights that come back."""

import pytest
import torch
from fakes import drive, f64, length, tiny, toy
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.methods import es, trpo
from minipost.optim import Learner


def test_the_step_is_the_papers_with_every_policys_own_reward(monkeypatch):
    """Two steps: each policy stands where its noise says, and the update weighs that noise."""
    run = toy(seed=3)
    run.reward = length
    cfg = es.Config(prompts=3, group_size=2, population=4, sigma=0.3, alpha=0.7, temperature=0.8)
    for step in range(2):
        theta, stood, earned = run.policy.flat.clone(), [], []
        sample, score = run.sample, run.score

        def sampled(problems, size, *, sample=sample, stood=stood, **options):
            assert options["temperature"] == 0.8
            stood.append(run.policy.flat.clone())
            return sample(problems, size, **options)

        def scored(problems, rollout, *, score=score, earned=earned, **how):
            earned.append(score(problems, rollout, **how))
            return earned[-1]

        monkeypatch.setattr(run, "sample", sampled)
        monkeypatch.setattr(run, "score", scored)
        metrics = next(es.train(run, cfg))
        monkeypatch.undo()
        r = torch.stack([x.mean() for x in earned]).double()
        assert len(earned) == 4 and all(len(x) == 6 for x in earned)
        z = (r - r.mean()) / (r.std(correction=0) + 1e-8)
        eps = [(where - theta) / 0.3 for where in stood]
        expected = theta + 0.7 / 4 * sum(a * e for a, e in zip(z, eps))
        assert torch.allclose(run.policy.flat, expected, atol=1e-9)
        assert metrics["reward"] == pytest.approx(float(r.mean()))
        assert metrics["reward_best"] == float(r.max()) and metrics["moved"] > 0
        run.step += 1


def test_an_error_in_the_middle_of_a_population_leaves_the_policy_as_it_was(monkeypatch):
    run, asked = toy(seed=3), []

    def reward(prompts, completions, **columns):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [0.0] * len(prompts)

    run.reward = reward
    before = run.policy.flat.clone()
    with pytest.raises(KeyboardInterrupt):
        next(es.train(run, es.Config(prompts=2, group_size=1, population=4, sigma=0.3)))
    assert len(asked) == 3 and torch.equal(run.policy.flat, before)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.floats(-5, 5), st.floats(0.1, 9))
def test_only_differences_of_rewards_count_and_ties_move_nothing(values, shift, scale):
    z = es.normalised(f64(values))
    assert abs(float(z.sum())) < 1e-6
    if max(values) - min(values) > 1e-2:
        assert torch.allclose(es.normalised(scale * f64(values) + shift), z, atol=1e-5)
        assert float(z.square().mean()) == pytest.approx(1, abs=1e-5)
    assert not es.normalised(torch.full((5,), shift).double()).any()


def test_where_all_policies_earn_the_same_the_weights_come_back_bit_for_bit():
    run = toy(dtype=torch.float32)
    run.reward = lambda prompts, completions, **columns: [0.5] * len(prompts)
    before = run.policy.flat.clone()
    drive(run, es.train(run, es.Config(prompts=2, population=3)), 2)
    assert torch.equal(run.policy.flat, before)


def test_the_mean_step_is_the_gradient_of_a_reward_of_the_weights():
    """E[r eps] = sigma grad r where r is linear in the weights: by 20,000 draws, in 5 weights."""
    slope, sigma = f64([1.0, -2.0, 0.0, 0.5, 3.0]), 0.1
    draws = torch.stack([es.noise((7, n), [torch.zeros(5)]) for n in range(20_000)]).double()
    mean = ((draws * sigma) @ slope) @ draws / len(draws)
    assert torch.allclose(mean, sigma * slope, atol=0.01)


def test_noise_is_normal_its_own_for_each_weight_and_the_same_again():
    params = [torch.zeros(30, 20), torch.zeros(30, 20), torch.zeros(400)]
    found = es.noise((1, 2, 3), params)
    assert torch.equal(found, es.noise((1, 2, 3), params)) and len(found) == 1600
    assert not torch.equal(found, es.noise((1, 2, 4), params))
    assert not torch.equal(found, es.noise((1, 3, 3), params))
    assert abs(float(found.mean())) < 0.1 and abs(float(found.std()) - 1) < 0.1
    first, second = found[:600], found[600:1200]            # two matrices of one shape
    assert abs(float(first @ second) / 600) < 0.15


def test_a_sharded_run_is_refused():
    run = toy()
    run.shard = "cpu"
    with pytest.raises(MinipostError, match="^es moves all weights at once; leave out --shard$"):
        es.check(run, es.Config())


@pytest.mark.parametrize("method", [es, trpo], ids=["es", "trpo"])
def test_an_optimizer_is_refused_where_none_is_used(method):
    run = toy()
    method.check(run, method.Config())
    run.policy = Learner(tiny(), optimizer="muon")
    with pytest.raises(MinipostError, match="without an optimiser; leave out --optimizer muon"):
        method.check(run, method.Config())
