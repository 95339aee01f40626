"""KTO: what could be expected, and what is taken from a file."""

import itertools
from functools import partial

import pytest
import torch
from fakes import Echo, Letters, make_run, pair_task, toy

from minipost.methods import kto, mdpo
from minipost.rollout import logprobs, pack

make = partial(make_run, max_new_tokens=5)


def test_mismatched_answers_belong_to_the_next_prompt():
    seqs = pack([[1, 3], [1, 4, 5], [1, 6]], [[7, 2], [8, 9, 2], [10, 2]], 0)
    found = kto.mismatched(seqs, 0, limit=5)
    rows = [[t for t in row if t] for row in found.tokens.tolist()]
    assert rows == [[1, 3, 8, 9, 2], [1, 4, 5, 10, 2], [1, 6, 7, 2]]
    assert [t[m].tolist() for t, m in zip(found.targets, found.mask)] == [
        [8, 9, 2], [10, 2], [7, 2]]
    cut = kto.mismatched(seqs, 0, limit=4)
    assert [[t for t in row if t] for row in cut.tokens.tolist()][0] == [1, 3, 8, 9]


@pytest.mark.parametrize("sign", [1, -1])
def test_what_could_be_expected_is_never_less_than_nothing(sign):
    """z0 is the mean log-ratio of mismatched answers where that is positive, and else 0, as a KL
    is."""
    run = make()
    run.reference()
    answers, _ = kto.draw(run, kto.Config(), run.reference())
    wrong = kto.mismatched(answers, 0, run.policy.module.config.max_position_embeddings)
    logp = logprobs(run.policy.module, wrong).sum()
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(logp, run.policy.params)])
    run.policy.assign(run.policy.flat + sign * 0.1 * slope / slope.norm())
    z0 = next(kto.train(run, kto.Config()))["z0"]
    assert z0 > 0.01 if sign > 0 else z0 == 0.0


@pytest.mark.parametrize("reward", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("module", [kto, mdpo])
def test_equal_rewards_teach_nothing(module, reward):
    """Also where a mean of equal numbers is rounded; no answer is good or bad then."""
    run = toy()
    run.reward = lambda completions, **columns: [reward] * len(completions)
    before = run.policy.flat.clone()
    for metrics in itertools.islice(module.train(run, module.Config()), 2):
        assert metrics["grad_norm"] == 0 and "good" not in metrics
        run.step += 1
    assert torch.equal(run.policy.flat, before)


def test_sets_of_the_same_rewards_in_another_order_tie():
    """Three numbers may have another float32 mean in another order."""
    run, values = toy(), itertools.cycle([0.8, 0.9, 1.0, 1.0, 0.8, 0.9])
    run.reward = lambda completions, **columns: [next(values) for _ in completions]
    assert next(mdpo.train(run, mdpo.Config(prompts=4, group_size=3)))["comparisons"] == 0


def test_what_others_said_in_between_stays_and_is_not_learnt():
    seqs = pack([[1, 3], [1, 4, 5]], [[7, 8, 9, 2], [8, 9, 2]], 0, [
        [True, False, True, True], [True, True, True]])
    found = kto.mismatched(seqs, 0, limit=9)
    assert [[t for t in row if t] for row in found.tokens.tolist()] == [
        [1, 3, 8, 9, 2], [1, 4, 5, 7, 8, 9, 2]]
    assert found.learnt() == [[True] * 3, [True, False, True, True]]


class Noisy(Echo):
    noise = 1.0


@pytest.mark.parametrize("module", [kto, mdpo])
def test_labels_that_come_out_wrong_turn_the_step_round(module):
    """`noise` is their share; where all are wrong, Adam's first step is that of the right ones."""
    moved = []
    for task in (Echo(), Noisy()):
        run = toy(task)
        before = run.policy.flat.clone()
        next(module.train(run, module.Config(lr=1e-3, beta=1e-3)))
        moved.append(run.policy.flat - before)
    assert moved[0].abs().max() > 1e-4
    assert float((moved[0] + moved[1]).norm() / moved[0].norm()) < 0.05


@pytest.mark.parametrize("key", ["chosen", "label"])
def test_what_kto_takes_from_a_file(tmp_path, key):
    run = make(pair_task(tmp_path, key=key))
    seqs, good = kto.draw(run, kto.Config(batch_size=12), run.reference())
    texts = [Letters().decode(t[m].tolist()) for t, m in zip(seqs.targets, seqs.mask)]
    assert len(texts) == 12 and run.tokens == int(seqs.mask.sum())
    if key == "chosen":
        assert good.tolist() == [True] * 6 + [False] * 6
        wrong = kto.mismatched(seqs, 0, limit=99)
        for row, found in zip(seqs.tokens.tolist(), wrong.tokens.tolist()):
            start = seqs.mask.int().argmax(1).tolist()[0] + 1       # of every prompt, one letter
            own = {tuple(t[m].tolist()) for t, m, other in zip(
                seqs.targets, seqs.mask, seqs.tokens.tolist()) if other[:start] == row[:start]}
            assert tuple(x for x in found[start:] if x) not in own
        assert all(("h" in text) == g for text, g in zip(texts, good.tolist()))
    else:
        labels = {p.columns["completion"]: p.columns["label"] for p in run.task.training()}
        assert [labels[text] for text in texts] == good.tolist() and 0 < sum(good) < 12
    found = kto.measure(run, {"held-out": run.task.heldout(3)}, kto.Config())["held-out"]
    assert set(found[{"chosen": "pair accuracy", "label": "label accuracy"}[key]].rewards) == {0.5}
