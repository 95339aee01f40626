"""CISPO: the weight is clipped and the token is kept."""

import pytest
import torch
from fakes import f64, old_and_new

from minipost.methods import cispo, grpo

FLOORLESS = dict(clip_low=1.0, clip_high=4.0)


def slopes(*given, **options):
    """The gradient by autograd, which must be the one by hand.  (B, T)"""
    logp = given[0].clone().requires_grad_()
    found, = torch.autograd.grad(cispo.loss(logp, *given[1:], **options)[0], logp)
    assert torch.allclose(found, cispo.loss_grad(*given, **options)["logp"], atol=1e-14)
    return found


def at(*ratios, adv=1.0, **options):
    """The weight that a token of each ratio has in the gradient."""
    logp = f64(ratios)[:, None].log()
    found = slopes(logp, torch.zeros_like(logp), torch.full((len(ratios),), adv).double(),
                   torch.ones_like(logp).bool(), count=1, **options)
    return (-found[:, 0] / adv).tolist()


@pytest.mark.parametrize("adv", [1.0, -2.0])
def test_a_token_beyond_the_bounds_keeps_the_weight_of_the_bound(adv):
    """On both sides and for either sign, where PPO's clip takes all of it on one."""
    ratios = (0.01, 0.5, 0.9, 1.0, 1.2, 3.0, 100.0)
    weights = at(*ratios, adv=adv, clip_low=0.2, clip_high=0.28)
    assert weights == pytest.approx([0.8, 0.8, 0.9, 1.0, 1.2, 1.28, 1.28])
    logp = f64(ratios)[:, None].log()
    zero, same = torch.zeros_like(logp), torch.full((7,), adv).double()
    ppo = grpo.loss_grad(logp, zero, zero, same, zero == 0, clip=0.2, beta=0.0, count=1)["logp"]
    assert (ppo == 0).sum() == 2


def test_without_a_lower_bound_what_the_policy_has_left_hardly_counts():
    assert at(1e-6, 0.01, 2.0, 6.0, **FLOORLESS) == pytest.approx([1e-6, 0.01, 2.0, 5.0])


@pytest.mark.parametrize("seed", range(5))
def test_without_a_lower_bound_it_is_grpo_with_truncated_ratios(seed):
    logp, old, adv, mask = old_and_new(6, 4, seed)
    logp = old + 4 * (logp - old)
    zero, count = torch.zeros_like(logp), int(mask.sum())
    given = dict(clip=0.2, beta=0.0, count=count, correct="truncated", cap=1.5)
    mine = dict(clip_low=1.0, clip_high=0.5, count=count)
    assert torch.allclose(cispo.loss(logp, old, adv, mask, **mine)[0],
                          grpo.loss(logp, old, zero, adv, mask, **given)[0])
    assert torch.allclose(slopes(logp, old, adv, mask, **mine),
                          grpo.loss_grad(logp, old, zero, adv, mask, **given)["logp"])


def test_the_share_of_clipped_tokens_is_of_both_sides():
    logp = f64([[0.5, 0.9, 1.0, 9.0]]).log()
    given = logp, torch.zeros_like(logp), f64([1.0]), torch.ones_like(logp).bool()
    for low, share in ((0.2, 0.5), (1.0, 0.25)):
        stats = cispo.loss(*given, clip_low=low, clip_high=0.3, count=4)[1]
        assert float(stats["clip_ratio"]) == share
