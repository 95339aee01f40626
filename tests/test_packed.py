"""Packed rows give what padded rows give: hidden states, gradients, scores."""

import pytest
import torch
from fakes import BOS, PAD, tiny
from hypothesis import given
from hypothesis import strategies as st

from minipost.engine import packed
from minipost.engine.packed import Packed, alike
from minipost.gpt import RewardModel
from minipost.rollout import (
    Sequences,
    distribution,
    final_score,
    final_scores,
    logprobs,
    logprobs_of_each,
    pack,
    spans,
    stacked,
)

ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=7)
PROMPTS = ([3, 4, 5], [3, 4], [7])


def rows_of(drawn, seed=0):
    """Sequences of answers with a prompt number and a length each."""
    generator = torch.Generator().manual_seed(seed)
    answers = [torch.randint(2, 11, (n,), generator=generator).tolist() for _, n in drawn]
    return pack([[BOS, *PROMPTS[k]] for k, _ in drawn], answers, PAD)


def gradients(model, out, seed=3):
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed),
                         dtype=torch.float64)
    return torch.autograd.grad((out * weight).sum(), list(model.parameters()), allow_unused=True)


@pytest.fixture
def always(monkeypatch):
    """Rows are packed even where that saves nothing."""
    monkeypatch.setattr(packed, "SAVING", (0.0, 0.0))


@pytest.mark.parametrize("saving", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("kv", [1, 2, 4])
@given(drawn=ROWS)
def test_packed_hidden_states_and_gradients_are_those_of_the_rows(kv, saving, drawn):
    model, seqs = tiny(kv=kv), rows_of(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "SAVING", (saving, saving))
        found = model.hidden_at(seqs.inputs, seqs.mask)
    plain = model.hidden(seqs.inputs, explicit=True)[seqs.mask]
    assert found.shape == plain.shape and torch.allclose(found, plain, atol=1e-12)
    for ours, theirs in zip(gradients(model, found), gradients(model, plain)):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, atol=1e-11)


def test_a_prompt_is_read_once(always):
    seqs = rows_of([(0, 4), (0, 2), (1, 3), (0, 4)])
    flat = Packed(seqs.inputs, *seqs.spans())
    # Two prompts of BOS and 3 or 2 ids; of an answer all that predicts, but the prompt's last.
    positions = [0, 1, 2, 3, 0, 1, 2, 4, 5, 6, 4, 3, 4, 4, 5, 6]
    assert flat.positions.tolist() == positions + [0] * (64 - len(positions))
    rebuilt = flat.tokens[flat.places]
    real = torch.arange(seqs.inputs.shape[1]) < seqs.spans()[1][:, None]
    assert torch.equal(rebuilt[real], seqs.inputs[real])
    which, first = alike(seqs.inputs, seqs.spans()[0])
    assert which.tolist() == [0, 0, 1, 0] and first.tolist() == [0, 2]


def test_a_row_that_is_there_twice_is_read_once(always):
    model, seqs = tiny(), rows_of([(0, 4), (0, 2), (1, 3)])
    twice = seqs[[0, 1, 0, 2, 0]]
    assert torch.equal(Packed(twice.inputs, *twice.spans()).positions,
                       Packed(seqs.inputs, *seqs.spans()).positions)
    plain = model.hidden(twice.inputs, explicit=True)[twice.mask]
    found = model.hidden_at(twice.inputs, twice.mask)
    assert torch.allclose(found, plain, atol=1e-12)
    for ours, theirs in zip(gradients(model, found), gradients(model, plain)):
        assert ours is None or torch.allclose(ours, theirs, atol=1e-11)


def test_prompts_that_differ_in_one_id_or_in_length_are_not_shared():
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 4], [1, 2, 3, 4]])
    assert alike(tokens, torch.tensor([3, 3, 2]))[0].tolist() == [0, 1, 2]


def test_what_comes_behind_the_last_wanted_place_is_not_read():
    """A row of a context's length, of which only the beginning is wanted."""
    model, seqs = tiny(), rows_of([(0, 4), (0, 4)])
    where = seqs.mask & (torch.arange(seqs.mask.shape[1]) < 5)
    assert spans(where)[1].tolist() == [5, 5]
    changed = seqs.inputs.clone()
    changed[:, 5:] = 9
    assert torch.equal(model.hidden_at(seqs.inputs, where), model.hidden_at(changed, where))


def test_rows_of_which_nothing_is_wanted(always):
    model, seqs = tiny(), rows_of([(0, 4), (1, 3), (0, 4)])
    mask = seqs.mask.clone()
    mask[1] = False
    found = distribution(model, Sequences(seqs.tokens, mask))
    plain = model(seqs.inputs, explicit=True)[mask].log_softmax(-1)
    assert torch.allclose(found, plain, atol=1e-12)
    nothing = logprobs(model, Sequences(seqs.tokens, mask & False))
    assert not nothing.any()


def test_a_mask_with_holes(always):
    """Of a chat only the assistant's turns are learnt; the rest between them is context."""
    model, seqs = tiny(), rows_of([(0, 6), (0, 6), (0, 5)])
    mask = seqs.mask.clone()
    mask[:, 5] = False
    plain = model.hidden(seqs.inputs, explicit=True)[mask]
    assert torch.allclose(model.hidden_at(seqs.inputs, mask), plain, atol=1e-12)


def test_several_sequences_in_one_pass_are_each_by_itself(always):
    model, parts = tiny(), [rows_of([(0, 4), (1, 2)]), rows_of([(0, 6), (1, 1)], seed=1)]
    for found, part in zip(logprobs_of_each(model, parts), parts):
        assert torch.allclose(found, logprobs(model, part), atol=1e-12)
    assert len(stacked(parts)) == 4
    head = RewardModel(tiny()).double()
    torch.nn.init.normal_(head.score.weight, generator=torch.Generator().manual_seed(1))
    scores = final_scores(head, parts)
    assert scores.shape == (2, 2)
    for k, part in enumerate(parts):
        last = part.spans()[1]
        alone = head(part.tokens, explicit=True).gather(1, last[:, None])[:, 0]
        assert torch.allclose(scores[:, k], alone, atol=1e-12)
        assert torch.allclose(final_score(head, part), alone, atol=1e-12)


def test_rows_without_a_column():
    assert [part.tolist() for part in spans(torch.zeros(2, 0, dtype=torch.bool))] == [[0, 0]] * 2
