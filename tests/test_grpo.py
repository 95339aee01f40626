"""GRPO: the price of KL, and the ratio before the first update."""

import pytest
import torch
from fakes import make_run, sequences, tiny

from minipost.methods import grpo
from minipost.ops import pick, spread
from minipost.rollout import distribution, logprobs, readings


def test_the_ratio_is_one_before_the_first_update():
    run = make_run(seed=3)
    problems = run.problems(4)
    rollout = run.sample(problems, 3, temperature=0.8)
    with torch.no_grad():
        ratio = (logprobs(run.policy.module, rollout, 0.8) - rollout.logp)[rollout.mask].exp()
    assert (ratio - 1).abs().max() < 1e-5
    metrics = next(grpo.train(run, grpo.Config(prompts=2, group_size=3, minibatch_size=6,
                                               beta=0.0)))
    assert metrics["clip_ratio"] == 0.0


@pytest.mark.parametrize("form", ["exact", "k3"])
def test_grpo_pays_beta_for_the_kl_that_it_names(form):
    """Both forms written out at every answer token; where nothing is gained they are the loss."""
    model, batch = tiny(), sequences(4)
    ids = batch.targets[batch.mask]
    with torch.no_grad():
        logp_all, logq_all = distribution(model, batch), distribution(tiny(seed=1), batch)
        logp = spread(pick(logp_all, ids), batch.mask)
        kl = grpo.divergence(grpo.Config(kl=form), readings(model, batch, reference=tiny(seed=1)))
    gap = logp_all - logq_all
    ratio = pick(gap, ids)
    expected = (logp_all.exp() * gap).sum(1) if form == "exact" else (-ratio).exp() - 1 + ratio
    assert torch.allclose(kl[batch.mask], expected) and expected.mean() > 0.1
    value = grpo.loss(logp, logp, kl, torch.zeros(4), batch.mask, clip=0.2, beta=0.3, count=9)[0]
    assert float(value) == pytest.approx(0.3 * float(expected.sum()) / 9)


# ---- the mean over answers

def pieces(mean, lengths, adv, count):
    """(loss, its gradient) at ratio 1 of rows of these lengths."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    zero = torch.zeros(mask.shape, dtype=torch.float64)
    given = zero, zero, zero, torch.tensor(adv, dtype=torch.float64), mask
    knobs = dict(clip=0.2, beta=0.0, count=count, mean=mean)
    return grpo.loss(*given, **knobs)[0], grpo.loss_grad(*given, **knobs)["logp"]


def test_over_answers_a_token_counts_the_less_the_longer_its_answer_and_an_answer_as_any_other():
    """Over tokens it is the other way round: tokens are alike, and answers count by length."""
    value, found = pieces("answers", [1, 4], [-1.0, -1.0], 2)
    assert found[0, 0] == 0.5 and torch.equal(found[1], torch.full((4,), 0.125).double())
    assert torch.equal(found.sum(1), torch.tensor([0.5, 0.5]).double()) and value == 1.0
    value, found = pieces("tokens", [1, 4], [-1.0, -1.0], 5)
    assert torch.allclose(found.sum(1), torch.tensor([0.2, 0.8]).double()) and value == 1.0
    assert not found[0, 1:].any()


def test_the_two_means_are_the_same_where_answers_are_as_long():
    both = [pieces(mean, [3, 3], [1.0, -2.0], count)
            for mean, count in (("answers", 2), ("tokens", 6))]
    assert torch.allclose(both[0][0], both[1][0]) and torch.allclose(both[0][1], both[1][1])
