"""Corrections for a sampler that is not the policy: masks, rounded weights, exact bias."""

import json
import math

import pytest
import torch
from fakes import Echo, f64, old_and_new, toy

from minipost import train
from minipost.engine import bottleneck, prefix
from minipost.errors import MinipostError
from minipost.methods import grpo
from minipost.parts import likeliest, rounded
from minipost.proof import corrections
from minipost.proof.oracle import World
from minipost.rollout import distribution, pick


def slopes(correct, *given, cap=2.0):
    """The gradient by autograd, which must be the one by hand.  (B, T)"""
    logp, old, adv, mask = given
    options = dict(clip=0.2, beta=0.0, count=1, correct=correct, cap=cap)
    leaf, zero = logp.clone().requires_grad_(), torch.zeros_like(logp)
    found, = torch.autograd.grad(grpo.loss(leaf, old, zero, adv, mask, **options)[0], leaf)
    assert torch.allclose(found, grpo.loss_grad(logp, old, zero, adv, mask, **options)["logp"])
    return found


# ---- masks

@pytest.mark.parametrize("adv", [1.0, -2.0])
def test_a_masked_token_is_dropped_on_either_side_whatever_its_sign(adv):
    ratios = f64([[0.4, 0.6, 1.0, 1.9, 2.1]])
    found = slopes("masked", ratios.log(), torch.zeros_like(ratios), f64([adv]), ratios > 0)
    assert torch.allclose(found, -adv * f64([[0.0, 0.6, 1.0, 1.9, 0.0]]))


def test_a_masked_answer_counts_by_the_product_of_its_ratios_or_not_at_all():
    """0.5 x 3 is within the bounds, though 3 alone is not; 1.5 x 1.5 is beyond them."""
    ratios = f64([[0.5, 3.0], [1.5, 1.5], [0.6, 0.6]])
    found = slopes("masked-answers", ratios.log(), torch.zeros_like(ratios), f64([1.0, 1.0, -1.0]),
                   ratios > 0)
    assert torch.allclose(found, f64([[-1.5, -1.5], [0.0, 0.0], [0.0, 0.0]]))
    tokens = slopes("masked", ratios.log(), torch.zeros_like(ratios), f64([1.0, 1.0, -1.0]),
                    ratios > 0)
    assert torch.allclose(tokens, f64([[-0.5, 0.0], [-1.5, -1.5], [0.6, 0.6]]))


def test_with_one_token_an_answer_is_masked_as_its_token():
    given = old_and_new(8, 1, seed=2)
    assert torch.allclose(slopes("masked", *given, cap=1.3),
                          slopes("masked-answers", *given, cap=1.3))
    assert slopes("masked", *given, cap=1.3).any()


# ---- exact bias

@pytest.fixture(scope="module")
def found():
    world = World(4, 2)
    return {(row["sampler"], row["name"]): row for row in corrections.corrections(world)}


def test_from_its_own_samples_every_step_is_the_gradient(monkeypatch):
    monkeypatch.setattr(corrections, "samplers", lambda world: {
        "itself": world.token_logp(world.policy).flatten(0, 1).detach()})
    rows = corrections.corrections(World(4, 2))
    assert len(rows) == len(corrections.WAYS)
    assert all(row["bias"] < 1e-9 < row["noise"] and abs(row["kl"]) < 1e-12 for row in rows), rows


def test_the_ratio_of_the_whole_answer_alone_has_no_bias(found):
    """Where the sampler can give every answer, and nothing is cut off."""
    exact = "an answer's ratio, no bound"
    for sampler in ("weights of 3 bits", "an older policy"):
        assert found[sampler, exact]["bias"] < 1e-9 and found[sampler, exact]["kl"] > 1e-3
        others = [row["bias"] for (who, name), row in found.items()
                  if who == sampler and name != exact]
        assert min(others) > 1e-4
    assert found["the 2 likeliest tokens", exact]["bias"] > 0.1


def test_what_is_added_to_all_rewards_changes_nothing(found):
    """The baseline is the prompt's mean reward under the policy."""
    world = World(4, 2)
    more = torch.tensor([[5.0], [-3.0]], dtype=torch.float64)
    for row in corrections.corrections(world.with_reward(world.reward + more)):
        assert row == pytest.approx(found[row["sampler"], row["name"]], abs=1e-9)


def test_on_the_same_answers_a_clip_stays_near_and_the_answers_ratio_climbs_on():
    """E_mu[ratio r] is J, wherever the policy has gone; a clip's gain ends at its edge."""
    world = World(4, 2)
    rows = {row["name"]: row for row in corrections.passes(world, 60)}
    exact, clip, none = (rows[name] for name in ("an answer's ratio, no bound", "clip 0.2", "none"))
    start = float((world.log_chance(world.policy).detach().exp() * world.reward).sum(1).mean())
    assert exact["reward"] == exact["most"] > start + 0.2
    assert start < clip["reward"] < exact["reward"] and clip["kl"] < 0.1 * exact["kl"]
    assert none["kl"] > exact["kl"] and all(row["most"] >= row["reward"] for row in rows.values())


def test_the_mean_of_sampled_steps_is_the_mean_over_all_answers(found):
    """The same by drawing answers of the older policy, one at a time."""
    world = World(4, 2)
    old = corrections.samplers(world)["an older policy"]
    logp = world.token_logp(world.policy).flatten(0, 1).detach()
    mu, each = old.sum(1).exp() / 2, corrections.scores(world)
    base = 2 * (logp.sum(1).exp() / 2 * world.reward.flatten()).view(2, -1).sum(1)
    adv = world.reward.flatten() - base.repeat_interleave(world.count)
    exact = torch.einsum("m,mtw->w", logp.sum(1).exp() / 2 * adv, each)
    drawn = torch.multinomial(mu, 200_000, replacement=True,
                              generator=torch.Generator().manual_seed(0))
    share = drawn.bincount(minlength=len(mu)).double() / len(drawn)
    weight = (logp - old).exp().clamp(max=2.0) * world.seqs.mask
    mean = torch.einsum("m,mt,mtw->w", share * adv, weight, each)
    bias = float((mean - exact).norm() / exact.norm())
    row = found["an older policy", "truncated at 2 (TIS)"]
    assert bias == pytest.approx(row["bias"], abs=4 * row["noise"] / math.sqrt(len(drawn)))


# ---- a sampler of few bits

def test_rounded_weights_are_within_half_a_step_and_the_policy_stays():
    run = toy(Echo())
    before = run.policy.flat.clone()
    for bits in (2, 4, 8, 16):
        copied = rounded(run.policy.module, bits)
        pairs = zip(copied.parameters(), run.policy.module.parameters(), strict=True)
        for mine, theirs in pairs:
            assert not mine.requires_grad
            if theirs.dim() < 2:
                assert torch.equal(mine, theirs)
                continue
            step = theirs.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
            assert ((mine - theirs).abs() <= step / 2 + 1e-12).all()
            assert all(len(row.unique()) <= 2**bits - 1 for row in mine)
    assert torch.equal(run.policy.flat, before)
    zero = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(zero.weight)
    assert not rounded(zero, 4).weight.any()


@pytest.mark.parametrize("part, size", [(prefix, 4), (bottleneck, 4)])
def test_rounding_leaves_weights_that_copies_share(part, size):
    """Beside a prefix or bottlenecks the other weights are fixed, and a copy has the same ones."""
    model = part.attach(toy(Echo()).policy.module, size)
    before = {name: p.clone() for name, p in model.named_parameters()}
    copied = rounded(model, 3)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for name, weight in copied.named_parameters():
        if weight.dim() >= 2 and before[name].any():
            rows = weight.flatten(0, -2)
            assert not torch.equal(weight, before[name])
            assert all(len(row.unique()) <= 7 for row in rows)


def test_the_rounded_policy_samples_and_its_log_probs_are_recorded():
    for lag in (0, 1):
        run = toy(Echo())
        run.sampler_bits, run.lag = 3, lag
        rollout = run.rollout(run.problems(3), 4, temperature=0.8)
        mine = run.logprobs(rounded(run.policy.module, 3), rollout, 0.8)
        policys = run.logprobs(run.policy.module, rollout, 0.8)
        assert (mine - rollout.logp).abs().max() < 1e-5 < (policys - rollout.logp).abs().max()
        run.compare(policys, rollout)
        assert run.differences()["sampling_logp_difference/max"] > 1e-3


@pytest.mark.parametrize("bits", [0, 4])
def test_the_likeliest_tokens_are_sampled_and_share_all_the_probability(bits):
    run, k = toy(Echo()), 2
    run.sampler_top_k, run.sampler_bits = k, bits
    rollout = run.rollout(run.problems(3), 8, temperature=0.8)
    sampler = rounded(run.policy.module, bits) if bits else run.policy.module
    whole = distribution(sampler, rollout, 0.8).detach()                    # (N, V)
    place = (whole > pick(whole, rollout.targets[rollout.mask])[:, None]).sum(-1)
    assert place.unique().tolist() == [0, 1]
    mine = pick(whole, rollout.targets[rollout.mask]) - whole.topk(k).values.logsumexp(-1)
    assert (mine - rollout.logp[rollout.mask]).abs().max() < 1e-5
    assert torch.equal(run.logprobs(likeliest(sampler, 10**6), rollout, 0.8),
                       run.logprobs(sampler, rollout, 0.8))


def test_the_policy_keeps_all_of_its_tokens_and_the_likeliest_its_weights():
    run = toy(Echo())
    few, tokens = likeliest(run.policy.module, 2), torch.tensor([[1, 2]])
    assert (few(tokens) > -1e8).sum(-1).tolist() == [[2, 2]]
    assert (run.policy.module(tokens) > -1e8).all()
    assert {p.data_ptr() for p in few.parameters()} == {
        p.data_ptr() for p in run.policy.module.parameters()}


@pytest.mark.parametrize("flags, message", [
    (("--algo", "sft", "--sampler-top-k", "8"), "sft does not learn from a rollout in every step"),
    (("--algo", "grpo", "--sampler-top-k", "8", "--sampler", "vllm"), "sampler vllm: is not"),
    (("--algo", "grpo", "--sampler-top-k", "8", "--shard", "True"), "with --shard: is not supp"),
    (("--algo", "grpo", "--sampler-top-k", "8", "--dtype", "bfloat16"), "other tokens likeliest"),
    (("--algo", "grpo", "--sampler-top-k", "-1"), "expected at least 0"),
    (("--algo", "sft", "--sampler-bits", "8"), "sft does not learn from a rollout in every step"),
    (("--algo", "grpo", "--sampler-bits", "1"), "expected 0, or 2 to 16"),
    (("--algo", "grpo", "--sampler-bits", "8", "--lora", "4"), "with --lora: is not supported"),
    (("--algo", "grpo", "--sampler-bits", "8", "--sampler", "vllm"), "with --sampler vllm: is not"),
    (("--algo", "grpo", "--sampler-bits", "17"), "expected at most 16"),
])
def test_another_sampler_is_refused_where_nothing_could_heed_it(flags, message):
    with pytest.raises(MinipostError, match=message):
        train.settings_of(list(flags))


@pytest.mark.parametrize("name, value", [("bits", 3), ("top-k", 2)])
def test_the_option_reaches_the_run(command, tmp_path, reward, name, value):
    assert train.main([*command("cispo", "--steps", 1, "--prompts", 3, "--group-size", 4,
                                f"--sampler-{name}", value), "--reward", reward]) == 0
    options = json.loads((tmp_path / "run/config.json").read_text())["options"]
    assert options[f"sampler_{name.replace('-', '_')}"] == value
    line = (tmp_path / "run/metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["sampling_logp_difference/max"] > 1e-3
