"""--lag: rollouts of an older policy, exactly, through a resume, and only where there are any."""

import pytest
import torch
from fakes import Echo, drive, toy

from minipost import methods, train
from minipost.errors import MinipostError
from minipost.layout import tensor_file
from minipost.methods import dapo, grpo

SMALL = dict(steps=6, prompts=3, group_size=4, lr=1e-2)
CASES = {"grpo": (grpo, grpo.Config(**SMALL, minibatch_size=6, epochs=2)),
         "dapo": (dapo, dapo.Config(**SMALL, rounds=2))}  # may ask for two rollouts in a step


def steps_of(name, lag, monkeypatch):
    """(run, weights at the start of each step, [(step, weights that sampled)])"""
    module, cfg = CASES[name]
    run, starts, sampled = toy(Echo()), [], []
    run.lag, sample = lag, run.sample

    def watched(problems, group_size, *, module=None, **options):
        who = module or run.policy.module
        sampled.append((run.step, torch.cat([p.detach().flatten().clone()
                                             for p in who.parameters()])))
        return sample(problems, group_size, module=module, **options)

    monkeypatch.setattr(run, "sample", watched)
    learn = module.train(run, cfg)
    for _ in range(cfg.steps):
        starts.append(torch.cat([p.detach().flatten().clone()
                                 for p in run.policy.module.parameters()]))
        drive(run, learn, 1)
    return run, starts, sampled


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_rollout_is_by_the_policy_of_so_many_steps_ago(name, lag, monkeypatch):
    """However many updates and rollouts a step makes; before that it is by the first policy."""
    run, starts, sampled = steps_of(name, lag, monkeypatch)
    assert sum(torch.equal(a, b) for a, b in zip(starts, starts[1:])) < 3
    assert {step for step, _ in sampled} == set(range(6))
    for step, weights in sampled:
        assert torch.equal(weights, starts[max(0, step - lag)]), step
    if name == "dapo":
        assert len(sampled) > 6
    assert ("frozen/past" in run.parts) == (lag > 0)
    assert not any(p.requires_grad for key, part in run.parts.items() if key == "frozen/past"
                   for p in part.module.parameters())


def test_the_recorded_log_probs_are_those_of_who_sampled(monkeypatch):
    """Recomputed ones too; and the metric tells how far the policy has moved since."""
    for recompute in (False, True):
        run = toy(Echo())
        run.lag, run.recompute = 1, recompute
        run.rollout(run.problems(2), 2, temperature=1.0)
        run.step = 1
        run.policy.assign(run.policy.master + 0.1)
        rollout = run.rollout(run.problems(2), 2, temperature=1.0)
        now = run.logprobs(run.policy.module, rollout).float()
        run.policy.assign(run.policy.master - 0.1)
        old = run.logprobs(run.policy.module, rollout).float()
        assert torch.allclose(old, rollout.logp, atol=1e-5)
        assert (now - rollout.logp).abs().max() > 0.01
        run.compare(now, rollout)
        moved = run.differences()["sampling_logp_difference/max"]
        assert (moved > 0.01) != recompute


def test_the_option_reaches_the_run_and_the_weights_its_state(command, tmp_path, reward):
    flags = ("--steps", 3, "--prompts", 3, "--group-size", 4, "--lr", 0.01, "--reward", reward)
    assert train.main(command("grpo", *flags, "--lag", 1)) == 0
    tensors, _ = tensor_file.load_state(tmp_path / "run/state/state.safetensors")
    kept = {key: x for key, x in tensors.items() if "past" in key}
    assert set(kept) == {"frozen/past/0", "frozen/past/1"}
    assert not torch.equal(*kept.values())


@pytest.mark.parametrize("name", methods.names())
def test_lag_is_refused_where_there_is_no_rollout_in_every_step(name):
    flags = ["--algo", name, "--lag", "3"]
    if methods.load(name).ON_POLICY:
        assert train.settings_of(flags).options.lag == 3
    else:
        with pytest.raises(MinipostError, match=f"^--lag 3: {name} does not learn from a rollout"):
            train.settings_of(flags)
