"""PRIME: its process rewards, and the methods that it is in the limits."""

import copy

import pytest
import torch
from fakes import Echo, drive, f64, randn, toy
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits as entropy

from minipost.errors import MinipostError
from minipost.methods import prime
from minipost.ops import leave_one_out

seeds = st.integers(0, 10_000)
MASK = torch.arange(5) < torch.tensor([[5], [3], [1], [4], [2], [5]])


@given(seeds)
def test_without_process_rewards_it_is_rloo_and_alike_in_all_tokens(seed):
    reward = randn(seed, 6)
    adv = prime.advantages(reward, torch.zeros(6, 5).double(), MASK, 3)
    assert torch.allclose(adv, leave_one_out(reward, 3)[:, None] * MASK, atol=1e-12)


@given(seeds)
def test_advantages_by_a_loop(seed):
    reward, process = randn(seed, 6), randn(seed + 1, 6, 5)
    adv = prime.advantages(reward, process.where(MASK, float("nan")), MASK, 2)
    for i in range(6):
        j, n = i ^ 1, int(MASK[i].sum())
        base = float(process[j][MASK[j]].mean())
        for t in range(5):
            ahead = sum(float(process[i, s]) - base for s in range(t, n))
            wanted = ahead + float(reward[i] - reward[j]) if t < n else 0.0
            assert float(adv[i, t]) == pytest.approx(wanted, abs=1e-9)


@given(seeds, st.floats(0.05, 2))
def test_the_implicit_model_learns_outcomes_by_the_sum_of_its_tokens(seed, beta):
    """Cross-entropy of the whole answer's score; each token of it has the same slope."""
    logp, ref, reward = -randn(seed, 6, 5).abs(), -randn(seed + 1, 6, 5).abs(), f64([1, 0] * 3)
    score = beta * ((logp - ref) * MASK).sum(1)
    value, stats = prime.loss(logp, ref, reward, MASK, beta=beta, count=6)
    assert torch.allclose(value, entropy(score, reward))
    slope = prime.loss_grad(logp, ref, reward, MASK, beta=beta, count=6)["logp"]
    each = (torch.sigmoid(score) - reward) * beta / 6
    assert torch.allclose(slope, each[:, None] * MASK)
    assert float(stats["implicit/accuracy"]) == pytest.approx(
        float(((score > 0) == (reward > 0.5)).double().mean()))


BOTH = pytest.mark.parametrize("judge", ["before", "after"])
SETTINGS = dict(prompts=4, group_size=4, implicit_lr=0.02)


@BOTH
def test_a_copy_of_the_reference_knows_nothing_at_first(spy, judge):
    """So a first step has no process rewards and is RLOO, unless phi learns before it judges."""
    run = toy(Echo(), seed=3)
    calls = spy(prime, "advantages")
    seen = next(prime.train(run, prime.Config(judge=judge, **SETTINGS)))
    assert seen["implicit/loss"] == pytest.approx(0.6931472) and seen["implicit/accuracy"] == 0.5
    given, adv = calls[0]
    rloo = leave_one_out(given["reward"], 4)[:, None].where(given["mask"], 0.0).to(adv)
    assert rloo.any() and torch.allclose(adv, rloo) == (judge == "before")
    assert (seen["process_reward"] == 0) == (judge == "before")
    assert set(run.learners) == {"policy", "implicit"}


@BOTH
def test_phi_judges_a_rollout_before_or_after_it_learns_from_it(spy, judge):
    """Either way by the weights of that moment, in every step."""
    run, seen, calls = toy(Echo(), seed=3), spy(prime, "learn"), spy(prime, "advantages")
    steps = prime.train(run, prime.Config(judge=judge, **SETTINGS))
    drive(run, steps, 1)
    phi = run.learners["implicit"].module
    early = copy.deepcopy(phi)
    drive(run, steps, 1)
    rollout, ref = seen[1][0]["rollout"], seen[1][0]["logp_ref"]
    judged = {"before": run.logprobs(early, rollout), "after": run.logprobs(phi, rollout)}
    assert (judged["before"] - judged["after"])[rollout.mask].abs().max() > 1e-3
    process = prime.Config.beta * (judged[judge] - ref)
    assert torch.allclose(calls[1][0]["process"], process, atol=1e-12)


def test_rewards_that_are_no_outcomes_are_refused():
    run = toy(Echo())
    run.reward = lambda prompts, completions, **columns: [2.0] * len(prompts)
    with pytest.raises(MinipostError, match="go from 2 to 2; PRIME needs outcomes within 0..1"):
        next(prime.train(run, prime.Config(prompts=2, group_size=2)))
