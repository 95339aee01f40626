"""DPO: closed forms, wrong labels, the optimum (invariants 15-17 and 19), pairs of a file."""

import math
from functools import partial

import pytest
import torch
from fakes import REFERRED, Steps, bandit, descend, log_probs, make_run, pair_file, with_lead
from hypothesis import given
from hypothesis import strategies as st

from minipost.datasets import preferences
from minipost.datasets.rows import File
from minipost.methods import dpo, mdpo, reward
from minipost.ops import row_sums
from minipost.rollout import logprobs

SIDES = ("w", "l")


def swapped(found):
    """The same pairs, each turned round."""
    return {key[:-1] + {"w": "l", "l": "w"}[key[-1]]: value for key, value in found.items()}


@given(st.integers(0, 10_000))
def test_dpo_turned_round_and_smoothed(seed):
    """Invariants 15 and 16."""
    found = log_probs(REFERRED, seed)
    u = dpo.lead(*(found[key] for key in REFERRED), 0.4)

    def value(pairs, flip=0.0, robust=False):
        return dpo.loss(**pairs, beta=0.4, label_smoothing=flip, robust=robust, count=3)[0]

    assert torch.allclose(value(found) - value(swapped(found)), -u.mean())
    assert torch.equal(value(found, 0.0, True), value(found))
    for flip in (0.1, 0.3):
        mean = (1 - flip) * value(found, flip, True) + flip * value(swapped(found), flip, True)
        assert torch.allclose(mean, value(found))
        best = math.log((1 - flip) / flip)                  # where smoothing stops
        for u in (best - 1, best + 1):
            assert value(with_lead(found, best, 0.4), flip) < value(with_lead(found, u, 0.4), flip)
        grad = dpo.loss_grad(**with_lead(found, best, 0.4), beta=0.4, label_smoothing=flip, count=3)
        assert max(float(g.abs().max()) for g in grad.values()) < 1e-12


@given(st.integers(0, 10_000), st.floats(0.01, 5))
def test_labels_that_say_nothing_hold_dpo_at_its_reference(seed, u):
    """Invariant 15: smoothed by a half, the loss is even in u, least at 0 and log 2 there."""
    found = log_probs(REFERRED, seed)

    def value(u, flip=0.5):
        return float(dpo.loss(**with_lead(found, u, 0.4), beta=0.4, label_smoothing=flip,
                              count=3)[0])

    assert value(u) == pytest.approx(value(-u)) and value(u) > value(0.0)
    assert value(0.0) == pytest.approx(math.log(2))
    assert value(u, 0.0) == pytest.approx(math.log1p(math.exp(-u)))        # and by none it is DPO


@given(st.integers(0, 10_000))
def test_dpo_is_bradley_terry_on_log_ratios(seed):
    """Invariant 17, and mDPO with sets of one is DPO."""
    found = log_probs(REFERRED, seed)
    scores = [0.4 * row_sums(found[f"logp_{s}"] - found[f"ref_{s}"], found[f"mask_{s}"])
              for s in SIDES]
    value = dpo.loss(**found, beta=0.4, count=3)[0]
    assert torch.allclose(value, reward.loss(*scores, margin=0.0, center=0.0, count=3)[0])

    def rows(key):
        chosen = torch.nn.functional.pad(found[f"{key}_w"], (0, 2))
        return torch.stack([chosen, found[f"{key}_l"]], 1).flatten(0, 1)

    sets = mdpo.loss(rows("logp"), rows("ref"), rows("mask"), beta=0.4, group_size=1, count=3)[0]
    assert torch.allclose(sets, value)


@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_dpo_finds_the_closed_form_optimum(flip):
    """Invariant 19: all pairs, weighted by Bradley-Terry, give pi ~ ref exp(r / beta); with flipped
    labels the robust loss still does, and plain DPO does not."""
    ref, r = bandit()
    beta = 0.5
    i, j = (1 - torch.eye(4)).nonzero(as_tuple=True)
    clean = torch.sigmoid(r[i] - r[j])
    weight = ref[i] * ref[j] * ((1 - flip) * clean + flip * (1 - clean))

    def value(robust):
        def total(logp):
            pairs = [x[:, None] for x in (logp[i], logp[j], ref.log()[i], ref.log()[j])]
            ones = torch.ones_like(pairs[0]).bool()
            each = [dpo.loss(*(x[k: k + 1] for x in (*pairs, ones, ones)), beta=beta,
                             label_smoothing=flip if robust else 0.0, robust=robust, count=1)[0]
                    for k in range(len(i))]
            return (torch.stack(each) * weight).sum()
        return total

    best = (ref * (r / beta).exp()) / (ref * (r / beta).exp()).sum()
    assert (descend(value(True)) - best).abs().max() < 1e-6
    plain = (descend(value(False)) - best).abs().max()
    assert plain < 1e-6 if flip == 0 else plain > 0.02


def test_the_remark_speaks_up_where_the_chosen_fell():
    assert dpo.remark([{"drift/chosen": 1.0, "drift/rejected": 0.0}] * 9) == dpo.remark([]) == ""
    fell = {"drift/chosen": -2.0, "drift/rejected": -7.5}
    said = dpo.remark([{"drift/chosen": 1.0, "drift/rejected": 0.0}, *[fell] * 5])
    assert "by 2.0 nats" in said and said.endswith("moved by -7.5.")


make = partial(make_run, usual=Steps, max_new_tokens=5)


def test_dpo_on_a_file_is_measured_by_the_reward_that_the_policy_implies(tmp_path):
    """Half right while it is the reference; then by what it makes likelier, one way or the
    other."""
    held = pair_file(tmp_path / "test.jsonl", [("hh", "a", "b"), ("gg", "aa", "c")])
    data = pair_file(tmp_path / "train.jsonl", [("ef", "a", "b")])
    task = File(data, held)
    run, cfg = make(task), dpo.Config(steps=1, pairs=1, beta=0.1)
    splits = {"held-out": task.heldout(9)}

    def measured():
        found = dpo.measure(run, splits, cfg)["held-out"]
        return found["pair accuracy"].rewards, found["pair accuracy"].texts

    assert measured()[0] == [0.5, 0.5]
    with torch.no_grad():                                  # tied: "a" where it is written or read
        run.policy.module.embed_tokens.weight[3] *= 1.3
    right, texts = measured()
    policy, reference = run.policy.module, run.reference()
    pairs = preferences.file_pairs(run, splits["held-out"])
    with torch.no_grad():
        gain = [torch.stack([(logprobs(policy, side[[i]]) - logprobs(reference, side[[i]])).sum()
                             for i in range(2)]) for side in (pairs.chosen, pairs.rejected)]
    lead = 0.1 * (gain[0] - gain[1])
    assert right == (lead > 0).double().tolist() and lead.abs().min() > 0.01
    assert texts == [f"better answer ahead by {gap:.2f}" for gap in lead.tolist()]
