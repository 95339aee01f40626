"""RPO: DPO with a gap that is told."""

import pytest
import torch
from fakes import (
    REFERRED,
    Echo,
    Hidden,
    bandit,
    descend,
    drive,
    log_probs,
    pair_task,
    toy,
    with_lead,
)

from minipost.methods import dpo, rpo
from minipost.run import REWARD_MODEL

PLAIN = dict(beta=0.4, count=3)


@pytest.mark.parametrize("seed", range(3))
def test_a_huge_eta_makes_it_dpo(seed):
    found = log_probs(REFERRED, seed)
    gap = torch.full((3,), 0.5, dtype=torch.float64)
    ours, theirs = (rpo.loss(**found, gap=gap, eta=1e3, **PLAIN)[0],
                    dpo.loss(**found, **PLAIN)[0])
    assert torch.allclose(ours, theirs)
    for key, g in rpo.loss_grad(**found, gap=gap, eta=1e3, **PLAIN).items():
        assert torch.allclose(g, dpo.loss_grad(**found, **PLAIN)[key])


def test_it_is_zero_and_flat_where_the_gaps_agree_and_positive_elsewhere():
    gap = torch.tensor([0.0, 0.7, -2.0], dtype=torch.float64)
    found = with_lead(log_probs(REFERRED, 4), 1.5 * gap, PLAIN["beta"])
    assert abs(rpo.loss(**found, gap=gap, eta=1.5, **PLAIN)[0]) < 1e-12
    for g in rpo.loss_grad(**found, gap=gap, eta=1.5, **PLAIN).values():
        assert g.abs().max() < 1e-12
    for off in (-0.3, 0.4):
        moved = with_lead(found, 1.5 * gap + off, PLAIN["beta"])
        assert rpo.loss(**moved, gap=gap, eta=1.5, **PLAIN)[0] > 1e-3


def test_which_answer_is_named_first_does_not_matter():
    found = log_probs({**REFERRED, "logp_l": (3, 4), "ref_l": (3, 4), "mask_l": (3, 4)}, 5)
    turned = {f"{key[:-1]}{'l' if key[-1] == 'w' else 'w'}": x for key, x in found.items()}
    gap = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(rpo.loss(**found, gap=gap, eta=1.0, **PLAIN)[0],
                          rpo.loss(**turned, gap=-gap, eta=1.0, **PLAIN)[0])


def test_its_optimum_is_the_reference_times_exp_of_eta_r_over_beta():
    ref, r = bandit()
    beta, eta = 0.7, 1.3
    i, j = (1 - torch.eye(4)).nonzero(as_tuple=True)
    ones = torch.ones(len(i), 1).bool()

    def total(logp):
        return rpo.loss(*(x[:, None] for x in (logp[i], logp[j], ref.log()[i], ref.log()[j])),
                        ones, ones, r[i] - r[j], beta=beta, eta=eta, count=1)[0]

    best = ref * (eta * r / beta).exp()
    assert (descend(total) - best / best.sum()).abs().max() < 1e-6


def test_where_the_reward_is_hidden_a_reward_model_is_taught_first():
    run = toy(Hidden())
    cfg = rpo.Config(steps=2, reward_steps=3, pairs=8, lr=1e-2)
    assert rpo.total(run, cfg) == 5 and rpo.total(toy(Echo()), cfg) == 2
    found = drive(run, rpo.train(run, cfg), 5)
    assert ["gap" in metrics for metrics in found] == [False] * 3 + [True] * 2
    assert REWARD_MODEL in run.learners and found[3]["gap"] > 0


def test_a_files_pairs_are_scored_too_and_a_wrong_label_shows(tmp_path):
    """The gap is the reward model's, and may be less than 0."""
    run = toy(pair_task(tmp_path))
    cfg = rpo.Config(steps=1, reward_steps=1, pairs=6)
    assert rpo.total(run, cfg) == 2
    learn = rpo.train(run, cfg)
    drive(run, learn, 2)
    pairs, gap = rpo.draw(run, cfg)
    assert gap.tolist() == pytest.approx([
        float(a - b) for a, b in zip(*(run.final_scores(run.reward_model, side)
                                       for side in (pairs.chosen, pairs.rejected)))])


def test_sampled_pairs_have_the_better_answer_first_and_no_ties():
    run = toy(Echo())
    pairs, gap = rpo.draw(run, rpo.Config(pairs=12))
    assert len(pairs) == len(gap) and (gap > 0).all() and 0 < len(gap) < 12
    run.reward = lambda completions, **columns: [1.0] * len(completions)
    assert len(rpo.draw(run, rpo.Config(pairs=12))[0]) == 0
    assert next(rpo.train(run, rpo.Config(pairs=12)))["grad_norm"] == 0
