"""GSPO: one ratio for an answer, which its length does not change."""

import pytest
import torch
from fakes import f64, old_and_new

from minipost import ops
from minipost.methods import grpo, gspo

WIDE = dict(clip_low=1.0, clip_high=1e6)


def slopes(*given, **options):
    """The gradient by autograd, which must be the one by hand.  (B, T)"""
    logp = given[0].clone().requires_grad_()
    found, = torch.autograd.grad(gspo.loss(logp, *given[1:], **options)[0], logp)
    assert torch.allclose(found, gspo.loss_grad(*given, **options)["logp"], atol=1e-14)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_with_one_token_to_an_answer_it_is_grpo(seed):
    logp, old, adv, mask = old_and_new(8, 1, seed)
    mine = dict(clip_low=0.2, clip_high=0.2, count=8)
    theirs = dict(clip=0.2, beta=0.0, count=8)
    zero = torch.zeros_like(logp)
    assert torch.allclose(gspo.loss(logp, old, adv, mask, **mine)[0],
                          grpo.loss(logp, old, zero, adv, mask, **theirs)[0])
    assert torch.allclose(slopes(logp, old, adv, mask, **mine),
                          grpo.loss_grad(logp, old, zero, adv, mask, **theirs)["logp"])


def test_an_answer_whose_tokens_are_said_twice_counts_as_before():
    """Loss, clip and gradient of the answer: the ratio is the root of the product."""
    given = old_and_new(6, 4)
    twice = [torch.cat([x, x], 1) if x.dim() == 2 else x for x in given]
    for options in (WIDE, dict(clip_low=0.05, clip_high=0.05)):
        options = dict(options, count=6)
        once, again = gspo.loss(*given, **options), gspo.loss(*twice, **options)
        assert torch.allclose(once[0], again[0])
        assert once[1]["clip_ratio"] == again[1]["clip_ratio"]
        assert torch.allclose(slopes(*given, **options).sum(1), slopes(*twice, **options).sum(1))


def test_tokens_of_an_answer_share_its_weight_and_its_fate():
    """Which token has moved does not matter; a clipped answer teaches nothing."""
    old, mask = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bool)
    logp, adv = f64([[0.6, 0.0, 0.0], [0.0, -0.6, 0.0]]), f64([1.0, 1.0])
    open_, shut = (slopes(logp, old, adv, mask, clip_low=edge, clip_high=edge, count=2)
                   for edge in (0.3, 0.2))
    assert torch.allclose(open_, -f64([[0.2] * 3, [-0.2] * 3]).exp() / 6)
    assert not shut[0].any() and torch.equal(shut[1], open_[1])     # 1.22 is beyond 1.2


def test_the_gain_is_pessimistic_by_the_answer():
    """Clipped on the side that A wants, free on the other, as PPO's."""
    old, mask = torch.zeros(4, 2, dtype=torch.float64), torch.ones(4, 2, dtype=torch.bool)
    logp = f64([[0.5, 0.5], [0.5, 0.5], [-0.5, -0.5], [-0.5, -0.5]])
    adv = f64([1.0, -1.0, 1.0, -1.0])
    found = slopes(logp, old, adv, mask, clip_low=0.1, clip_high=0.2, count=4)
    assert found.any(1).tolist() == [False, True, True, False]
    value, stats = gspo.loss(logp, old, adv, mask, clip_low=0.1, clip_high=0.2, count=4)
    s = f64([0.5]).exp().item()
    assert float(value) == pytest.approx(-(1.2 - s + 1 / s - 0.9) / 4)
    assert float(stats["clip_ratio"]) == 0.5


def test_the_token_form_has_the_same_gradient():
    """The answer's ratio as a number, times each token's pi / pi: the paper's sec. 4.3."""
    logp, old, adv, mask = old_and_new(5, 4, seed=3)
    logp.requires_grad_()
    s = ops.row_means(logp - old, mask).exp().detach()
    form = -(ops.row_means(s[:, None] * (logp - logp.detach()).exp(), mask) * adv).sum() / 5
    expected, = torch.autograd.grad(form, logp)
    assert torch.allclose(slopes(logp.detach(), old, adv, mask, **WIDE, count=5), expected)
