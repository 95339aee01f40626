"""Rewards without labels: a vote of the group, and the policy's own certainty."""

import math

import pytest
import torch
from fakes import Echo, randn, rollout_of, toy
from hypothesis import given
from hypothesis import strategies as st

from minipost.methods import grpo, intuitor, ttrl
from minipost.ops import group_normalised, kl_exact
from minipost.rollout import distribution
from minipost.tasks.base import Problem


class Said:
    """In place of a run: texts that are given, and their true rewards."""

    def __init__(self, texts, true):
        self.said, self.true, self.task = texts, torch.tensor(true), Echo()

    def texts(self, rollout):
        return self.said

    def gold(self, problems, rollout):
        return self.true


def rewarded(texts, true, size):
    rollout = rollout_of([[1, 3]] * len(texts), [[4]] * len(texts))
    score = ttrl.Majority(Said(texts, true), size)
    return score([Problem("a")], rollout).tolist(), score.seen


def test_what_most_answers_state_is_paid_for_right_or_wrong():
    """Echo reads a text as it is, and an empty one as nothing: it has no vote."""
    paid, seen = rewarded(["b", "a", "a", "c", "b", "", "b", ""], [0., 1, 1, 0, 0, 0, 0, 0], 4)
    assert paid == [0, 1, 1, 0, 1, 0, 1, 0]
    assert seen == {"accuracy": 0.25, "label_accuracy": 0.5}
    assert rewarded([""] * 4, [0.0] * 4, 4)[0] == [0] * 4               # nobody votes
    assert rewarded(["b", "a", "a", "b"], [0.0] * 4, 4)[0] == [1, 0, 0, 1]  # of a tie the first


@given(st.integers(0, 10_000), st.floats(-3, 3))
def test_certainty_is_the_divergence_from_uniform(seed, shift):
    logits = 3 * randn(seed, 5, 7)
    law = (logits + shift).log_softmax(-1)
    uniform = torch.full_like(law, -math.log(7))
    found = intuitor.certainty(law)
    assert torch.allclose(found, kl_exact(uniform, law))
    assert (found >= 0).all() and intuitor.certainty(uniform).abs().max() < 1e-12
    theirs = logits.logsumexp(-1) - logits.mean(-1)         # as in the paper's own code
    assert torch.allclose(found, theirs - math.log(7))


def test_ids_that_no_text_can_have_tell_nothing_of_certainty():
    """A model gives them a log-prob of -1e9, not of -inf: in a mean over V it would drown the rest.

    A model without them, of the same weights, is as certain.
    """
    wide, narrow = toy(seed=2), toy(seed=2)
    vocab = wide.policy.module.config.vocab_size
    wide.policy.module.unused = torch.arange(vocab) >= vocab - 2
    rollout = rollout_of([[1, 3], [1, 4]], [[3, 4], [4]])
    found = intuitor.self_certainty(wide, rollout, 0.7)
    with torch.no_grad():
        logits = distribution(narrow.policy.module, rollout, 0.7)[:, : vocab - 2]
    law = logits.log_softmax(-1)                                            # over the others
    each = kl_exact(torch.full_like(law, -math.log(vocab - 2)), law)        # (5,), with both ends
    assert torch.allclose(found.to(each), torch.stack([each[:3].mean(), each[3:].mean()]),
                          atol=1e-6)


def test_a_group_of_equal_answers_ties(monkeypatch):
    """Rounding, which differs between micro-batches, must not tell them apart."""
    run = toy(seed=2, max_new_tokens=2)
    rollout = run.sample([Problem("a"), Problem("b")], 30, temperature=0.5)
    noise = 1e-9 * torch.arange(60, dtype=torch.float64)[:, None]
    plain, real = intuitor.self_certainty(run, rollout, 1.0), run.for_all
    monkeypatch.setattr(run, "for_all", lambda *args, **options: [
        x + noise for x in real(*args, **options)])
    found, seen = intuitor.self_certainty(run, rollout, 1.0), {}
    for value, number, ids in zip(found.tolist(), rollout.prompt.tolist(), rollout.written()):
        seen.setdefault((number, *ids), set()).add(value)
    assert len(seen) < 50 and all(len(values) == 1 for values in seen.values())
    assert len(set.union(*seen.values())) == len(seen)
    assert torch.allclose(found, plain, atol=1e-6)


def test_an_answers_certainty_is_the_mean_over_its_own_tokens():
    run = toy(seed=2)
    rollout = run.sample(run.problems(6), 4, temperature=1.5)
    found = intuitor.self_certainty(run, rollout, 0.7)
    for k in range(len(rollout)):
        with torch.no_grad():
            law = distribution(run.policy.module, rollout[[k]], 0.7)
        each = [-float(law[t].mean()) - math.log(law.shape[1]) for t in range(len(law))]
        assert float(found[k]) == pytest.approx(sum(each) / len(each))
    assert len(set(rollout.lengths.tolist())) > 1


@pytest.mark.parametrize("module", [ttrl, intuitor])
def test_they_are_grpo_on_their_own_reward(module):
    cfg = module.Config(prompts=3, group_size=4, temperature=0.7)

    def score(problems, rollout):
        if module is ttrl:
            return ttrl.Majority(ours, 4)(problems, rollout)
        return intuitor.self_certainty(ours, rollout, 0.7).to(rollout.logp)

    theirs, ours = toy(seed=2), toy(seed=2)
    metrics, expected = next(module.train(theirs, cfg)), next(grpo.train(ours, cfg, score))
    assert torch.equal(theirs.policy.flat, ours.policy.flat)
    assert metrics.items() >= expected.items() and metrics["accuracy"] != metrics["reward"]
    assert not torch.equal(theirs.policy.flat, toy(seed=2).policy.flat)


@given(st.integers(0, 10_000))
def test_a_log_of_the_vocabulary_left_out_changes_no_advantage(seed):
    u = randn(seed, 12)
    assert torch.allclose(group_normalised(u + math.log(512), 4), group_normalised(u, 4),
                          atol=1e-9)
