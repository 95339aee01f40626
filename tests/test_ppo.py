"""PPO and RLHF whole: the loss by hand, what each token earns, the stages."""

import copy

import pytest
import torch
from fakes import RLHF, Echo, Hidden, drive, given_model, length, sequences, tiny, toy, valuer
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

from minipost.methods import ppo
from minipost.ops import kl_exact
from minipost.rollout import distribution, logprobs
from minipost.run import Run

seeds = st.integers(0, 10_000)
OPTIONS = dict(clip=0.2, value_clip=0.2, count=7)


# ---- the loss

def arguments(seed, shape=(3, 4)):
    """Random arguments of the loss, none nearer to a kink than 0.01, so that derivatives exist.

    The ratio has kinks at 0.8 and 1.2.  The value has them 0.2 from the old one, and where the held
    value is as far from the return: for steps of 0.3 and 0.5 at returns 0.25 and 0.35 from the old.
    """
    generator = torch.Generator().manual_seed(seed)

    def one_of(*values):
        signed = torch.tensor([0.0, *values, *(-v for v in values)], dtype=torch.float64)
        return signed[torch.randint(len(signed), shape, generator=generator)]

    old = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    value, adv = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    value_old = value - one_of(0.1, 0.15, 0.3, 0.5)
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[0, 0] = True
    return {"logp": old + one_of(0.1, 0.3, 0.6), "value": value, "logp_old": old,
            "value_old": value_old, "adv": adv, "ret": value_old + one_of(0.1, 0.3, 0.6, 1.0),
            "mask": mask}


def test_what_stands_off_the_mask_has_no_part():
    given_ = arguments(3)
    mask = given_["mask"]
    leaves = [given_[key].clone().requires_grad_() for key in ("logp", "value")]
    value, stats = ppo.loss(**{**given_, "logp": leaves[0], "value": leaves[1]}, **OPTIONS)
    expected = [g[mask] for g in torch.autograd.grad(value, leaves)]
    assert all(g.abs().sum() > 0.1 for g in expected)
    for key in set(given_) - {"mask"}:
        spoilt = {**given_, "logp": leaves[0], "value": leaves[1]}
        spoilt[key] = spoilt[key].where(mask, float("nan"))
        again, stats_again = ppo.loss(**spoilt, **OPTIONS)
        assert torch.equal(again, value) and stats_again == stats, key
        for found, g in zip(torch.autograd.grad(again, leaves), expected):
            assert torch.equal(found[mask], g), key


def test_micro_batches_change_neither_gradient():
    """Ragged rows cut 6, 3+3, 1+5 and 1 by 1, through a policy and a critic."""
    policy, critic, seqs = tiny(), valuer(), sequences(6, seed=4)
    noise = torch.randn(4, *seqs.mask.shape, generator=torch.Generator().manual_seed(0),
                        dtype=torch.float64)
    with torch.no_grad():
        logp_old = logprobs(policy, seqs) + 0.15 * noise[0]
        value_old = critic(seqs.inputs) + 0.3 * noise[1]
    ret, count = value_old + noise[3], int(seqs.mask.sum())

    def gradient(cut):
        policy.zero_grad()
        critic.zero_grad()
        for rows in cut:
            part = seqs[rows]
            old, value, adv, to = (x[rows, : part.mask.shape[1]]
                                   for x in (logp_old, value_old, noise[2], ret))
            ppo.loss(logprobs(policy, part), critic(part.inputs), old, value, adv, to, part.mask,
                     clip=0.2, value_clip=0.2, count=count)[0].backward()
        return [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (policy, critic)]

    whole = gradient([list(range(6))])
    assert all(g.norm() > 1e-2 for g in whole)
    for cut in ([[0, 1, 2], [3, 4, 5]], [[5], [0, 1, 2, 3, 4]], [[i] for i in (3, 1, 0, 5, 4, 2)]):
        for found, g in zip(gradient(cut), whole):
            assert torch.allclose(found, g, atol=1e-12)


def policy_loss(logp, logp_old, adv, clip=0.2):
    """The policy's loss of each token, the critic's being zero.  (N,) three times -> (N,)"""
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    rows = zip(*(x.view(-1, 1, 1) for x in (logp, logp_old, adv)))
    return torch.stack([ppo.loss(new, zero, old, zero, a, zero, one, clip=clip, value_clip=0.2,
                                 count=1)[0] for new, old, a in rows])


@given(seeds)
def test_the_policy_part_is_pessimistic_importance_sampling(seed):
    """-min(rho A, clip(rho) A): never below -rho A, and just that where the clip is far away."""
    logp, old, adv = (arguments(seed)[key].flatten() for key in ("logp", "logp_old", "adv"))
    sampled = -(logp - old).exp() * adv
    found, free = policy_loss(logp, old, adv), policy_loss(logp, old, adv, clip=1e9)
    assert (found >= sampled - 1e-12).all() and torch.allclose(free, sampled, atol=1e-12)
    by_hand = [-min(r * a, min(1.2, max(0.8, r)) * a)
               for r, a in zip((logp - old).exp().tolist(), adv.tolist())]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-12)


@given(seeds)
def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient(seed):
    given_ = arguments(seed)
    given_["logp_old"] = given_["logp"]
    for clip in (0.0, 0.2, 5.0):
        found = ppo.loss_grad(**given_, **{**OPTIONS, "clip": clip})["logp"]
        assert torch.equal(found, -given_["adv"] * given_["mask"] / 7)


@given(seeds)
def test_where_the_clip_is_active_there_is_no_gradient(seed):
    given_ = arguments(seed)
    ratio, adv = (given_["logp"] - given_["logp_old"]).exp(), given_["adv"]
    clipped = ((ratio > 1.2) & (adv > 0)) | ((ratio < 0.8) & (adv < 0))
    found = jacrev(lambda x: ppo.loss(**{**given_, "logp": x}, **OPTIONS)[0])(given_["logp"])
    assert torch.equal(found != 0, given_["mask"] & ~clipped)
    _, stats = ppo.loss(**given_, **OPTIONS)
    assert float(stats["clip_ratio"]) == pytest.approx(int((clipped & given_["mask"]).sum()) / 7)


@given(seeds)
def test_a_held_value_costs_no_less_and_inside_the_clip_the_same(seed):
    """Half the squared error, token by token; and far from the old value it pulls only back."""
    given_ = arguments(seed, shape=(1, 1))
    given_.update(mask=torch.ones(1, 1, dtype=torch.bool), adv=torch.zeros(1, 1))
    value, old, ret = (float(given_[key]) for key in ("value", "value_old", "ret"))
    plain, held = (value - ret) ** 2 / 2, (max(old - 0.2, min(old + 0.2, value)) - ret) ** 2 / 2
    found, stats = ppo.loss(**given_, clip=0.2, value_clip=0.2, count=1)
    assert float(found) == pytest.approx(max(plain, held), abs=1e-12)
    assert float(found) >= plain - 1e-12 and stats["value_loss"] == found
    if abs(value - old) <= 0.2:
        assert float(found) == pytest.approx(plain, abs=1e-12)
    pull = float(ppo.loss_grad(**given_, clip=0.2, value_clip=0.2, count=1)["value"])
    assert pull == pytest.approx(value - ret, abs=1e-12) or (abs(value - old) > 0.2 and pull == 0
                                                             and held > plain)


# ---- what a token earns, and what that is worth

@given(seeds, st.floats(0, 2))
def test_token_rewards(seed, beta):
    """The score on the last real token of ragged rows, the price of KL on each, else nothing."""
    seqs = sequences(5, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    logp, ref = torch.randn(2, *seqs.mask.shape, generator=generator, dtype=torch.float64)
    score = torch.randn(5, generator=generator, dtype=torch.float64)
    found = ppo.token_rewards(score, logp, ref, seqs.mask, beta)
    assert not found[~seqs.mask].any()
    for row in range(5):
        places = seqs.mask[row].nonzero()[:, 0].tolist()
        charge = [-beta * float(logp[row, t] - ref[row, t]) for t in places]
        expected = [*charge[:-1], charge[-1] + float(score[row])]
        assert found[row, places].tolist() == pytest.approx(expected, abs=1e-12)
    total = score - beta * ((logp - ref) * seqs.mask).sum(1)
    assert torch.allclose(found.sum(1), total, atol=1e-12)


@given(st.floats(0.01, 1), st.floats(0, 50), st.integers(1, 500), st.floats(0.5, 10))
def test_an_adaptive_beta_steers_to_its_target(beta, kl, answers, target):
    """It stays at the target, rises above it, falls below it, and never by more than a fifth."""
    cfg = ppo.Config(kl_target=target, horizon=1000)
    assert ppo.adapted(beta, target, answers, cfg) == beta
    change = ppo.adapted(beta, kl, answers, cfg) / beta - 1
    assert change * (kl - target) >= 0
    assert abs(change) <= 0.2 * answers / 1000 + 1e-12
    assert ppo.adapted(beta, 1.5 * target, answers, cfg) == pytest.approx(
        beta * (1 + 0.2 * answers / 1000))
    assert ppo.adapted(beta, 0.9 * target, answers, cfg) == pytest.approx(
        beta * (1 - 0.1 * answers / 1000))


def test_a_step_learns_from_what_the_docstring_says(spy):
    """Rewards, advantages, returns and whitening of one step, each anew in plain Python.

    The reference and the critic are other networks, so that neither KL nor value is zero.
    """
    run = toy(micro_batch_size=50)
    run.reward = length
    reference = run.frozen("reference", lambda: tiny(seed=1))
    critic = copy.deepcopy(run.learner("critic", valuer).module)
    samples, losses = spy(Run, "sample"), spy(ppo, "loss")
    cfg = ppo.Config(prompts=12, minibatch_size=12, epochs=1, temperature=0.7, gamma=0.9, lam=0.8,
                     beta=0.3, missing_eos=0.5, clip=0.1, value_clip=0.4)
    policy = copy.deepcopy(run.policy.module)
    metrics = next(ppo.optimise(run, cfg))
    (_, rollout), = samples
    (found, _), = losses
    assert (found["clip"], found["value_clip"]) == (0.1, 0.4)
    rows, = run.micro_batches(range(12), rollout)
    score = run.grade(run.problems(12), rollout).tolist()
    assert 2 < rollout.finished.sum() < 10 and len(set(score)) > 2
    with torch.no_grad():
        logp_ref, value = logprobs(reference, rollout, 0.7), critic(rollout.inputs)
        kl = kl_exact(distribution(policy, rollout, 0.7), distribution(reference, rollout, 0.7))

    advs, rets, values = [], [], []
    for k, row in enumerate(rows):
        places = rollout.mask[row].nonzero()[:, 0].tolist()
        v = [float(value[row, t]) for t in places] + [0.0]
        r = [-0.3 * float(rollout.logp[row, t] - logp_ref[row, t]) for t in places]
        r[-1] += score[row] - 0.5 * (not rollout.finished[row])
        delta = [r[t] + 0.9 * v[t + 1] - v[t] for t in range(len(places))]
        adv = [sum((0.9 * 0.8) ** (j - t) * delta[j] for j in range(t, len(places)))
               for t in range(len(places))]
        ret = [a + b for a, b in zip(adv, v)]
        assert found["ret"][k, places].tolist() == pytest.approx(ret, abs=1e-6)
        assert found["value_old"][k, places].tolist() == pytest.approx(v[:-1], abs=1e-9)
        advs, rets, values = advs + adv, rets + ret, values + v[:-1]

    advs, rets, values = (torch.tensor(x, dtype=torch.float64) for x in (advs, rets, values))
    whitened = found["adv"][found["mask"]]
    assert float(whitened.mean()) == pytest.approx(0, abs=1e-12)
    assert float(whitened.square().mean()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(whitened, (advs - advs.mean()) / advs.std(correction=0), atol=1e-5)
    assert advs.mean().abs() > 0.02 and rets.mean().abs() > 0.02    # and the returns never are

    assert metrics["kl"] == pytest.approx(float(kl.mean()), rel=1e-6)
    assert metrics["kl_per_answer"] == pytest.approx(float(kl.sum()) / 12, rel=1e-6)
    assert metrics["reward"] == pytest.approx(sum(score) / 12, rel=1e-6)
    assert metrics["explained_variance"] == pytest.approx(
        float(1 - (rets - values).var() / rets.var()), abs=1e-5)
    assert metrics["beta"] == 0.3 and metrics["clip_ratio"] == 0.0 and "gold" not in metrics


def test_cutting_a_rollout_up_keeps_what_belongs_together(spy):
    """Every answer comes once per epoch with its own numbers; `count` is its gradient step's."""
    table, steps = {}, []
    for micro, size, epochs in ((50, 12, 1), (2, 5, 2)):
        run, calls, rows, tokens = toy(micro_batch_size=micro), spy(ppo, "loss"), 0, 0
        run.reward = length
        run.frozen("reference", lambda: tiny(seed=1))
        run.learner("critic", valuer)
        next(ppo.optimise(run, ppo.Config(prompts=12, minibatch_size=size, epochs=epochs, lr=0.0,
                                          critic_lr=0.0)))
        for found, _ in calls:
            for row, mask in enumerate(found["mask"]):
                numbers = [found[name][row, mask].detach().tolist()
                           for name in ("adv", "ret", "value_old", "value")]
                first = table.setdefault(tuple(found["logp_old"][row, mask].tolist()), numbers)
                assert all(a == pytest.approx(b, abs=1e-9) for a, b in zip(numbers, first))
            rows, tokens = rows + len(found["mask"]), tokens + int(found["mask"].sum())
            if tokens == found["count"]:                    # a gradient step is complete
                steps.append(found["count"])
                tokens = 0
        assert rows == 12 * epochs and tokens == 0
    assert len(steps) == 1 + 2 * 3 and sum(steps) == 3 * steps[0] and len(table) > 6


def test_an_answer_that_was_cut_off_pays_for_it(spy):
    """The same rollout with and without the penalty: only unfinished answers score less."""
    calls, samples = spy(ppo, "token_rewards"), spy(Run, "sample")
    for penalty in (0.0, 0.75):
        metrics = next(ppo.optimise(toy(), ppo.Config(prompts=12, missing_eos=penalty)))
        assert metrics["completions/clipped_ratio"] == pytest.approx(
            float((~samples[0][1].finished).double().mean()))
    (free, _), (charged, _) = calls
    cut = ~samples[0][1].finished
    assert torch.equal(samples[0][1].tokens, samples[1][1].tokens) and 0 < cut.sum() < 12
    assert torch.allclose(charged["score"], free["score"] - 0.75 * cut)


def test_the_price_of_kl_is_the_beta_of_its_step(spy):
    """An adaptive beta that has moved is what the next rollout pays, and a fixed one stays.

    The target is near enough to the KL per answer that no bound hides by which KL beta moves.
    """
    target = 0.0
    for control in ("fixed", "adaptive", "fixed"):
        run, calls = toy(), spy(ppo, "token_rewards")
        run.frozen("reference", lambda: tiny(seed=1))
        cfg = ppo.Config(prompts=6, minibatch_size=6, control=control, horizon=30,
                         kl_target=target or 1.0)
        found, beta = drive(run, ppo.optimise(run, cfg), 3), cfg.beta
        target = found[0]["kl_per_answer"] / 1.15
        for (given_, _), metrics in zip(calls, found, strict=True):
            assert given_["beta"] == metrics["beta"] == pytest.approx(beta)
            if control == "adaptive":
                beta = ppo.adapted(beta, metrics["kl_per_answer"], 6, cfg)
        assert run.carried["beta"] == pytest.approx(beta)
        assert (beta > 1.02 * cfg.beta) == (control == "adaptive")


def test_values_are_held_near_those_of_the_rollout_whatever_was_learnt_since(spy):
    """In a second pass over it the critic has moved, and what its clip is measured from has not."""
    run, calls, first = toy(), spy(ppo, "loss"), {}
    run.learner("critic", valuer)
    next(ppo.optimise(run, ppo.Config(prompts=12, minibatch_size=6, epochs=2, critic_lr=0.05)))
    moved = []
    for found, _ in calls:
        for row, mask in enumerate(found["mask"]):
            old, new = (found[name][row, mask].tolist() for name in ("value_old", "value"))
            key = tuple(found["logp_old"][row, mask].tolist())
            assert old == first.setdefault(key, old)
            moved.append(abs(old[0] - new[0]))
    assert len(first) > 6 and max(moved) > 0.05


# ---- RLHF whole

def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_stages_of_rlhf(monkeypatch):
    """Fine-tuning, then a reward model with the policy at rest, then PPO with that at rest."""
    run, entered = toy(Hidden()), []
    real = ppo.optimise

    def optimise(run, cfg, first):
        policy = run.policy
        entered.append((policy.m.any() or policy.v.any(), policy.updates))
        yield from real(run, cfg, first)

    monkeypatch.setattr(ppo, "optimise", optimise)
    assert ppo.total(run, RLHF) == 6 and ppo.total(toy(), RLHF) == 2
    learn, policy, metrics = ppo.train(run, RLHF), [run.policy.flat.clone()], []
    scorer, frozen = [], []
    for k in range(6):
        metrics += drive(run, learn, 1)
        policy.append(run.policy.flat.clone())
        scorer.append(run.learners["reward model"].flat.clone() if k > 1 else None)
        part = run.parts.get("frozen/reward model")
        frozen.append(part and {key: x.clone() for key, x in part.module.state_dict().items()})
        assert ("critic" in run.learners) == ("frozen/reference" in run.parts) == (k > 3)
        assert (run.reward_model is not None) == (k > 3)

    sft_keys, reward_keys = {"loss", "grad_norm", "learning_rate"}, {"accuracy", "margin", "pairs"}
    for k, found in enumerate(metrics):
        assert (set(found) == sft_keys) == (k < 2)
        assert (reward_keys <= set(found)) == (k in (2, 3))
        assert ({"reward", "gold", "beta", "value_loss"} <= set(found)) == (k > 3)
    moved = [not torch.equal(a, b) for a, b in zip(policy, policy[1:])]
    assert moved == [True, True, False, False, True, True]

    # PPO starts from the fine-tuned policy, which is the reference, and with a fresh Adam.
    tuned = toy()
    tuned.policy.assign(policy[4])
    assert torch.equal(weights(run.parts["frozen/reference"].module), weights(tuned.policy.module))
    assert entered == [(False, 0)] and run.policy.updates == 2 * 2 * 2

    # The reward model learns in its own stage only, and is asked as it then was, but normalised.
    assert not torch.equal(scorer[2], scorer[3])
    assert torch.equal(scorer[3], scorer[4]) and torch.equal(scorer[3], scorer[5])
    assert run.reward_model is run.parts["frozen/reward model"].module
    assert not any(p.requires_grad for p in run.reward_model.parameters())
    assert frozen[4].keys() == frozen[5].keys()
    assert all(torch.equal(frozen[4][key], frozen[5][key]) for key in frozen[4])
    learnt = run.learners["reward model"].module
    assert torch.equal(weights(learnt), weights(run.reward_model))
    assert learnt.mean == 0 and learnt.deviation == 1 != run.reward_model.deviation
    run.step = 4                                            # the samples that normalised it
    rollout = run.sample(run.problems(128, again=1), 2, temperature=1.0, purpose="normalise",
                         module=run.reference())
    raw, score = (run.final_scores(m, rollout) for m in (learnt, run.reward_model))
    assert raw.std() > 1e-4 and torch.allclose(score, (raw - raw.mean()) / raw.std())
    # What PPO calls the reward is this score, and gold is what nobody sees.
    rollout = run.sample(run.problems(8), 1, temperature=1.0, module=run.reference())
    assert metrics[4]["reward"] == pytest.approx(
        float(run.final_scores(run.reward_model, rollout).mean()), rel=1e-5)
    assert metrics[4]["gold"] == pytest.approx(
        float(run.grade(run.problems(8), rollout).mean()), rel=1e-5)


def test_the_hidden_reward_never_reaches_ppo(monkeypatch):
    """Whatever it says while PPO learns, the same weights come out; while pairs are labelled,
    another ordering makes others."""
    real, finals, gold = Run.grade, [], []
    for garbage in ((), (4, 5), (2, 3)):
        def grade(run, problems, rollout, none=False):
            found = real(run, problems, rollout)
            return found.flip(0) * 7 - 100 if run.step in garbage else found

        monkeypatch.setattr(Run, "grade", grade)
        run = toy(Hidden())
        gold.append(drive(run, ppo.train(run, RLHF), 6)[-1]["gold"])
        finals.append(run.state()[0])
    honest, in_ppo, in_labels = finals
    assert gold[0] >= 0 and gold[1] < -50
    assert all(torch.equal(honest[key], in_ppo[key]) for key in honest)
    for name in ("policy", "reward model", "critic"):
        assert not torch.equal(honest[f"learner/{name}/weights"],
                               in_labels[f"learner/{name}/weights"])


# ---- exact resume

@pytest.mark.parametrize("task", [Echo, Hidden])
def test_a_given_score_is_what_ppo_learns_from_at_once(spy, task):
    """Without the other stages; what the task's reward says is measured beside it."""
    run, samples, cfg = toy(task()), spy(Run, "sample"), ppo.Config(steps=3, prompts=8)
    given_model(run)
    assert ppo.total(run, cfg) == 3
    metrics, rollout = next(ppo.train(run, cfg)), samples[-1][1]
    score, gold = run.final_scores(run.reward_model, rollout), run.grade(run.problems(8), rollout)
    assert metrics["reward"] == pytest.approx(float(score.mean()), rel=1e-6)
    assert metrics["gold"] == pytest.approx(float(gold.mean()), rel=1e-6) != metrics["reward"]
