"""Reward models together: where a score is read, normalised scores, what they learn."""

import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from fakes import BOS, EOS, Echo, Steps, make_run, rollout_of, scalar, scores, sequences, tiny
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

from minipost.datasets import preferences
from minipost.gpt import GPT, GPTConfig, RewardModel
from minipost.methods import dpo, orm, plackett_luce, prm, reward
from minipost.rollout import final_score

make = partial(make_run, usual=Steps, max_new_tokens=5)


def wide(x, columns, value):
    """x with this many more columns on the right."""
    return torch.nn.functional.pad(x, (0, columns), value=value)


CASES = {  # name: (module, shapes of what the loss takes, what has a gradient, options)
    "reward": (reward, dict(score_w=(5,), score_l=(5,)), ("score_w", "score_l"),
               dict(margin=0.3, center=0.1, count=7)),
    "plackett_luce": (plackett_luce, dict(scores=(5, 4)), ("scores",), dict(count=7)),
    "orm": (orm, dict(score=(5,), right=(5,)), ("score",), dict(count=7)),
    "prm": (prm, dict(score=(3, 4), right=(3, 4), mask=(3, 4)), ("score",), dict(count=7)),
    "dpo": (dpo, dict(logp_w=(3, 4), logp_l=(3, 6), ref_w=(3, 4), ref_l=(3, 6), mask_w=(3, 4),
                      mask_l=(3, 6)), ("logp_w", "logp_l"), dict(beta=0.4, count=7)),
}
MODELS = {name: case for name, case in CASES.items() if name != "dpo"}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_scores_of_any_size_give_finite_losses_and_gradients(name, scale):
    module, shapes, learnt, options = CASES[name]
    found = scores(shapes, 5, scale)
    value = module.loss(**found, **options)[0]
    hand = module.loss_grad(**found, **options)
    assert value.isfinite() and value > 0
    for key in learnt:
        back = jacrev(lambda x: module.loss(**{**found, key: x}, **options)[0])(found[key])
        assert hand[key].isfinite().all() and torch.allclose(hand[key], back, atol=1e-12)


SIZES = {"reward": dict(prompts=6), "plackett_luce": dict(prompts=8), "orm": dict(prompts=8),
         "prm": dict(prompts=8), "dpo": dict(pairs=12)}


@pytest.mark.parametrize("name, loss", [("reward", math.log(2)), ("orm", math.log(2)),
                                        ("plackett_luce", math.log(24)), ("prm", math.log(2))])
def test_a_fresh_model_finds_all_equally_likely(name, loss):
    """Two sides of a pair, of an answer or of a step, and the 24 orders of four answers."""
    module = CASES[name][0]
    metrics = next(module.train(make(micro_batch_size=5), replace(module.Config(), **SIZES[name])))
    assert metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert metrics["accuracy"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("finished", [True, False])
def test_the_score_is_read_at_the_last_real_token(finished):
    """Row by row without padding; then with more padding, longer neighbours and other ids there."""
    model = scalar()
    prompts = [[BOS, 3], [BOS, 4, 5, 6], [BOS], [BOS, 7, 7]]
    rollout = rollout_of(prompts, [[5, 6, 7], [8], [9, 10], [3]], finished)
    with torch.no_grad():
        alone = []
        for tokens, mask in zip(rollout.tokens, rollout.mask):
            real = tokens[: int(mask.nonzero()[-1]) + 2]
            assert (int(real[-1]) == EOS) == finished
            alone.append(model(real[None])[0, -1])
        alone = torch.stack(alone)
        assert alone.unique().numel() == 4
        assert torch.allclose(final_score(model, rollout), alone, atol=1e-12)
        wider = replace(rollout, tokens=wide(rollout.tokens, 3, 9),
                        mask=wide(rollout.mask, 3, False))
        assert torch.allclose(final_score(model, wider), alone, atol=1e-12)
        real = wide(rollout.mask.flip(1).cumsum(1).flip(1) > 0, 1, False).roll(1, 1)
        real[:, 0] = True
        other = replace(rollout, tokens=rollout.tokens.where(real, 10))
        assert torch.allclose(final_score(model, other), alone, atol=1e-12)
        for micro in (1, 2, 16):
            assert torch.allclose(make(micro_batch_size=micro).final_scores(model, rollout), alone,
                                  atol=1e-6)


def test_a_fresh_reward_model_is_indifferent():
    assert not final_score(RewardModel(tiny()), sequences(4)).any()


@given(st.integers(0, 10_000))
def test_normalise_gives_mean_0_and_deviation_1_and_keeps_the_order(seed):
    model, seqs, fresh = scalar(seed), sequences(8, seed), sequences(8, seed + 1)
    with torch.no_grad():
        raw, other = final_score(model, seqs), final_score(model, fresh)
        model.normalise(raw)
        once = final_score(model, seqs)
        assert abs(once.mean()) < 1e-9 and float(once.std()) == pytest.approx(1, abs=1e-4)
        assert torch.equal(once.argsort(), raw.argsort())
        scaled = (other - raw.mean()) / raw.std()
        assert torch.allclose(final_score(model, fresh), scaled)
        model.normalise(scaled)                                     # a second time, on others
        twice = final_score(model, fresh)
        assert abs(twice.mean()) < 1e-9 and float(twice.std()) == pytest.approx(1, abs=1e-4)
        assert torch.equal(twice.argsort(), other.argsort())


@pytest.mark.parametrize("module", [reward, plackett_luce, dpo])
def test_a_step_in_which_all_tie_moves_nothing(module):
    """Not even by what Adam remembers of the step before."""
    run = make(Echo())
    learn = module.train(run, module.Config(steps=9, lr=1e-2))
    counted, learnt, weights = [], run.policy if module is dpo else None, []
    for run.step in range(3):
        if run.step == 2:
            run.reward = lambda completions, **columns: [1.0] * len(completions)
        metrics = next(learn)
        learnt = learnt or run.learners["reward model"]
        counted.append(metrics["rankings" if module is plackett_luce else "pairs"])
        weights.append(learnt.master.clone())
    assert counted[0] and counted[1] and counted[2] == 0 == metrics["loss"] == metrics["grad_norm"]
    assert not torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])


class Early(Steps):
    """An answer is as good as its share of letters from the first half of the alphabet."""

    def reward(self, prompts, completions, **columns):
        return [sum(c in "abcd" for c in text) / max(1, len(text)) for text in completions]

    def check_steps(self, problem, text):
        return [any(c in "abcd" for c in step) for step in self.steps(text)]


def coin(run, problems, rollout):
    """The control's labels: the true ones, each turned round by a coin."""
    rng = run.rng("coin")
    return preferences.by_reward(run, problems, rollout) * torch.tensor(
        [rng.choice((-1.0, 1.0)) for _ in problems])


def shuffled(prompts, completions, **columns):
    """The control's rewards: the true ones, handed to the wrong answers."""
    values = Early().reward(prompts, completions)
    random.Random("".join(completions)).shuffle(values)
    return values


SHORT = dict(steps=16, lr=1e-2, warmup_steps=2)
LEARNT = {
    "reward": lambda run, label: reward.train(run, reward.Config(**SHORT), label),
    "plackett_luce": lambda run, label: plackett_luce.train(run, plackett_luce.Config(**SHORT)),
    "orm": lambda run, label: orm.train(run, orm.Config(**SHORT)),
    "prm": lambda run, label: prm.train(run, prm.Config(**SHORT)),
}


def learn(name, seed, control):
    """Share of fresh pairs in the right order after a short training."""
    torch.set_num_threads(1)
    model = GPT(GPTConfig(11, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                          max_position_embeddings=16)).initialise(seed)
    run = make(Early(), model, max_new_tokens=3, seed=seed, micro_batch_size=128)
    if control and name != "reward":
        run.reward = shuffled
    steps = LEARNT[name](run, coin if control else preferences.by_reward)
    for run.step in range(SHORT["steps"]):
        next(steps)
    run.reward, run.step = Early().reward, 1000
    problems = run.problems(300)
    rollout = run.sample(problems, 2, temperature=1.0, purpose="pairs")
    pairs = preferences.ranked_pairs(rollout, preferences.by_reward(run, problems, rollout))
    learnt = run.learners["reward model"].module
    lead = run.final_scores(learnt, pairs.chosen) - run.final_scores(learnt, pairs.rejected)
    return float((lead > 0).double().mean())


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_which_answer_is_better(name, seed):
    assert learn(name, seed, control=False) > 0.85


@pytest.mark.parametrize("name", ["reward", "plackett_luce", "orm"])
def test_it_does_not_learn_from_shuffled_labels(name):
    found = [learn(name, seed, control=True) for seed in (0, 1, 2)]
    assert sum(found) / 3 < 0.65 and max(found) < 0.75, found
