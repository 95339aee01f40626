"""GRPO with process supervision: who is credited with a step, and where it is plain GRPO."""

import math
import random
from pathlib import Path

import pytest
import torch
from fakes import (
    FIRST,
    Echo,
    Letters,
    Steps,
    drive,
    expected,
    length,
    logp_of,
    make_run,
    randn,
    scalar,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

from minipost import checkpoint
from minipost.errors import MinipostError
from minipost.gpt import GPT, GPTConfig
from minipost.methods import grpo, prm, process_grpo
from minipost.optim import Learner
from minipost.rollout import step_scores
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic

GROUP = 3


def stretches(seed, rows=2 * GROUP, width=7):
    """Rewards, ends and masks of answers of several lengths; each ends with a step."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 3, (rows, 1), generator=generator)
    length = torch.randint(1, 5, (rows, 1), generator=generator)
    column = torch.arange(width)
    mask = (start <= column) & (column < start + length)
    ends = mask & (torch.rand(mask.shape, generator=generator) < 0.4) | prm.final(mask)
    return randn(seed, rows, width), ends, mask


@given(st.integers(0, 10_000))
def test_a_token_is_credited_with_the_steps_that_end_at_it_or_later(seed):
    """By loops over steps, against the mean and deviation of all steps of a group."""
    reward, ends, mask = stretches(seed)
    found = process_grpo.advantages(reward, ends, mask, GROUP)
    for row in range(len(reward)):
        group = slice(row - row % GROUP, row - row % GROUP + GROUP)
        values = reward[group][ends[group]]
        for t in range(mask.shape[1]):
            credit = sum((reward[row, k] - values.mean()) / (values.std() + 1e-4)
                         for k in range(t, mask.shape[1]) if ends[row, k])
            assert found[row, t] == pytest.approx(float(credit) if mask[row, t] else 0.0)


@given(st.integers(0, 10_000), st.floats(0.5, 4.0), st.floats(-3.0, 3.0))
def test_shift_and_scale_of_a_groups_rewards_change_nothing(seed, scale, shift):
    """But for the 1e-4 beside the deviation; and another group's rewards have no part in it."""
    reward, ends, mask = stretches(seed)
    first = process_grpo.advantages(reward, ends, mask, GROUP)
    moved = torch.cat([scale * reward[:GROUP] + shift, reward[GROUP:] ** 2])
    second = process_grpo.advantages(moved, ends, mask, GROUP)
    assert torch.allclose(first[:GROUP], second[:GROUP], rtol=0.05, atol=0.05)


def test_steps_that_are_all_worth_the_same_teach_nothing_at_all():
    _, ends, mask = stretches(4)
    found = process_grpo.advantages(torch.full(mask.shape, 0.1), ends, mask, GROUP)
    assert torch.equal(found, torch.zeros(mask.shape))


def test_what_stands_where_no_step_ends_has_no_part():
    reward, ends, mask = stretches(5)
    found = process_grpo.advantages(reward, ends, mask, GROUP)
    spoilt = process_grpo.advantages(reward.where(ends, 1e9), ends, mask, GROUP)
    assert torch.equal(found, spoilt)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_where_answers_have_no_steps_it_is_grpo(beta):
    """The same weights and metrics after two steps in two passes, ratios and clip included."""
    class Whole(Steps):
        step_end = "i"          # no letter that the model can write

        def steps(self, text):
            return []

    found = []
    for module in (grpo, process_grpo):
        cfg = module.Config(steps=2, prompts=6, group_size=8, minibatch_size=12, epochs=2, lr=0.01,
                            clip=0.05, beta=beta)
        run = make_run(Whole(), seed=1)
        run.reward = length     # which tells most answers apart
        metrics = drive(run, module.train(run, cfg), 2)
        found.append((run.policy.flat, metrics))
    (plain, before), (stepwise, after) = found
    assert torch.allclose(plain, stepwise, rtol=0, atol=1e-5)    # rewards are float32
    for one, other in zip(before, after):
        assert other.pop("step_reward") == pytest.approx(one["reward"])
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
        assert one["clip_ratio"] > 0


def test_steps_change_the_gradient():
    """The control of the test above: of the same answers, in the same metric."""
    found = []
    for module in (grpo, process_grpo):
        run = make_run(Steps(), max_new_tokens=8)
        found.append(drive(run, module.train(run, module.Config(prompts=4, group_size=8)), 1)[0])
    plain, stepwise = found
    assert stepwise["reward"] == plain["reward"] != stepwise["step_reward"]
    assert abs(plain["grad_norm"] / stepwise["grad_norm"] - 1) > 0.01


def test_labels_are_the_tasks_and_the_verifiers_are_its_chances():
    run = make_run(Steps(), max_new_tokens=8)
    problems = run.problems(4)
    rollout = run.sample(problems, 2, temperature=1.0)
    ends = prm.marks(run, rollout, False)
    last, found = prm.final(rollout.mask), process_grpo.exact(run, problems, rollout)
    assert torch.equal(found[last].double(), run.grade(problems, rollout).double())
    assert set(found[ends & ~last].tolist()) == {0.0, 1.0}
    model = scalar(7)
    chance = process_grpo.learnt(run, model, problems, rollout)
    with torch.no_grad():
        assert torch.allclose(chance[ends], step_scores(model, rollout)[ends].sigmoid())
    model.score.weight.data.fill_(float("nan"))
    with pytest.raises(MinipostError, match="verifier's score of a step is not a number"):
        process_grpo.learnt(run, model, problems, rollout)


def test_a_verifier_from_its_directory_is_what_pays():
    """`reward` and `step_reward` are its chances then, `gold` is what the answers earned."""
    root, task = Path(__file__).parents[1] / "checkpoints", Arithmetic(terms=3)
    module, vocabulary = checkpoint.load(str(root / "base"))
    run = Run(Learner(module), vocabulary, task, task.reward)
    cfg = process_grpo.Config(prompts=2, group_size=4, verifier=str(root / "verifier"))
    metrics = next(process_grpo.train(run, cfg))
    assert 0 < metrics["reward"] < 1 and 0 < metrics["step_reward"] < 1
    assert metrics["gold"] in {k / 8 for k in range(9)}


def test_a_verifier_needs_no_task_that_can_check_steps():
    """It is asked where the task's steps end, which are those of a file of rows too: lines."""
    class Lines(Echo):
        step_end = "h"

    root, run = Path(__file__).parents[1] / "checkpoints", make_run(Lines(), max_new_tokens=6)
    process_grpo.check(run, process_grpo.Config(verifier=str(root / "verifier")))
    model = scalar(7)
    found = [next(process_grpo.train(make_run(task, max_new_tokens=6), process_grpo.Config(
        prompts=4), lambda problems, rollout: process_grpo.learnt(run, model, problems, rollout)))
        for task in (Lines(), Echo())]
    assert all(math.isfinite(metrics["loss"]) for metrics in found)
    assert found[0]["step_reward"] != found[1]["step_reward"]       # of answers alone there


def test_without_steps_a_verifier_or_a_reward_it_is_refused():
    with pytest.raises(MinipostError, match="echo cannot check steps"):
        process_grpo.check(make_run(Echo()), process_grpo.Config(prompts=2))
    run = make_run(Steps(), hidden=True)
    with pytest.raises(MinipostError, match="hidden from learners; .* with --verifier"):
        process_grpo.check(run, process_grpo.Config())
    with pytest.raises(MinipostError, match="nowhere: no such model directory"):
        process_grpo.check(run, process_grpo.Config(verifier="nowhere"))


# ---- the mean of all steps as a baseline

def slope(table, reward, ends, baseline):
    """The mean step over all answers of two tokens, credited with rewards less a number."""
    logp, scores = logp_of(table), jacrev(logp_of)(table)                   # (9, 2), (9, 2, 4, 3)
    adv = ((reward - baseline) * ends).flip(1).cumsum(1).flip(1)
    step = process_grpo.loss_grad(logp, logp, torch.zeros_like(logp), adv, torch.ones(9, 2).bool(),
                                  clip=0.2, beta=0.0, count=1)["logp"]
    return -torch.einsum("b,bt,btij->ij", logp.sum(1).exp(), step, scores)


def test_a_number_less_per_step_is_a_baseline_only_where_all_answers_have_as_many():
    """The gradient of the expected sum of all rewards is that of what follows each token."""
    table, every = randn(0, 4, 3), torch.ones(9, 2)
    reward = torch.stack([randn(1, 3)[FIRST], randn(2, 9)], 1)  # of a step, by what came so far
    some = every.clone()
    some[FIRST == 0, 0] = 0                                 # these answers are one step
    for ends, free in ((every, True), (some, False)):
        truth = jacrev(lambda x, e=ends: expected((reward * e).sum(1), x))(table)
        assert torch.allclose(slope(table, reward, ends, 0.0), truth, atol=1e-12)
        assert torch.allclose(slope(table, reward, ends, 0.7), truth, atol=1e-2) == free


# ---- it learns, and from shuffled rewards it does not

def learn(seed, shuffled):
    """Mean true reward of samples after 30 steps of a small network."""
    model = GPT(GPTConfig(11, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                          max_position_embeddings=16)).initialise(seed)
    task = Steps()
    run = Run(Learner(model), Letters(), task, task.reward, seed=seed, max_new_tokens=4)
    cfg = process_grpo.Config(steps=30, prompts=8, group_size=8, minibatch_size=64, lr=1e-2)

    def noise(problems, rollout):
        found = process_grpo.exact(run, problems, rollout)
        order = list(range(len(found)))
        random.Random(run.step).shuffle(order)
        return found[order]

    drive(run, process_grpo.train(run, cfg, noise if shuffled else None), 30)
    problems = task.heldout(4) * 32
    return float(run.grade(problems, run.sample(problems, 1, temperature=1.0)).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_and_its_control_does_not(seed):
    torch.set_num_threads(1)
    assert learn(seed, False) > 0.5 and learn(seed, True) < 0.35


def test_a_loss_of_equal_advantages_is_grpos():
    """A (B, T) that is the same along an answer is GRPO's (B,)."""
    reward, _, mask = stretches(2)
    logp, old = reward / 10, randn(9, *reward.shape) / 10
    adv, kl = randn(3, len(reward)), reward.square()
    knobs = dict(clip=0.1, beta=0.3, count=5)
    wide = adv[:, None].expand(mask.shape)
    one, other = (module.loss(logp, old, kl, gain, mask, **knobs)
                  for module, gain in ((grpo, adv), (process_grpo, wide)))
    assert torch.allclose(one[0], other[0]) and one[1].keys() == other[1].keys()
    slopes = [module.loss_grad(logp, old, kl, gain, mask, **knobs)
              for module, gain in ((grpo, adv), (process_grpo, wide))]
    assert all(torch.allclose(slopes[0][key], slopes[1][key]) for key in ("logp", "kl"))
