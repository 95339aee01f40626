"""MIXER: both ends of its schedule, and the mean of its step between them."""

import itertools

import pytest
import torch
from fakes import ANSWERS, Echo, drive, f64, logp_of, make_run, randn, tiny, toy
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

from minipost.chat import Turns
from minipost.errors import MinipostError
from minipost.methods import mixer, reinforce, sft
from minipost.tasks.base import Problem
from minipost.tasks.calculator import Calculator

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


class Uneven(Echo):
    """Known answers of 21, 5 and 31 tokens in turn, EOS included."""

    sizes = {"a": 20, "b": 4, "c": 30}

    def sample(self, n, rng):
        return [Problem("abc"[k % 3], {"letter": "abc"[k % 3]}) for k in range(n)]

    def demonstrate(self, problem, rng):
        return problem.prompt * self.sizes[problem.prompt]


@pytest.mark.parametrize("k", [1, 3])
def test_no_answer_is_longer_than_the_longest_response(k):
    """In a context that has no room for the longest beginning with the shortest one's end."""
    run = make_run(Uneven(), tiny(context=40), max_new_tokens=24)
    problems = run.problems(5)
    shown = run.encode(problems, [run.task.demonstrate(p, None) for p in problems])
    cfg = mixer.Config(prompts=5, group_size=3)
    whole, known, _, seen = mixer.written(run, cfg, problems, shown, k)
    assert whole.prompt.tolist() == [p for p in range(5) for _ in range(3)]
    assert int(whole.lengths.max()) == 24 and (whole.logp[~whole.mask] == 0).all()
    assert (whole.lengths > known.sum(1)).all()                 # each goes on, by a token or more
    answers, done = whole.written(), whole.finished.tolist()
    assert done == [ids[-1] in run.vocabulary.eos for ids in answers] and not all(done)
    assert seen["completions/clipped_ratio"] == pytest.approx(1 - sum(done) / 15)
    for p in range(3):      # as if it were alone; later problems are the same ones again
        told = shown.targets[p][shown.mask[p]].tolist()[:24]
        begun = told[: max(0, len(told) - k)]
        alone = run.sample([problems[p]], 3, temperature=1.0, begun=[begun],
                           max_new_tokens=24 - len(begun))
        assert answers[3 * p : 3 * p + 3] == [begun + ids for ids in alone.written()]
        assert known[3 * p : 3 * p + 3].sum(1).tolist() == [len(begun)] * 3
    cfg = mixer.Config(prompts=5, group_size=3, start=0, delta=k)
    assert drive(run, mixer.train(run, cfg), 2)[-1]["end"] == k


def test_known_answers_in_which_somebody_else_has_a_say_are_refused():
    """A tool's or a user's turns cannot be gone on from, and were lost."""
    cfg = mixer.Config()
    with pytest.raises(MinipostError, match="mixer goes on .* of the task calculator a tool"):
        mixer.check(make_run(Calculator()), cfg)

    class Talk(Echo):
        def demonstrate(self, problem, rng):
            return Turns(["a", "b", "c"])

    with pytest.raises(MinipostError, match="mixer goes on .* somebody else has turns .'abc'"):
        mixer.check(make_run(Talk()), cfg)
    mixer.check(make_run(Echo()), cfg)
