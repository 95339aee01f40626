"""The sampler's log-probs are those of training but for rounding: noted in each step, or mended."""

import dataclasses
import inspect

import pytest
import torch
from fakes import Hidden, Steps, given_model, toy

from minipost import methods
from minipost.rollout import logprobs
from minipost.run import Run

ON_POLICY = [name for name in methods.names() if methods.load(name).ON_POLICY]
GRPOS = ("ttrl", "intuitor", "gdpo")     # with r1-zero, these take GRPO's steps
NAME = "sampling_logp_difference/max"


def steps_of(name, **options):
    """A run of a method on a toy, and its generator."""
    method = methods.load(name)
    task = Hidden() if name == "ppo" else Steps()
    run = toy(task, **options)
    if name == "ppo":
        given_model(run)
    fields = {f.name for f in dataclasses.fields(method.Config)}
    usual = {"steps": 3, "prompts": 4, "group_size": 4, "temperature": 0.8, "epochs": 2,
             "minibatch_size": 8, "lr": 1e-2, "format": 0.0, "least": 0.2}
    cfg = method.Config(**{k: v for k, v in usual.items() if k in fields})
    return run, method.train(run, cfg)


def test_the_methods_that_learn_from_their_own_samples_are_known():
    assert {"grpo", "dapo", "dr-grpo", "reinforce", "rloo", "ppo", "trpo", "a2c", "reinforce-pp",
            "self-critical", "r1-zero", "gspo", "cispo", "sapo", "entropy", "vineppo",
            "process-grpo", "minimum-risk", "maxrl", "prime", *GRPOS} == set(ON_POLICY)
    for name in methods.names():
        source = inspect.getsource(methods.load(name).module)
        asks = "run.rollout(" in source or name in ("r1-zero", *GRPOS)
        assert asks == (name in ON_POLICY), name


@pytest.mark.parametrize("name", ON_POLICY)
def test_every_method_notes_the_largest_difference_of_a_step(name, monkeypatch):
    """A sampler that is off by 0.01 at a token is seen; a second pass adds nothing."""
    real = Run.rollout

    def shifted(self, *arguments, **options):
        found = real(self, *arguments, **options)
        first = found.mask & (found.mask.cumsum(1) == 1)
        return dataclasses.replace(found, logp=found.logp + 0.01 * first)

    run, learn = steps_of(name)
    next(learn)
    assert run.differences()[NAME] < 1e-6 and run.differences() == {}
    monkeypatch.setattr(Run, "rollout", shifted)
    next(learn)
    assert run.differences()[NAME] == pytest.approx(0.01, abs=1e-6)


def test_once_the_policy_has_moved_nothing_is_noted():
    run, _ = steps_of("grpo")
    rollout = run.rollout(run.problems(2), 3, temperature=1.0)
    run.policy.updates += 1
    run.compare(rollout.logp + 1.0, rollout)
    assert run.differences() == {}


def test_recomputed_log_probs_are_those_of_training():
    """In bfloat16 the first ratios are 1, whatever the sampler's kernels make of it."""
    run = toy(dtype=torch.bfloat16)
    problems = run.problems(6)
    as_sampled = run.rollout(problems, 4, temperature=0.7)
    run.recompute = True
    rollout = run.rollout(problems, 4, temperature=0.7)
    assert torch.equal(rollout.tokens, as_sampled.tokens)
    assert torch.equal(rollout.mask, as_sampled.mask)
    noted = run.differences()[NAME]
    gap = (rollout.logp - as_sampled.logp).abs().max()
    assert noted == pytest.approx(float(gap)) and noted > 1e-4
    mine = torch.zeros_like(rollout.logp)
    with torch.no_grad():
        for i in run.micro_batches(range(len(rollout)), rollout):
            part = rollout[i]
            mine[i, : part.mask.shape[1]] = logprobs(run.policy.module, part, 0.7)
    assert torch.equal(mine, rollout.logp)


def test_recomputing_changes_nothing_where_nothing_differs():
    found = []
    for recompute in (False, True):
        run, learn = steps_of("grpo")
        run.recompute = recompute
        next(learn)
        found.append(run.policy.master.clone())
    assert torch.allclose(*found, rtol=0, atol=1e-6)
