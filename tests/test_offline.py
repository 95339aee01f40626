"""Fixed sets of answers, RFT, distillation, beam search, and models as functions of texts."""

import itertools
import json
import random
from dataclasses import replace

import pytest
import torch
from fakes import Echo, Letters, sequences, tiny
from hypothesis import given, settings, strategies as st

from minipost import checkpoint
from minipost.datasets.rows import File
from minipost.datasets.trajectories import Trajectories
from minipost.errors import MinipostError
from minipost.gpt import GPT, GPTConfig, RewardModel
from minipost.measure.results import Result, evaluate
from minipost.measure.texts import Texts
from minipost.methods import distill, oreo, rft
from minipost.ops import kl_exact
from minipost.optim import Learner
from minipost.rollout import distribution, logprobs
from minipost.run import Run
from minipost.sampler import Sampler, ends
from minipost.tasks.base import Problem
from minipost.test_time import beam

settings.register_profile("minipost", deadline=None, max_examples=25)
settings.load_profile("minipost")


def make(task=None, model=None, **options):
    task = task or Echo()
    return Run(Learner(model or tiny()), Letters(), task, task.reward, **{"max_new_tokens": 4, **options})


def small(seed=0):
    return GPT(GPTConfig(11, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                         max_position_embeddings=16)).initialise(seed)


# ---- the set

CFG = rft.Config(steps=7, prompts=5, group_size=3, iterations=3, batch_size=4)


def moved(run):
    """Something that learning would do to the policy."""
    run.policy.assign(run.policy.flat * 1.1)


def test_a_set_is_drawn_once_per_part_by_the_policy_of_then():
    run = make()
    data, drawn, weights = Trajectories(run, CFG), [], []
    for run.step in range(7):
        weights.append(run.policy.flat.clone())
        if data.refresh():
            drawn.append((run.step, data.seqs, data.reward))
            asked = [p.prompt for p in data.problems]
            assert asked == [p for p in asked[::3] for _ in range(3)]
            assert data.reward.tolist() == pytest.approx(Echo().reward(
                None, run.texts(data.seqs), [p.columns["letter"] for p in data.problems]))
            sampler = torch.cat([p.flatten() for p in data.sampler.parameters()])
            mine = torch.cat([p.flatten() for p in run.policy.module.parameters()])
            assert torch.equal(sampler, mine)
            assert not any(p.requires_grad for p in data.sampler.parameters())
        data.count(data.seqs)                               # counted when they were sampled
        moved(run)
    assert [step for step, *_ in drawn] == [0, 2, 4]
    assert all(len(seqs) == 15 for _, seqs, _ in drawn)
    assert drawn[0][1].tokens.shape != drawn[1][1].tokens.shape or not torch.equal(
        drawn[0][1].tokens, drawn[1][1].tokens)
    assert run.tokens == sum(int(seqs.mask.sum()) for _, seqs, _ in drawn)


def test_each_part_begins_an_epoch():
    run, rows = make(), []
    data = Trajectories(run, CFG)
    for run.step in range(4, 7):
        data.refresh()
        rows += data.deal(range(15), 5)
    assert sorted(rows) == list(range(15)) and data.length == 3
    run.step = 5
    part = data.deal(range(13), 6)
    run.step = 4
    assert not set(part) & set(data.deal(range(13), 6))


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_run_is_cut_into_as_many_parts_as_equal_as_can_be(steps, parts):
    cfg, run, found = replace(CFG, steps=max(steps, parts), iterations=parts), make(), []
    data = Trajectories(run, cfg)
    data.sample = lambda: found.append((data.since, data.length))
    for run.step in range(cfg.steps):
        data.refresh()
    starts, lengths = zip(*found)
    assert len(found) == parts and sum(lengths) == cfg.steps and starts[0] == 0
    assert max(lengths) - min(lengths) <= 1
    assert list(starts[1:]) == list(itertools.accumulate(lengths))[:-1]
    with pytest.raises(MinipostError, match="at most one per step"):
        Trajectories(run, replace(CFG, steps=parts, iterations=parts + 1))


@pytest.mark.parametrize("step", range(7))
def test_a_resumed_run_finds_the_same_set_and_counts_it_once(step):
    """At whatever step it goes on, with the policy that it had there."""
    def drive(run, first, last, data):
        for run.step in range(first, last):
            data.refresh()
            moved(run)

    whole, run = make(), make()
    data = Trajectories(whole, CFG)
    drive(whole, 0, step, data)
    whole.step = step
    tensors, facts = whole.state()
    tensors = {k: v.clone() for k, v in tensors.items()}
    run.restore(tensors, facts)
    again = Trajectories(run, CFG)
    for one, other in ((whole, data), (run, again)):
        one.step = step
        other.refresh()
    assert torch.equal(data.seqs.tokens, again.seqs.tokens)
    assert torch.equal(data.reward, again.reward) and data.since == again.since
    assert whole.tokens == run.tokens
    assert data.deal(range(15), 4) == again.deal(range(15), 4)


def answer_file(folder, key="reward"):
    rows = [{"prompt": a + b, "completion": b + a,
             key: (k % 5 / 4 if key == "reward" else k % 2 == 0)}
            for k, (a, b) in enumerate(itertools.product("abcd", "efg"))]
    for name, part in (("train", rows[:9]), ("test", rows[9:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return File(str(folder / "train.jsonl"), str(folder / "test.jsonl"))


@pytest.mark.parametrize("key", ["reward", "label"])
def test_a_files_answers_and_rewards(tmp_path, key):
    run = make(answer_file(tmp_path, key))
    data = Trajectories(run, oreo.Config(steps=5))
    assert data.refresh() and run.tokens == 0
    texts = [Letters().decode(t[m].tolist()) for t, m in zip(data.seqs.targets, data.seqs.mask)]
    expected = [p.prompt[::-1] for p in run.task.training()]
    assert texts == expected
    assert data.reward.tolist() == [float(p.columns[key]) for p in run.task.training()]
    run.step = 4
    assert not data.refresh()
    data.count(data.seqs[[0, 1]])
    assert run.tokens == 6
    with pytest.raises(MinipostError, match="iterations is 2"):
        Trajectories(run, oreo.Config(iterations=2))


def test_a_reward_without_a_completion_is_a_column_like_any_other(tmp_path):
    for name, prompts in (("train", "abcd"), ("test", "e")):
        (tmp_path / name).write_text("".join(
            json.dumps({"prompt": p, "letter": p, "reward": 5}) + "\n" for p in prompts))
    run = make(File(str(tmp_path / "train"), str(tmp_path / "test")))
    run.reward = lambda prompts, completions, letter, reward: [float(r) for r in reward]
    data = Trajectories(run, CFG)
    assert data.refresh() and not data.given and set(data.reward.tolist()) == {5.0}


def test_oreo_on_a_file_says_how_often_the_implied_reward_is_right(tmp_path):
    run = make(answer_file(tmp_path, "label"))
    steps = oreo.train(run, oreo.Config(steps=30, batch_size=9, lr=1e-2, critic_lr=1e-2, warmup_steps=1))
    splits = {"seen": run.task.training()}
    before = oreo.measure(run, splits, oreo.Config())["seen"]["outcome accuracy"]
    for run.step in range(30):
        next(steps)
    after = oreo.measure(run, splits, oreo.Config())["seen"]["outcome accuracy"]
    assert sum(before.rewards) == sum(not p.columns["label"] for p in run.task.training()) == 4
    assert sum(after.rewards) == 9


def test_a_files_answers_may_be_chosen_from(tmp_path):
    run, cfg = make(answer_file(tmp_path)), rft.Config(steps=5, least=0.7)
    rows = run.task.training()
    metrics = next(rft.train(run, cfg))
    assert metrics["kept"] == sum(p.columns["reward"] >= 0.7 for p in rows) > 0
    assert run.tokens > 0 and run.tokens % 3 == 0           # two letters and EOS, each time learnt
    found = rft.measure(run, {"seen": rows}, cfg)["seen"]["log-prob of right answers"]
    assert [rows[k].columns["reward"] >= 0.7 for k in found.rows] == [True] * metrics["kept"]
    seqs = run.encode([rows[k].prompt for k in found.rows], found.texts)
    with torch.no_grad():
        expected = logprobs(run.policy.module, seqs).sum(1) / 3
    assert found.rewards == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(MinipostError, match="no row has a reward of at least 2"):
        rft.measure(run, {"seen": rows}, replace(cfg, least=2.0))


def test_of_judged_answers_to_one_prompt_all_are_held_out(tmp_path):
    rows = [{"prompt": "a", "completion": c, "label": c == "b"} for c in "bcd"]
    for name, prompt in (("train", "e"), ("test", "a")):
        (tmp_path / name).write_text("".join(json.dumps({**r, "prompt": prompt}) + "\n" for r in rows))
    task = File(str(tmp_path / "train"), str(tmp_path / "test"))
    assert sorted(p.columns["completion"] for p in task.heldout(9)) == ["b", "c", "d"]
    plain = tmp_path / "plain"
    plain.write_text("".join(json.dumps({"prompt": "a", "completion": c}) + "\n" for c in "bcd"))
    assert len(File(str(tmp_path / "train"), str(plain)).heldout(9)) == 1


@pytest.mark.parametrize("reward", [0.7, 0.9, 0.1])
def test_an_answer_of_exactly_the_least_reward_is_kept(tmp_path, reward):
    row = {"completion": "b", "reward": reward}
    for name, prompts in (("train", "ae"), ("test", "f")):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": p, **row}) + "\n"
                                             for p in prompts))
    run = make(File(str(tmp_path / "train"), str(tmp_path / "test")))
    assert next(rft.train(run, rft.Config(least=reward)))["kept"] == 2


@given(st.lists(st.sampled_from(["a", "b", "##", "#", "é", "aé#"]), max_size=8))
def test_marks_end_where_growing_prefixes_say(pieces):
    """The short cut, that only some tokens can end a mark, changes nothing."""
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    ids = list("".join(pieces).encode())
    for mark in ("#", "##", "é", "b", "ab"):
        slow = []
        for k in range(len(ids)):
            slow += [k] * (Bytes().decode(ids[: k + 1]).count(mark) - len(slow))
        assert ends(Bytes(), ids, mark) == slow


# ---- rft

class Half(Echo):
    """Right where the answer has the prompt's letter, which an untrained model often says."""

    def reward(self, prompts, completions, letter, **columns):
        return [float(c in text) for text, c in zip(completions, letter)]


@pytest.mark.parametrize("weigh", ["answer", "prompt"])
def test_what_is_kept(weigh):
    run, cfg = make(Half(), max_new_tokens=2), rft.Config(prompts=6, group_size=20, weigh=weigh)
    data = Trajectories(run, cfg)
    data.refresh()
    kept, weight, solved = rft.keep(run, cfg, data)
    right = {}
    for p, t, m, r in zip(data.problems, data.seqs.targets, data.seqs.mask, data.reward):
        if r == 1:
            right.setdefault(p.prompt, set()).add(tuple(t[m].tolist()))
    rows = [(Letters().decode(row[:2].tolist()), tuple(t[m].tolist()), float(w))
            for row, t, m, w in zip(kept.tokens, kept.targets, kept.mask, weight)]
    assert {(p, ids) for p, ids, _ in rows} == {(p, ids) for p in right for ids in right[p]}
    assert len(rows) == sum(map(len, right.values())) < int((data.reward == 1).sum())
    assert solved == len(right)
    for prompt, ids, w in rows:
        assert w == pytest.approx(1.0 if weigh == "answer" else 1 / len(right[prompt]))


def test_a_step_is_divided_by_the_weight_of_its_tokens(monkeypatch):
    """And each row comes with its own weight."""
    run, whole, seen = make(Half(), micro_batch_size=2), rft.loss, []
    monkeypatch.setattr(rft, "loss", lambda logp, mask, w, *, count: seen.append(
        (logp.detach(), mask, w, count)) or whole(logp, mask, w, count=count))
    cfg = rft.Config(prompts=9, group_size=20, batch_size=7, weigh="prompt")
    data = Trajectories(run, cfg)
    data.refresh()
    kept, weight, _ = rft.keep(run, cfg, data)
    own = {round(float(x), 4): float(w) for x, w in zip(
        logprobs(run.policy.module, kept).detach().sum(1), weight)}
    assert len(own) == len(kept) and len(set(own.values())) > 1
    next(rft.train(run, cfg))
    assert len(seen) == 4 and len({count for *_, count in seen}) == 1
    assert sum(float(w @ mask.sum(1).to(w)) for _, mask, w, _ in seen) == pytest.approx(seen[0][3])
    for logp, _, w, _ in seen:
        for x, mine in zip(logp.sum(1).tolist(), w.tolist()):
            assert min((abs(x - y), abs(mine - v)) for y, v in own.items())[1] < 1e-6


def test_nothing_right_is_said():
    run = make()
    with pytest.raises(MinipostError, match="none of 6 answers has a reward of at least 2 "):
        next(rft.train(run, rft.Config(prompts=2, group_size=3, least=2.0)))


def test_star_starts_each_part_from_the_first_weights():
    seen = {}
    for restart in (False, True):
        run = make(Half(), seed=3)
        first = run.policy.flat.clone()
        cfg = rft.Config(steps=4, prompts=8, group_size=8, iterations=2, restart=restart, lr=1e-2,
                         warmup_steps=0)
        steps = rft.train(run, cfg)
        for run.step in range(4):
            before = run.policy.flat.clone()
            metrics = next(steps)
            seen[restart, run.step] = (before, run.policy.flat.clone(), metrics["learning_rate"])
        assert run.policy.updates == (2 if restart else 4)
    assert torch.equal(seen[True, 1][1], seen[False, 1][1])
    expected = Learner(tiny())
    assert torch.equal(expected.flat, first)
    # What step 2 moved is small beside what the first part had moved; it began at the first weights.
    moved = [(seen[restart, 2][1] - first).norm() for restart in (True, False)]
    assert moved[0] < 0.7 * moved[1]
    assert [seen[True, k][2] for k in range(4)] == [1e-2, 0.5e-2, 1e-2, 0.5e-2]
    run, rates = make(Half()), []
    steps = rft.train(run, rft.Config(steps=8, prompts=8, group_size=8, iterations=2, lr=1.0, warmup_steps=9))
    for run.step in range(8):
        rates.append(next(steps)["learning_rate"])
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5] * 2)


def test_hints_are_told_to_problems_without_a_right_answer_and_learnt_without():
    class Told(Half):
        asked = []

        def hint(self, problem):
            return problem.prompt + "h"

        def reward(self, prompts, completions, letter, **columns):
            self.asked.append(list(prompts))
            return [float(p.endswith("h") and bool(text)) if c in "ab" else float(bool(text))
                    for p, text, c in zip(prompts, completions, letter)]

    run, cfg = make(Told()), rft.Config(prompts=12, group_size=4, hint=True)
    data = Trajectories(run, cfg)
    data.refresh()
    kept, _, solved = rft.keep(run, cfg, data)
    prompts = {Letters().decode(row[1: 1 + int(m.int().argmax())].tolist())
               for row, m in zip(kept.tokens, kept.mask)}
    assert {p[-1] for p in Told.asked[-1]} == {"h"} and {p[0] for p in Told.asked[-1]} == {"a", "b"}
    assert prompts == {"a", "b", "c", "d"} and solved == 4
    with pytest.raises(MinipostError, match="the task echo tells no hints"):
        rft.check(make(Half()), cfg)


@pytest.mark.parametrize("control", [False, True])
def test_rft_learns_what_is_right_and_nothing_from_shuffled_rewards(control):
    torch.set_num_threads(1)
    run = make(Half(), small(), max_new_tokens=3, micro_batch_size=256)
    if control:
        def shuffled(prompts, completions, **columns):
            values = Half().reward(prompts, completions, **columns)
            random.Random("".join(completions)).shuffle(values)
            return values
        run.reward = shuffled
    cfg = rft.Config(steps=40, prompts=64, group_size=8, iterations=2, lr=1e-2)
    steps = rft.train(run, cfg)
    for run.step in range(40):
        next(steps)
    run.reward = Half().reward
    rate = evaluate(run, Half().sample(300, random.Random(1)), 1.0).score.value
    assert rate < 0.45 if control else rate > 0.7, rate


# ---- distillation

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
    """Pinsker: D >= c |p - q|^2 / 2 in total variation's norm, c = 1 at the ends, b (1 - b) between."""
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

    def __init__(self, monkeypatch, model, kind="letters"):
        vocabulary = Letters()
        vocabulary.kind = lambda: kind
        monkeypatch.setattr(Letters, "kind", lambda self: "letters", raising=False)
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
        run = make(Echo(), small(), max_new_tokens=4, micro_batch_size=256)
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
    Teacher(monkeypatch, small(1), kind="other letters")
    with pytest.raises(MinipostError, match="is not the student's"):
        next(distill.train(make(), distill.Config()))
    Teacher(monkeypatch, tiny(vocab=12))                    # the same words, and an id to spare
    with pytest.raises(MinipostError, match=r"\(12 ids\) is not the student's \(11 ids\)"):
        next(distill.train(make(), distill.Config()))


def test_what_is_shown_of_the_teacher_is_the_teachers(monkeypatch):
    teacher = small(1)
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(3.0 if p.dim() == 2 else 1.0)
    Teacher(monkeypatch, teacher)
    run, problems = make(max_new_tokens=5), Echo().heldout(4)
    found = distill.measure(run, {"x": problems}, distill.Config())["x"]
    assert list(found) == ["greedy", "sampled", "teacher greedy", "teacher sampled"]
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        for model, prefix in ((None, ""), (teacher, "teacher ")):
            said = evaluate(run, problems, temperature, model).texts
            assert found[prefix + name].texts == said
    assert found["greedy"].texts != found["teacher greedy"].texts


@pytest.mark.parametrize("level, mix", [("word", 0.3), ("word", 0.0), ("sequence", 0.0)])
def test_a_step_of_distillation_learns_from_what_the_docstring_says(monkeypatch, level, mix):
    """What the loss is given, over micro-batches, against a recomputation; and how it was sampled."""
    teacher = small(1)
    Teacher(monkeypatch, teacher)
    run, whole, given, asked = make(micro_batch_size=3), distill.loss, [], []
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
    rows = [row for part in run.micro_batches(range(8), batch.lengths) for row in part]
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
    run, seen = make(), []
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


# ---- beam search

class Tree:
    """Steps are single digits below `width`, `depth` of them; the last has no mark."""

    def __init__(self, seed, width=3, depth=3):
        self.rng, self.width, self.depth = random.Random(seed), width, depth
        self.worth, self.asked, self.judged = {}, 0, []

    def sample(self, texts, n):
        self.asked += len(texts) * n
        nexts = [[f"{k % self.width}" + ("," if text.count(",") < self.depth - 1 else "")
                  for k in range(n)] for text in texts]
        return nexts

    def value(self, texts):
        self.judged += texts
        return [self.worth.setdefault(text, self.rng.random()) for text in texts]


def leaves(tree):
    return [",".join(map(str, path)) for path in
            itertools.product(range(tree.width), repeat=tree.depth)]


@given(st.integers(0, 10_000))
def test_without_bounds_it_is_exhaustive_search(seed):
    tree = Tree(seed)
    found, = beam.beam(["?"], tree.sample, tree.value, mark=",", width=99, copies=3, depth=9)
    assert found == max(leaves(tree), key=lambda text: tree.worth["?" + text])
    assert len(tree.judged) == len(set(tree.judged)) == 3 + 9 + 27


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5))
def test_it_keeps_the_best_and_spends_what_it_says(seed, width, copies):
    tree = Tree(seed, width=4)
    found, = beam.beam(["?"], tree.sample, tree.value, mark=",", width=width, copies=copies, depth=9)
    kept, spent, asked = [""], 0, tree.asked
    for _ in range(3):
        spent += len(kept) * copies
        nexts = {text + more for text in kept for more in tree.sample([text], copies)[0]}
        kept = sorted(nexts, key=lambda text: -tree.worth["?" + text])[:width]
    assert found == kept[0] and asked == spent
    assert len(tree.judged) == len(set(tree.judged))


def test_finished_answers_wait_for_better_ones_and_win_over_unfinished():
    worth = {"a": 5.0, "b,": 1.0, "b,c": 9.0, "x,": 3.0, "x,x,": 4.0}

    def sample(texts, n):
        return [{"": ["a", "b,"], "b,": ["c", "c"], "x": ["x,"]}[text][:n] for text in texts]

    def value(texts):
        return [worth[text] for text in texts]

    assert beam.beam([""], sample, value, mark=",", width=2, copies=2, depth=5) == ["b,c"]
    assert beam.beam([""], sample, value, mark=",", width=1, copies=2, depth=5) == ["a"]

    worth["b,c"] = 2.0
    assert beam.beam([""], sample, value, mark=",", width=2, copies=2, depth=5) == ["a"]
    worth |= {"a": 0.5, "b,": 8.0}
    assert beam.beam([""], sample, value, mark=",", width=2, copies=2, depth=1) == ["a"]

    def endless(texts, n):
        return [["x,"] * n for _ in texts]

    assert beam.beam(["", ""], endless, lambda texts: [1.0] * len(texts), mark=",", width=2, copies=2,
                depth=3) == ["x,x,x,"] * 2
    nothing = beam.beam([""], lambda texts, n: [[""] * n for _ in texts], lambda texts: [0.0] * len(texts),
                   mark=",", width=2, copies=2, depth=3)
    assert nothing == [""]


# ---- models as functions of texts

def test_continuations_end_at_the_mark_and_are_drawn_afresh_each_time():
    run = make(max_new_tokens=6)
    sample = Sampler(run, mark="c")
    first, second = sample(["ab", "a"], 40), sample(["ab", "a"], 40)
    assert [len(said) for said in first] == [40, 40] and first != second
    assert any(text.endswith("c") for said in first for text in said)
    for text in itertools.chain(*first):
        assert "c" not in text[:-1]
    again = Sampler(run, mark="c")
    assert again(["ab", "a"], 40) == first and again(["ab", "a"], 40) == second
    assert run.tokens == 0
    whole = Sampler(run)(["ab"], 40)[0]
    assert any("c" in text[:-1] for text in whole)
    with run.aside():
        plain = run.sample([Problem("ab")], 40, temperature=1.0, purpose="search 1")
    assert whole == run.texts(plain)


def test_an_answer_has_so_many_tokens_in_all_its_steps():
    """run.max_new_tokens of them however often it is gone on with, and no more than the context holds."""
    run = make(model=small(), max_new_tokens=6)
    assert run.policy.module.config.max_position_embeddings == 16
    sample, texts, longest = Sampler(run, "c"), ["ab", "abcdefgabcdefga", "abcdefgabcde"], 0
    said = sample(texts, 200)
    assert said[1] == [""] * 200                            # BOS and 15 letters fill the context
    assert max(map(len, said[0])) == 6 and max(map(len, said[2])) == 3
    beginnings = [texts[0] + more for more in set(said[0]) if more.endswith("c")]
    assert len(beginnings) > 2
    for _ in range(4):
        nexts = sample(beginnings, 100)
        for text, found in zip(beginnings, nexts):
            longest = max(longest, *(len(text) - 2 + len(more) for more in found))
        beginnings = list({text + more for text, found in zip(beginnings, nexts) for more in found
                           if more.endswith("c")})[:20] or beginnings
    assert longest == 6
    assert max(map(len, sample(texts[:1], 200)[0])) == 6    # of a text that ended at once, too


def test_a_mark_of_several_tokens_ends_a_continuation_too():
    run = make(max_new_tokens=6)
    said = Sampler(run, "ca")(["ab"], 300)[0]
    assert all("ca" not in text[:-2] for text in said) and any(text.endswith("ca") for text in said)


def test_a_value_is_read_after_the_last_token():
    run = make()
    model = RewardModel(tiny(seed=4))
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    texts = ["abc", "d", "hgfedcba"]
    with torch.no_grad():
        expected = [float(model(torch.tensor([Letters().prompt(text)]))[0, -1]) for text in texts]
    value = Texts(run, verifier=model).value
    assert value(texts) == pytest.approx(expected)
    long = "abcdefgh" * 9                                   # of which the context holds 64 - 1
    assert value([long]) == pytest.approx(value([long[:63]]))


def test_what_else_ends_a_response():
    run = make(model=small(), max_new_tokens=9)
    with run.aside():
        rollout = run.sample([Problem("ab")], 60, temperature=1.0, purpose="evaluation", stop={5})
    ends = [5 in ids[:-1] for ids in (t[m].tolist() for t, m in zip(rollout.targets, rollout.mask))]
    assert not any(ends) and (rollout.targets == 5).any()


def test_searching_with_an_exact_value_finds_better_answers(monkeypatch):
    run, problems = make(max_new_tokens=5), Echo().sample(40, random.Random(0))
    before = evaluate(run, problems, 1.0)

    class Exact(torch.nn.Module):
        """The reward itself, as far as tokens tell: the share of the prompt's letter."""

        def forward(self, tokens):
            same = (tokens[:, 2:] == tokens[:, 1:2]).double().cumsum(1)
            count = torch.arange(1, tokens.shape[1] - 1).clamp(min=3)
            return torch.nn.functional.pad(same / count, (2, 0))

    after = beam.measure(problems, Texts(run, verifier=Exact(), stream="search"), 2, 8)
    assert sum(after.rewards) > 2 * sum(before.rewards)
    letters = [p.columns["letter"] for p in problems]
    assert after.rewards == Echo().reward(None, after.texts, letters)

    class Steps(Echo):
        step_end = "c"

    class GoOn(torch.nn.Module):
        """Best is what may go on."""

        def forward(self, tokens):
            return (tokens == 3 + Letters.letters.index("c")).double()

    run, seen = make(Steps(), small(), max_new_tokens=5), []
    whole = Run.complete
    monkeypatch.setattr(Run, "complete", lambda self, asked, n, **options: seen.append(
        (len(asked), n, options["stop"])) or whole(self, asked, n, **options))
    texts = beam.measure(problems, Texts(run, verifier=GoOn(), stream="search"), 3, 9).texts
    assert seen[0] == (40, 9, {3 + Letters.letters.index("c")}) and len(seen) > 2
    assert sum(text.endswith("c") for text in texts) > 30 and max(map(len, texts)) <= 5


def test_what_a_search_is_measured_with(monkeypatch):
    """Its own width and tries; at the level of responses there is nothing to guide."""
    seen = []
    monkeypatch.setattr(beam, "measure", lambda problems, tools, *how: seen.append(how) or
                        Result.of([0.0] * len(problems), [""] * len(problems)))
    run, splits = make(), {"x": Echo().heldout(4)}
    assert "value-guided beam" in oreo.measure(run, splits, oreo.Config(width=3, tries=7))["x"]
    assert seen == [(3, 7)]
    found = oreo.measure(run, splits, oreo.Config(level="response"))["x"]
    assert sorted(found) == ["greedy", "sampled"] and len(seen) == 1
