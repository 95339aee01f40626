"""Learning in seconds: each method must learn a toy on three seeds, and its control must not."""

import random

import pytest
import torch
from fakes import Echo, Letters

from minipost.gpt import GPT, GPTConfig
from minipost.methods import (
    a2c,
    cispo,
    dapo,
    dr_grpo,
    grpo,
    gspo,
    ppo,
    reinforce,
    reinforce_pp,
    rloo,
    sapo,
    self_critical,
    sft,
    trpo,
)
from minipost.optim import Learner
from minipost.run import Run

RECIPES = {
    "grpo": (grpo, grpo.Config(steps=30, prompts=8, group_size=8, minibatch_size=64, lr=1e-2,
                               beta=0.01)),
    "dr_grpo": (dr_grpo, dr_grpo.Config(steps=30, prompts=8, group_size=8, minibatch_size=64,
                                        lr=1e-2)),
    "dapo": (dapo, dapo.Config(steps=30, prompts=8, group_size=8, minibatch_size=64, lr=1e-2,
                               overlong=0)),
    "gspo": (gspo, gspo.Config(steps=30, prompts=8, group_size=8, minibatch_size=64, lr=1e-2)),
    "cispo": (cispo, cispo.Config(steps=30, prompts=8, group_size=8, minibatch_size=64, lr=1e-2)),
    "sapo": (sapo, sapo.Config(steps=30, prompts=8, group_size=8, minibatch_size=64, lr=1e-2)),
    "sft": (sft, sft.Config(steps=30, batch_size=16, lr=1e-2, warmup_steps=3)),
    "reinforce": (reinforce, reinforce.Config(steps=30, prompts=8, group_size=8, lr=1e-2)),
    "self_critical": (self_critical,
                      self_critical.Config(steps=30, prompts=16, group_size=8, lr=1e-2)),
    "rloo": (rloo, rloo.Config(steps=30, prompts=8, group_size=8, lr=1e-2)),
    "reinforce_pp": (reinforce_pp,
                     reinforce_pp.Config(steps=30, prompts=8, group_size=8, minibatch_size=64,
                                         lr=1e-2)),
    "a2c": (a2c, a2c.Config(steps=30, prompts=8, group_size=8, lr=1e-2, critic_lr=3e-2)),
    "ppo": (ppo, ppo.Config(steps=20, prompts=64, minibatch_size=64, lr=1e-2, critic_lr=1e-2,
                            beta=0.01,
                            missing_eos=0.0)),
    "trpo": (trpo, trpo.Config(steps=20, prompts=8, group_size=8, delta=0.05, damping=0.01,
                               fisher=16,
                               iterations=5)),
}


class Shuffled(Echo):
    """The control: the same rewards, handed to the wrong answers."""

    def reward(self, prompts, completions, **columns):
        values = super().reward(prompts, completions, **columns)
        random.Random("".join(completions)).shuffle(values)
        return values

    def demonstrate(self, problem, rng):
        return rng.choice("abcd") * 2


def learn(name, task, seed):
    """Mean true reward on fresh samples before and after the recipe."""
    module, cfg = RECIPES[name]
    model = GPT(GPTConfig(11, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                          max_position_embeddings=16)).initialise(seed)
    run = Run(Learner(model), Letters(), task, task.reward, seed=seed, max_new_tokens=3)

    def measure():
        problems = Echo().heldout(4) * 32
        texts = run.texts(run.sample(problems, 1, temperature=1.0, purpose="measure"))
        rewards = Echo().reward(None, texts, [p.columns["letter"] for p in problems])
        return sum(rewards) / len(rewards)

    before, steps = measure(), module.train(run, cfg)
    for run.step in range(cfg.steps):
        next(steps)
    return before, measure()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(name, seed):
    torch.set_num_threads(1)
    before, after = learn(name, Echo(), seed)
    assert before < 0.2 and after > 0.5, (before, after)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_does_not_learn_from_shuffled_labels(name, seed):
    torch.set_num_threads(1)
    before, after = learn(name, Shuffled(), seed)
    assert after < 0.35, (before, after)
