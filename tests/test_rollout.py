"""The buffer: alignment, sampling, streams, what is recorded against what is recomputed."""

import random

import pytest
import torch
from fakes import BOS, EOS, PAD, sequences, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minipost import rollout as ro
from minipost.engine.decode import Decoder
from minipost.errors import MinipostError
from minipost.ops import entropy, spread
from minipost.rollout import Pairs, concat, distribution, generate, logprobs, minibatches, pack

KW = dict(max_new_tokens=8, eos={EOS}, pad=PAD)
PROMPTS = [[BOS, 3, 4, 5], [BOS, 6], [BOS, 7, 8, 9, 10, 3], [BOS]]


def rows_of(rollout):
    """Each row as (ids without padding, recorded logp of its response)."""
    return [
        (tokens[: int(mask.nonzero()[-1]) + 2].tolist(), logp[mask])
        for tokens, mask, logp in zip(rollout.tokens, rollout.mask, rollout.logp)
    ]


def same(a, b):
    return a[0] == b[0] and torch.allclose(a[1], b[1], atol=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_recorded_logp_equals_recomputed(temperature):
    model = tiny()
    rollout = generate(model, PROMPTS, 4, temperature=temperature, seed=(1, 2), **KW)
    with torch.no_grad():
        again = logprobs(model, rollout, temperature)
    assert rollout.mask.any(1).all() and rollout.finished.any()     # some with their EOS
    assert (rollout.logp - again).abs().max() < 1e-6        # recorded in float32
    assert not torch.allclose(again, logprobs(model, rollout, temperature + 0.3), atol=1e-2)


def test_what_is_drawn_does_not_depend_on_batch_order_or_neighbours():
    model = tiny()
    whole = rows_of(generate(model, PROMPTS, 3, seed=(5, 7), **KW))
    back = rows_of(generate(model, PROMPTS[::-1], 3, seed=(5, 7), **KW))
    for p in range(4):
        alone = rows_of(generate(model, [PROMPTS[p]], 3, seed=(5, 7), **KW))
        for k in range(3):
            assert same(whole[3 * p + k], alone[k])
            assert same(whole[3 * p + k], back[3 * (3 - p) + k])


def test_seed_step_prompt_and_sample_each_change_the_draw():
    model = tiny()
    base = rows_of(generate(model, [PROMPTS[0]] * 2, 4, seed=(1, 1), **KW))
    assert len({tuple(ids) for ids, _ in base}) > 4         # a repeated prompt counts on
    for seed in ((2, 1), (1, 2)):
        other = rows_of(generate(model, [PROMPTS[0]] * 2, 4, seed=seed, **KW))
        assert sum(same(a, b) for a, b in zip(base, other)) < 4


def test_samples_follow_the_models_distribution():
    """20,000 first tokens against the exact probabilities: chi-square below its 1e-6 quantile."""
    model = tiny()
    n = 20_000
    drawn = generate(model, [PROMPTS[0]], n, max_new_tokens=1, eos={EOS}, pad=PAD, seed=(3,))
    counts = torch.bincount(drawn.targets[drawn.mask], minlength=11).double()
    with torch.no_grad():
        p = model(torch.tensor([PROMPTS[0]]))[0, -1].softmax(-1)
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 45.1    # 10 degrees of freedom
    assert p.max() < 0.9                                            # not a trivial distribution


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_mean_log_prob_of_samples_is_minus_the_entropy(temperature):
    """Over whole answers, EOS included: within 5 standard errors, and another temperature is
    not."""
    model, n = tiny(), 3000
    rollout = generate(model, [PROMPTS[0]], n, temperature=temperature, seed=(4,), **KW)
    for tau, agrees in ((temperature, True), (temperature + 0.3, False)):
        with torch.no_grad():
            surprise = spread(entropy(distribution(model, rollout, tau)), rollout.mask)
        gap = (rollout.logp + surprise).sum(1)
        assert bool(gap.mean().abs() < 5 * gap.std() / n**0.5) == agrees
    assert 0.2 < rollout.finished.double().mean() < 1


def test_drawing_inverts_the_cumulative_distribution():
    logp = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).log().repeat(5, 1)
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.9999, 1.0])
    assert ro.draw(logp, uniform).tolist() == [1, 1, 3, 3, 3]
    assert ro.draw(logp, None).tolist() == [3] * 5


def test_rows_stop_at_eos_and_cost_nothing_after_it(monkeypatch):
    model, seen, step = tiny(), [], Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, token: seen.append(len(token)) or step(
        self, token))
    rollout = generate(model, PROMPTS, 32, max_new_tokens=20, eos={EOS}, pad=PAD, seed=(1,))
    for (ids, _), length, done in zip(rows_of(rollout), rollout.lengths, rollout.finished):
        response = ids[-int(length):]
        assert (response[-1] == EOS) == bool(done) and EOS not in response[:-1]
        assert done or length == 20
    assert 0 < rollout.finished.float().mean() < 1 or rollout.finished.all()
    # A step takes a row for each distinct beginning of those that go on.
    ids = [(int(k), targets[mask].tolist()) for k, targets, mask in zip(
        rollout.prompt, rollout.targets, rollout.mask)]
    assert seen == [len({(k, *row[: t + 1]) for k, row in ids if len(row) > t + 1})
                    for t in range(len(seen))]
    assert seen[0] < seen[1] and seen[-1] < max(seen)


def test_greedy_is_the_argmax_of_the_full_forward():
    model = tiny()
    rollout = generate(model, PROMPTS, 1, temperature=0.0, **KW)
    with torch.no_grad():
        best = model(rollout.inputs).argmax(-1)
    assert torch.equal(best[rollout.mask], rollout.targets[rollout.mask])


@given(st.integers(0, 1000), st.integers(0, 7))
@settings(max_examples=15, deadline=None)
def test_padding_changes_nothing(seed, extra):
    model, seqs = tiny(), sequences(5, seed)
    wide = ro.Sequences(torch.nn.functional.pad(seqs.tokens, (0, extra), value=PAD),
                        torch.nn.functional.pad(seqs.mask, (0, extra)))
    other = ro.Sequences(torch.where(pad_places(wide), 9, wide.tokens), wide.mask)
    with torch.no_grad():
        a = logprobs(model, seqs)
        for padded in (wide, other, wide[range(5)]):
            b = logprobs(model, padded)[:, : a.shape[1]]
            assert torch.allclose(a[:, : b.shape[1]], b, atol=1e-12)


def pad_places(seqs):
    """Positions of tokens after the end of each row."""
    last = torch.tensor([int(mask.nonzero()[-1]) + 1 for mask in seqs.mask])
    return torch.arange(seqs.tokens.shape[1]) > last[:, None]


def test_logprobs_are_about_the_token_they_predict():
    model, seqs = tiny(), sequences(4)
    with torch.no_grad():
        logp, whole = logprobs(model, seqs), model(seqs.tokens).log_softmax(-1)
    for row, t in seqs.mask.nonzero().tolist():
        assert logp[row, t] == pytest.approx(float(whole[row, t, seqs.tokens[row, t + 1]]))
    assert not logp[~seqs.mask].any()
    assert distribution(model, seqs).shape == (int(seqs.mask.sum()), 11)


def test_log_probs_of_a_bfloat16_model_are_taken_in_float32():
    """Where they are sampled from and where they are trained on: chances that add up to 1."""
    model, seqs = tiny().to(torch.bfloat16), sequences(4)
    with torch.no_grad():
        trained = distribution(model, seqs, 0.7)
        sampled = ro.next_logp(model.head(model.hidden(seqs.inputs)[seqs.mask]), 0.7)
    assert trained.dtype == sampled.dtype == torch.float32 and torch.equal(trained, sampled)
    assert (trained.exp().sum(-1) - 1).abs().max() < 1e-5


def test_pack_marks_the_response_and_its_eos_only():
    seqs = pack([[BOS, 5], [BOS, 6, 7]], [[8, EOS], [9, 9, EOS]], PAD)
    assert seqs.tokens.tolist() == [[BOS, 5, 8, EOS, PAD, PAD], [BOS, 6, 7, 9, 9, EOS]]
    assert [t[m].tolist() for t, m in zip(seqs.targets, seqs.mask)] == [[8, EOS], [9, 9, EOS]]
    assert seqs.lengths.tolist() == [2, 3]
    assert seqs[[0]].tokens.tolist() == [[BOS, 5, 8, EOS]]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3), st.integers())
def test_minibatches_cover_every_row_once_per_epoch(rows, size, epochs, seed):
    cut = list(minibatches(range(rows), size, epochs, random.Random(seed)))
    assert sorted(row for part in cut for row in part) == sorted(list(range(rows)) * epochs)
    assert all(1 <= len(part) <= size for part in cut)


def test_minibatches_shuffle_anew_in_every_epoch():
    first, second = minibatches(range(40), 40, 2, random.Random(0))
    assert list(range(40)) != first != second != list(range(40))


def test_a_prompt_of_no_tokens_is_refused():
    for ask in (lambda: ro.pack([[BOS], []], [[5, EOS]] * 2, PAD),
                lambda: ro.generate(tiny(), [[BOS], []], max_new_tokens=2, eos={EOS}, pad=PAD)):
        with pytest.raises(MinipostError, match="empty prompt needs a BOS.*prompt 2 of 2"):
            ask()


def test_logits_that_overflow_are_said_so_and_nothing_is_drawn():
    model = tiny().float()
    with torch.no_grad():
        model.norm.weight.fill_(1e38)
        model.embed_tokens.weight.mul_(1e3)
    for temperature in (0.0, 1.0):
        with pytest.raises(MinipostError, match="logits are not finite"):
            ro.generate(model, [[BOS, 5]], max_new_tokens=2, eos={EOS}, pad=PAD,
                        temperature=temperature)


def test_rollouts_survive_joining():
    model = tiny()
    a = generate(model, PROMPTS[:2], 2, seed=(1,), **KW)
    b = generate(model, PROMPTS[2:], 3, seed=(1,), **KW)
    both = concat([a, b], PAD)
    assert all(same(x, y) for x, y in zip(rows_of(both), rows_of(a) + rows_of(b)))
    assert both.prompt.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert both.responses() == a.responses() + b.responses()
    pairs = Pairs(both[[0, 4]], both[[1, 5]])[[1]]
    assert same(rows_of(pairs.chosen)[0], rows_of(b)[0])


def test_a_prompt_that_cannot_fit_is_refused():
    with pytest.raises(MinipostError, match="60 tokens .* up to 8 do not fit .* 64"):
        generate(tiny(), [[BOS] * 60], 1, **KW)
