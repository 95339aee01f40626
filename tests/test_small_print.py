"""What docstrings promise in passing, and planted mistakes showed that no test held them to."""

import json
from types import SimpleNamespace

import pytest
import torch
from fakes import Echo, Hidden, answer_file, make_run

from minipost.datasets.rows import File
from minipost.datasets.trajectories import Trajectories
from minipost.errors import MinipostError
from minipost.methods import oreo, rft, trpo
from minipost.run import open_run
from minipost.tasks.countdown import Countdown
from minipost.test_time import memory


def test_a_reward_file_shows_what_a_task_hides(tiny, reward):
    options = SimpleNamespace(model=str(tiny), dtype="float32", reward=[], seed=3,
                              micro_batch_size=5, max_new_tokens=7)
    assert open_run(options, Hidden(), "cpu").hidden
    assert not open_run(options, Echo(), "cpu").hidden
    options.reward = [reward]
    run = open_run(options, Hidden(), "cpu")
    assert not run.hidden and (run.seed, run.micro_batch_size, run.max_new_tokens) == (3, 5, 7)
    assert run.reward(completions=["123456789"]) == [1.0]


def test_a_file_draws_as_many_problems_as_are_asked_for(tmp_path):
    task, run = answer_file(tmp_path), make_run()
    found = task.sample(25, run.rng("x"))
    assert len(found) == 25 and {p.prompt for p in found} <= {p.prompt for p in task.training()}


def test_rewards_have_the_precision_of_what_was_sampled():
    run = make_run()
    problems = run.problems(2)
    rollout = run.sample(problems, 2, temperature=1.0)
    assert run.grade(problems, rollout).dtype == rollout.logp.dtype == torch.float32


@pytest.mark.parametrize("method", [oreo, rft])
def test_a_files_answers_are_looked_at_before_a_run(tmp_path, method):
    for name, prompt, n in (("train", "a", 80), ("test", "b", 3)):
        row = {"prompt": prompt, "completion": "a" * n, "reward": 1.0}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    task = File(str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl"))
    with pytest.raises(MinipostError, match="do not fit the model's context"):
        method.check(make_run(task), method.Config())


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_resumed_run_makes_the_set_of_its_part_at_any_step(step):
    run = make_run()
    run.step = step
    data = Trajectories(run, oreo.Config(steps=4, iterations=4, prompts=2, group_size=2))
    assert data.refresh() and (data.since, data.length) == (step, 1) and not data.refresh()
    assert len(data.seqs) == len(data.problems) == len(data.reward) == 4


def test_without_an_iteration_there_is_no_step_and_no_division_by_zero():
    g = torch.tensor([3.0, 4.0])
    step, residual = trpo.full_step(lambda v: v, g, 0.1, 0)
    assert not step.any() and residual == 1.0


def test_the_last_answer_of_a_life_is_judged_without_the_space_around_it():
    for said, right in ((" 17\n", True), ("17", True), ("7", False)):
        working = {"episodes": [{"question": "red box", "said": said, "right": "17"}]}
        assert memory.outcome(working) == ("red box?", right)


def test_a_memory_does_not_mind_capitals():
    found = memory.Memory()
    found.write("Code of the RED box", "1")
    found.write("code of the old hut", "2")
    assert found.nearest("CODE OF THE red hat", 1) == [("Code of the RED box", "1")]


def test_held_out_hands_come_in_an_order_that_says_nothing():
    """So any first few are as hard as the others: not sorted by their numbers."""
    hands = [sorted(p.columns["numbers"]) for p in Countdown(numbers=4, target=24).heldout(60)]
    assert hands != sorted(hands)
    first, second = ([h[0] for h in half] for half in (hands[:30], hands[30:]))
    assert abs(sum(first) - sum(second)) < 40
