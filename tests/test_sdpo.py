"""SDPO: where the credit falls, who is learnt from, and what is refused."""

import copy
import dataclasses

import pytest
import torch
from anew import Critic
from fakes import Echo, toy

from minipost.errors import MinipostError
from minipost.methods import sdpo
from minipost.rollout import distribution
from minipost.tasks.arithmetic import Arithmetic


def scene(seed=3, problems=8):
    run = toy(Critic(), seed=seed)
    asked = run.problems(problems)
    return run, asked, run.sample(asked, 2, temperature=1.0)


def test_the_teacher_reads_the_same_answer_behind_its_fault():
    run, asked, rollout = scene()
    rows, told, long = sdpo.informed(run, asked, rollout)
    texts = run.texts(rollout)
    assert rows == [k for k, text in enumerate(texts)
                    if asked[k // 2].columns["letter"] not in text]
    assert long == 0 and 0 < len(rows) < 16 and torch.equal(told.lengths, rollout.lengths[rows])
    for k, row in enumerate(rows):
        letter, said = asked[row // 2].columns["letter"], rollout.targets[row][rollout.mask[row]]
        ahead = run.vocabulary.prompt(letter + texts[row] + "h" + letter)
        assert told.tokens[k].tolist()[: len(ahead)] == ahead
        assert torch.equal(told.targets[k][told.mask[k]], said)
    model = run.policy.module                               # so their tokens stand side by side
    assert distribution(model, rollout[rows]).shape == distribution(model, told).shape


def test_nothing_is_learnt_where_no_answer_has_a_fault():
    run = toy(Critic(), seed=3)
    run.task.criticise = lambda problem, draft: ""
    before = run.policy.flat.clone()
    metrics = next(sdpo.train(run, sdpo.Config(prompts=4)))
    assert metrics["faults"] == 0 and metrics["loss"] == 0 and metrics["grad_norm"] == 0
    assert torch.equal(run.policy.flat, before)


@pytest.mark.parametrize("who", ["start", "policy"])
def test_the_teacher_stays_or_moves(spy, who):
    """After the first step the two differ; nothing flows back into the teacher."""
    run = toy(Critic(), seed=3)
    start = copy.deepcopy(run.policy.module)
    learn = sdpo.train(run, sdpo.Config(prompts=8, teacher=who, lr=0.05))
    for step in range(2):
        run.step = step
        calls = spy(sdpo, "distribution")
        before = run.policy.flat.clone()
        next(learn)
        teacher = calls[1][0]["model"]
        assert calls[1][1].requires_grad is False and calls[0][1].requires_grad
        now = torch.cat([p.flatten() for p in teacher.parameters()])
        first = torch.cat([p.flatten() for p in start.parameters()])
        assert torch.equal(now, first) == (who == "start")
        assert not torch.equal(run.policy.flat, before)


def test_an_answer_that_does_not_fit_behind_its_fault_is_left_out():
    """The context has room for every answer, and for some a second time."""
    run, asked, rollout = scene()
    rows, told, _ = sdpo.informed(run, asked, rollout)
    needed = (told.spans()[1] + 1).tolist()
    size = max(needed) - 1
    run.policy.module.config = dataclasses.replace(run.policy.module.config,
                                                   max_position_embeddings=size)
    some, again, long = sdpo.informed(run, asked, rollout)
    assert some == [row for row, need in zip(rows, needed) if need <= size]
    assert 0 < long == len(rows) - len(some) < len(rows) and len(again) == len(some)
    metrics = next(sdpo.train(run, sdpo.Config(prompts=8, group_size=2)))
    assert metrics["too_long"] > 0 and metrics["faults"] > metrics["too_long"]
    assert metrics["grad_norm"] > 0


def test_a_tasks_critic_points_at_the_first_wrong_step():
    task = Arithmetic(hurried=True)
    problem = task.pose("9+8-3")
    critique = task.criticise(problem, "9+8=16\n16-3=13\nAnswer: 13")
    assert not task.approves(critique) and critique == "9+8=17 no"
    assert task.revise(problem, "9+8=16", critique).endswith("9+8=17 no\nRevise:\n")
    assert task.approves(task.criticise(problem, "9+8=17\n17-3=14\nAnswer: 14"))


def test_a_task_without_a_critic_is_refused():
    run = toy(Echo())
    with pytest.raises(MinipostError, match="the task echo has no critic who says what is wrong"):
        sdpo.check(run, sdpo.Config())
