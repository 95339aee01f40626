"""Reward models: their losses, where a score is read, how labels are made, what they learn."""

import itertools
import json
import math
import random
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from fakes import BOS, EOS, PAD, Echo, Letters, sequences, tiny
from hypothesis import given, settings, strategies as st
from torch.func import jacrev

from minipost.datasets import preferences
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.gpt import GPT, GPTConfig, RewardModel
from minipost.measure import scorers
from minipost.methods import dpo, orm, plackett_luce, prm, reward
from minipost.optim import Learner
from minipost.rollout import Rollout, final_score, logprobs, pack
from minipost.run import Run
from minipost.sampler import ends
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem

settings.register_profile("minipost", deadline=None, max_examples=25)
settings.load_profile("minipost")


class Steps(Echo):
    """Echo with answers in steps that end in h; a step is right if it holds the prompt's letter."""

    name, step_end = "steps", "h"

    def steps(self, text):
        return text.split("h")[:-1]

    def check_steps(self, problem, text):
        return [problem.columns["letter"] in step for step in self.steps(text)]


def make(task=None, model=None, **options):
    task = task or Steps()
    options = {"max_new_tokens": 5, **options}
    return Run(Learner(model or tiny()), Letters(), task, task.reward, **options)


def rollout_of(prompts, responses, finished=True):
    """A Rollout of these ids, one row per prompt."""
    seqs = pack(prompts, [[*r, EOS] if finished else r for r in responses], PAD)
    return Rollout(seqs.tokens, seqs.mask, torch.zeros(seqs.mask.shape),
                   torch.arange(len(prompts)), torch.full((len(prompts),), finished))


def wide(x, columns, value):
    """x with this many more columns on the right."""
    return torch.nn.functional.pad(x, (0, columns), value=value)


# ---- losses

CASES = {  # name: (module, shapes of what the loss takes, what has a gradient, options)
    "reward": (reward, dict(score_w=(5,), score_l=(5,)), ("score_w", "score_l"),
               dict(margin=0.3, center=0.1, count=7)),
    "plackett_luce": (plackett_luce, dict(scores=(5, 4)), ("scores",), dict(count=7)),
    "orm": (orm, dict(score=(5,), right=(5,)), ("score",), dict(count=7)),
    "prm": (prm, dict(score=(3, 4), right=(3, 4), mask=(3, 4)), ("score",), dict(count=7)),
    "dpo": (dpo, dict(logp_w=(3, 4), logp_l=(3, 6), ref_w=(3, 4), ref_l=(3, 6), mask_w=(3, 4),
                      mask_l=(3, 6)), ("logp_w", "logp_l"), dict(beta=0.4, count=7)),
}
MODELS = {name: case for name, case in CASES.items() if name != "dpo"}


def inputs(shapes, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        if name.startswith("mask"):
            x = x < 0.6
            x[0, 1] = True
        elif name == "right":
            x = x.where(x > 0.3, 0.0).where(x < 0.7, 1.0)  # wrong, right and in between
        else:
            x = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        found[name] = x
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_scores_of_any_size_give_finite_losses_and_gradients(name, scale):
    module, shapes, learnt, options = CASES[name]
    found = inputs(shapes, 5, scale)
    value = module.loss(**found, **options)[0]
    hand = module.loss_grad(**found, **options)
    assert value.isfinite() and value > 0
    for key in learnt:
        back = jacrev(lambda x: module.loss(**{**found, key: x}, **options)[0])(found[key])
        assert hand[key].isfinite().all() and torch.allclose(hand[key], back, atol=1e-12)


def step_of(module, monkeypatch, **knobs):
    """Gradient and metrics of a method's first step, on a policy that has left its reference."""
    seen, run = [], make()

    def record(learner, lr, max_grad_norm):
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


SIZES = {"reward": dict(prompts=6), "plackett_luce": dict(prompts=8), "orm": dict(prompts=8),
         "prm": dict(prompts=8), "dpo": dict(pairs=12)}


@pytest.mark.parametrize("name, loss", [("reward", math.log(2)), ("orm", math.log(2)),
                                        ("plackett_luce", math.log(24)), ("prm", math.log(2))])
def test_a_fresh_model_finds_all_equally_likely(name, loss):
    """Two sides of a pair, of an answer or of a step, and the 24 orders of four answers."""
    module = CASES[name][0]
    metrics = next(module.train(make(micro_batch_size=5), replace(module.Config(), **SIZES[name])))
    assert metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert metrics["accuracy"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_every_number_of_a_config_is_checked(name):
    config = CASES[name][0].Config
    for field in fields(config):
        if field.type in (int, float):
            for value in (float("nan"), float("inf"), -1):
                with pytest.raises(MinipostError, match=f"{field.name} is .*; expected "):
                    config(**{field.name: value})
    with pytest.raises(MinipostError, match="group_size is 1; expected at least 2"):
        plackett_luce.Config(group_size=1)


numbers = st.lists(st.floats(-5, 5), min_size=4, max_size=4).map(
    lambda values: torch.tensor(values, dtype=torch.float64))


@given(numbers, numbers, st.floats(0.5, 3))
def test_pairs_fix_scores_up_to_a_shift_unless_centred(chosen, rejected, shift):
    def value(c, by):
        return reward.loss(chosen + by, rejected + by, margin=0.2, center=c, count=4)[0]

    assert torch.allclose(value(0.0, shift), value(0.0, 0.0))
    by = shift if (chosen + rejected).sum() >= 0 else -shift
    assert value(0.1, by) > value(0.1, 0.0) + 0.09 * 4 * shift**2


@given(numbers, numbers, st.floats(-2, 2))
def test_bradley_terry_swapped_equal_and_with_a_margin(chosen, rejected, margin):
    def value(w, l, m=0.0):
        return reward.loss(w, l, margin=m, center=0.0, count=4)[0]

    lead = chosen - rejected
    assert torch.allclose(value(chosen, rejected) - value(rejected, chosen), -lead.mean())
    assert float(value(chosen, chosen)) == pytest.approx(math.log(2))
    assert torch.allclose(value(chosen, rejected, margin), value(chosen - margin, rejected))
    chance = 1 / (1 + (-lead).exp())
    assert torch.allclose(value(chosen, rejected), -chance.log().mean())


@given(numbers, numbers)
def test_plackett_luce_of_two_is_bradley_terry(chosen, rejected):
    plain = dict(margin=0.0, center=0.0, count=3)
    ranked = torch.stack([chosen, rejected], 1)
    one, two = plackett_luce.loss(ranked, count=3), reward.loss(chosen, rejected, **plain)
    assert torch.allclose(one[0], two[0])
    assert float(one[1]["accuracy"]) == pytest.approx(float(two[1]["accuracy"]))
    hand = reward.loss_grad(chosen, rejected, **plain)
    assert torch.allclose(plackett_luce.loss_grad(ranked, count=3)["scores"],
                          torch.stack([hand["score_w"], hand["score_l"]], 1))


@given(numbers, st.integers(2, 4), st.floats(-9, 9))
def test_plackett_luce_is_a_distribution_over_orders(scores, k, shift):
    """Each order's probability is a product of choices among what is left; together they are 1."""
    scores, total = scores[:k], 0.0
    for order in itertools.permutations(range(k)):
        row = scores[list(order)]
        expected = math.prod(float(row[i].exp() / row[i:].exp().sum()) for i in range(k))
        chance = float((-plackett_luce.loss(row[None], count=1)[0]).exp())
        assert chance == pytest.approx(expected)
        assert chance == pytest.approx(
            float((-plackett_luce.loss(row[None] + shift, count=1)[0]).exp()))
        total += chance
    assert total == pytest.approx(1)


def test_accuracy_of_a_ranking_is_the_share_of_its_pairs_in_order():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])       # 2 of 3, and 2.5 of 3
    assert float(plackett_luce.loss(scores, count=2)[1]["accuracy"]) == pytest.approx(4.5 / 6)


@given(st.integers(0, 10_000))
def test_orm_is_binary_cross_entropy(seed):
    found = inputs(CASES["orm"][1], seed)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        found["score"], found["right"], reduction="sum")
    assert torch.allclose(orm.loss(**found, count=7)[0], expected / 7)


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


# ---- where a score is read

def scalar(seed=0, trunk=None):
    """A reward model whose head is not zero."""
    model = RewardModel(trunk or tiny())
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("finished", [True, False])
def test_the_score_is_read_at_the_last_real_token(finished):
    """Row by row without padding; then with more padding, longer neighbours and other ids there."""
    model = scalar()
    prompts = [[BOS, 3], [BOS, 4, 5, 6], [BOS], [BOS, 7, 7]]
    rollout = rollout_of(prompts, [[5, 6, 7], [8], [9, 10], [3]], finished)
    with torch.no_grad():
        alone = []
        for tokens, mask in zip(rollout.tokens, rollout.mask):
            real = tokens[: int(mask.nonzero()[-1]) + 2]
            assert (int(real[-1]) == EOS) == finished
            alone.append(model(real[None])[0, -1])
        alone = torch.stack(alone)
        assert alone.unique().numel() == 4
        assert torch.allclose(final_score(model, rollout), alone, atol=1e-12)
        wider = replace(rollout, tokens=wide(rollout.tokens, 3, 9),
                        mask=wide(rollout.mask, 3, False))
        assert torch.allclose(final_score(model, wider), alone, atol=1e-12)
        real = wide(rollout.mask.flip(1).cumsum(1).flip(1) > 0, 1, False).roll(1, 1)
        real[:, 0] = True
        other = replace(rollout, tokens=rollout.tokens.where(real, 10))
        assert torch.allclose(final_score(model, other), alone, atol=1e-12)
        for micro in (1, 2, 16):
            assert torch.allclose(make(micro_batch_size=micro).final_scores(model, rollout), alone, atol=1e-6)


def test_step_scores_end_with_the_final_score():
    model, seqs = scalar(), sequences(6)
    with torch.no_grad():
        steps = prm.step_scores(model, seqs)
        assert steps.shape == seqs.mask.shape
        assert torch.equal(steps[prm.final(seqs.mask)], final_score(model, seqs))


def test_a_fresh_reward_model_is_indifferent():
    assert not final_score(RewardModel(tiny()), sequences(4)).any()


@given(st.integers(0, 10_000))
def test_normalise_gives_mean_0_and_deviation_1_and_keeps_the_order(seed):
    model, seqs, fresh = scalar(seed), sequences(8, seed), sequences(8, seed + 1)
    with torch.no_grad():
        raw, other = final_score(model, seqs), final_score(model, fresh)
        model.normalise(raw)
        once = final_score(model, seqs)
        assert abs(once.mean()) < 1e-9 and float(once.std()) == pytest.approx(1, abs=1e-4)
        assert torch.equal(once.argsort(), raw.argsort())
        scaled = (other - raw.mean()) / raw.std()
        assert torch.allclose(final_score(model, fresh), scaled)
        model.normalise(scaled)                                     # a second time, on others
        twice = final_score(model, fresh)
        assert abs(twice.mean()) < 1e-9 and float(twice.std()) == pytest.approx(1, abs=1e-4)
        assert torch.equal(twice.argsort(), other.argsort())


# ---- labels

class Bytes:
    """A vocabulary whose tokens are any pieces of bytes."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids):
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


@given(st.text("a\n\né北", max_size=12), st.sampled_from(["\n", "\n\n", "é", "a\n"]), st.data())
def test_a_step_ends_in_the_token_that_holds_the_last_byte_of_its_mark(text, mark, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)))) & set(range(len(raw))))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)])]
    expected, at = [], raw.find(mark.encode())
    while at >= 0:
        at += len(mark.encode())
        expected.append(next(k for k in range(len(pieces)) if len(b"".join(pieces[: k + 1])) >= at))
        at = raw.find(mark.encode(), at)
    assert ends(Bytes(pieces), range(len(pieces)), mark) == expected


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
    from minipost.checkpoint import Vocabulary

    vocabulary = Vocabulary(words, BOS, {EOS}, PAD)
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


def asked(values, noise):
    """What by_reward is given: a run that grades answers so, and problems."""
    return SimpleNamespace(task=SimpleNamespace(noise=noise), rng=lambda purpose: random.Random(4),
                           grade=lambda problems, rollout: torch.tensor(values)), values[::2], None


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_noise_turns_the_stated_share_of_labels(noise):
    label = preferences.by_reward(*asked([2.0, 1.0] * 4000, noise))
    assert set(label.tolist()) <= {1.0, -1.0}
    assert float((label < 0).double().mean()) == pytest.approx(noise, abs=0.03 * (noise > 0))
    assert not preferences.by_reward(*asked([1.0, 1.0] * 9, noise)).any()


@given(st.lists(st.tuples(st.sampled_from([-0.5, 0.0, 2.0]), st.booleans()), min_size=1,
                max_size=6))
def test_ranked_pairs(cases):
    """The better first for either sign; no ties, and no two answers of the same words."""
    prompts = [[BOS, 3 + i] for i in range(len(cases)) for _ in "ab"]
    responses = [r for _, same in cases for r in ([7, 8], [7, 8] if same else [9])]
    rollout = rollout_of(prompts, responses)
    pairs = preferences.ranked_pairs(rollout, torch.tensor([label for label, _ in cases]))
    expected = [(i, label) for i, (label, same) in enumerate(cases) if label and not same]
    assert len(pairs) == len(expected)
    rows = [[2 * i, 2 * i + 1][:: 1 if label > 0 else -1] for i, label in expected]
    for side, wanted in ((pairs.chosen, 0), (pairs.rejected, 1)):
        answers = [t[m].tolist() for t, m in zip(side.targets, side.mask)]
        assert answers == [[*responses[row[wanted]], EOS] for row in rows]
        assert side.tokens[:, 1].tolist() == [3 + i for i, _ in expected]


def test_rankings_are_best_first_with_ties_by_chance():
    values = torch.tensor([[0.1, 0.9, 0.5, 0.3], [0.2, 0.2, 0.7, 0.2], [0.4, 0.4, 0.4, 0.4]])
    orders = [plackett_luce.rank(values, random.Random(seed)) for seed in range(300)]
    assert {tuple(first) for first, _, _ in orders} == {(1, 2, 3, 0)}
    assert {third for _, _, third in orders} == {None}
    ties = [tuple(second) for _, second, _ in orders]
    assert {order[0] for order in ties} == {2}
    assert all(ties.count(order) > 20 for order in set(ties)) and len(set(ties)) == 6
    turned = [plackett_luce.rank(values[:1], random.Random(s), 0.3)[0] for s in range(2000)]
    assert {tuple(order) for order in turned} == {(1, 2, 3, 0), (0, 3, 2, 1)}
    assert turned.count([0, 3, 2, 1]) / 2000 == pytest.approx(0.3, abs=0.04)


def test_drawn_rankings_hold_the_same_prompts_in_the_order_of_their_reward():
    run = make()
    places = plackett_luce.draw_rankings(run, plackett_luce.Config(prompts=30))
    assert len(places) == 4 and len(places[0]) >= 10
    letters = [Letters().decode([i]) for i in places[0].tokens[:, 1].tolist()]
    values = []
    for place in places:
        assert place.tokens[:, 1].tolist() == places[0].tokens[:, 1].tolist()
        texts = [Letters().decode(t[m].tolist()) for t, m in zip(place.targets, place.mask)]
        values.append(Echo().reward(None, texts, letters))
    for row in zip(*values):
        assert list(row) == sorted(row, reverse=True) and row[0] > row[-1]


def test_pairs_of_a_file(tmp_path):
    """Each row's two answers, in its order; a ranking of them is a ranking of two."""
    def write(name, prompts):
        path = tmp_path / name
        path.write_text("".join(json.dumps(
            {"prompt": p, "chosen": p[::-1] + "h", "rejected": p}) + "\n" for p in prompts))
        return str(path)

    prompts = [a + b for a in "abcd" for b in "efg"]
    run = make(File(write("train.jsonl", prompts), write("test.jsonl", ["ha", "hb"])))
    pairs, _ = preferences.StepPairs(run, dpo.Config(pairs=12), None).draw()
    places = plackett_luce.draw_rankings(run, plackett_luce.Config(prompts=12))
    compared, wins = preferences.draw_comparisons(run, 12, 4, None, 1.0)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(compared, places, strict=True))
    assert wins.tolist() == [[[False, True], [False, False]]] * 12
    found = {}
    for name, place in zip(("chosen", "rejected"), places):
        side = getattr(pairs, name)
        assert torch.equal(side.tokens, place.tokens) and torch.equal(side.mask, place.mask)
        for tokens, mask in zip(side.tokens, side.mask):
            answer = tokens[1:][mask].tolist()
            assert answer[-1] == EOS
            prompt = Letters().decode(tokens[1:3].tolist())
            found.setdefault(prompt, {})[name] = Letters().decode(answer)
    assert found == {p: {"chosen": p[::-1] + "h", "rejected": p} for p in prompts}
    splits = {"held-out": run.task.heldout(9)}
    for sign in (1, -1):
        report = scorers.report(run, splits, lambda seqs: sign * seqs.lengths.double())
        assert report["held-out"]["pair accuracy"].rewards == [float(sign > 0)] * 2
        assert set(report["held-out"]) == {"pair accuracy", "calibration error"}


def test_every_two_answers_of_a_prompt_are_compared():
    """By their reward, in the order in which they stand; the same words tie."""
    run, asked = make(), []

    def label(run, problems, rollout):
        asked.append(len(rollout))
        return preferences.by_reward(run, problems, rollout)

    places, wins = preferences.draw_comparisons(run, 12, 3, label, 1.0)
    rollout = run.sample(run.problems(12), 3, temperature=1.0, purpose="pairs")
    gold, words = run.grade(run.problems(12), rollout).view(12, 3), rollout.responses()
    assert asked == [12 * 3 * 2] and wins.shape == (12, 3, 3)
    for k, place in enumerate(places):
        assert torch.equal(place.tokens, rollout[k::3].tokens)
    for p in range(12):
        for i in range(3):
            for j in range(3):
                same = words[3 * p + i] == words[3 * p + j]
                assert bool(wins[p, i, j]) == (not same and bool(gold[p, i] > gold[p, j]))
    assert wins.sum() > 12
    always = preferences.draw_comparisons(run, 12, 3, lambda r, p, rollout: torch.ones(len(p)), 1.0)
    for p in range(12):
        same = [words[3 * p + i] == words[3 * p + j] for i, j in ((0, 1), (0, 2), (1, 2))]
        assert (~always[1][p, [0, 0, 1], [1, 2, 2]]).tolist() == same
    assert not always[1].tril().any()


def test_noise_turns_each_comparison_by_itself():
    class Noisy(Echo):
        noise = 0.3

    run, clean = make(Noisy()), make(Echo())
    turned = preferences.draw_comparisons(run, 300, 4, preferences.by_reward, 1.0)[1]
    right = preferences.draw_comparisons(clean, 300, 4, preferences.by_reward, 1.0)[1]
    assert torch.equal(turned | turned.mT, right | right.mT)
    share = (turned & ~right).sum((1, 2)) / right.sum((1, 2)).clamp(min=1)
    full = right.sum((1, 2)) >= 3
    assert full.sum() > 60 and float(share[full].mean()) == pytest.approx(0.3, abs=0.06)
    assert float(((share[full] > 0) & (share[full] < 1)).double().mean()) > 0.5


def pair_file(path, rows):
    path.write_text("".join(json.dumps(dict(zip(("prompt", "chosen", "rejected"), row))) + "\n"
                            for row in rows))
    return str(path)


def test_pairs_of_a_file_that_do_not_fit_the_context(tmp_path):
    """BOS, 2 of the prompt, 6 of the longer answer and EOS are 10 tokens."""
    held = pair_file(tmp_path / "test.jsonl", [("hh", "a", "b")])
    for context in (9, 10):
        for side in (("aaaaaa", "b"), ("b", "aaaaaa")):
            data = pair_file(tmp_path / f"{context}{side[0]}.jsonl", [("ef", *side)])
            run = make(File(data, held), tiny(context=context))
            if context == 10:
                assert len(preferences.StepPairs(run, dpo.Config(pairs=1), None).draw()[0]) == 1
                continue
            with pytest.raises(MinipostError, match=r"a prompt of 3 tokens \('ef'\) and a response "
                               r"of 7 \('aaaaaa'\) do not fit the model's context of 9$"):
                preferences.StepPairs(run, dpo.Config(pairs=1), None)


def test_dpo_on_a_file_is_measured_by_the_reward_that_the_policy_implies(tmp_path):
    """Half right while it is the reference; then by what it makes likelier, one way or the other."""
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


@pytest.mark.parametrize("module", [reward, plackett_luce, dpo])
def test_a_step_in_which_all_tie_moves_nothing(module):
    """Not even by what Adam remembers of the step before."""
    run = make(Echo())
    learn = module.train(run, module.Config(steps=9, lr=1e-2))
    counted, learnt, weights = [], run.policy if module is dpo else None, []
    for run.step in range(3):
        if run.step == 2:
            run.reward = lambda completions, **columns: [1.0] * len(completions)
        metrics = next(learn)
        learnt = learnt or run.learners["reward model"]
        counted.append(metrics["rankings" if module is plackett_luce else "pairs"])
        weights.append(learnt.master.clone())
    assert counted[0] and counted[1] and counted[2] == 0 == metrics["loss"] == metrics["grad_norm"]
    assert not torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])


# ---- how good a scorer is

def test_scores_that_are_not_finite_are_refused():
    run, splits = make(max_new_tokens=5), {"held-out": Echo().heldout(4)}
    for broken in (math.nan, math.inf):
        with pytest.raises(MinipostError, match="not finite"):
            scorers.report(run, splits, lambda rollout: torch.full((len(rollout),), broken))


def test_calibration_error_of_known_cases():
    error = scorers.calibration_error
    assert error([0.0, 1.0], [0, 1]) == 0
    assert error([0.25] * 4, [0, 1, 0, 0]) == 0
    assert error([0.9] * 10, [1, 0] * 5) == pytest.approx(0.4)
    assert error([0.0, 1.0], [1, 0]) == 1
    assert error([0.95, 1.0], [1, 0]) == pytest.approx((1 - 0.05) / 2)      # one bin
    assert error([0.05, 0.95], [1, 1]) == pytest.approx((0.95 + 0.05) / 2)


def test_report_of_no_perfect_and_reversed_scorers():
    run = make(max_new_tokens=5)
    problems = Echo().heldout(4)

    def scores(score):
        found = scorers.report(run, {"held-out": problems}, score)["held-out"]
        return {name: metric.score.value for name, metric in found.items()}

    def exact(rollout):
        return run.grade(problems, rollout)

    with run.aside():
        rollout = run.sample(problems, scorers.BEST_OF, temperature=1.0, purpose="evaluation")
    gold = exact(rollout).view(4, -1)
    none = scores(lambda rollout: run.final_scores(RewardModel(tiny()), rollout))
    assert none["pair accuracy"] == 0.5
    assert none["best of 8"] == none["one sample"] == pytest.approx(float(gold[:, 0].mean()))
    best = scores(exact)
    assert best["pair accuracy"] == 1.0
    assert best["best of 8"] == best["exact best of 8"] == pytest.approx(float(gold.amax(1).mean()))
    worst = scores(lambda rollout: -exact(rollout))
    assert worst["pair accuracy"] == 0.0
    assert worst["best of 8"] == pytest.approx(float(gold.amin(1).mean()))
    assert best["best of 8"] > best["one sample"] > worst["best of 8"]
    assert run.tokens == 0 and run.step == 0


def test_report_where_nothing_can_be_ranked():
    run = make()
    run.reward = lambda completions, **columns: [1.0] * len(completions)
    with pytest.raises(MinipostError, match="held-out: all answers .* same reward"):
        scorers.report(run, {"held-out": Echo().heldout(4)},
                           lambda rollout: torch.zeros(len(rollout)))


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
        steps = prm.on_steps(run, Echo().heldout(4), rollout, score)
        assert {m.score.value for m in steps.values()} == {float(sign > 0)}
    assert "step accuracy" not in prm.measure(
        run, {"held-out": Echo().heldout(4)}, prm.Config(last_only=True))["held-out"]


# ---- learning

class Early(Steps):
    """An answer is as good as its share of letters from the first half of the alphabet."""

    def reward(self, prompts, completions, **columns):
        return [sum(c in "abcd" for c in text) / max(1, len(text)) for text in completions]

    def check_steps(self, problem, text):
        return [any(c in "abcd" for c in step) for step in self.steps(text)]


def coin(run, problems, rollout):
    """The control's labels: the true ones, each turned round by a coin."""
    rng = run.rng("coin")
    return preferences.by_reward(run, problems, rollout) * torch.tensor(
        [rng.choice((-1.0, 1.0)) for _ in problems])


def shuffled(prompts, completions, **columns):
    """The control's rewards: the true ones, handed to the wrong answers."""
    values = Early().reward(prompts, completions)
    random.Random("".join(completions)).shuffle(values)
    return values


SHORT = dict(steps=16, lr=1e-2, warmup_steps=2)
LEARNT = {
    "reward": lambda run, label: reward.train(run, reward.Config(**SHORT), label),
    "plackett_luce": lambda run, label: plackett_luce.train(run, plackett_luce.Config(**SHORT)),
    "orm": lambda run, label: orm.train(run, orm.Config(**SHORT)),
    "prm": lambda run, label: prm.train(run, prm.Config(**SHORT)),
}


def learn(name, seed, control):
    """Share of fresh pairs in the right order after a short training."""
    torch.set_num_threads(1)
    model = GPT(GPTConfig(11, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                          max_position_embeddings=16)).initialise(seed)
    run = make(Early(), model, max_new_tokens=3, seed=seed, micro_batch_size=128)
    if control and name != "reward":
        run.reward = shuffled
    steps = LEARNT[name](run, coin if control else preferences.by_reward)
    for run.step in range(SHORT["steps"]):
        next(steps)
    run.reward, run.step = Early().reward, 1000
    problems = run.problems(300)
    rollout = run.sample(problems, 2, temperature=1.0, purpose="pairs")
    pairs = preferences.ranked_pairs(rollout, preferences.by_reward(run, problems, rollout))
    learnt = run.learners["reward model"].module
    lead = run.final_scores(learnt, pairs.chosen) - run.final_scores(learnt, pairs.rejected)
    return float((lead > 0).double().mean())


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_which_answer_is_better(name, seed):
    assert learn(name, seed, control=False) > 0.85


@pytest.mark.parametrize("name", ["reward", "plackett_luce", "orm"])
def test_it_does_not_learn_from_shuffled_labels(name):
    found = [learn(name, seed, control=True) for seed in (0, 1, 2)]
    assert sum(found) / 3 < 0.65 and max(found) < 0.75, found
