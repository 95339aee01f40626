"""DPO and its relatives together: invariants 13, 14 and 18, the reference, learning."""

import copy
import math
import random
from functools import partial

import pytest
import torch
from fakes import REFERRED, Echo, log_probs, make_run, pair_task, tiny, with_lead
from hypothesis import given
from hypothesis import strategies as st

from minipost.gpt import GPT, GPTConfig
from minipost.measure import scorers
from minipost.methods import dpo, ipo, kto, mdpo, orpo, simpo

make = partial(make_run, max_new_tokens=5)
PLAIN = {name: shape for name, shape in REFERRED.items() if not name.startswith("ref")}
SIDES = ("w", "l")
CASES = {  # name: (module, shapes, options)
    "dpo": (dpo, REFERRED, dict(beta=0.4, count=7)),
    "cdpo": (dpo, REFERRED, dict(beta=0.4, label_smoothing=0.2, count=7)),
    "robust dpo": (dpo, REFERRED, dict(beta=0.4, label_smoothing=0.2, robust=True, count=7)),
    "ipo": (ipo, REFERRED, dict(tau=0.3, count=7)),
    "simpo": (simpo, PLAIN, dict(beta=2.0, gamma=0.7, count=7)),
    "orpo": (orpo, PLAIN, dict(lam=0.6, count=7)),
    "kto": (kto, dict(logp=(5, 4), logp_ref=(5, 4), mask=(5, 4), good=(5,)),
            dict(z0=0.3, beta=0.5, good_weight=1.3, bad_weight=0.7, count=7)),
    "mdpo": (mdpo, dict(logp=(12, 5), logp_ref=(12, 5), mask=(12, 5)),
             dict(beta=0.4, group_size=2, count=7)),
}
PAIRED = [name for name in CASES if name not in ("kto", "mdpo")]


def test_at_the_reference():
    """Invariant 13: log 2 whatever the flips, 1/(4 tau^2), w/2."""
    same = log_probs(REFERRED, 1)
    same["ref_w"], same["ref_l"] = same["logp_w"], same["logp_l"]
    for flip, robust in ((0.0, False), (0.2, False), (0.3, True)):
        assert float(dpo.loss(**same, beta=0.3, label_smoothing=flip, robust=robust,
                              count=3)[0]) == \
            pytest.approx(math.log(2))
    assert float(ipo.loss(**same, tau=0.3, count=3)[0]) == pytest.approx(1 / (4 * 0.3**2))
    found = log_probs(CASES["kto"][1], 2)
    found["logp_ref"] = found["logp"]
    good = int(found["good"].sum())
    value = kto.loss(**found, z0=0.0, beta=0.5, good_weight=1.2, bad_weight=0.8, count=5)[0]
    assert float(value) == pytest.approx((1.2 * good + 0.8 * (5 - good)) / 2 / 5)


@pytest.mark.parametrize("name", ["dpo", "cdpo", "robust dpo", "ipo"])
@given(st.integers(0, 10_000), st.floats(-5, 5))
def test_only_the_gap_counts(name, seed, shift):
    """Invariant 14: a number per prompt, added to both answers, changes nothing."""
    module, shapes, options = CASES[name]
    found = log_probs(shapes, seed)
    moved = {**found, "logp_w": found["logp_w"].clone(), "logp_l": found["logp_l"].clone()}
    for side in SIDES:
        moved[f"logp_{side}"][:, 1] += shift
    assert torch.allclose(module.loss(**found, **options)[0], module.loss(**moved, **options)[0])


@pytest.mark.parametrize("name", PAIRED)
@given(st.integers(0, 10_000))
def test_the_chosen_rises_and_the_rejected_falls(name, seed):
    """Invariant 18; for IPO until its gap is reached."""
    module, shapes, options = CASES[name]
    found = log_probs(shapes, seed)
    if name == "ipo":
        found = with_lead(found, 0.3 * (1 / 0.6 - 1), 0.3)
    if name == "cdpo":
        found = with_lead(found, 1.0, 0.4)
    hand = module.loss_grad(**found, **options)
    assert (hand["logp_w"][found["mask_w"]] < 0).all()
    assert (hand["logp_l"][found["mask_l"]] > 0).all()
    if name in ("dpo", "cdpo"):
        assert max(float(g.abs().max()) for g in hand.values()) <= 0.4 / 7


@given(st.integers(0, 10_000))
def test_means_do_not_see_tokens_said_twice(seed):
    """Invariant 18: SimPO and ORPO go by the mean log-prob."""
    found = log_probs(PLAIN, seed)
    twice = {key: value.repeat(1, 2) for key, value in found.items()}
    for name in ("simpo", "orpo"):
        module, _, options = CASES[name]
        assert torch.allclose(module.loss(**found, **options)[0],
                              module.loss(**twice, **options)[0])


METHODS = [dpo, ipo, simpo, orpo, kto, mdpo]


@pytest.mark.parametrize("module", [simpo, orpo, dpo])
def test_simpo_and_orpo_go_without_the_reference(tmp_path, module):
    """Invariant 18: another one makes no difference to a step on a file's pairs; to DPO's it
    does."""
    steps = []
    for seed in (1, 2):
        run = make(pair_task(tmp_path))
        run.frozen("reference", lambda: tiny(seed=seed))
        next(module.train(run, module.Config(pairs=6, lr=1e-2)))
        steps.append(run.policy.flat.clone())
    assert not torch.equal(steps[0], make().policy.flat)
    assert torch.equal(*steps) == (module is not dpo)


@pytest.mark.parametrize("module", [simpo, orpo, dpo])
@pytest.mark.parametrize("source", ["file", "samples"])
@pytest.mark.parametrize("likeliest", [1.0, 0.6])
def test_only_dpo_makes_a_reference(tmp_path, module, source, likeliest):
    """The start answers, and sorts pairs by their perplexity; a file's pairs need neither."""
    run, asked = make(pair_task(tmp_path) if source == "file" else None), []
    logprobs = run.logprobs
    run.logprobs = lambda *args: asked.append(args) or logprobs(*args)
    metrics = next(module.train(run, module.Config(pairs=6, likeliest=likeliest)))
    expected = {"frozen/reference"} if module is dpo else \
        {"frozen/start"} if likeliest < 1 or source == "samples" else set()
    assert set(run.parts) == {"learner/policy", *expected}
    assert bool(asked) == (module is dpo or likeliest < 1)  # no pass but the policy's own
    assert any(name.startswith("drift/") for name in metrics) == (module is dpo)


class Early(Echo):
    """The better, the more of the answer's letters come before the prompt's."""

    def reward(self, prompts, completions, **columns):
        return [sum(c in "abcd" for c in text) / 3 for text in completions]


@pytest.mark.parametrize("module", METHODS)
@pytest.mark.parametrize("control", [False, True])
def test_it_learns_what_is_preferred_and_nothing_from_shuffled_rewards(module, control):
    torch.set_num_threads(1)
    model = GPT(GPTConfig(11, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                          max_position_embeddings=16)).initialise(1)
    run = make(Early(), model, max_new_tokens=3, seed=1, micro_batch_size=256)
    if control:
        def shuffled(prompts, completions, **columns):
            values = Early().reward(prompts, completions)
            random.Random("".join(completions)).shuffle(values)
            return values
        run.reward = shuffled
    first = copy.deepcopy(run.policy.module)
    learn = module.train(run, module.Config(steps=20, lr=1e-2))
    for run.step in range(20):
        next(learn)
    run.reward = Early().reward
    wins = scorers.win_rate(run, Early().sample(300, random.Random(2)), first).rewards
    rate = sum(wins) / len(wins)
    assert rate < 0.65 if control else rate > 0.75, rate
