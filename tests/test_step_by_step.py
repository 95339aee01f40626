"""Distilling step by step: what the two tasks are made of, and what is refused."""

import random

import pytest
import torch
from anew import Modes
from fakes import Echo, randn, tiny, toy
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.methods import sft, step_by_step
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.countdown import Countdown


@given(st.integers(0, 10_000), st.floats(0, 3))
def test_it_is_two_times_sft(seed, lam):
    """Labels by their own tokens, rationales by theirs; with lam 0 these have no part."""
    logp, mask = -randn(seed, 4, 5).abs(), torch.arange(5) < torch.tensor([[1], [5], [2], [3]])
    told = torch.tensor([False, True, False, True])
    value = step_by_step.loss(logp, told, mask, lam=lam, labels=3, rationales=8)[0]
    label = sft.loss(logp[~told], mask[~told], count=3)[0]
    assert torch.allclose(value, label + lam * sft.loss(logp[told], mask[told], count=8)[0])
    slope = step_by_step.loss_grad(logp, told, mask, lam=0.0, labels=3, rationales=8)["logp"]
    assert not slope[told].any() and torch.equal(
        slope[~told], sft.loss_grad(logp[~told], mask[~told], count=3)["logp"])


def test_the_teacher_is_asked_to_think_and_its_answer_is_the_label():
    task = Arithmetic(direct=True, terms=3)
    thinking = step_by_step.worked(task)
    problem = task.sample(1, random.Random(0))[0]
    other = thinking.like(problem)
    assert problem.prompt.endswith("Answer:") and other.prompt.endswith("Think:\n")
    said = thinking.demonstrate(other, random.Random(1), slip=1.0)
    label = f" {thinking.parse(said)}"
    assert label != task.demonstrate(problem)               # the teacher's own, right or wrong
    assert task.parse(label) == thinking.parse(said)        # which the student's task reads


def test_answers_that_state_nothing_are_left_out_and_the_teacher_is_asked_once():
    run = toy(Modes(), seed=3)
    run.sample, real, calls = None, run.sample, []

    def sample(problems, *args, **options):
        calls.append([p.prompt for p in problems])
        return real(problems, *args, **options)

    run.sample = sample
    cfg = step_by_step.Config(examples=40, batch_size=4, temperature=1.0)
    rows = step_by_step.taught(run, cfg, tiny(seed=4))
    assert 0 < len(rows) < 40 and all(text for *_, text in rows)
    learn = step_by_step.train(run, cfg, tiny(seed=4))
    for _ in range(3):
        assert next(learn)["examples"] == len(rows)
        run.step += 1
    assert len(calls) == 2
    tokens = run.tokens
    assert step_by_step.taught(run, cfg, tiny(seed=4)) == rows      # as a resumed run asks again
    assert run.tokens == tokens
    run.task.__class__.parse, kept = (lambda self, text: None), run.task.__class__.parse
    try:
        with pytest.raises(MinipostError, match="^none of the teacher's 40 answers states anyth"):
            step_by_step.taught(run, cfg, tiny(seed=4))
    finally:
        run.task.__class__.parse = kept


@pytest.mark.parametrize("task", [Echo(), Arithmetic(), Countdown()])
def test_a_task_with_one_mode_is_refused(task):
    run = toy()
    run.task = task
    with pytest.raises(MinipostError, match="use --task arithmetic --direct"):
        step_by_step.check(run, step_by_step.Config())
