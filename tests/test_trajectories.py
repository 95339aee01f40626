"""Fixed sets of answers: when they are drawn, how they are dealt, what a file gives."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from fakes import Echo, Letters, answer_file, make_run
from hypothesis import given
from hypothesis import strategies as st

from minipost.datasets.rows import File
from minipost.datasets.trajectories import Trajectories
from minipost.errors import MinipostError
from minipost.methods import oreo, rft

CFG = rft.Config(steps=7, prompts=5, group_size=3, iterations=3, batch_size=4)


def moved(run):
    """Something that learning would do to the policy."""
    run.policy.assign(run.policy.flat * 1.1)


def test_a_set_is_drawn_once_per_part_by_the_policy_of_then():
    run = make_run()
    data, drawn, weights = Trajectories(run, CFG), [], []
    for run.step in range(7):
        weights.append(run.policy.flat.clone())
        if data.refresh():
            drawn.append((run.step, data.seqs, data.reward))
            asked = [p.prompt for p in data.problems]
            assert asked == [p for p in asked[::3] for _ in range(3)]
            assert data.reward.tolist() == pytest.approx(Echo().reward(
                None, run.texts(data.seqs), [p.columns["letter"] for p in data.problems]))
            sampler = torch.cat([p.flatten() for p in data.sampler.parameters()])
            mine = torch.cat([p.flatten() for p in run.policy.module.parameters()])
            assert torch.equal(sampler, mine)
            assert not any(p.requires_grad for p in data.sampler.parameters())
        data.count(data.seqs)                               # counted when they were sampled
        moved(run)
    assert [step for step, *_ in drawn] == [0, 2, 4]
    assert all(len(seqs) == 15 for _, seqs, _ in drawn)
    assert drawn[0][1].tokens.shape != drawn[1][1].tokens.shape or not torch.equal(
        drawn[0][1].tokens, drawn[1][1].tokens)
    assert run.tokens == sum(int(seqs.mask.sum()) for _, seqs, _ in drawn)


def test_each_part_begins_an_epoch():
    run, rows = make_run(), []
    data = Trajectories(run, CFG)
    for run.step in range(4, 7):
        data.refresh()
        rows += data.deal(range(15), 5)
    assert sorted(rows) == list(range(15)) and data.length == 3
    run.step = 5
    part = data.deal(range(13), 6)
    run.step = 4
    assert not set(part) & set(data.deal(range(13), 6))


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_run_is_cut_into_as_many_parts_as_equal_as_can_be(steps, parts):
    cfg, run, found = replace(CFG, steps=max(steps, parts), iterations=parts), make_run(), []
    data = Trajectories(run, cfg)
    data.sample = lambda: found.append((data.since, data.length))
    for run.step in range(cfg.steps):
        data.refresh()
    starts, lengths = zip(*found)
    assert len(found) == parts and sum(lengths) == cfg.steps and starts[0] == 0
    assert max(lengths) - min(lengths) <= 1
    assert list(starts[1:]) == list(itertools.accumulate(lengths))[:-1]
    with pytest.raises(MinipostError, match="at most one per step"):
        Trajectories(run, replace(CFG, steps=parts, iterations=parts + 1))


@pytest.mark.parametrize("step", range(7))
def test_a_resumed_run_finds_the_same_set_and_counts_it_once(step):
    """At whatever step it goes on, with the policy that it had there."""
    def drive(run, first, last, data):
        for run.step in range(first, last):
            data.refresh()
            moved(run)

    whole, run = make_run(), make_run()
    data = Trajectories(whole, CFG)
    drive(whole, 0, step, data)
    whole.step = step
    tensors, facts = whole.state()
    tensors = {k: v.clone() for k, v in tensors.items()}
    run.restore(tensors, facts)
    again = Trajectories(run, CFG)
    for one, other in ((whole, data), (run, again)):
        one.step = step
        other.refresh()
    assert torch.equal(data.seqs.tokens, again.seqs.tokens)
    assert torch.equal(data.reward, again.reward) and data.since == again.since
    assert whole.tokens == run.tokens
    assert data.deal(range(15), 4) == again.deal(range(15), 4)


@pytest.mark.parametrize("key", ["reward", "label"])
def test_a_files_answers_and_rewards(tmp_path, key):
    run = make_run(answer_file(tmp_path, key))
    data = Trajectories(run, oreo.Config(steps=5))
    assert data.refresh() and run.tokens == 0
    texts = [Letters().decode(t[m].tolist()) for t, m in zip(data.seqs.targets, data.seqs.mask)]
    expected = [p.prompt[::-1] for p in run.task.training()]
    assert texts == expected
    assert data.reward.tolist() == [float(p.columns[key]) for p in run.task.training()]
    run.step = 4
    assert not data.refresh()
    data.count(data.seqs[[0, 1]])
    assert run.tokens == 6
    with pytest.raises(MinipostError, match="iterations is 2"):
        Trajectories(run, oreo.Config(iterations=2))


def test_a_reward_without_a_completion_is_a_column_like_any_other(tmp_path):
    for name, prompts in (("train", "abcd"), ("test", "e")):
        (tmp_path / name).write_text("".join(
            json.dumps({"prompt": p, "letter": p, "reward": 5}) + "\n" for p in prompts))
    run = make_run(File(str(tmp_path / "train"), str(tmp_path / "test")))
    run.reward = lambda prompts, completions, letter, reward: [float(r) for r in reward]
    data = Trajectories(run, CFG)
    assert data.refresh() and not data.given and set(data.reward.tolist()) == {5.0}
