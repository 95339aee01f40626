"""Every on-policy method's steps equal its paper's formula written anew: passes, ratios, knobs.

Two steps of two passes in minibatches, at temperature 0.8, with every setting off its default.  So
a ratio is not 1, a clip acts, the reference is another network, and Adam remembers.
"""

from dataclasses import fields

import pytest
from anew import ON_POLICY, compare

from minipost import methods


@pytest.mark.parametrize("name", ON_POLICY)
def test_two_steps_are_the_formula_written_anew(name):
    case = ON_POLICY[name]
    run, logged = compare(case)
    norms = [metrics["grad_norm"] for metrics in logged]
    assert min(norms) > 1e-3
    if "clip" in case.cfg or "clip_low" in case.cfg:        # the clip acts on some tokens
        assert all(0 < metrics["clip_ratio"] < 1 for metrics in logged), logged
    if "max_grad_norm" in case.cfg:
        assert max(norms) > case.cfg["max_grad_norm"]


@pytest.mark.parametrize("name", ON_POLICY)
def test_no_setting_is_left_at_its_default(name):
    """A knob that is added to a method fails here until its formula has it too."""
    case = ON_POLICY[name]
    cfg = case.config()
    idle = [f.name for f in fields(cfg) if getattr(cfg, f.name) == f.default]
    assert not set(idle) - set(case.same)


def test_every_method_that_samples_with_its_policy_is_here():
    """A method is on-policy if it learns from its own rollouts: it then has TRL's metrics."""
    here = {case.module.__name__ for case in ON_POLICY.values()}
    for name in methods.names():
        module = methods.load(name).module
        if hasattr(module, "describe"):
            assert module.__name__ in here
