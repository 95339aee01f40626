"""Policy gradients against enumeration: whose mean is the gradient of what, and by which factor.

The model here is a table: two tokens of three words each, so nine answers, and every expectation is
a sum.  Further down, each method's step on a small network is held against its formula written out
once more with loops.
"""

import itertools
import math

import pytest
import torch
from fakes import Echo, Letters, tiny
from hypothesis import example, given, settings, strategies as st
from torch.func import jacrev

from minipost import ops
from minipost.errors import MinipostError
from minipost.gpt import ValueHead
from minipost.methods import a2c, reinforce, reinforce_pp, rloo, self_critical, sft
from minipost.optim import Learner
from minipost.rollout import logprobs
from minipost.run import Run

settings.register_profile("minipost", deadline=None, max_examples=25)
settings.load_profile("minipost")

ANSWERS = list(itertools.product(range(3), range(3)))
FIRST, SECOND = torch.tensor(ANSWERS).T
seeds = st.integers(0, 10_000)
rewards = st.lists(st.floats(-3, 3, width=32), min_size=8, max_size=8)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


# ---- a policy that is a table

def logp_of(table):
    """Log-prob of both tokens of every answer; row 0 of the table begins, row 1+w follows w."""
    logp = table.log_softmax(-1)
    return torch.stack([logp[0, FIRST], logp[1 + FIRST, SECOND]], 1)        # (9, 2)


def expected(value, table):
    """Mean of a value per answer."""
    return logp_of(table).sum(1).exp() @ value


def mean_slope(table, advantages, group=1, module=reinforce, **options):
    """Mean over all groups of answers of -dL/dtable, by the chain rule from the hand gradient.

    advantages(rows) are those of a group, rows being the places of its answers.
    """
    logp, scores, total = logp_of(table), jacrev(logp_of)(table), torch.zeros_like(table)
    mask = torch.ones(group, 2, dtype=torch.bool)
    for rows in itertools.product(range(9), repeat=group):
        rows = list(rows)
        if module is reinforce_pp:
            options["logp_old"] = logp[rows]
        by_token = module.loss_grad(logp=logp[rows], adv=advantages(rows), mask=mask, count=group,
                                    **options)["logp"]
        total -= logp[rows].sum().exp() * torch.einsum("bt,btij->ij", by_token, scores[rows])
    return total


@given(seeds)
def test_fine_tuning_costs_minus_the_log_of_an_answers_chance(seed):
    """Each chance a product of two softmaxes by hand; over all nine answers they add up to one."""
    table, mask, total = randn(seed, 4, 3), torch.ones(1, 2, dtype=torch.bool), 0.0
    weight = [[math.exp(x) for x in row] for row in table.tolist()]
    for k, (first, second) in enumerate(ANSWERS):
        chance = (weight[0][first] / sum(weight[0])
                  * weight[1 + first][second] / sum(weight[1 + first]))
        cost = float(sft.loss(logp_of(table)[k : k + 1], mask, count=1)[0])
        assert cost == pytest.approx(-math.log(chance))
        total += math.exp(-cost)
    assert total == pytest.approx(1)


@given(seeds, st.floats(-3, 3))
@settings(max_examples=10)
def test_reinforce_is_unbiased_whatever_the_baseline(seed, baseline):
    table, reward = randn(seed, 4, 3), randn(seed + 1, 9)
    truth = jacrev(lambda x: expected(reward, x))(table)
    found = mean_slope(table, lambda rows: reward[rows] - baseline)
    assert torch.allclose(found, truth, atol=1e-12) and truth.norm() > 1e-3


@given(seeds)
@settings(max_examples=10)
def test_the_greedy_answer_as_baseline_is_unbiased(seed):
    table, reward = randn(seed, 4, 3), randn(seed + 1, 9)
    logp = table.log_softmax(-1)
    first = int(logp[0].argmax())
    greedy = ANSWERS.index((first, int(logp[1 + first].argmax())))
    truth = jacrev(lambda x: expected(reward, x))(table)
    found = mean_slope(table, lambda rows: reward[rows] - reward[greedy])
    assert torch.allclose(found, truth, atol=1e-12)


@pytest.mark.parametrize("group", [2, 3])
def test_rloo_is_unbiased_and_a_group_mean_shrinks_the_gradient(group):
    table, reward = randn(0, 4, 3), randn(1, 9)
    truth = jacrev(lambda x: expected(reward, x))(table)
    left_out = mean_slope(table, lambda rows: rloo.leave_one_out(reward[rows], group), group)
    centred = mean_slope(table, lambda rows: ops.group_centred(reward[rows], group).flatten(), group)
    assert truth.norm() > 0.1
    assert torch.allclose(left_out, truth, atol=1e-12)
    assert torch.allclose(centred, truth * (group - 1) / group, atol=1e-12)


BETA = 0.3


def regularised(table, reference, reward):
    """E[r] - beta KL(pi || ref)."""
    chance = logp_of(table).sum(1).exp()
    kl = chance @ (logp_of(table) - logp_of(reference)).sum(1)
    return expected(reward, table) - BETA * kl


def test_the_log_ratio_as_a_price_descends_the_kl():
    """For RLOO on the whole answer, for REINFORCE++ token by token: both without bias."""
    table, reference, reward = randn(0, 4, 3), randn(1, 4, 3), randn(2, 9)
    truth = jacrev(lambda x: regularised(x, reference, reward))(table)
    assert not torch.allclose(truth, jacrev(lambda x: expected(reward, x))(table), rtol=0.1)
    logp = logp_of(table)
    ratio = logp - logp_of(reference)                                       # (9, 2)
    priced = reward - BETA * ratio.sum(1)
    found = mean_slope(table, lambda rows: rloo.leave_one_out(priced[rows], 2), 2)
    assert torch.allclose(found, truth, atol=1e-12)

    ret = reinforce_pp.returns(reward, ratio, torch.ones(9, 2, dtype=torch.bool), BETA)
    assert torch.allclose(ret[:, 0], priced)                                # it is paid in parts
    assert torch.allclose(ret[:, 1], reward - BETA * ratio[:, 1])
    found = mean_slope(table, lambda rows: ret[rows], module=reinforce_pp, clip=0.2)
    assert torch.allclose(found, truth, atol=1e-12)


@given(seeds, st.floats(0, 1), st.floats(0.1, 1))
def test_the_true_value_leaves_an_expected_advantage_of_zero(seed, lam, gamma):
    table, reward = randn(seed, 4, 3), randn(seed + 1, 9)
    logp = logp_of(table).exp()
    after = (logp[:, 1] * reward).view(3, 3).sum(1)                         # E[r | first token]
    value = torch.stack([(gamma * expected(reward, table)).expand(9), after[FIRST]], 1)
    mask = torch.ones(9, 2, dtype=torch.bool)
    adv = ops.gae(ops.at_last(reward, mask), value, mask, gamma, lam)
    assert (logp.prod(1) * adv[:, 0]).sum().abs() < 1e-12
    assert (logp[:, 1] * adv[:, 1]).view(3, 3).sum(1).abs().max() < 1e-12
    off = ops.gae(ops.at_last(reward, mask), value + 0.1, mask, gamma, lam)
    assert (logp[:, 1] * off[:, 1]).view(3, 3).sum(1).abs().min() > 0.05


# ---- leaving one out

@given(rewards, st.sampled_from([2, 4, 8]))
def test_leaving_one_out_by_a_loop(values, group):
    adv = rloo.leave_one_out(f64(values), group)
    for i, mine in enumerate(values):
        start = i - i % group
        others = [values[j] for j in range(start, start + group) if j != i]
        assert float(adv[i]) == pytest.approx(mine - sum(others) / len(others), abs=1e-9)


@given(rewards, st.floats(-5, 5), st.floats(0.1, 4))
def test_leave_one_out_symmetries(values, shift, scale):
    """Zero-sum, blind to shifts, proportional to scale, odd, and Dr. GRPO's but for G/(G-1)."""
    r = f64(values)
    adv = rloo.leave_one_out(r, 4)
    assert adv.view(2, 4).sum(1).abs().max() < 1e-9
    assert torch.allclose(rloo.leave_one_out(r + shift, 4), adv, atol=1e-9)
    assert torch.allclose(rloo.leave_one_out(r * scale, 4), adv * scale, atol=1e-9)
    assert torch.equal(rloo.leave_one_out(-r, 4), -adv)
    assert torch.allclose(ops.group_centred(r, 4).flatten() * 4 / 3, adv)


@given(st.floats(-1e5, 1e5, width=32))
@example(0.7)                                               # whose mean over 7 rounds to another
def test_siblings_that_tie_have_advantage_exactly_zero(value):
    assert not rloo.leave_one_out(torch.full((14,), value), 7).any()
    one_group = torch.tensor([value, value, value, 0.0, 1.0, 5.0])
    assert rloo.leave_one_out(one_group, 3).ne(0).tolist() == [False] * 3 + [True] * 3


# ---- advantages along an answer

def stretches(seed, rows=5, width=7):
    """Rewards, values and masks of answers that begin and end in different columns."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 4, (rows, 1), generator=generator)
    length = torch.randint(1, 5, (rows, 1), generator=generator)
    column = torch.arange(width)
    mask = (start <= column) & (column < start + length)
    return randn(seed + 1, rows, width), randn(seed + 2, rows, width), mask


def by_row(x, mask):
    """The chosen entries of each row, as lists."""
    return [row[chosen].tolist() for row, chosen in zip(x, mask)]


def gae_by_sums(reward, value, mask, gamma, lam):
    """A_t = sum_k (gamma lam)^k delta_(t+k), answer by answer."""
    found = []
    for r, v in zip(by_row(reward, mask), by_row(value, mask)):
        v = [*v, 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        found.append([sum((gamma * lam) ** k * d for k, d in enumerate(delta[t:]))
                      for t in range(len(r))])
    return found


factors = st.floats(0, 1)


@given(seeds, factors, factors)
def test_gae_equals_its_sum_and_is_zero_off_the_mask(seed, gamma, lam):
    reward, value, mask = stretches(seed)
    adv = ops.gae(reward, value, mask, gamma, lam)
    assert not adv[~mask].any()
    for mine, expected_ in zip(by_row(adv, mask), gae_by_sums(reward, value, mask, gamma, lam)):
        assert mine == pytest.approx(expected_, abs=1e-12)


@given(seeds, factors)
def test_gae_at_both_ends_of_lambda(seed, gamma):
    reward, value, mask = stretches(seed)
    whole = by_row(ops.gae(reward, value, mask, gamma, 1.0), mask)
    one_step = by_row(ops.gae(reward, value, mask, gamma, 0.0), mask)
    for k, (r, v) in enumerate(zip(by_row(reward, mask), by_row(value, mask))):
        for t in range(len(r)):
            ret = sum(gamma**j * x for j, x in enumerate(r[t:]))
            assert whole[k][t] == pytest.approx(ret - v[t], abs=1e-12)
            ahead = v[t + 1] if t + 1 < len(v) else 0.0
            assert one_step[k][t] == pytest.approx(r[t] + gamma * ahead - v[t], abs=1e-12)


@given(seeds, factors, factors, st.floats(-3, 3))
def test_gae_is_linear_and_blind_to_padding(seed, gamma, lam, factor):
    (reward, value, mask), other = stretches(seed), randn(seed + 9, 5, 7)
    zero = torch.zeros_like(value)
    adv = ops.gae(reward, value, mask, gamma, lam)
    both = ops.gae(reward + factor * other, value, mask, gamma, lam)
    assert torch.allclose(both, adv + factor * ops.gae(other, zero, mask, gamma, lam), atol=1e-12)

    def wide(x, fill):
        return torch.nn.functional.pad(x, (2, 3), value=fill)

    padded = ops.gae(wide(reward, 5.0), wide(value, -4.0), wide(mask, False), gamma, lam)
    assert torch.equal(padded, wide(adv, 0.0))
    nan = float("nan")
    spoilt = ops.gae(reward.where(mask, nan), value.where(mask, nan), mask, gamma, lam)
    assert torch.equal(spoilt, adv)


@given(seeds, factors)
def test_shaping_by_a_potential_changes_no_advantage(seed, lam):
    """Ng et al. 1999: r_t + F(s_(t+1)) - F(s_t), F being 0 after the end, with V - F for V.

    Where the critic does not follow, at lambda 1 it is a baseline: each state's F, whatever is done.
    """
    reward, value, mask = stretches(seed)
    potential = 3 * randn(seed + 7, 5, 7).where(mask, 0.0)
    ahead = torch.nn.functional.pad(potential, (0, 1))[:, 1:]
    shaped = reward + ahead - potential
    adv = ops.gae(reward, value, mask, 1.0, lam)
    assert torch.allclose(ops.gae(shaped, value - potential, mask, 1.0, lam), adv, atol=1e-12)
    lagging = ops.gae(shaped, value, mask, 1.0, 1.0)
    assert torch.allclose(lagging, ops.gae(reward, value + potential, mask, 1.0, 1.0), atol=1e-12)


@given(seeds, st.floats(0.1, 5), st.floats(-5, 5))
def test_whitening(seed, scale, shift):
    x, _, mask = stretches(seed)
    white = ops.whiten(x, mask)
    assert not white[~mask].any()
    assert white[mask].mean().abs() < 1e-12
    assert float(white[mask].var(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(ops.whiten(scale * x + shift, mask), white, atol=1e-4)
    assert torch.allclose(ops.whiten(-x, mask), -white)
    assert torch.equal(ops.whiten(x.where(mask, float("nan")), mask), white)


@given(seeds)
def test_the_last_chosen_token(seed):
    _, _, mask = stretches(seed)
    x = 1 + torch.arange(5, dtype=torch.float64)
    placed = ops.at_last(x, mask)
    for k in range(5):
        last = max(t for t in range(7) if mask[k, t])
        assert placed[k].nonzero().tolist() == [[last]] and placed[k, last] == x[k]


# ---- each loss beside its plain form

@given(seeds)
def test_at_ratio_one_reinforce_pp_is_the_policy_gradient_of_whitened_returns(seed):
    ratio, logp, mask = stretches(seed)
    ret = reinforce_pp.returns(randn(seed + 5, 5), ratio, mask, 0.3)
    adv = ops.whiten(ret, mask)
    hand = reinforce_pp.loss_grad(logp, logp, adv, mask, clip=0.2, count=7)["logp"]
    assert torch.allclose(hand[mask], -(ret - ret[mask].mean())[mask] / ret[mask].std(correction=0)
                          / 7, rtol=1e-4)
    stopped = reinforce_pp.loss_grad(logp + 0.5 * adv.sign(), logp, adv, mask, clip=0.2, count=7)
    assert not stopped["logp"].any()            # every ratio is beyond the clip on its gain's side


@given(seeds)
def test_without_critic_and_bonus_a2c_is_reinforce(seed):
    logp, value, mask = stretches(seed)
    adv, ret, entropy = randn(seed + 5, 5), randn(seed + 6, 5, 7), randn(seed + 7, 5, 7)
    found = a2c.loss_grad(logp, entropy, value, adv[:, None].expand(5, 7), ret, mask,
                          value_weight=1.0, entropy_weight=0.0, count=7)
    assert torch.equal(found["logp"], reinforce.loss_grad(logp, adv, mask, count=7)["logp"])
    assert not found["entropy"].any()
    assert torch.allclose(found["value"][mask], (value - ret)[mask] / 7)
    plain = reinforce.loss(logp, adv, mask, count=7)[0]
    perfect = a2c.loss(logp, entropy, ret, adv[:, None].expand(5, 7), ret, mask,
                       value_weight=1.0, entropy_weight=0.0, count=7)[0]
    assert torch.allclose(perfect, plain)


def test_a2c_piece_by_piece():
    """One token, whose every term has a value and a sign of its own."""
    one = torch.ones(1, 1, dtype=torch.bool)
    logp, entropy, value, adv, ret = (f64([[x]]) for x in (-0.5, 0.8, 0.1, 2.0, 0.6))
    found, stats = a2c.loss(logp, entropy, value, adv, ret, one, value_weight=0.4,
                            entropy_weight=0.25, count=2)
    assert float(stats["value_loss"]) == pytest.approx(0.5 * 0.25 / 2)
    assert float(found) == pytest.approx((1.0 + 0.4 * 0.5 * 0.25 - 0.25 * 0.8) / 2)


@given(seeds)
def test_returns_of_the_critic_are_not_whitened(seed):
    _, value, mask = stretches(seed)
    reward = 5 + randn(seed + 5, 5)
    adv, ret = a2c.advantages(reward, value, mask, 1.0, 1.0)
    assert torch.allclose(ret[mask], reward[:, None].expand(5, 7)[mask])    # lambda 1: the score
    gap = (reward[:, None] - value)[mask]
    assert torch.allclose(adv[mask], (gap - gap.mean()) / gap.std(correction=0), atol=1e-5)


def test_explained_variance():
    _, noise, mask = stretches(3)
    ret = randn(4, 5, 7)
    nan = ret.where(mask, float("nan"))
    assert ops.explained_variance(nan + 3.0, ret, mask) == pytest.approx(1)     # but for a constant
    assert ops.explained_variance(torch.zeros_like(ret), nan, mask) == pytest.approx(0)
    assert ops.explained_variance(2 * ret, ret, mask) == pytest.approx(0)
    assert ops.explained_variance(-ret, ret, mask) == pytest.approx(-3)
    assert ops.explained_variance(noise, torch.full_like(ret, 0.1), mask) == 0.0


# ---- whole steps against their formulas

METHODS = {
    "reinforce": (reinforce, dict(momentum=0.75)), "self_critical": (self_critical, {}),
    "rloo": (rloo, dict(beta=0.2)), "reinforce_pp": (reinforce_pp, dict(beta=0.2, minibatch_size=32)),
    "a2c": (a2c, dict(gamma=0.9, lam=0.8, entropy_weight=0.1, value_weight=0.5)),
}
SIZE, TAU = dict(prompts=4, group_size=4, lr=1e-3), 0.8


def start(seed):
    """A run of a network whose reference and critic differ from it and from zero."""
    task = Echo()
    run = Run(Learner(tiny(seed=seed)), Letters(), task, task.reward, seed=seed, max_new_tokens=4)
    run.carried["baseline"] = 0.3
    run.frozen("reference", lambda: tiny(seed=seed + 50))
    critic = run.learner("critic", lambda: ValueHead(tiny(seed=seed + 60)))
    critic.flat.copy_(critic.flat + 0.1 * randn(seed, len(critic.flat)))
    return run


def watch(learner):
    """The gradients that the learner is asked to step along."""
    seen, step = [], learner.step

    def stepping(*options):
        seen.append(learner.grad.clone())
        return step(*options)

    learner.step = stepping
    return seen


def token_advantages(name, run, rollout, reward, greedy, value):
    """Advantage and return of every token, as the docstrings say, row by row.  (B, T) twice"""
    with torch.no_grad():
        ratio = rollout.logp.double() - logprobs(run.reference(), rollout, TAU)
    reward, rows = reward.tolist(), range(len(rollout))
    adv, ret = torch.zeros_like(ratio), torch.zeros_like(ratio)
    if name == "rloo":
        reward = [r - 0.2 * float(ratio[k].sum()) for k, r in enumerate(reward)]
    for k in rows:
        chosen = rollout.mask[k].nonzero()[:, 0].tolist()
        for place, t in enumerate(chosen):
            if name == "reinforce":
                adv[k, t] = reward[k] - 0.3
            elif name == "self_critical":
                adv[k, t] = reward[k] - float(greedy[k // 4])
            elif name == "rloo":
                siblings = [j for j in rows if j // 4 == k // 4 and j != k]
                adv[k, t] = reward[k] - sum(reward[j] for j in siblings) / 3
            elif name == "reinforce_pp":
                adv[k, t] = reward[k] - 0.2 * float(ratio[k, chosen[place:]].sum())
            else:
                v = [*value[k, chosen].tolist(), 0.0]
                for later in range(place, len(chosen)):
                    last = later == len(chosen) - 1
                    delta = (reward[k] if last else 0.0) + 0.9 * v[later + 1] - v[later]
                    adv[k, t] += (0.9 * 0.8) ** (later - place) * delta
                ret[k, t] = adv[k, t] + v[place]
    if name in ("reinforce_pp", "a2c"):
        each = adv[rollout.mask]
        adv = ((adv - each.mean()) / each.std(correction=0)).where(rollout.mask, 0.0)
    return adv, ret


def formula(name, run):
    """Every learner's gradient and the metrics of its next step, all rows at once."""
    problems = run.problems(4)
    rollout = run.sample(problems, 4, temperature=TAU)
    greedy = run.sample(problems, 1, temperature=0, purpose="another name")
    assert len(set(rollout.lengths.tolist())) > 1
    reward, best = run.score(problems, rollout), run.score(problems, greedy)
    value = run.learners["critic"].module(rollout.inputs)
    adv, ret = token_advantages(name, run, rollout, reward, best, value.detach())
    logp_all = torch.log_softmax(run.policy.module(rollout.inputs) / TAU, -1)       # (B, T, V)
    logp = logp_all.gather(-1, rollout.targets[..., None])[..., 0]
    chosen, count = rollout.mask, int(rollout.mask.sum())
    entropy = -(logp_all.exp() * logp_all).sum(-1)[chosen].sum() / count
    error = (value - ret)[chosen].square().sum() / (2 * count)
    made_likelier = (logp - logp.detach()).exp() if name == "reinforce_pp" else logp
    objective = -(adv * made_likelier)[chosen].sum() / count
    if name == "a2c":
        objective = objective - 0.1 * entropy + 0.5 * error
    objective.backward()
    gap = (logp.detach() - logprobs(run.reference(), rollout, TAU))[chosen]
    metrics = {"loss": objective, "reward": reward.mean(), "grad_norm": run.policy.grad.norm()}
    metrics |= {
        "reinforce": {"baseline": torch.tensor(0.3)}, "self_critical": {"baseline": best.mean()},
        "rloo": {"kl": gap.mean()}, "reinforce_pp": {"kl": gap.mean(), "entropy": entropy},
        "a2c": {"entropy": entropy, "value_loss": error},
    }[name]
    gradients = {key: learner.grad.clone() for key, learner in run.learners.items()}
    return gradients, {key: float(x.detach()) for key, x in metrics.items()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_step_descends_the_formula(name, seed):
    """Ragged answers in micro-batches of 3 at tau 0.8: the gradients and the metrics."""
    module, knobs = METHODS[name]
    gradients, wanted = formula(name, start(seed))
    run = start(seed)
    run.micro_batch_size = 3
    seen = {key: watch(learner) for key, learner in run.learners.items()}
    metrics = next(module.train(run, module.Config(**SIZE, **knobs, temperature=TAU)))
    assert [len(seen[key]) for key in ("policy", "critic")] == [1, int(name == "a2c")]
    for key in seen:
        if seen[key]:
            assert gradients[key].norm() > 1e-3
            assert torch.allclose(seen[key][0], gradients[key], atol=2e-6), key
    assert {key: metrics[key] for key in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_the_moving_average_uses_earlier_steps_only_and_is_carried_on():
    run, cfg = start(0), reinforce.Config(**SIZE, momentum=0.75)
    run.carried.clear()
    learn, baseline = reinforce.train(run, cfg), 0.0
    for run.step in range(4):
        metrics = next(learn)
        assert metrics["baseline"] == pytest.approx(baseline)
        baseline = 0.75 * baseline + 0.25 * metrics["reward"]
        if run.step == 2:
            learn = reinforce.train(run, cfg)       # as after a resume: the run alone remembers
    assert run.carried == {"baseline": pytest.approx(baseline)} and baseline > 0


@pytest.mark.parametrize("module", [rloo, reinforce_pp])
def test_without_a_price_no_reference_is_kept(module):
    task = Echo()
    run = Run(Learner(tiny()), Letters(), task, task.reward, max_new_tokens=4)
    metrics = next(module.train(run, module.Config(**SIZE, beta=0.0)))
    assert list(run.parts) == ["learner/policy"] and metrics["kl"] == 0.0


@pytest.mark.parametrize("name", METHODS)
def test_where_every_answer_scores_the_same_nothing_is_learned(name):
    """Of the policy: gradients are zero, and what Adam makes of that leaves the weights alone."""
    module, knobs = METHODS[name]
    run = start(0)
    run.reward = lambda prompts, completions, **columns: [0.5] * len(completions)
    run.carried["baseline"] = 0.5
    run.learners["critic"].flat.zero_()
    knobs = {**knobs, **({"beta": 0.0} if "beta" in knobs else {}),
             **({"entropy_weight": 0.0, "gamma": 1.0, "lam": 1.0} if name == "a2c" else {})}
    before = run.policy.flat.clone()
    metrics = next(module.train(run, module.Config(**SIZE, **knobs)))
    assert torch.equal(run.policy.flat, before) and metrics["grad_norm"] == 0.0
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("module, fault", [
    (rloo, dict(group_size=1)), (reinforce, dict(group_size=0)), (reinforce, dict(momentum=-0.1)),
    (reinforce_pp, dict(beta=-1.0)), (a2c, dict(lam=-0.5)), (a2c, dict(critic_lr=float("inf"))),
])
def test_knobs_that_make_no_sense(module, fault):
    name, value = next(iter(fault.items()))
    with pytest.raises(MinipostError, match=f"{name} is {value}; expected at least "):
        module.Config(**fault)
