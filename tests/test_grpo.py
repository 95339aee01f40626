"""GRPO: the price of KL, and the ratio before the first update."""

import pytest
import torch
from fakes import make_run, sequences, tiny

from minipost.methods import grpo
from minipost.ops import pick, spread
from minipost.rollout import distribution, logprobs


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
        kl = grpo.divergence(grpo.Config(kl=form), tiny(seed=1), batch, logp, logp_all)
    gap = logp_all - logq_all
    ratio = pick(gap, ids)
    expected = (logp_all.exp() * gap).sum(1) if form == "exact" else (-ratio).exp() - 1 + ratio
    assert torch.allclose(kl[batch.mask], expected) and expected.mean() > 0.1
    value = grpo.loss(logp, logp, kl, torch.zeros(4), batch.mask, clip=0.2, beta=0.3, count=9)[0]
    assert float(value) == pytest.approx(0.3 * float(expected.sum()) / 9)
