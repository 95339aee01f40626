"""Distillation: the divergence, the teacher, who answers."""

import random

import pytest
import torch
from fakes import Echo, Letters, make_run, sequences, small, tiny
from hypothesis import given
from hypothesis import strategies as st

from minipost import checkpoint
from minipost.errors import MinipostError
from minipost.measure.results import evaluate
from minipost.methods import distill
from minipost.ops import kl_exact
from minipost.rollout import distribution
from minipost.run import Run


def distributions(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    z, q = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64) * scale
    return z, q.log_softmax(-1)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_distillation_is_zero_at_the_teacher_and_positive_elsewhere(seed, mix):
    """Invariant 42, with the limits at both ends."""
    z, logq = distributions(seed)
    assert float(distill.loss(z, logq, mix=mix, count=4)[0]) > (0 if mix in (0, 1) else -1e-15)
    assert abs(float(distill.loss(logq, logq, mix=mix, count=4)[0])) < 1e-12
    logp = z.log_softmax(-1)
    turned = distill.loss(logq, logp, mix=0.5, count=4)[0]
    assert torch.allclose(turned, distill.loss(z, logq, mix=0.5, count=4)[0])
    forward, reverse = kl_exact(logq, logp).sum() / 4, kl_exact(logp, logq).sum() / 4
    assert torch.allclose(distill.loss(z, logq, mix=0.0, count=4)[0], forward)
    assert torch.allclose(distill.loss(z, logq, mix=1.0, count=4)[0], reverse)
    small = 1e-5
    assert float(distill.loss(z, logq, mix=small, count=4)[0]) / small == pytest.approx(
        float(forward), rel=1e-2)
    assert float(distill.loss(z, logq, mix=1 - small, count=4)[0]) / small == pytest.approx(
        float(reverse), rel=1e-2)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0]) | st.floats(0, 1), st.floats(0.01, 3))
def test_no_mix_takes_another_student_for_the_teacher(seed, mix, scale):
    """Pinsker: D >= c |p - q|^2 / 2 in total variation's norm, c = 1 at the ends, b (1 - b)
    between."""
    z, logq = distributions(seed, scale)
    apart = (z.softmax(-1) - logq.exp()).abs().sum(-1).square().sum() / 2
    least = (1.0 if mix in (0, 1) else mix * (1 - mix)) * apart
    assert apart > 0 and float(distill.loss(z, logq, mix=mix, count=1)[0]) >= float(least) - 1e-13
    assert distill.loss_grad(logq, logq, mix=mix, count=1)["logits"].abs().max() < 1e-12
    if mix in (0, 1) or 0.05 < mix < 0.95:
        assert distill.loss_grad(z, logq, mix=mix, count=1)["logits"].abs().max() > 1e-7


def test_a_certain_teacher_is_fine_tuning():
    seqs, model = sequences(4), tiny()
    logp_all = distribution(model, seqs).detach()
    value, _ = distill.loss(logp_all, distill.certain(seqs, logp_all), mix=0, count=9)
    said = logp_all.gather(1, seqs.targets[seqs.mask][:, None])
    assert torch.allclose(value, -said.sum() / 9)
    for wrong in (dict(on_policy=0.5), dict(on_policy=0, mix=0.5)):
        with pytest.raises(MinipostError, match="level is sequence"):
            distill.Config(level="sequence", **wrong)


class Teacher:
    """In place of a directory: the model and vocabulary that checkpoint.load would give."""

    def __init__(self, monkeypatch, model, kind=("letters", (2,))):
        vocabulary = Letters()
        vocabulary.kind = lambda: kind
        monkeypatch.setattr(Letters, "kind", lambda self: ("letters", (2,)), raising=False)
        monkeypatch.setattr(checkpoint, "load", lambda directory, device: (model, vocabulary))


@pytest.mark.parametrize("options", [{}, {"mix": 1.0}, {"mix": 0.5, "on_policy": 1.0},
                                     {"on_policy": 0.0}, {"on_policy": 0.0, "level": "sequence"}])
def test_a_student_comes_to_its_teacher(monkeypatch, options):
    """Distance in KL on the teacher's answers; a teacher of another mind is the control."""
    torch.set_num_threads(1)
    teacher, other = small(1), small(2)
    for model in (teacher, other):                          # far from uniform, and from each other
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(4.0 if p.dim() == 2 else 1.0)
    gaps = {}
    for taught_by in (teacher, other):
        Teacher(monkeypatch, taught_by)
        run = make_run(Echo(), small(), max_new_tokens=4, micro_batch_size=256)
        cfg = distill.Config(steps=60, batch_size=64, lr=1e-2, **options)
        steps = distill.train(run, cfg)
        for run.step in range(60):
            next(steps)
        seqs = run.sample(Echo().sample(64, random.Random(1)), 1, temperature=1.0, module=teacher)
        with torch.no_grad():
            logp, logq = (distribution(m, seqs) for m in (run.policy.module, teacher))
        gaps[taught_by is teacher] = float(kl_exact(logq, logp).mean())
    assert gaps[True] < 0.25 * gaps[False], gaps


def test_a_teacher_of_other_words_is_refused(monkeypatch):
    Teacher(monkeypatch, small(1), kind=("other letters", (2,)))
    with pytest.raises(MinipostError, match="is not the student's"):
        next(distill.train(make_run(), distill.Config()))
    Teacher(monkeypatch, tiny(vocab=12))                    # the same words, and an id to spare
    with pytest.raises(MinipostError, match=r"\(12 ids\) is not the student's \(11 ids\)"):
        next(distill.train(make_run(), distill.Config()))


def test_what_is_shown_of_the_teacher_is_the_teachers(monkeypatch):
    teacher = small(1)
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(3.0 if p.dim() == 2 else 1.0)
    Teacher(monkeypatch, teacher)
    run, problems = make_run(max_new_tokens=5), Echo().heldout(4)
    found = distill.measure(run, {"x": problems}, distill.Config())["x"]
    assert list(found) == ["greedy", "sampled", "teacher greedy", "teacher sampled"]
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        for model, prefix in ((None, ""), (teacher, "teacher ")):
            said = evaluate(run, problems, temperature, model).texts
            assert found[prefix + name].texts == said
    assert found["greedy"].texts != found["teacher greedy"].texts


@pytest.mark.parametrize("level, mix", [("word", 0.3), ("word", 0.0), ("sequence", 0.0)])
def test_a_step_of_distillation_learns_from_what_the_docstring_says(monkeypatch, level, mix):
    """What the loss is given, over micro-batches, against a recomputation; and how it was
    sampled."""
    teacher = small(1)
    Teacher(monkeypatch, teacher)
    run, whole, given, asked = make_run(micro_batch_size=3), distill.loss, [], []
    sample = Run.sample
    monkeypatch.setattr(Run, "sample", lambda self, *args, **options: asked.append(
        (options["temperature"], options["module"] is None)) or sample(self, *args, **options))
    monkeypatch.setattr(distill, "loss", lambda logits, logq_all, **options: given.append(
        (logits, logq_all, options)) or whole(logits, logq_all, **options))
    share = 0.0 if level == "sequence" else 0.5
    cfg = distill.Config(batch_size=8, temperature=1.3, level=level, mix=mix, on_policy=share)
    batch = distill.answers(run, cfg, teacher)
    asked.clear()
    next(distill.train(run, cfg))
    assert asked == ([(1.3, False)] if level == "sequence" else [(1.3, True), (1.3, False)])
    assert len(given) == 3
    assert all(each[2] == dict(mix=cfg.mix, count=int(batch.mask.sum())) for each in given)
    rows = [row for part in run.micro_batches(range(8), batch) for row in part]
    start = 0
    for logits, logq_all, _ in given:
        part = batch[rows[start : start + 3]]
        start += 3
        with torch.no_grad():
            expected = distill.certain(part, logits) if level == "sequence" else \
                distribution(teacher, part)
        assert torch.allclose(logq_all, expected, atol=1e-6)
        assert logits.requires_grad and not logq_all.requires_grad


def test_the_share_of_the_students_own_answers(monkeypatch):
    Teacher(monkeypatch, small(1))
    run, seen = make_run(), []
    whole = Run.sample

    def spy(self, problems, *args, module=None, **options):
        seen.append((len(problems), module is not None))
        return whole(self, problems, *args, module=module, **options)

    monkeypatch.setattr(Run, "sample", spy)
    for share, expected in ((0.0, [(8, True)]), (0.25, [(2, False), (6, True)]),
                            (1.0, [(8, False)])):
        seen.clear()
        batch = distill.answers(run, distill.Config(batch_size=8, on_policy=share), small(1))
        assert seen == expected and len(batch) == 8
