"""Entropy held: which tokens learn, and what a bonus adds."""

import random

import pytest
import torch
from fakes import f64, old_and_new

from minipost.methods import dapo
from minipost.methods import entropy as held

SHAPE = (6, 5)


def numbers(seed):
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99, 1.0])
def test_the_share_with_the_most_entropy_is_kept(seed, share):
    entropy, mask = numbers(seed), numbers(seed + 9) < 0.7
    kept = held.forks(entropy, mask, share)
    assert kept.sum() == round(share * int(mask.sum())) and not (kept & ~mask).any()
    left = mask & ~kept
    assert not left.any() or entropy[kept].min() > entropy[left].max()


def test_of_equal_entropies_all_are_kept_and_one_at_least():
    mask = torch.ones(SHAPE, dtype=torch.bool)
    assert torch.equal(held.forks(torch.ones(SHAPE), mask, 0.2), mask)
    assert held.forks(numbers(0), mask, 1e-6).sum() == 1
    assert not held.forks(numbers(0), ~mask, 0.2).any()


def test_covariance_is_of_chosen_tokens_and_adds_up_to_that_of_both():
    logp, adv, mask = -4 * numbers(0), f64([1.0, -1.0, 0.5, 2.0, -2.0, 0.0]), numbers(1) < 0.7
    spoilt = logp.where(mask, 1e3)
    cov = held.covariances(spoilt, adv, mask)
    both = torch.stack([logp[mask], adv[:, None].expand(SHAPE)[mask]])
    expected = float(torch.cov(both, correction=0)[0, 1])
    assert float(cov.sum() / mask.sum()) == pytest.approx(expected)
    assert not cov[~mask].any()


def test_what_is_drawn_lies_within_the_bounds_and_is_another_each_time():
    cov, mask, rng = 8 * numbers(3) - 1, torch.ones(SHAPE, dtype=torch.bool), random.Random(0)
    inside = (cov > 1) & (cov < 5)
    first, second = (held.drawn(cov, mask, 0.2, rng) for _ in range(2))
    assert first.sum() == second.sum() == 6 < inside.sum()
    assert not (first & ~inside).any() and not torch.equal(first, second)
    assert torch.equal(held.drawn(cov, mask, 1.0, rng), inside)
    assert not held.drawn(cov, mask, 0.0, rng).any()


def test_with_all_tokens_and_no_bonus_it_is_dapos_loss():
    logp, old, adv, mask = old_and_new(6, 4)
    options = dict(clip_low=0.2, clip_high=0.28, count=int(mask.sum()))
    given = logp, old, torch.zeros_like(logp), adv, mask, mask
    assert torch.equal(held.loss(*given, **options, entropy_weight=0.3)[0],
                       dapo.loss(logp, old, adv, mask, **options)[0])
    assert torch.equal(held.loss_grad(*given, **options, entropy_weight=0.0)["logp"],
                       dapo.loss_grad(logp, old, adv, mask, **options)["logp"])


def test_a_token_that_is_left_out_has_no_gradient_but_that_of_its_entropy():
    logp, old, adv, mask = old_and_new(6, 4, seed=2)
    kept = mask & (torch.arange(4) % 2 == 0)
    found = held.loss_grad(logp, old, torch.ones_like(logp), adv, kept, mask, clip_low=0.2,
                           clip_high=0.28, entropy_weight=0.1, count=10)
    assert not found["logp"][mask & ~kept].any()
    assert torch.allclose(found["entropy"], -0.01 * mask.double())
