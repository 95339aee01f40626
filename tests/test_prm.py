"""The process reward model: labels of steps, the score of each, and of a whole solution."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fakes import BOS, EOS, PAD, Echo, Letters, Steps, make_run, rollout_of, scalar, sequences, tiny

from minipost.errors import MinipostError
from minipost.measure import scorers
from minipost.methods import dpo, orm, prm
from minipost.optim import Learner
from minipost.rollout import final_score
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem

make = partial(make_run, usual=Steps, max_new_tokens=5)


def step_of(module, monkeypatch, **knobs):
    """Gradient and metrics of a method's first step, on a policy that has left its reference."""
    seen, run = [], make()

    def record(learner, lr, max_grad_norm, weight_decay):
        seen.append(learner.grad.clone())
        learner.grad.zero_()
        return 1.0

    monkeypatch.setattr(Learner, "step", record)
    generator = torch.Generator().manual_seed(0)
    if module is not dpo:
        with torch.no_grad():
            scorers.scorer(run).module.score.weight.normal_(generator=generator)
    else:
        run.reference()
        run.policy.flat.add_(torch.randn(run.policy.flat.shape, generator=generator), alpha=0.1)
    metrics = next(module.train(run, replace(module.Config(), **knobs)))
    (grad,) = seen
    return grad, metrics


def test_prm_with_the_last_step_only_is_an_orm(monkeypatch):
    """The same samples, the same labels, the same gradient; with the steps another one."""
    knobs = dict(prompts=8, group_size=4, temperature=1.0, steps=9, lr=1e-3, warmup_steps=0)
    outcome, metrics = step_of(orm, monkeypatch, **knobs)
    knobs_prm = dict(knobs, hot=1.0)
    last, same = step_of(prm, monkeypatch, **knobs_prm, last_only=True)
    assert same.pop("temperature") == 1.0
    assert torch.allclose(last, outcome, atol=1e-12) and same == pytest.approx(metrics)
    assert not torch.allclose(step_of(prm, monkeypatch, **knobs_prm)[0], outcome, atol=1e-3)


def test_prm_samples_hot_and_then_cools():
    cfg = prm.Config(steps=10, hot=2.0, temperature=1.0)
    found = [prm.cooled(cfg, step) for step in range(11)]
    assert found == pytest.approx([2.0] * 6 + [1.8, 1.6, 1.4, 1.2, 1.0])


def test_step_scores_end_with_the_final_score():
    model, seqs = scalar(), sequences(6)
    with torch.no_grad():
        steps = prm.step_scores(model, seqs)
        assert steps.shape == seqs.mask.shape
        assert torch.allclose(steps[prm.final(seqs.mask)], final_score(model, seqs), atol=1e-12)


def marked(run, problems, rollout, last_only=False):
    """Each row's labels as {place in the response: label}."""
    mask, right = (f for f in (prm.marks(run, rollout, last_only),
                               prm.labels(run, problems, rollout, last_only)))
    starts = rollout.mask.int().argmax(1).tolist()
    return [{int(c) - start: float(right[row, c]) for c in mask[row].nonzero()[:, 0]}
            for row, start in enumerate(starts)]


def test_steps_of_a_toy_are_labelled_by_hand():
    """Prompts of several lengths; the answer's own label stands on EOS, or on the token cut off."""
    run, vocabulary = make(), Letters()
    problems = [Problem(p, {"letter": p[0]}) for p in ("a", "bcc", "c", "d")]
    prompts = [vocabulary.prompt(p.prompt) for p in problems]
    texts = ("ahbh", "cbhh", "gg", "h")
    rollout = rollout_of(prompts, [vocabulary.response(text)[:-1] for text in texts])
    assert marked(run, problems, rollout) == [
        {1: 1.0, 3: 0.0, 4: pytest.approx(1 / 4)}, {2: 1.0, 3: 0.0, 4: pytest.approx(1 / 4)},
        {2: 0.0}, {0: 0.0, 1: 0.0}]
    assert marked(run, problems, rollout, True) == [
        {4: pytest.approx(1 / 4)}, {4: pytest.approx(1 / 4)}, {2: 0.0}, {1: 0.0}]
    cut = rollout_of(prompts, [vocabulary.response(t)[:-1] for t in ("ahb", "bhbh", "cc", "g")],
                     finished=False)
    assert marked(run, problems, cut) == [
        {1: 1.0, 2: pytest.approx(1 / 3)}, {1: 1.0, 3: pytest.approx(2 / 4)},
        {1: pytest.approx(2 / 3)}, {0: 0.0}]


def test_steps_of_arithmetic_are_labelled_by_hand(words):
    """Lines behind the answer are no steps; a line that is cut off has no end."""
    from minipost.tokenizer import Vocabulary

    vocabulary = Vocabulary(words, [BOS], {EOS}, PAD)
    task = Arithmetic(terms=3)
    run = Run(Learner(tiny()), vocabulary, task, task.reward)
    problem = Problem("7+5-3=? Think:\n", {"chain": "7+5-3", "answer": 9})
    texts = ["7+5=12\n12-3=9\nAnswer: 9", "7+5=11\n11-3=8\nAnswer: 9\n1+1=2\n", "7+5=12\n12-"]
    ids = [vocabulary.response(text)[:-1] for text in texts]
    rollout = rollout_of([vocabulary.prompt(problem.prompt)] * 3, ids)
    newline = words.encode("\n")[0]
    places = [[k for k, i in enumerate(row) if i == newline] for row in ids]
    first, second, third = marked(run, [problem] * 3, rollout)
    assert first == {places[0][0]: 1.0, places[0][1]: 1.0, len(ids[0]): 1.0}
    assert second == {places[1][0]: 0.0, places[1][1]: 1.0, len(ids[1]): 1.0}
    assert third == {places[2][0]: 1.0, len(ids[2]): 0.0}


def test_a_token_that_ends_two_steps_is_right_if_both_are():
    class Double(Letters):
        def decode(self, ids):
            text = super().decode(ids)
            return text.replace("e", "ahah").replace("f", "ahbh").replace("g", "bhah")

    run, problem = make(), Problem("a", {"letter": "a"})
    run.vocabulary = Double()
    rollout = rollout_of([[BOS, 3]] * 3, [[7, 7], [8, 8], [9, 9]])      # each e, f or g twice
    assert [row[0] for row in marked(run, [problem] * 3, rollout)] == [1.0, 0.0, 0.0]


def test_a_reward_that_is_no_chance_and_a_task_without_steps_are_refused():
    run = make()
    run.reward = lambda completions, **columns: [1.5] * len(completions)
    for module in (orm, prm):
        with pytest.raises(MinipostError, match="is 1.5; .* within 0..1"):
            next(module.train(run, module.Config(prompts=2)))
    plain = make(Echo())
    with pytest.raises(MinipostError, match="echo cannot check steps"):
        next(prm.train(plain, prm.Config(prompts=2)))
    with pytest.raises(MinipostError, match="echo cannot check steps"):
        prm.measure(plain, {"held-out": Echo().heldout(4)}, prm.Config())
    next(prm.train(plain, prm.Config(prompts=2, last_only=True)))       # needs none


def test_a_solutions_chance_from_its_steps():
    chances = torch.tensor([[0.5, 0.9, 0.4, 0.0], [float("nan"), 0.8, 0.0, 0.6]])
    mask = torch.tensor([[True, True, True, False], [False, True, False, True]])
    for how, expected in (("min", [0.4, 0.6]), ("last", [0.4, 0.6]), ("product", [0.18, 0.48])):
        assert prm.aggregate(chances, mask, how).tolist() == pytest.approx(expected)
    late = torch.tensor([[0.2, 0.9, 0.4, 0.0]])
    assert prm.aggregate(late, mask[:1], "min") == pytest.approx(0.2)
    assert prm.aggregate(late, mask[:1], "last") == pytest.approx(0.4)


def test_prm_reports_its_steps():
    """Heads of zero know nothing; what a step is worth is counted on the first answers alone."""
    run = make(max_new_tokens=12)
    found = prm.measure(run, {"held-out": Echo().heldout(4)}, prm.Config())["held-out"]
    for name in ("pair accuracy", "step accuracy", "wrong steps found"):
        assert found[name].score.value == 0.5, name
    assert max(found["step accuracy"].rows) < 4
    with run.aside():
        rollout = run.sample(Echo().heldout(4), 1, temperature=1.0, purpose="evaluation")
    right = prm.labels(run, Echo().heldout(4), rollout, False)
    for sign in (1, -1):
        score = (sign * (right - 0.5)).where(~prm.final(rollout.mask), 0.0)     # answers: no part
        where = prm.marks(run, rollout, False) & ~prm.final(rollout.mask)
        steps = prm.on_steps(run, rollout, where, right, score)
        assert {m.score.value for m in steps.values()} == {float(sign > 0)}
    assert "step accuracy" not in prm.measure(
        run, {"held-out": Echo().heldout(4)}, prm.Config(last_only=True))["held-out"]


def test_the_interval_of_a_share_of_steps_ends_at_one():
    right = torch.ones(9, 3)
    score = right.clone()
    score[0, 0] = -1.0                                                      # 26 of 27 steps told
    run = SimpleNamespace(texts=lambda rollout: [""] * 9)
    found = prm.on_steps(run, None, right > 0, right, score)["step accuracy"].score
    assert found.value == pytest.approx(26 / 27) and found.low < found.value < found.high == 1.0
