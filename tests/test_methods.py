"""Losses and steps of all methods: micro-batches, ratios, divisors, settings that are refused."""

import inspect
from dataclasses import fields, replace

import pytest
import torch
from fakes import Hidden, length, sequences, tiny, toy
from hypothesis import given
from hypothesis import strategies as st

from minipost import methods
from minipost.errors import MinipostError
from minipost.methods import (
    a2c,
    cispo,
    dapo,
    dr_grpo,
    grpo,
    gspo,
    maxrl,
    minimum_risk,
    plackett_luce,
    ppo,
    reinforce,
    reinforce_pp,
    rloo,
    sapo,
    self_critical,
    sft,
    trpo,
)
from minipost.ops import entropy, kl_exact, pick, spread
from minipost.proof.estimates import all_stated, dealer, method_of, stepper
from minipost.proof.oracle import World
from minipost.rollout import distribution, logprobs

CASES = {
    "sft": (sft, dict(count=7)),
    "grpo": (grpo, dict(clip=0.2, beta=0.3, count=7)),
    "dr_grpo": (dr_grpo, dict(clip=0.2, rows=3, longest=5)),
    "dapo": (dapo, dict(clip_low=0.2, clip_high=0.28, count=7)),
    "gspo": (gspo, dict(clip_low=0.05, clip_high=0.06, count=3)),
    "cispo": (cispo, dict(clip_low=0.2, clip_high=0.28, count=7)),
    "sapo": (sapo, dict(tau_pos=1.0, tau_neg=1.05, count=3)),
    "reinforce": (reinforce, dict(count=7)),
    "self_critical": (self_critical, dict(count=7)),
    "rloo": (rloo, dict(count=7)),
    "reinforce_pp": (reinforce_pp, dict(clip=0.2, count=7)),
    "a2c": (a2c, dict(value_weight=0.7, entropy_weight=0.3, count=7)),
    "trpo": (trpo, dict(count=7)),
}
PER_TOKEN = (reinforce_pp, a2c)  # whose advantages are (B, T); those of the others are (B,)


def tensors(module):
    """The names of the tensors that a method's loss takes."""
    parameters = inspect.signature(module.loss).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def inputs(module, seed):
    """Random arguments for a loss: ratios on both sides of every clip, none within 0.01 of one."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 4)
    old = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    steps = torch.tensor([-0.6, -0.3, -0.1, 0.0, 0.1, 0.2, 0.3, 0.6], dtype=torch.float64)
    logp = old + steps[torch.randint(8, shape, generator=generator)]
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[0, 1] = True
    found = {"logp": logp, "logp_old": old, "mask": mask}
    for name in ("adv", "kl", "entropy", "value", "ret"):
        per_answer = name == "adv" and module not in PER_TOKEN
        found[name] = torch.randn(shape[:1] if per_answer else shape, generator=generator,
                                  dtype=torch.float64)
    return {name: found[name] for name in tensors(module)}


def gradient(model, seqs, cut, objective):
    """Gradient of the sum of objective(rows) over the parts of a cut."""
    model.zero_grad()
    for rows in cut:
        objective(seqs[rows], rows).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_change_no_gradient(name):
    """Ragged rows cut 6, 3+3, 1+5 and 1 by 1: with a global count the pieces add up exactly."""
    module, options = CASES[name]
    model, reference, seqs = tiny(), tiny(seed=1), sequences(6, seed=4)
    noise = torch.randn(3, *seqs.mask.shape, generator=torch.Generator().manual_seed(0),
                        dtype=torch.float64)
    with torch.no_grad():
        old = logprobs(model, seqs) + 0.15 * noise[0]
    adv = torch.tensor([1.0, -0.5, 0.3, -1.2, 0.0, 0.4], dtype=torch.float64)
    options = options | ({"rows": 6} if "rows" in options else {"count": int(seqs.mask.sum())})

    def objective(part, rows):
        logp_all = distribution(model, part)
        logp = spread(pick(logp_all, part.targets[part.mask]), part.mask)
        width = logp.shape[1]
        with torch.no_grad():
            logq_all = distribution(reference, part)
        found = {
            "logp": logp, "mask": part.mask, "logp_old": old[rows, :width],
            "adv": noise[1, rows, :width] if module in PER_TOKEN else adv[rows],
            "kl": spread(kl_exact(logp_all, logq_all), part.mask),
            "entropy": spread(entropy(logp_all), part.mask),
            "value": model(part.inputs)[..., 0], "ret": noise[2, rows, :width],
        }
        return module.loss(**{k: found[k] for k in tensors(module)}, **options)[0]

    whole = gradient(model, seqs, [list(range(6))], objective)
    assert whole.norm() > 1e-3
    for cut in ([[0, 1, 2], [3, 4, 5]], [[5], [0, 1, 2, 3, 4]], [[i] for i in (3, 1, 0, 5, 4, 2)]):
        assert torch.allclose(gradient(model, seqs, cut, objective), whole, atol=1e-12)


# answers of several lengths in one step; a method that is not here takes prompts and group
LARGER = {
    "sft": dict(batch_size=5), "distill": dict(batch_size=5), "kto": dict(batch_size=5),
    "ppo": dict(prompts=6, minibatch_size=6), "oreo": dict(group_size=5, batch_size=5),
    "rft": dict(group_size=6, batch_size=6),
    "reward": dict(prompts=3, group_size=3), "plackett-luce": dict(prompts=3, group_size=3),
    "orm": dict(group_size=5), "prm": dict(group_size=5),
    "math-shepherd": dict(group_size=5, batch_size=5), "clicks": dict(prompts=3, group_size=3),
    "mdpo": dict(prompts=3, group_size=2),
    **dict.fromkeys(("dpo", "ipo", "simpo", "orpo", "rpo"), dict(pairs=5)),
}


ESTIMATES = all_stated(methods.names())


@pytest.mark.parametrize("estimate", ESTIMATES, ids=lambda estimate: estimate.name)
def test_a_methods_own_step_does_not_depend_on_how_it_is_cut(estimate):
    """Gradient and metrics, with all rows at once, in twos and one by one."""
    larger = LARGER.get(method_of(estimate.name), dict(prompts=2, group_size=4))
    estimate = replace(estimate, config={**estimate.config, **larger})
    found = []
    for micro in (64, 2, 1):
        run = dealer(World(4, 3))
        run.micro_batch_size = micro
        found.append((stepper(estimate, run)(), run.metrics))
    (whole, metrics), *cut = found
    assert whole.norm() > 1e-6
    for gradient, again in cut:
        assert torch.allclose(gradient, whole, rtol=1e-9, atol=1e-12 * float(whole.norm()))
        assert again == pytest.approx(metrics, rel=1e-9, abs=1e-12)


REWARDED = [e for e in ESTIMATES if e.aim in ("J", "J_b", "P(right)") or "oreo" in e.name]


@pytest.mark.parametrize("estimate", REWARDED, ids=lambda estimate: estimate.name)
def test_the_reward_that_a_step_logs_is_what_its_answers_earned(estimate):
    """And not the advantage that was made of it, nor what is left after a price."""
    world, rows = World(4, 2), [2, 7][: estimate.rows]
    world.reward[0, rows] = torch.tensor([0.625, 0.9375], dtype=torch.float64)[: estimate.rows]
    run = dealer(world)
    run.deal_hand(0, rows)
    stepper(estimate, run)()
    assert run.metrics["reward"] == pytest.approx(float(world.reward[0, rows].mean()))


def test_a_mean_per_micro_batch_would_change_it():
    """The control of the test above: the popular mistake is visible on the same rows."""
    model, seqs = tiny(), sequences(6, seed=4)

    def mistaken(part, rows):
        return sft.loss(logprobs(model, part), part.mask, count=int(part.mask.sum()))[0] / 2

    def right(part, rows):
        return sft.loss(logprobs(model, part), part.mask, count=int(seqs.mask.sum()))[0]

    cut = [[0], [1, 2, 3, 4, 5]]
    assert not torch.allclose(gradient(model, seqs, cut, mistaken),
                              gradient(model, seqs, cut, right), rtol=0.05)


@given(st.integers(0, 10_000))
def test_at_ratio_one_every_variant_is_the_plain_policy_gradient(seed):
    given_ = inputs(grpo, seed)
    given_["logp_old"], kl = given_["logp"], given_.pop("kl")
    plain = -given_["adv"][:, None] * given_["mask"]
    assert torch.allclose(
        grpo.loss_grad(**given_, kl=kl, clip=0.2, beta=0.0, count=7)["logp"], plain / 7)
    assert torch.allclose(
        dapo.loss_grad(**given_, clip_low=0.2, clip_high=0.28, count=7)["logp"], plain / 7)
    assert torch.allclose(
        dr_grpo.loss_grad(**given_, clip=0.2, rows=3, longest=5)["logp"], plain / 15)
    assert torch.allclose(
        cispo.loss_grad(**given_, clip_low=1.0, clip_high=4.0, count=7)["logp"], plain / 7)
    given_ = {name: x[given_["mask"].any(1)] for name, x in given_.items()}
    plain = -given_["adv"][:, None] * given_["mask"] / given_["mask"].sum(1, keepdim=True)
    for found in (gspo.loss_grad(**given_, clip_low=0.1, clip_high=0.1, count=7),
                  sapo.loss_grad(**given_, tau_pos=1.0, tau_neg=1.05, count=7)):
        assert torch.allclose(found["logp"], plain / 7)


@given(st.integers(0, 10_000), st.floats(0.15, 0.25))
def test_group_losses_differ_by_their_divisors_alone(seed, clip):
    """At any ratio, whatever the lengths: over all tokens (GRPO here, DAPO) or B L_max (Dr.
    GRPO)."""
    given_ = inputs(dapo, seed)
    n, rows, longest = int(given_["mask"].sum()), 3, 5
    by_tokens = dict(clip_low=clip, clip_high=clip, count=n)
    plain = dict(kl=torch.zeros_like(given_["logp"]), clip=clip, beta=0.0, count=n)
    fixed = dict(clip=clip, rows=rows, longest=longest)
    value = dapo.loss(**given_, **by_tokens)[0]
    assert torch.allclose(grpo.loss(**given_, **plain)[0], value)
    assert torch.allclose(dr_grpo.loss(**given_, **fixed)[0], value * n / (rows * longest))
    slope = dapo.loss_grad(**given_, **by_tokens)["logp"]
    assert torch.allclose(grpo.loss_grad(**given_, **plain)["logp"], slope)
    assert torch.allclose(dr_grpo.loss_grad(**given_, **fixed)["logp"],
                          slope * n / (rows * longest))


@pytest.mark.parametrize("name", methods.names())
def test_every_number_of_a_config_is_checked(name):
    """A knob added without a bound fails here: each is refused when it is not finite."""
    config = methods.load(name).Config
    numbers = [field.name for field in fields(config) if field.type in (int, float, "int", "float")]
    assert len(numbers) >= 4 and "steps" in numbers
    for key in numbers:
        unbounded = config.LIMITS.get(key) == ""
        for value in (float("nan"), float("inf"), *([] if unbounded else [-1.0])):
            with pytest.raises(MinipostError, match=f"^{key} is {value}; expected "):
                config(**{key: value})


@pytest.mark.parametrize("config, fault", [
    (plackett_luce.Config, dict(group_size=1)), (sft.Config, dict(batch_size=0)),
    (sft.Config, dict(steps=0)), (sft.Config, dict(lr=-1e-3)),
    (grpo.Config, dict(group_size=1)), (grpo.Config, dict(temperature=0.0)),
    (grpo.Config, dict(lr=float("nan"))), (grpo.Config, dict(max_grad_norm=0.0)),
    (dr_grpo.Config, dict(minibatch_size=0)), (dr_grpo.Config, dict(clip=-0.1)),
    (dapo.Config, dict(rounds=0)), (dapo.Config, dict(clip_high=float("inf"))),
    (sapo.Config, dict(tau_neg=0.0)), (cispo.Config, dict(clip_low=1.5)),
])
def test_settings_that_make_no_sense_are_refused_by_name(config, fault):
    name, value = next(iter(fault.items()))
    with pytest.raises(MinipostError, match=f"{name} is {value}; expected (at|more than) "):
        config(**fault)


@pytest.mark.parametrize("module, fault", [
    (rloo, dict(group_size=1)), (reinforce, dict(group_size=0)), (reinforce, dict(momentum=-0.1)),
    (reinforce_pp, dict(beta=-1.0)), (a2c, dict(lam=-0.5)), (a2c, dict(critic_lr=float("inf"))),
])
def test_knobs_that_make_no_sense(module, fault):
    name, value = next(iter(fault.items()))
    with pytest.raises(MinipostError, match=f"{name} is {value}; expected at (least|most) "):
        module.Config(**fault)


COMMON = dict(steps=4, prompts=4, temperature=0.7)
SAMPLING = {
    "grpo": (grpo, grpo.Config(**COMMON, group_size=4)),
    "dr_grpo": (dr_grpo, dr_grpo.Config(**COMMON, group_size=4)),
    "dapo": (dapo, dapo.Config(**COMMON, group_size=4)),
    "gspo": (gspo, gspo.Config(**COMMON, group_size=4)),
    "cispo": (cispo, cispo.Config(**COMMON, group_size=4)),
    "sapo": (sapo, sapo.Config(**COMMON, group_size=4)),
    "reinforce": (reinforce, reinforce.Config(**COMMON, group_size=4)),
    "self_critical": (self_critical, self_critical.Config(**COMMON, group_size=4)),
    "rloo": (rloo, rloo.Config(**COMMON, group_size=4)),
    "reinforce_pp": (reinforce_pp, reinforce_pp.Config(**COMMON, group_size=4)),
    "a2c": (a2c, a2c.Config(**COMMON, group_size=4)),
    "ppo": (ppo, ppo.Config(**{**COMMON, "prompts": 16})),
    "maxrl": (maxrl, maxrl.Config(**COMMON, group_size=4)),
    "minimum_risk": (minimum_risk, minimum_risk.Config(**COMMON, group_size=4)),
    "trpo": (trpo, trpo.Config(**COMMON, group_size=4, iterations=2, tries=2, fisher=4)),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_the_first_update_of_a_run_has_ratio_one(spy, name):
    """What the loss is given is what the sampler recorded, at its temperature, row by row."""
    module, cfg = SAMPLING[name]
    run = toy(dtype=torch.float32, micro_batch_size=8)
    run.reward = length
    asked = next(name for name in ("readings", "logprobs_and_distribution", "logprobs")
                 if hasattr(module, name))
    batches, losses = spy(module, asked), spy(module, "loss")
    next(module.train(run, cfg))
    found = losses[0][0]
    batch = next(call["seqs"] for call, _ in batches if call["seqs"].mask.shape ==
                 found["mask"].shape and torch.equal(call["seqs"].mask, found["mask"]) and
                 call["model"] is run.policy.module)
    recorded, mask = batch.logp[batch.mask], batch.mask
    assert (found["logp"].detach()[mask] - recorded).abs().max() < 1e-5 < 1 < recorded.abs().max()
    if "logp_old" in found:
        gap = (found["logp"].detach() - found["logp_old"])[mask]
        assert (gap.exp() - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", [name for name in SAMPLING if name != "ppo"])
def test_a_hidden_reward_is_refused(name):
    module, cfg = SAMPLING[name]
    with pytest.raises(MinipostError, match="the reward of echo is hidden from learners"):
        next(module.train(toy(Hidden()), cfg))
