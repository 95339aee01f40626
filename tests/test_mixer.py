"""MIXER: both ends of its schedule, and the mean of its step between them."""

import itertools

import pytest
import torch
from fakes import ANSWERS, Echo, f64, logp_of, randn, toy
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

from minipost.methods import mixer, reinforce, sft

seeds = st.integers(0, 10_000)


def random_rows(seed):
    logp, adv = -randn(seed, 4, 5).abs(), randn(seed + 1, 4)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [4]])
    return logp, adv, mask


@given(seeds)
def test_all_known_is_sft_and_nothing_known_is_reinforce(seed):
    logp, adv, mask = random_rows(seed)
    nothing = torch.zeros_like(mask)
    assert torch.equal(mixer.loss(logp, adv, mask, mask, count=7)[0],
                       sft.loss(logp, mask, count=7)[0])
    assert torch.equal(mixer.loss(logp, adv, nothing, mask, count=7)[0],
                       reinforce.loss(logp, adv, mask, count=7)[0])


@given(seeds)
def test_the_mean_step_with_one_known_token(seed):
    """Likelihood of the known first token, and the expected reward of what follows it.

    All pairs of second tokens after each first one, known with chances `data`.
    """
    table, reward, data = randn(seed, 4, 3), randn(seed + 1, 9), randn(seed + 2, 3).softmax(0)

    def aim(table):
        first = table[0].log_softmax(0)
        second = table[1:].softmax(1)                       # (3, 3) after each first token
        return data @ (first + (second * reward.view(3, 3)).sum(1))

    logp, scores, found = logp_of(table), jacrev(logp_of)(table), torch.zeros(4, 3).double()
    known = torch.tensor([[True, False]] * 2)
    for begin, *ends in itertools.product(range(3), repeat=3):
        rows = [ANSWERS.index((begin, end)) for end in ends]
        chance = data[begin] * logp[rows, 1].sum().exp()
        r = reward[rows]
        slope = mixer.loss_grad(logp[rows], r - r.flip(0), known, torch.ones(2, 2).bool(),
                                count=2)["logp"]
        found -= chance * torch.einsum("bt,btij->ij", slope, scores[rows])
    assert torch.allclose(found, jacrev(aim)(table), atol=1e-12)


@pytest.mark.parametrize("step, expected", [(0, 0), (4, 0), (5, 2), (7, 2), (8, 4), (14, 8)])
def test_the_end_grows_by_delta(step, expected):
    assert mixer.end(mixer.Config(start=5, every=3, delta=2), step) == expected


def test_the_policy_goes_on_from_what_is_known_and_is_paid_for_the_whole():
    """Echo wants the prompt twice: the first letters are known, the last and EOS are not."""
    run = toy(Echo(), seed=3)
    problems = run.problems(3)
    shown = run.encode(problems, [run.task.demonstrate(p, None) for p in problems])
    cfg = mixer.Config(prompts=3, group_size=4)
    whole, given_, reward, _ = mixer.written(run, cfg, problems, shown, 2)
    sizes = (shown.lengths - 2).clamp(min=0).repeat_interleave(4)
    assert given_.sum(1).tolist() == sizes.tolist() and (given_ & ~whole.mask).sum() == 0
    texts = run.texts(whole)
    for k, p in enumerate(whole.prompt.tolist()):
        known = shown.targets[p][shown.mask[p]][: int(sizes[k])].tolist()
        assert whole.targets[k][given_[k]].tolist() == known
        assert texts[k].startswith(run.vocabulary.decode(known))
    rows = [problems[p] for p in whole.prompt.tolist()]
    assert torch.equal(reward, f64(run.task.reward(
        [p.prompt for p in rows], texts, letter=[p.columns["letter"] for p in rows])).to(reward))
    everything, none, *_ = mixer.written(run, cfg, problems, shown, 99)
    assert not none.any() and torch.equal(
        everything.tokens, run.sample(problems, 4, temperature=1.0).tokens)
