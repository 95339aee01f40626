"""RFT: which answers are kept, what they weigh, restarts and hints."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fakes import Echo, Letters, answer_file, make_run, small, tiny

from minipost.datasets.rows import File
from minipost.datasets.trajectories import Trajectories
from minipost.errors import MinipostError
from minipost.measure.results import evaluate
from minipost.methods import rft
from minipost.optim import Learner
from minipost.rollout import logprobs, pack
from minipost.tasks.base import Problem


def test_a_files_answers_may_be_chosen_from(tmp_path):
    run, cfg = make_run(answer_file(tmp_path)), rft.Config(steps=5, least=0.7)
    rows = run.task.training()
    metrics = next(rft.train(run, cfg))
    assert metrics["kept"] == sum(p.columns["reward"] >= 0.7 for p in rows) > 0
    assert run.tokens > 0 and run.tokens % 3 == 0           # two letters and EOS, each time learnt
    found = rft.measure(run, {"seen": rows}, cfg)["seen"]["log-prob of right answers"]
    assert [rows[k].columns["reward"] >= 0.7 for k in found.rows] == [True] * metrics["kept"]
    seqs = run.encode([rows[k].prompt for k in found.rows], found.texts)
    with torch.no_grad():
        expected = logprobs(run.policy.module, seqs).sum(1) / 3
    assert found.rewards == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(MinipostError, match="no row has a reward of at least 2"):
        rft.measure(run, {"seen": rows}, replace(cfg, least=2.0))


@pytest.mark.parametrize("reward", [0.7, 0.9, 0.1])
def test_an_answer_of_exactly_the_least_reward_is_kept(tmp_path, reward):
    row = {"completion": "b", "reward": reward}
    for name, prompts in (("train", "ae"), ("test", "f")):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": p, **row}) + "\n"
                                             for p in prompts))
    run = make_run(File(str(tmp_path / "train"), str(tmp_path / "test")))
    assert next(rft.train(run, rft.Config(least=reward)))["kept"] == 2


def test_what_others_said_in_an_answer_is_kept_and_not_learnt():
    """Such as a tool's result, or a user's second question."""
    holes = [[True, False, False, True, True], [True, True]]
    seqs, found = pack([[1, 3], [1, 4]], [[7, 8, 9, 7, 2], [8, 2]], 0, holes), {}
    problems = [Problem("a"), Problem("b")]
    rft.collect(found, problems, seqs, torch.tensor([1.0, 1.0]), 1.0)
    run = make_run()
    data = SimpleNamespace(problems=problems, seqs=seqs, reward=torch.tensor([1.0, 1.0]))
    kept, _, _ = rft.keep(run, rft.Config(least=1.0), data)
    assert torch.equal(kept.tokens, seqs.tokens) and torch.equal(kept.mask, seqs.mask)
    assert found == {"a": {((7, 8, 9, 7, 2), tuple(holes[0])): True},
                     "b": {((8, 2), (True, True)): True}}


class Half(Echo):
    """Right where the answer has the prompt's letter, which an untrained model often says."""

    def reward(self, prompts, completions, letter, **columns):
        return [float(c in text) for text, c in zip(completions, letter)]


@pytest.mark.parametrize("weigh", ["answer", "prompt"])
def test_what_is_kept(weigh):
    run, cfg = make_run(Half(), max_new_tokens=2), rft.Config(prompts=6, group_size=20, weigh=weigh)
    data = Trajectories(run, cfg)
    data.refresh()
    kept, weight, solved = rft.keep(run, cfg, data)
    right = {}
    for p, t, m, r in zip(data.problems, data.seqs.targets, data.seqs.mask, data.reward):
        if r == 1:
            right.setdefault(p.prompt, set()).add(tuple(t[m].tolist()))
    rows = [(Letters().decode(row[:2].tolist()), tuple(t[m].tolist()), float(w))
            for row, t, m, w in zip(kept.tokens, kept.targets, kept.mask, weight)]
    assert {(p, ids) for p, ids, _ in rows} == {(p, ids) for p in right for ids in right[p]}
    assert len(rows) == sum(map(len, right.values())) < int((data.reward == 1).sum())
    assert solved == len(right)
    for prompt, ids, w in rows:
        assert w == pytest.approx(1.0 if weigh == "answer" else 1 / len(right[prompt]))


def test_a_step_is_divided_by_the_weight_of_its_tokens(monkeypatch):
    """And each row comes with its own weight."""
    run, whole, seen = make_run(Half(), micro_batch_size=2), rft.loss, []
    monkeypatch.setattr(rft, "loss", lambda logp, mask, w, *, count: seen.append(
        (logp.detach(), mask, w, count)) or whole(logp, mask, w, count=count))
    cfg = rft.Config(prompts=9, group_size=20, batch_size=7, weigh="prompt")
    data = Trajectories(run, cfg)
    data.refresh()
    kept, weight, _ = rft.keep(run, cfg, data)
    own = {round(float(x), 4): float(w) for x, w in zip(
        logprobs(run.policy.module, kept).detach().sum(1), weight)}
    assert len(own) == len(kept) and len(set(own.values())) > 1
    next(rft.train(run, cfg))
    assert len(seen) == 4 and len({count for *_, count in seen}) == 1
    assert sum(float(w @ mask.sum(1).to(w)) for _, mask, w, _ in seen) == pytest.approx(seen[0][3])
    for logp, _, w, _ in seen:
        for x, mine in zip(logp.sum(1).tolist(), w.tolist()):
            assert min((abs(x - y), abs(mine - v)) for y, v in own.items())[1] < 1e-6


def test_nothing_right_is_said():
    run = make_run()
    with pytest.raises(MinipostError, match="none of 6 answers has a reward of at least 2 "):
        next(rft.train(run, rft.Config(prompts=2, group_size=3, least=2.0)))


def test_star_starts_each_part_from_the_first_weights():
    seen = {}
    for restart in (False, True):
        run = make_run(Half(), seed=3)
        first = run.policy.flat.clone()
        cfg = rft.Config(steps=4, prompts=8, group_size=8, iterations=2, restart=restart, lr=1e-2,
                         warmup_steps=0)
        steps = rft.train(run, cfg)
        for run.step in range(4):
            before = run.policy.flat.clone()
            metrics = next(steps)
            seen[restart, run.step] = (before, run.policy.flat.clone(), metrics["learning_rate"])
        assert run.policy.updates == (2 if restart else 4)
    assert torch.equal(seen[True, 1][1], seen[False, 1][1])
    expected = Learner(tiny())
    assert torch.equal(expected.flat, first)
    # What step 2 moved is small beside what the first part had; it began at the first weights.
    moved = [(seen[restart, 2][1] - first).norm() for restart in (True, False)]
    assert moved[0] < 0.7 * moved[1]
    assert [seen[True, k][2] for k in range(4)] == [1e-2, 0.5e-2, 1e-2, 0.5e-2]
    run, rates = make_run(Half()), []
    steps = rft.train(run, rft.Config(steps=8, prompts=8, group_size=8, iterations=2, lr=1.0,
                                      warmup_steps=9))
    for run.step in range(8):
        rates.append(next(steps)["learning_rate"])
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5] * 2)


def test_hints_are_told_to_problems_without_a_right_answer_and_learnt_without():
    class Told(Half):
        asked = []

        def hint(self, problem):
            return problem.prompt + "h"

        def reward(self, prompts, completions, letter, **columns):
            self.asked.append(list(prompts))
            return [float(p.endswith("h") and bool(text)) if c in "ab" else float(bool(text))
                    for p, text, c in zip(prompts, completions, letter)]

    run, cfg = make_run(Told()), rft.Config(prompts=12, group_size=4, hint=True)
    data = Trajectories(run, cfg)
    data.refresh()
    kept, _, solved = rft.keep(run, cfg, data)
    prompts = {Letters().decode(row[1: 1 + int(m.int().argmax())].tolist())
               for row, m in zip(kept.tokens, kept.mask)}
    assert {p[-1] for p in Told.asked[-1]} == {"h"} and {p[0] for p in Told.asked[-1]} == {"a", "b"}
    assert prompts == {"a", "b", "c", "d"} and solved == 4
    with pytest.raises(MinipostError, match="the task echo tells no hints"):
        rft.check(make_run(Half()), cfg)


@pytest.mark.parametrize("control", [False, True])
def test_rft_learns_what_is_right_and_nothing_from_shuffled_rewards(control):
    torch.set_num_threads(1)
    run = make_run(Half(), small(), max_new_tokens=3, micro_batch_size=256)
    if control:
        def shuffled(prompts, completions, **columns):
            values = Half().reward(prompts, completions, **columns)
            random.Random("".join(completions)).shuffle(values)
            return values
        run.reward = shuffled
    cfg = rft.Config(steps=40, prompts=64, group_size=8, iterations=2, lr=1e-2)
    steps = rft.train(run, cfg)
    for run.step in range(40):
        next(steps)
    run.reward = Half().reward
    rate = evaluate(run, Half().sample(300, random.Random(1)), 1.0).score.value
    assert rate < 0.45 if control else rate > 0.7, rate
