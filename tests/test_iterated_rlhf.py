"""Iterated RLHF: whose answers each round labels, and what stays as it was."""

import copy
from dataclasses import replace

import pytest
import torch
from fakes import Echo, Hidden, drive, pair_task, toy

from minipost.datasets import preferences
from minipost.errors import MinipostError
from minipost.methods import iterated_rlhf, ppo
from minipost.rollout import final_score
from minipost.run import REWARD_MODEL

SMALL = dict(steps=4, reward_steps=4, sft_steps=2, prompts=8, minibatch_size=4, lr=1e-2,
             critic_lr=1e-2)
CONFIG = iterated_rlhf.Config(**SMALL, rounds=2)


def moved(run):
    return [learner.flat.clone() for learner in run.learners.values()]


def test_one_round_is_rlhf_bit_for_bit():
    runs = [toy(Hidden()) for _ in "ab"]
    plain = ppo.Config(**SMALL)
    steps = iterated_rlhf.total(runs[0], plain)
    ours = drive(runs[0], iterated_rlhf.train(runs[0], iterated_rlhf.Config(**SMALL, rounds=1)),
                 steps)
    theirs = drive(runs[1], ppo.train(runs[1], plain), steps)
    for mine, other in zip(ours, theirs, strict=True):
        mine.pop("gap", None)
        assert mine == other
    assert all(map(torch.equal, *map(moved, runs)))


def test_rounds_share_steps_labels_and_rollouts():
    assert iterated_rlhf.shares(10, 4) == [0, 2, 5, 7, 10]
    run = toy(Hidden())
    found = drive(run, iterated_rlhf.train(run, CONFIG), iterated_rlhf.total(run, CONFIG))
    kinds = ["".join(k for k, name in (("f", "pairs"), ("o", "gold")) if name in m) for m in found]
    assert kinds == ["", "", "f", "f", "o", "o", "f", "f", "o", "o"]
    plain = toy(Hidden())
    once = drive(plain, ppo.train(plain, ppo.Config(**SMALL)), 10)
    assert sum(m.get("pairs", 0) > 0 for m in found) == sum(m.get("pairs", 0) > 0 for m in once)
    # 64 pairs or 8 answers a step either way; the second round normalises once more, 256 answers.
    assert 0.9 * plain.tokens < run.tokens < 1.1 * plain.tokens + 4 * 256


def test_each_round_labels_answers_of_the_policy_as_it_is():
    run, seen = toy(Hidden()), []

    def label(run, problems, rollout):
        seen.append((run.step, run.policy.flat.clone(), rollout))
        return preferences.by_reward(run, problems, rollout)

    drive(run, iterated_rlhf.train(run, CONFIG, label), 10)
    assert [step for step, *_ in seen] == [2, 3, 6, 7]
    assert torch.equal(seen[0][1], seen[1][1]) and not torch.equal(seen[1][1], seen[2][1])
    run.policy.assign(seen[2][1])
    for step, weights, rollout in seen:
        run.policy.assign(weights)
        again = run.logprobs(run.policy.module, rollout)
        assert (again - rollout.logp).abs().max() < 1e-4, step


def test_in_every_round_the_references_answers_have_score_0_and_deviation_1():
    """Of the very answers that it is normalised on, after the policy has moved away."""
    run = toy(Hidden())
    learn = iterated_rlhf.train(run, CONFIG)
    drive(run, learn, 9)                                        # one rollout of the second round
    run.step = 8                                                # at which it began
    rollout = run.sample(run.problems(128, again=1), 2, temperature=1.0, purpose="normalise",
                         module=run.reference())
    with torch.no_grad():
        score = final_score(run.reward_model, rollout)
    assert abs(float(score.mean())) < 1e-4 and float(score.std()) == pytest.approx(1, abs=1e-3)
    theirs = run.parts["frozen/" + REWARD_MODEL].module
    assert theirs is run.reward_model


def test_the_reward_model_of_the_second_round_goes_on_from_the_first():
    run = toy(Hidden())
    learn = iterated_rlhf.train(run, CONFIG)
    drive(run, learn, 6)
    before = run.learners[REWARD_MODEL].flat.clone()
    drive(run, learn, 1)
    after = run.learners[REWARD_MODEL].flat
    assert not torch.equal(before, after) and (before - after).abs().max() < 0.01


def test_the_gap_is_of_deviations_of_the_references_answers():
    run = toy(Hidden())
    drive(run, iterated_rlhf.train(run, CONFIG), 5)
    run.carried |= {"gold/mean": 0.5, "gold/std": 0.25}
    assert iterated_rlhf.gap(run, {"reward": 3.0, "gold": 1.0}) == pytest.approx(1.0)
    run.carried["gold/std"] = 0.0
    assert iterated_rlhf.gap(run, {"reward": 3.0, "gold": 1.0}) == 0.0


def test_rounds_without_a_step_and_given_pairs_are_refused(tmp_path):
    with pytest.raises(MinipostError, match="steps is 4, fewer than the 5 --rounds"):
        replace(CONFIG, rounds=5)
    run = toy(pair_task(tmp_path))
    with pytest.raises(MinipostError, match="pairs of given answers"):
        iterated_rlhf.check(run, CONFIG)
    iterated_rlhf.check(toy(Echo()), CONFIG)
    assert iterated_rlhf.fixed(CONFIG) and not iterated_rlhf.fixed(replace(CONFIG, rounds=1))


def test_before_anything_is_learnt_the_reward_model_knows_nothing():
    run = toy(Hidden())
    splits = {"held-out": Hidden().heldout(4)}
    before = iterated_rlhf.measure(run, splits, CONFIG)["held-out"]
    assert before["pair accuracy"].score.value == 0.5
    assert REWARD_MODEL not in run.learners and "frozen/reference" not in run.parts
    drive(run, iterated_rlhf.train(run, CONFIG), 10)
    after = iterated_rlhf.measure(run, splits, CONFIG)["held-out"]
    assert set(after) <= set(before)
    assert after["pair accuracy"].texts != before["pair accuracy"].texts


@pytest.mark.parametrize("step", [1, 5, 7, 10])
def test_a_resumed_run_measures_as_the_uninterrupted_one(step):
    """In round 2's reward stage too, and where nothing is left to do: by the latest scorer."""
    splits, whole, again = {"held-out": Hidden().heldout(4)}, toy(Hidden()), toy(Hidden(), seed=9)
    learn = iterated_rlhf.train(whole, CONFIG)
    drive(whole, learn, step)
    again.restore(*copy.deepcopy(whole.state()))
    ours, theirs = (iterated_rlhf.measure(run, splits, CONFIG)["held-out"]["pair accuracy"]
                    for run in (again, whole))
    assert ours.texts == theirs.texts and ours.rewards == theirs.rewards
    assert (set(ours.texts) == {"better answer ahead by 0.00"}) == (step == 1)
    goes_on = iterated_rlhf.train(again, CONFIG)    # as if nobody had measured
    assert drive(again, goes_on, 10 - step) == drive(whole, learn, 10 - step)
    assert again.tokens == whole.tokens
