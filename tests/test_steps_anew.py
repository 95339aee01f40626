"""The steps of every method that learns from given answers equal its formula written anew."""

from dataclasses import fields

import pytest
from anew import CASES, OFF_POLICY, compare

from minipost import methods


@pytest.mark.parametrize("name", OFF_POLICY)
def test_steps_are_the_formula_written_anew(name):
    case = OFF_POLICY[name]
    _, logged = compare(case)
    norms = [metrics["grad_norm"] for metrics in logged]
    assert min(norms) > 1e-3 and max(norms) > case.cfg["max_grad_norm"]
    rates = [metrics["learning_rate"] for metrics in logged]
    if "warmup_steps" in case.cfg and "iterations" not in case.cfg:
        assert rates == pytest.approx([0.01, 0.02, 0.02, 0.01])
    if name == "kto, pairs":
        assert any(metrics["z0"] > 0 for metrics in logged), logged


@pytest.mark.parametrize("name", OFF_POLICY)
def test_no_setting_is_left_at_its_default(name):
    """A knob that is added to a method fails here until its formula has it too."""
    case = OFF_POLICY[name]
    idle = [f.name for f in fields(case.config()) if getattr(case.config(), f.name) == f.default]
    assert not set(idle) - set(case.same)


def test_every_method_with_a_loss_has_a_formula():
    here = {case.module.__name__ for case in CASES.values()}
    for name in methods.names():
        module = methods.load(name).module
        assert module.__name__ in here or not hasattr(module, "loss"), name
