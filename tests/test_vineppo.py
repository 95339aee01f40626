"""VinePPO: values from branches are exact in the mean, and with exact ones the step is too."""

import pytest
import torch

from minipost.methods import vineppo
from minipost.proof import estimates, values
from minipost.proof.estimates import Estimate, dealer, enumerate_step, gradient_of
from minipost.proof.oracle import World, relative

CFG = dict(prompts=1, group_size=1, branches=3)
STEP = Estimate("vineppo", CFG, 1, "minus_reward", 1.0, divisor="tokens")


@pytest.fixture(scope="module")
def world():
    return World(4, 3)


def exact_values(world):
    """{(prompt, ids so far): the mean reward of answers of the policy that go on from there}"""
    chance = world.log_chance(world.policy).detach().exp().flatten()
    mean, found = world.given(chance, world.reward.flatten()), {}
    for row, (ids, mask) in enumerate(zip(world.seqs.tokens.tolist(), world.seqs.mask.tolist())):
        first = mask.index(True)
        for t, chosen in enumerate(mask):
            if chosen:
                found[row // world.count, tuple(ids[first + 1 : t + 1])] = float(mean[row, t])
    return found


def of_hand(world):
    """The number of the dealt prompt, since a dealt step is about one."""
    return lambda run: world.prompts.index(run.problems(1)[0].prompt)


def test_with_exact_values_the_mean_step_is_the_policy_gradient(world, monkeypatch):
    known, prompt = exact_values(world), of_hand(world)
    monkeypatch.setattr(vineppo, "mean_rewards", lambda run, problems, states, *_: [
        known[prompt(run), tuple(ids)] for _, ids in states])
    run = dealer(world)
    mean = enumerate_step(STEP, run)
    assert relative(mean.whole, gradient_of(STEP, run)) < estimates.EXACT
    monkeypatch.setattr(vineppo, "mean_rewards", lambda run, problems, states, *_: [
        known[prompt(run), tuple(ids)] * (1.3 if ids else 1.0) for _, ids in states])
    assert relative(enumerate_step(STEP, dealer(world)).whole, gradient_of(STEP, run)) > 1e-3


def test_branches_estimate_the_value_without_bias_and_with_its_variance(world):
    """Mean and mean square error of 400 estimates of every state: V and Var(r | s) / K."""
    known, branches, times = exact_values(world), 4, 400
    chance = world.log_chance(world.policy).detach().exp().flatten()
    square = world.given(chance, world.reward.flatten().square())
    states = [key for key in known if key[1][-1:] in ((), (world.words.response("a")[0],))]
    run = dealer(world)
    problems = [run.task.sample(1, run.rng("x"))[0].__class__(text) for text in world.prompts]
    drawn = []
    for run.seed in range(times):
        drawn.append(vineppo.mean_rewards(run, problems, [(p, list(ids)) for p, ids in states],
                                          branches, 1.0))
    drawn, exact = torch.tensor(drawn, dtype=torch.float64), torch.tensor(
        [known[key] for key in states], dtype=torch.float64)
    variance = []
    for p, ids in states:
        row, t = next((row, t) for row in range(len(world.seqs)) if row // world.count == p
                      for t in [int(world.seqs.mask[row].int().argmax()) + len(ids)]
                      if t < world.seqs.mask.shape[1] and world.seqs.mask[row, t]
                      and world.seqs.tokens[row, t - len(ids) + 1 : t + 1].tolist() == list(ids))
        variance.append(float(square[row, t]) - known[p, ids] ** 2)
    expected = torch.tensor(variance, dtype=torch.float64) / branches
    assert len(states) > 8 and (expected > 1e-4).all()
    assert ((drawn.mean(0) - exact).abs() < 4.5 * (expected / times).sqrt()).all()
    error = (drawn - exact).square().mean(0)
    assert float((error / expected).mean()) == pytest.approx(1, abs=0.1)


def test_a_critic_comes_near_with_many_answers_and_branches_by_their_root():
    found = {row["name"]: row["rms"] for row in values.value_errors(World(4, 2))}
    one, nine = (found[f"{k} branches from the state"] for k in (1, 9))
    assert one == pytest.approx(3 * nine)
    first, last = found["critic after 0 answers"], found["critic after 19,200 answers"]
    assert last < first / 3 and last < nine


def test_a_token_has_the_advantage_of_its_step_and_steps_add_up(world):
    """To the reward less V(prompt); equal beginnings are asked once."""
    run = dealer(world)
    run.deal_hand(0, [world.texts.index("aba"), world.texts.index("aab")])
    cfg = vineppo.Config(prompts=1, group_size=2, branches=5)
    rollout = run.rollout(run.problems(1), 2, temperature=1.0)
    asked, real = [], vineppo.mean_rewards

    def watched(run, problems, states, *more):
        asked.extend(states)
        return real(run, problems, states, *more)

    vineppo.mean_rewards, before = watched, vineppo.mean_rewards
    try:
        reward = torch.tensor([1.0, 0.5], dtype=torch.float64)
        adv, values = vineppo.advantages(run, cfg, run.problems(1), rollout, reward)
    finally:
        vineppo.mean_rewards = before
    a = world.words.response("a")[0]
    assert asked == [(0, []), (0, [a]), (0, [a, a])] and len(values) == 3
    first, after, twice = values
    expected = torch.tensor([[after - first, 1 - after, 1 - after],
                             [after - first, twice - after, 0.5 - twice]], dtype=torch.float64)
    assert torch.allclose(adv[rollout.mask].view(2, 3), expected)
    assert not adv[~rollout.mask].any()


def test_an_answer_that_goes_on_has_no_more_tokens_than_any_other(world):
    run, lengths = dealer(world), []
    grade = run.grade

    def watched(problems, rollout, none=False):
        lengths.extend(rollout.lengths.tolist())
        assert (rollout.lengths <= world.horizon).all()
        return grade(problems, rollout, none)

    run.grade = watched
    problems = [type(p)(p.prompt) for p in run.task.heldout(2)]
    vineppo.mean_rewards(run, problems, [(0, []), (1, [0, 1])], 50, 1.0)
    assert len(lengths) == 100 and max(lengths) == world.horizon
