"""Iterative GRPO: rounds, what each renews, and the pairs that are replayed."""

import random
from dataclasses import replace

import pytest
import torch
from fakes import Hidden, drive, pair_task, rollout_of, toy

from minipost.errors import MinipostError
from minipost.measure import scorers
from minipost.methods import grpo, iterative_grpo, reward
from minipost.methods.iterative_grpo import PAIRS, Config, History

SMALL = Config(steps=4, prompts=4, group_size=4, iterations=2, reward_steps=4, sft_steps=2,
               lr=1e-2, minibatch_size=16)


def test_the_steps_and_labels_are_divided_among_the_rounds():
    assert iterative_grpo.rounds(SMALL) == [(2, 4, 6), (6, 8, 10)]
    assert iterative_grpo.total(None, SMALL) == 10
    assert iterative_grpo.milestones(None, SMALL) == {2: "fine-tuning", 6: "round 1"}
    odd = replace(SMALL, steps=7, reward_steps=5, iterations=3, sft_steps=0)
    assert iterative_grpo.rounds(odd) == [(0, 2, 5), (5, 7, 9), (9, 10, 12)]
    assert iterative_grpo.total(None, odd) == 12 and iterative_grpo.fixed(odd)
    assert not iterative_grpo.fixed(replace(odd, iterations=1))
    few = replace(SMALL, steps=1, reward_steps=1)       # `make demos STEPS=1`
    assert iterative_grpo.rounds(few) == [(2, 3, 4), (4, 4, 4)]


def test_settings_out_of_bounds_are_refused():
    for name, value in (("replay_share", 0.6), ("replay_share", -0.1), ("iterations", 0)):
        with pytest.raises(MinipostError, match=f"{name} is {value}; expected at (least|most)"):
            Config(**{name: value})


def test_pairs_of_given_answers_are_refused(tmp_path):
    """They would be learnt in place of the policy's own, round after round."""
    with pytest.raises(MinipostError, match="pairs of given answers; iterative GRPO labels"):
        iterative_grpo.check(toy(pair_task(tmp_path)), SMALL)
    iterative_grpo.check(toy(Hidden()), replace(SMALL, sft_steps=0))


# ---- what a round renews

def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_a_round_renews_the_reference_and_the_score(monkeypatch):
    """Both are of the policy and the scorer as its GRPO begins, and stay until the round ends."""
    run, seen, real = toy(Hidden()), [], grpo.train

    def watched(run, cfg, score, first):
        assert (cfg.steps, first) == (2, 4 + 4 * len(seen))
        policy, scorer = weights(run.policy.module), weights(scorers.scorer(run).module)
        seen.append((policy, scorer))
        for metrics in real(run, cfg, score, first):
            for module, expected in ((run.reference(), policy), (run.reward_model, scorer)):
                found = weights(module)
                assert all(torch.equal(found[name], expected[name]) for name in expected)
            yield metrics

    monkeypatch.setattr(grpo, "train", watched)
    metrics = drive(run, iterative_grpo.train(run, SMALL), 10)
    for first, second in zip(*seen):                    # policies, then scorers
        assert not all(torch.equal(first[name], second[name]) for name in first)
    assert [line.get("round") for line in metrics] == [None] * 2 + [1] * 4 + [2] * 4
    assert all(("gold" in line) == ("clip_ratio" in line) for line in metrics)


def test_the_score_of_a_round_has_mean_zero_on_the_policy_as_it_begins():
    run = toy(Hidden())
    learn = iterative_grpo.train(run, replace(SMALL, prompts=64))
    metrics = drive(run, learn, 10)
    for k in (4, 8):
        assert abs(metrics[k]["reward"]) < 0.5, metrics[k]["reward"]


def test_with_one_round_it_is_a_reward_model_and_grpo(monkeypatch):
    """The control has as many labels and rollouts, and nothing is replayed."""
    drawn = []
    monkeypatch.setattr(History, "draw", lambda *a: drawn.append(a))
    run = toy(Hidden())
    metrics = drive(run, iterative_grpo.train(run, replace(SMALL, iterations=1)), 10)
    assert not drawn and [("accuracy" in m) for m in metrics] == [False] * 2 + [True] * 4 + [
        False] * 4


# ---- the replay

def sides(*rows, seed=0):
    """Two answers to a prompt each, and wins: +1 if the first is better, -1 if the second is."""
    one, two = (rollout_of([[1, 3 + k] for k in range(len(rows))],
                           [[5 + side, 4 + k] * (1 + k % 2) for k in range(len(rows))])
                for side in (0, 1))
    wins = torch.zeros(len(rows), 2, 2, dtype=torch.bool)
    for k, sign in enumerate(rows):
        if sign:
            wins[k, int(sign < 0), int(sign > 0)] = True
    return [one, two], wins


def text(seqs):
    return [tokens[: int(mask.nonzero()[-1]) + 2].tolist()
            for tokens, mask in zip(seqs.tokens, seqs.mask)]


def test_a_history_keeps_pairs_and_gives_those_of_earlier_rounds():
    history = History()
    history.add(3, *sides(1, -1, 0))
    assert history.step.tolist() == [3, 3]              # a tie is no pair
    assert text(history.better) == [[1, 3, 5, 4, 2], [1, 4, 6, 5, 6, 5, 2]]
    assert text(history.worse) == [[1, 3, 6, 4, 2], [1, 4, 5, 5, 5, 5, 2]]
    history.add(7, *sides(0, 0, 1))
    better, worse = history.draw(9, 7, random.Random(0))
    assert sorted(text(better)) == [[1, 3, 5, 4, 2], [1, 4, 6, 5, 6, 5, 2]] and len(worse) == 2
    assert len(history.draw(9, 8, random.Random(0))[0]) == 3
    assert len(history.draw(1, 8, random.Random(0))[0]) == 1
    assert len(history.draw(5, 3, random.Random(0))[0]) == 0
    history.add(7, *sides(1, 1, 1))                     # the step failed and is made again
    assert history.step.tolist() == [3, 3, 7, 7, 7]


def test_a_history_is_restored_as_it_was():
    history, other = History(), History()
    history.add(3, *sides(1, -1, 0))
    tensors, numbers = history.state()
    assert not numbers
    other.restore({name: x.clone() for name, x in tensors.items()}, [])
    assert all(torch.equal(x, other.state()[0][name]) for name, x in tensors.items())


@pytest.mark.parametrize("replay, many", [(0.1, 6), (0.5, 32), (0.0, 0)])
def test_a_share_of_a_steps_pairs_is_of_earlier_rounds(monkeypatch, replay, many):
    """In the second round, and all of them by answers that the first one labelled."""
    steps, real = [], reward.train

    def watched(run, cfg, label, first, mix):
        def mixed(places, wins):
            found = mix(places, wins)
            steps.append((run.step, cfg.prompts, len(wins), len(found[1]),
                          [text(side)[len(wins):] for side in found[0]]))
            assert bool(found[1][len(wins):, 0, 1].all())
            return found
        return real(run, cfg, label, first, mixed)

    monkeypatch.setattr(reward, "train", watched)
    run = toy(Hidden())
    learn, known = iterative_grpo.train(run, replace(SMALL, replay_share=replay)), []
    for _ in range(10):
        drive(run, learn, 1)
        if run.step == 4:
            history = run.parts["frozen/history"]
            known = list(zip(text(history.better), text(history.worse)))
    for step, prompts, fresh, whole, old in steps:
        late = step >= 6
        wanted = min(many, len(known)) * late
        assert prompts == fresh == PAIRS - many * late and whole == fresh + wanted
        assert all(pair in known for pair in zip(*old))
    assert [step for step, *_ in steps] == [2, 3, 6, 7]
