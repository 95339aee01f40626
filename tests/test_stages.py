"""Runs of several stages equal their stages' formulas, one after the other (anew.py)."""

import copy
import random
from dataclasses import replace
from statistics import fmean, stdev

import pytest
import torch
from anew import (
    ADAM,
    PPO,
    Mirror,
    Mixed,
    Net,
    Noisy,
    dpo_anew,
    exactly,
    flips,
    grpo_anew,
    ppo_anew,
    reward_anew,
    rows_of,
    same_numbers,
    same_weights,
    score,
    sft_anew,
    watch,
)
from fakes import Letters, make_run, tiny
from ranks import Wide, judge

from minipost.datasets.preferences import by_reward
from minipost.gpt import RewardModel, ValueHead
from minipost.methods import dpo, iterative_grpo, ppo, reward, rlaif, sft
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.base import question


class Secret(Noisy):
    hidden = True


SFT = sft.Config(steps=2, lr=5e-4, warmup_steps=5)


def fresh(task, seed=32):
    run = exactly(Run(Learner(tiny(seed=seed), **ADAM), Letters(), task, task.reward,
                      hidden=task.hidden, seed=seed, max_new_tokens=4))
    mirror = Mirror(run)
    watch(run, mirror)
    return run, mirror


def go(run, mirror, learn, stages):
    """Hold each step to the stage that it is in: stages[step](mirror) -> expected metrics."""
    for stage in stages:
        metrics = next(learn)
        mirror.rows = rows_of(mirror.samples[-1]) if mirror.samples else []
        same_numbers(metrics, stage(mirror))
        same_weights(run, mirror)
        for made in (mirror.samples, mirror.problems, mirror.encoded, mirror.heats):
            made.clear()
        run.step += 1
        mirror.step += 1


@pytest.mark.parametrize("labeller", ["reward", "judge"])
def test_rlhf_is_fine_tuning_then_a_reward_model_then_ppo(monkeypatch, labeller):
    """Each stage at its own rates; Adam forgets what another loss has taught it."""
    (run, mirror), exact = fresh(Secret()), Secret().reward
    cfg = dict(PPO, sft_steps=2, reward_steps=2, schedule="linear", warmup_steps=1)
    if labeller == "judge":
        monkeypatch.setattr(rlaif, "Judge", lambda *_: Labels())
        cfg, module = rlaif.Config(**cfg), rlaif
    else:
        cfg, module = ppo.Config(**cfg), ppo
    assert module.total(run, cfg) == 6
    judged = reward.Config(steps=2, prompts=64, group_size=2, temperature=0.8)

    def first_judged(mirror):
        mirror.scorer = Net(RewardModel(mirror.policy.module))
        return next_judged(mirror)

    def next_judged(mirror):
        assert mirror.heats == [0.8] and len(mirror.problems[0]) == 64
        return reward_anew(mirror, judged, first=2)

    def first_ppo(mirror):
        assert mirror.heats == [1.0, 0.8] and len(mirror.samples[0]) == 256
        seen = [float(x.detach()) for x in score(mirror, rows_of(mirror.samples[0]))]
        mean, deviation, scorer = fmean(seen), stdev(seen), copy.copy(mirror)
        mirror.reward = lambda rows: [(float(x.detach()) - mean) / deviation
                                      for x in score(scorer, rows)]
        mirror.policy, mirror.first = Net(mirror.policy.module, **ADAM), 4
        mirror.reference = copy.deepcopy(mirror.policy.module)
        mirror.critic = Net(ValueHead(mirror.policy.module))
        return next_ppo(mirror)

    def next_ppo(mirror):
        asked = [mirror.problems[-1][row.prompt] for row in mirror.rows]
        gold = exact(None, [row.text for row in mirror.rows],
                     letter=[p.columns["letter"] for p in asked])
        return {**ppo_anew(mirror, cfg), "gold": fmean(gold)}

    def tuned(mirror):
        return sft_anew(mirror, SFT)

    go(run, mirror, module.train(run, cfg),
       [tuned, tuned, first_judged, next_judged, first_ppo, next_ppo])


def test_iterative_grpo_is_rounds_of_a_reward_model_and_grpo():
    """In the second round a quarter of the pairs is of the first; Adam remembers both networks."""
    (run, mirror), exact = fresh(Secret()), Secret().reward
    cfg = iterative_grpo.Config(steps=2, reward_steps=2, sft_steps=1, iterations=2,
                                replay_share=0.25,
                                prompts=4, group_size=3, temperature=0.8, minibatch_size=5,
                                epochs=2, clip=0.07, beta=0.3, lr=0.02, max_grad_norm=0.35)
    judged = reward.Config(steps=1, group_size=2, temperature=0.8, warmup_steps=0)
    known = []

    def judges(mirror):
        again = vars(mirror).pop("reward", None)            # labels are those of the task
        if not again:
            mirror.scorer = Net(RewardModel(mirror.policy.module))
        assert len(mirror.problems[0]) == (48 if again else 64)
        picked = random.Random(f"{mirror.seed}/{mirror.step}/replay").sample(
            range(len(known)), 16) if again else []
        found = reward_anew(mirror, judged, first=mirror.step, older=[known[k] for k in picked])
        earned, rows = exact(None, [row.text for row in mirror.rows], letter=[
            mirror.problems[0][row.prompt].columns["letter"] for row in mirror.rows]), mirror.rows
        ahead = {1: [], -1: []}
        for k, sign in enumerate(flips(mirror, "noise", len(rows) // 2)):
            one, two = rows[2 * k], rows[2 * k + 1]
            gap = sign * (earned[2 * k] - earned[2 * k + 1])
            if gap and one.said != two.said:
                ahead[1 if gap > 0 else -1].append((one, two) if gap > 0 else (two, one))
        known.extend(ahead[1] + ahead[-1])
        assert found["pairs"] == len(ahead[1] + ahead[-1]) + len(picked)
        return found

    def learns(mirror):
        assert mirror.heats == [1.0, 0.8] and len(mirror.samples[0]) == 256
        seen = [float(x.detach()) for x in score(mirror, rows_of(mirror.samples[0]))]
        mean, deviation = fmean(seen), stdev(seen)
        mirror.reward = lambda rows: [(float(x.detach()) - mean) / deviation
                                      for x in score(mirror, rows)]
        mirror.reference, mirror.first = copy.deepcopy(mirror.policy.module), mirror.step
        asked = [mirror.problems[-1][row.prompt] for row in mirror.rows]
        gold = exact(None, [row.text for row in mirror.rows],
                     letter=[p.columns["letter"] for p in asked])
        return {**grpo_anew(mirror, replace(cfg, steps=1, iterations=1)), "gold": fmean(gold)}

    def first_learns(mirror):
        mirror.policy = Net(mirror.policy.module, **ADAM)
        return learns(mirror)

    go(run, mirror, iterative_grpo.train(run, cfg),
       [lambda mirror: sft_anew(mirror, sft.Config(steps=1, lr=5e-4, warmup_steps=5)),
        judges, first_learns, judges, learns])


class Labels:
    """A judge who goes by the reward."""

    seen = {}

    def __call__(self, run, problems, rollout):
        return by_reward(run, problems, rollout)


def test_rlaif_with_dpo_is_fine_tuning_then_dpo_with_its_own_settings(monkeypatch):
    (run, mirror) = fresh(Noisy())
    monkeypatch.setattr(rlaif, "Judge", lambda *_: Labels())
    cfg = rlaif.Config(steps=2, sft_steps=2, learner="dpo", temperature=0.8, dpo_beta=0.3,
                       dpo_lr=0.02, max_grad_norm=0.35, schedule="cosine", weight_decay=0.2)
    assert rlaif.total(run, cfg) == 4
    as_dpo = dpo.Config(steps=2, schedule="cosine", weight_decay=0.2, temperature=0.8,
                        beta=0.3, lr=0.02, max_grad_norm=0.35)

    def first_dpo(mirror):
        mirror.start = copy.deepcopy(mirror.policy.module)
        mirror.policy, mirror.first = Net(mirror.policy.module, **ADAM), 2
        mirror.policy.decay = 0.2
        return next_dpo(mirror)

    def next_dpo(mirror):
        assert mirror.heats == [0.8] and len(mirror.problems[0]) == 64
        return dpo_anew(mirror, as_dpo)

    def tuned(mirror):
        return sft_anew(mirror, SFT)

    go(run, mirror, rlaif.train(run, cfg), [tuned, tuned, first_dpo, next_dpo])


def test_a_judge_is_asked_in_both_orders_and_its_bias_is_measured():
    """The label is forth less back; agreement is with the reward where that tells two apart."""
    run, asked = make_run(Mixed(), tiny(seed=9), max_new_tokens=6), judge()
    problems = run.problems(30)
    rollout = run.sample(problems, 2, temperature=1.0)
    lead, texts, words = asked(run, problems, rollout), run.texts(rollout), Wide()

    def odds(problem, first, second):
        ids = words.prompt(question("p", problem.prompt, first, second)) + asked.shared
        with torch.no_grad():
            logp = asked.model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        return float(logp[asked.sides[0]] - logp[asked.sides[1]])

    forth = [odds(p, *texts[2 * k : 2 * k + 2]) for k, p in enumerate(problems)]
    back = [odds(p, texts[2 * k + 1], texts[2 * k]) for k, p in enumerate(problems)]
    assert lead.tolist() == pytest.approx([a - b for a, b in zip(forth, back)], abs=1e-9)
    gold = run.grade(problems, rollout).view(-1, 2).tolist()
    agree = [(a > b) == (x > y) for (x, y), a, b in zip(gold, forth, back) if x != y]
    assert 0 < len(agree) < 30 and 0 < fmean(agree) < 1
    bias = fmean((a > 0) == (b > 0) for a, b in zip(forth, back))
    assert asked.seen == {"agreement": pytest.approx(fmean(agree)),
                          "position_bias": pytest.approx(bias)} and 0 < bias < 1


def test_what_was_skipped_is_remembered_after_a_resume():
    run, again = make_run(), make_run()
    run.policy.grad += float("nan")
    run.policy.step(0.1)
    run.policy.grad += 1.0
    run.policy.step(0.1)
    run.policy.grad += float("inf")
    run.policy.step(0.1)
    again.restore(*run.state())
    for policy in (run.policy, again.policy):
        assert (policy.skipped, policy.skips_in_a_row, policy.updates) == (2, 1, 1)
    for policy in (run.policy, again.policy):
        policy.grad += 0.5
        policy.step(0.1)
        assert (policy.skipped, policy.skips_in_a_row, policy.updates) == (2, 0, 2)
    assert torch.equal(run.policy.flat, again.policy.flat)


def test_another_loss_begins_with_a_fresh_adam():
    """After `reset_optimizer` the next update is that of an optimiser that has never moved."""
    run, other = make_run(), make_run()
    run.policy.grad += 0.3
    run.policy.step(0.1)
    other.policy.assign(run.policy.flat)
    run.policy.reset_optimizer()
    for policy in (run.policy, other.policy):
        policy.grad += torch.linspace(-1, 1, len(policy.flat), dtype=torch.float64)
        policy.step(0.1)
    assert torch.equal(run.policy.flat, other.policy.flat)
