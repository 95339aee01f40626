"""Policy gradients against enumeration, and whole steps against their formulas."""

import math

import pytest
import torch
from fakes import SIZE, TAU, Echo, Letters, apart, expected, logp_of, mean_slope, randn, tiny
from torch.func import jacrev

from minipost.methods import a2c, reinforce, reinforce_pp, rloo, self_critical
from minipost.optim import Learner
from minipost.rollout import logprobs
from minipost.run import Run

# ---- a policy that is a table

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


# ---- whole steps against their formulas

METHODS = {
    "reinforce": (reinforce, dict(momentum=0.75)), "self_critical": (self_critical, {}),
    "rloo": (rloo, dict(beta=0.2)),
    "reinforce_pp": (reinforce_pp, dict(beta=0.2, minibatch_size=32)),
    "a2c": (a2c, dict(gamma=0.9, lam=0.8, entropy_weight=0.1, value_weight=0.5)),
}


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
    metrics = {"loss": objective, "reward": reward.mean(), "grad_norm": run.policy.grad.norm(),
               "entropy": -rollout.logp[chosen].mean()}
    metrics |= {
        "reinforce": {"baseline": torch.tensor(0.3)}, "self_critical": {"baseline": best.mean()},
        "rloo": {"kl": gap.mean()}, "reinforce_pp": {"kl": gap.mean()},
        "a2c": {"value_loss": error},
    }[name]
    gradients = {key: learner.grad.clone() for key, learner in run.learners.items()}
    return gradients, {key: float(x.detach()) for key, x in metrics.items()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_step_descends_the_formula(name, seed):
    """Ragged answers in micro-batches of 3 at tau 0.8: the gradients and the metrics."""
    module, knobs = METHODS[name]
    gradients, wanted = formula(name, apart(seed))
    run = apart(seed)
    run.micro_batch_size = 3
    seen = {key: watch(learner) for key, learner in run.learners.items()}
    metrics = next(module.train(run, module.Config(**SIZE, **knobs, temperature=TAU)))
    assert [len(seen[key]) for key in ("policy", "critic")] == [1, int(name == "a2c")]
    for key in seen:
        if seen[key]:
            assert gradients[key].norm() > 1e-3
            assert torch.allclose(seen[key][0], gradients[key], atol=2e-6), key
    assert {key: metrics[key] for key in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-5)


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
    run = apart(0)
    run.reward = lambda prompts, completions, **columns: [0.5] * len(completions)
    run.carried["baseline"] = 0.5
    run.learners["critic"].flat.zero_()
    knobs = {**knobs, **({"beta": 0.0} if "beta" in knobs else {}),
             **({"entropy_weight": 0.0, "gamma": 1.0, "lam": 1.0} if name == "a2c" else {})}
    before = run.policy.flat.clone()
    metrics = next(module.train(run, module.Config(**SIZE, **knobs)))
    assert torch.equal(run.policy.flat, before) and metrics["grad_norm"] == 0.0
    assert all(math.isfinite(value) for value in metrics.values())
