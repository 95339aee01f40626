"""Five formulas of the survey (arXiv:2502.21321v2) beside the ones they stand for: tests/errata.md.

Each test states what a method promises, shows that the formula as the survey prints it breaks the
promise by more than rounding, and that the function which this project trains with keeps it.
"""

import itertools
import math

import pytest
import torch
from fakes import Echo, Letters, tiny, tree
from hypothesis import given
from hypothesis import strategies as st

from minipost.methods import dpo, oreo, orpo, plackett_luce, ppo
from minipost.optim import Learner
from minipost.run import Run


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


def tokens(shape, seed):
    """Log-probs of answers whose every token is chosen, and that mask."""
    generator = torch.Generator().manual_seed(seed)
    x = -0.1 - 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return x, torch.ones(shape, dtype=torch.bool)


# ---- 3.2.6, DPO

@given(st.integers(0, 10_000), st.floats(-4, 4), st.floats(0.1, 1.0))
def test_the_printed_dpo_loss_prefers_the_loser_and_ours_the_winner(seed, u, beta):
    """A small step down each loss, from any lead u: E[sigmoid(u)] as printed falls as the lead
    does."""
    (chosen, mask), (rejected, other) = tokens((1, 3), seed), tokens((1, 4), seed + 1)
    ref = chosen - u / beta / 3, rejected                   # so that the lead is u

    def lead(chosen, rejected):
        return dpo.lead(chosen, rejected, *ref, mask, other, beta)

    def ours(chosen, rejected):
        return dpo.loss(chosen, rejected, *ref, mask, other, beta=beta, count=1)[0]

    def printed(chosen, rejected):
        return torch.sigmoid(lead(chosen, rejected)).mean()

    def gained(gradients):
        return float(lead(*(x - 0.01 * g for x, g in zip((chosen, rejected), gradients)))) - u

    assert float(lead(chosen, rejected)) == pytest.approx(u)
    at = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    hand = dpo.loss_grad(chosen, rejected, *ref, mask, other, beta=beta, count=1)
    least = 0.01 * 7 * beta ** 2 * 0.017                    # sigmoid'(4) = 0.0177, seven tokens
    assert gained(torch.autograd.grad(printed(*at), at)) < -least
    assert gained(torch.autograd.grad(ours(*at), at)) > least
    assert gained([hand["logp_w"], hand["logp_l"]]) > least


def test_the_printed_dpo_loss_is_least_where_every_pair_is_wrong_and_ours_where_none_is():
    """And a policy that is the reference, u = 0, costs log 2: an even bet.

    Turned into a gain, E[sigmoid(u)] would not be that loss either: pairs that are far from right,
    which pull on ours the most, hardly pull on it.
    """
    one, zero = torch.ones(1, 1, dtype=torch.bool), f64([[0.0]])

    def ours(u, of=dpo.loss):
        return of(f64([[u]]), zero, zero, zero, one, one, beta=1.0, count=1)

    def printed(u):
        return float(torch.sigmoid(dpo.lead(f64([[u]]), zero, zero, zero, one, one, 1.0)))

    losses = [float(ours(u)[0]) for u in (-20.0, 0.0, 20.0)]
    assert losses == pytest.approx([20.0, math.log(2), 0.0], abs=1e-8)
    assert [printed(u) for u in (-20.0, 0.0, 20.0)] == pytest.approx([0.0, 0.5, 1.0], abs=1e-8)
    assert float(ours(-20.0, dpo.loss_grad)["logp_w"]) == pytest.approx(-1, abs=1e-8)
    assert printed(-20.0) * (1 - printed(-20.0)) < 1e-8     # the slope of a sigmoid


# ---- 3.2.1, ORPO

def printed_orpo(chosen, rejected):
    """-log sigmoid(log pi(y_j) / pi(y_k)) of whole answers."""
    return -torch.nn.functional.logsigmoid(chosen.sum(1) - rejected.sum(1)).sum()


@given(st.integers(0, 10_000), st.floats(0.05, 3.0), st.floats(0.1, 4.0))
def test_the_printed_orpo_loss_lets_both_answers_sink_and_ours_holds_the_chosen_one_up(seed, drop,
                                                                                       lam):
    """Every token of both answers grows less likely by the same factor.

    The ratio of likelihoods does not see it.  Of ours the first term alone rises by `drop`, and the
    odds ratio of an answer ahead shrinks, so that the second rises too.
    """
    (chosen, mask), (rejected, _) = tokens((1, 4), seed), tokens((1, 4), seed + 1)
    if chosen.mean() < rejected.mean():
        chosen, rejected = rejected, chosen

    def ours(*pair):
        return float(orpo.loss(*pair, mask, mask, lam=lam, count=1)[0])

    sunk = chosen - drop, rejected - drop
    assert abs(float(printed_orpo(*sunk) - printed_orpo(chosen, rejected))) < 1e-10
    assert ours(*sunk) - ours(chosen, rejected) > drop - 1e-10


@given(st.integers(0, 10_000), st.floats(0.1, 4.0))
def test_the_printed_orpo_loss_forgets_the_chosen_answer_once_the_rejected_is_gone(seed, lam):
    """As pi(y_k) -> 0 its gradient on y_j vanishes, however unlikely y_j is; ours stays 1 or
    more."""
    (chosen, mask), (rejected, _) = tokens((1, 4), seed), tokens((1, 4), seed + 1)
    chosen, rejected = (chosen - 2).requires_grad_(), rejected - 12     # pi(y_j) is below 0.001
    [printed] = torch.autograd.grad(printed_orpo(chosen, rejected), chosen)
    [ours] = torch.autograd.grad(orpo.loss(chosen, rejected, mask, mask, lam=lam, count=1)[0],
                                 chosen)
    hand = orpo.loss_grad(chosen.detach(), rejected, mask, mask, lam=lam, count=1)["logp_w"]
    assert printed.abs().sum() < 1e-10
    assert -ours.sum() > 1 - 1e-12 and -hand.sum() > 1 - 1e-12


@pytest.mark.parametrize("p, q, odds", [(0.9, 0.6, 6.0), (0.5, 0.2, 4.0), (0.75, 0.25, 9.0)])
def test_odds_are_what_the_name_of_orpo_says(p, q, odds):
    """9 to 1 over 3 to 2 is 6, where 0.9 over 0.6 is 1.5: the second term, by itself."""
    pair, one = (f64([[math.log(p)]]), f64([[math.log(q)]])), torch.ones(1, 1, dtype=torch.bool)
    both, sft = (orpo.loss(*pair, one, one, lam=lam, count=1)[0] for lam in (1.0, 0.0))
    assert float(both - sft) == pytest.approx(math.log(1 + 1 / odds), abs=1e-12)
    assert float(printed_orpo(*pair)) == pytest.approx(math.log(1 + q / p), abs=1e-12)
    assert abs(math.log(1 + q / p) - math.log(1 + 1 / odds)) > 0.1


# ---- 3.2.2, PPO

# all answers of two tokens of three words
PAIRS = list(itertools.product(range(3), repeat=2))


def logprobs(z):
    """Log-probs of every answer's tokens: z[0] says the first, z[1 + first] the second.  (9, 2)"""
    logp = z.log_softmax(1)
    return torch.stack([torch.stack([logp[0, a], logp[1 + a, b]]) for a, b in PAIRS])


def expected_step(z, logp_old, adv):
    """What `ppo.loss_grad` does to z, over all answers by their chance under z.  (4, 3)"""
    z = z.clone().requires_grad_()
    logp = logprobs(z)
    zero, mask = torch.zeros(9, 2).double(), torch.ones(9, 2, dtype=torch.bool)
    hand = ppo.loss_grad(logp.detach(), zero, logp_old, zero, adv, zero, mask, clip=0.2,
                         value_clip=0.2, count=1)["logp"]
    chance = logp.detach().sum(1, keepdim=True).exp()
    return torch.autograd.grad(logp, z, chance * hand)[0]


@given(st.integers(0, 1000))
def test_the_printed_ppo_ratio_is_not_the_policy_gradient_and_ours_is(seed):
    """At the start of a rollout that is not the first: pi is pi_old, and the reference is
    another."""
    z, shift = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed),
                           dtype=torch.float64)
    reward = torch.randn(9, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    leaf = z.clone().requires_grad_()
    chance = logprobs(leaf).sum(1).exp()
    # J, whose gradient is the policy gradient
    mean = (chance * reward).sum()
    [wanted] = torch.autograd.grad(-mean, leaf)
    adv = (reward - mean.detach())[:, None].expand(9, 2)
    ours = expected_step(z, logprobs(z), adv)
    printed = expected_step(z, logprobs(z + shift), adv)
    assert (ours - wanted).abs().max() < 1e-12
    assert (printed - wanted).norm() > 0.05 * wanted.norm()


@given(st.floats(0.61, 0.99), st.floats(0.1, 10.0))
def test_the_printed_ppo_ratio_stops_for_good_a_fifth_beyond_the_reference(p, worth):
    """Two answers, one of them worth more, a reference that gives each a half, and a clip of 0.2.

    Past p = 0.6 the printed objective has no gradient left in this or any later rollout.  Ours is
    held near the policy that answered, which moves on with every rollout.
    """
    logp, ref, zero = f64([[p], [1 - p]]).log(), f64([[0.5], [0.5]]).log(), f64([[0.0], [0.0]])
    adv = worth * f64([[1 - p], [-p]])                      # of rewards `worth` and 0
    ours, printed = (
        ppo.loss_grad(logp, zero, old, zero, adv, zero, torch.ones(2, 1, dtype=torch.bool),
                      clip=0.2,
                      value_clip=0.2, count=1)["logp"] for old in (logp, ref))
    assert not printed.any() and torch.equal(ours, -adv)


def test_ppo_trains_on_the_ratio_to_the_policy_that_answered(monkeypatch):
    """The first gradient step of a rollout, far from the reference: every ratio is 1."""
    task, seen, whole = Echo(), [], ppo.loss

    def spy(logp, value, logp_old, value_old, adv, ret, mask, **options):
        seen.append((logp - logp_old)[mask].abs().max().item())
        return whole(logp, value, logp_old, value_old, adv, ret, mask, **options)

    monkeypatch.setattr(ppo, "loss", spy)
    run = Run(Learner(tiny()), Letters(), task, task.reward, max_new_tokens=4)
    run.frozen("reference", lambda: tiny(seed=50))
    metrics = next(ppo.train(run, ppo.Config(steps=1, prompts=8, minibatch_size=8, epochs=1)))
    assert metrics["kl"] > 0.1                              # the ratio to the reference is not 1
    assert seen and max(seen) < 1e-5 and metrics["clip_ratio"] == 0


# ---- 3.2.7, OREO

@given(st.integers(0, 1000), st.floats(0.05, 2.0))
def test_the_best_policy_does_not_satisfy_the_printed_oreo_loss_and_satisfies_ours(seed, beta):
    """At the soft optimum of a random tree, on every trajectory, with each state's exact value.

    What the printed equation leaves at token t is V*(s_(t+1)) - R: how later tokens turned out, for
    which no earlier one is to blame.  Ours adds those, and leaves nothing.
    """
    found = tree(seed, beta)
    starts = found["mask"]                                  # every token is an action
    ours, _ = oreo.residuals(found["logp"], found["value"], found["logp"], found["value"],
                             found["logp_ref"], found["reward"], found["mask"], starts, beta)
    hand = oreo.loss_grad(**found, starts=starts, beta=beta, alpha=0.0, count=1)["logp"]
    assert max(ours.abs().max(), hand.abs().max()) < 1e-10
    here = found["value"] + beta * (found["logp"] - found["logp_ref"])
    printed = here - found["reward"][:, None]
    assert torch.allclose(here[:, :-1], found["value"][:, 1:], atol=1e-10)      # V*(s_(t+1))
    assert printed.abs().max() > 0.5
    each = here.clone()                                     # R_t read as token t's own reward
    each[:, -1] -= found["reward"]
    assert each.abs().max() > 0.3


# ---- 3.2.9, comparisons of several answers

@given(st.integers(2, 5).flatmap(lambda k: st.lists(st.floats(-3, 3), min_size=k, max_size=k)))
def test_the_printed_chance_of_a_ranking_is_the_same_for_all_and_ours_is_a_chance(scores):
    """Over all K! orders: prod_i e^(R_i) / sum_j e^(R_j), with every j, does not look at the
    order."""
    rows = torch.stack([f64(order) for order in itertools.permutations(scores)])    # best first
    k = len(scores)
    printed = rows.log_softmax(1).sum(1).exp()
    ours = torch.stack([-plackett_luce.loss(row[None], count=1)[0] for row in rows]).exp()
    assert torch.allclose(printed, printed[:1].expand_as(printed), rtol=1e-10)
    assert printed.sum() < math.factorial(k) / k ** k + 1e-10       # a half for two, less for more
    assert float(ours.sum()) == pytest.approx(1, abs=1e-10)
    best = plackett_luce.loss(f64(sorted(scores, reverse=True))[None], count=1)[0]
    assert float((-best).exp()) > float(ours.max()) - 1e-12         # the order of the scores
    if max(scores) - min(scores) > 0.1:
        assert ours.max() > 1.1 * ours.min()


@given(st.integers(2, 5), st.floats(0.1, 3.0))
def test_the_printed_ranking_loss_pulls_scores_in_order_together_and_ours_apart(k, gap):
    """Its gradient K softmax - 1 pushes the best score down, wherever it is ahead; ours pulls it
    up."""
    scores = gap * torch.arange(k, 0, -1, dtype=torch.float64)[None]
    printed = k * scores.softmax(1) - 1                     # of -sum_i log softmax(R)_i
    ours = plackett_luce.loss_grad(scores, count=1)["scores"]
    assert printed[0, 0] > 0.04 and ours[0, 0] < 0
    leaf = scores.clone().requires_grad_()
    assert torch.allclose(torch.autograd.grad(-leaf.log_softmax(1).sum(), leaf)[0], printed)
