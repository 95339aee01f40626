"""The oracle and the proofs: right in worlds that can be counted by hand, and blind to no planted
fault."""

import copy
import json

import pytest
import torch

from minipost import methods, ops, prove
from minipost.errors import MinipostError
from minipost.methods import dpo, oreo, ppo, rloo, trpo
from minipost.optim import Learner
from minipost.proof import estimates, identities, optima, oracle
from minipost.proof.estimates import all_stated, dealer, enumerate_step, gradient_of, split
from minipost.proof.exact import BETA
from minipost.proof.oracle import World, divergence, mean_reward, optimum, regularised, relative

BY_NAME = {estimate.name: estimate for estimate in all_stated(methods.names())}


@pytest.fixture(scope="module")
def world():
    return World(4, 2)


# ---- the world

@pytest.mark.parametrize("vocab, horizon, count", [(4, 1, 4), (4, 2, 13), (4, 3, 40), (5, 2, 21)])
def test_every_answer_is_there_once(vocab, horizon, count):
    """Words and EOS up to the horizon: ((V-1)^(T+1) - 1) / (V-2) of them."""
    world = World(vocab, horizon)
    answers = {tuple(row[mask].tolist()) for row, mask in zip(world.seqs.targets, world.seqs.mask)}
    assert world.count == count == len(answers) == ((vocab - 1) ** (horizon + 1) - 1) // (vocab - 2)
    assert all(len(ids) == horizon or ids[-1] == oracle.EOS for ids in answers)
    assert len(set(world.texts)) == count                   # so a text tells its answer
    for text, ids in zip(world.texts, world.seqs.targets.tolist()):
        if len(text) < horizon:
            assert world.words.response(text) == ids[1 : 1 + len(text) + 1]


@pytest.mark.parametrize("vocab, horizon", [(3, 2), (9, 2), (4, 0), (4, 6)])
def test_a_world_out_of_bounds_is_refused(vocab, horizon):
    with pytest.raises(MinipostError, match="expected"):
        World(vocab, horizon)


@pytest.mark.parametrize("seed", range(3))
def test_the_oracle_agrees_with_itself(seed):
    found = identities.identities(World(4, 2, seed), BETA)
    assert len(found) == 11 and all(row["holds"] for row in found), found


@pytest.mark.parametrize("owner, name, fault, hit", [
    (ops, "kl_exact", lambda p, q: (q.exp() * (q - p)).sum(-1), "KL(pi || ref)"),
    (identities.trpo, "product_jacobian",
     lambda *a: 1.01 * trpo.product_hessian(*a), "forward and reverse mode"),
    (World, "soft_values", lambda self, beta: 0.9 * self.with_reward(self.reward).given(
        torch.ones(26, dtype=torch.float64), self.reward.flatten()), "V* by induction"),
])
def test_a_fault_breaks_the_statement_that_is_about_it(world, monkeypatch, owner, name, fault, hit):
    monkeypatch.setattr(owner, name, fault)
    failed = [row["name"] for row in identities.identities(world, BETA) if not row["holds"]]
    assert any(hit in name for name in failed) and len(failed) < 4, failed


def test_soft_values_are_those_of_every_state(world):
    """beta log of the mean of exp(r / beta) over the answers of ref that go on from the state."""
    chance = world.log_chance(world.reference).detach().exp().flatten()
    mean = world.given(chance, (world.reward / BETA).exp().flatten())
    assert torch.allclose(world.soft_values(BETA)[world.seqs.mask],
                          BETA * mean.log()[world.seqs.mask])


def test_the_best_policy_has_the_most(world):
    """Ten others have less of E r - beta KL(pi || ref)."""
    log_ref = world.log_chance(world.reference).detach()
    best, top = optimum(log_ref, world.reward, BETA)
    assert torch.allclose(best.exp().sum(1), torch.ones(2).double())
    for seed in range(10):
        noise = torch.randn(best.shape, generator=torch.Generator().manual_seed(seed)).double()
        other = (best + 0.3 * noise).log_softmax(1)
        assert regularised(other, log_ref, world.reward, BETA) < top.mean() - 1e-3
        assert divergence(other, best) > 0


def test_a_high_price_keeps_the_best_policy_at_the_reference_and_a_low_one_makes_it_greedy(world):
    """With V* going from the reference's expected reward to the highest reward."""
    log_ref = world.log_chance(world.reference).detach()
    first = torch.stack([world.seqs.mask[row].int().argmax() for row in (0, world.count)])

    def roots(beta):
        return world.soft_values(beta)[[0, world.count], first]

    free, dear = (optimum(log_ref, world.reward, beta) for beta in (1e-4, 1e6))
    assert torch.allclose(dear[0], log_ref, atol=1e-5)
    expected = (log_ref.exp() * world.reward).sum(1)
    assert torch.allclose(dear[1], expected, atol=1e-5)
    assert torch.allclose(roots(1e6), expected, atol=1e-5)
    assert torch.allclose(free[0].exp().amax(1), torch.ones(2).double())
    assert torch.equal(free[0].argmax(1), world.reward.argmax(1))
    for found in (free[1], roots(1e-4)):
        assert torch.allclose(found, world.reward.amax(1), atol=1e-2)


def test_the_slope_is_in_the_order_of_a_learners_vector(world):
    """So that it can be compared with what a learner collects."""
    learner = Learner(copy.deepcopy(world.policy))
    mean_reward(world.log_chance(learner.module), world.reward).backward()
    expected = world.slope(world.policy, mean_reward(world.log_chance(world.policy), world.reward))
    assert relative(learner.grad, expected) < 1e-12


# ---- the steps

@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_measured_or_says_whose_steps_it_takes(name):
    """A method without a PROOF fails with the sentence that says where it goes."""
    assert bool(estimates.stated(name)) != (name in estimates.inherits(methods.names()))


@pytest.mark.parametrize("name", methods.names())
def test_every_method_that_pays_for_kl_is_held_against_the_best_policy(name):
    pays = {"beta", "tau"} & set(methods.load(name).Config.__annotations__)
    pays = bool(pays) and name not in (                     # whose betas are no price of KL
        "simpo", "prime", *estimates.inherits(methods.names()))
    stationary = [case.name for case in optima.AT_OPTIMUM]
    for where, cases in (("LEADS", optima.LEADS), ("AT_OPTIMUM", stationary)):
        held = name in {estimates.method_of(case) for case in cases}
        assert held == pays, f"{name} pays for KL: minipost/proof/optima.py wants a case in {where}"


@pytest.mark.parametrize("name", BY_NAME)
def test_the_mean_step_is_what_it_is_proved_to_be(name, world):
    estimate, run = BY_NAME[name], dealer(world)
    mean = enumerate_step(estimate, run)
    gradient = gradient_of(estimate, run)
    assert mean.chance == pytest.approx(1, abs=1e-12) and gradient.norm() > 1e-3
    if estimate.factor is None:
        assert relative(mean.whole, gradient) > 1e-3        # else it should be proved
    else:
        assert relative(mean.whole, estimate.factor * gradient) < estimates.EXACT


@pytest.mark.parametrize("name, owner, part, fault", [
    ("rloo", rloo, "leave_one_out", lambda r, group: ops.group_centred(r, group).flatten()),
    ("trpo", ops, "group_centred", lambda r, group: r.view(-1, group) / (r.std() + 1e-4)),
    ("dr-grpo", ops, "clipped_surrogate", lambda logp, old, adv, low, high: logp.exp() * adv),
    ("dpo", dpo, "lead", lambda *a, real=dpo.lead: -real(*a)),
    ("dpo", dpo, "row_sums", lambda x, mask: x.where(mask, 0.0).sum(1) / mask.sum(1)),
    ("oreo", oreo, "readings", lambda *a, real=oreo.readings, **how: (
        lambda found: found._replace(kl=2 * found.kl))(real(*a, **how))),
])
def test_a_fault_in_a_method_is_seen_in_its_mean_step(name, owner, part, fault, world, monkeypatch):
    """A baseline that is not independent, a ratio to nothing, a sign, a length, a KL that
    counts twice."""
    estimate, run = BY_NAME[name], dealer(world)
    gradient = gradient_of(estimate, run)
    monkeypatch.setattr(owner, part, fault)
    assert relative(enumerate_step(estimate, run).whole, estimate.factor * gradient) > 1e-3


def test_a_hand_of_the_wrong_size_is_refused(world):
    run = dealer(world)
    run.deal_hand(0, [1, 2, 3])
    with pytest.raises(MinipostError, match="3 answers in the hand; the step asks for 2"):
        estimates.stepper(BY_NAME["rloo"], run)()


def test_what_is_dealt_has_its_chance_under_whom_is_asked(world):
    run, rows = dealer(world), [3, 7]
    for module in (world.policy, world.reference):
        run.deal_hand(1, rows)
        rollout = run.sample(run.problems(1), 2, temperature=1.0, module=module)
        expected = world.log_chance(module)[1, rows].detach()
        assert torch.allclose(rollout.logp.sum(1), expected)
        assert run.log_chance == pytest.approx(float(expected.sum()))
        assert run.texts(rollout) == [world.texts[row] for row in rows]
        assert run.grade(run.problems(1), rollout).tolist() == world.reward[1, rows].tolist()


def test_sampled_steps_agree_with_the_mean_and_another_mean_is_noticed(world):
    estimate, run = BY_NAME["rloo"], dealer(world)
    mean, gradient = enumerate_step(estimate, run), gradient_of(estimate, run)
    assert estimates.against_samples(estimate, run, mean.step, gradient, 60)["z"] < estimates.SURE
    wrong = estimates.against_samples(estimate, run, -mean.step, gradient, 60)
    assert wrong["z"] > estimates.SURE


def test_division_by_a_rollouts_own_tokens_by_listing_two_answers(world):
    """E[ sum A g / N ] over pairs of answers to prompts of their own, beside the convolution."""
    chance = world.log_chance(world.policy).detach().exp().flatten() / 2
    adv, n = world.reward.flatten() - estimates.BASELINE, world.seqs.lengths
    share = (chance / (n[:, None] + n)).sum(1)              # E[1 / (|y| + the other's)]
    log_p = world.log_chance(world.policy).flatten()
    gradient = world.slope(world.policy, (chance * adv * log_p).sum())
    log_p = world.log_chance(world.policy).flatten()
    expected = split(world.slope(world.policy, (chance * adv * share * log_p).sum()), gradient)[1]
    found = estimates.by_size(world, (2, 64))
    assert found[0]["off"] == pytest.approx(expected) and found[1]["off"] < expected / 10


def test_a_clip_and_its_absence_aim_at_different_places(world):
    found = estimates.clipped(BY_NAME["dr-grpo"], world)
    assert found["kl"] > 0.01 and abs(found["off"] - found["off_free"]) > 1e-3
    free = estimates.clipped(BY_NAME["trpo"], world)
    assert free["off"] == free["off_free"]


# ---- the optimum

@pytest.mark.parametrize("case", optima.AT_OPTIMUM, ids=lambda case: case.name)
def test_at_the_optimum_a_step_is_zero_where_it_is_proved_to_be(case, world):
    found = optima.at_optimum(case, world)
    assert found["holds"]
    assert bool(case.zero) or found["mean"] > 1e-3          # else it should be proved


def test_another_price_of_kl_makes_it_move(world):
    case = optima.Stationary("rloo", dict(prompts=1, group_size=2, beta=2 * BETA), 2, "every step",
                             "")
    assert not optima.at_optimum(case, world)["holds"]


@pytest.mark.parametrize("name", ["rloo", "ppo", "dpo", "ipo", "oreo, by token, alpha 0"])
def test_the_mean_step_leads_to_the_optimum(name):
    found = optima.lead(name, World(4, 1), steps=300)
    assert found["holds"] and found["own"] < optima.NEAR
    assert (found["left"] == found["own"]) == (name != "ipo")


def test_a_mean_step_that_pays_another_price_leads_elsewhere(monkeypatch):
    monkeypatch.setattr(ppo, "token_rewards", lambda score, logp, ref, mask, beta: ops.at_last(
        score, mask) - 2 * beta * (logp - ref) * mask)
    assert not optima.lead("ppo", World(4, 1), steps=300)["holds"]


@pytest.mark.parametrize("name", ["rloo", "grpo", "grpo --kl k3", "process-grpo", "dpo", "ipo",
                                  "mdpo", "reinforce-pp"])
def test_what_is_followed_is_the_mean_of_the_methods_own_step(name, world, monkeypatch):
    """Where rollouts of two suffice to see it: at the policy, along the gradient of the same
    mean."""
    ground = optima.Ground(world)
    policy = copy.deepcopy(world.policy)
    ground.look(policy)
    followed = world.slope(policy, optima.LEADS[name].field(ground, None))
    estimate, run = BY_NAME[name], dealer(world)
    labels = optima.LABELS if name in ("dpo", "ipo") else (None,)
    found = enumerate_step(estimate, run, labels).whole
    error = relative(followed, found)
    assert error < estimates.EXACT if name != "reinforce-pp" else error > 1e-3


# ---- the command

def run_it(capsys, tmp_path, *flags):
    code = prove.main(["--horizon", "1", "--samples", "20", "--workers", "1", "--out",
                       str(tmp_path / "new" / "prove.json"), *flags])
    return code, capsys.readouterr()


def test_tables_and_data(capsys, tmp_path):
    code, said = run_it(capsys, tmp_path, "--algo", "ipo")
    assert code == 0 and "1 x (" in said.out and "its own" in said.out
    assert "2 of 2 statements hold" in said.out
    facts = json.loads((tmp_path / "new" / "prove.json").read_text())
    assert {"estimates", "optimum", "leads"} < set(facts) and facts["horizon"] == 1
    code, said = run_it(capsys, tmp_path, "--algo", "ipo", "--json")
    again = json.loads(said.out)
    assert code == 0 and {**again, "seconds": 0} == {**facts, "seconds": 0}


def test_a_statement_that_fails_is_named_and_makes_the_exit_code_one(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(rloo, "leave_one_out", lambda r,
                        group: ops.group_centred(r, group).flatten())
    code, said = run_it(capsys, tmp_path, "--algo", "rloo")
    assert code == 1 and "FAILS" in said.out and "these fail: rloo" in said.out


@pytest.mark.parametrize("given, said", [
    (dict(factor=1.0), "rloo: the mean per answer is not 1 x the gradient"),
    (dict(factor=None, why="ranks"), "rloo: the mean step points against the gradient of J_b"),
])
def test_a_method_that_climbs_the_wrong_way_fails(given, said, capsys, tmp_path, monkeypatch):
    """With a factor and without; no "exact but for" is said of it."""
    monkeypatch.setattr(rloo, "PROOF", [{**rloo.PROOF[0], **given}])
    monkeypatch.setattr(rloo, "leave_one_out",
                        lambda *a, real=rloo.leave_one_out: -real(*a))
    code, shown = run_it(capsys, tmp_path, "--algo", "rloo")
    assert code == 1 and said in shown.out and "exact but" not in shown.out
    assert "these fail: rloo" in shown.out


def test_several_processes_find_the_same(capsys, tmp_path):
    found = []
    for workers in ("1", "2"):
        run_it(capsys, tmp_path, "--algo", "sft", "--workers", workers)
        found.append(json.loads((tmp_path / "new" / "prove.json").read_text()))
    assert {**found[0], "seconds": 0} == {**found[1], "seconds": 0}


def test_a_pipeline_says_whose_steps_it_takes(capsys, tmp_path):
    code, said = run_it(capsys, tmp_path, "--algo", "rlaif")
    assert code == 0 and "rlaif takes the steps of" in said.out


@pytest.mark.parametrize("flags, part", [
    (("--algo", "nope"), "no method 'nope'; there are a2c"), (("--vocab", "9"), "vocab is 9"),
    (("--samples", "1"), "samples is 1; expected 2 to 1000000"),
    (("--seed", "-1"), "seed is -1"), (("--workers", "65"), "workers is 65"),
    (("--algo", "dpo", "--vocab", "8", "--horizon", "3"), "rollouts of two"),
])
def test_bad_options_are_one_sentence(capsys, tmp_path, flags, part):
    code, said = run_it(capsys, tmp_path, *flags)
    assert code == 1 and part in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize("entry, said", [
    (dict(rows=8), "rows is 8; expected 1 or 2"), (dict(loss="minus_rewards"), "loss is 'minus_re"),
    (dict(devisor="rows"), "devisor"), (dict(factor=None), "has neither a factor"),
    (dict(factor=-0.5), "factor is -0.5; expected more than 0"),
])
def test_a_mistake_in_a_proof_names_the_methods_file(monkeypatch, entry, said):
    from minipost.methods import rloo

    monkeypatch.setattr(rloo, "PROOF", [{**rloo.PROOF[0], **entry}])
    with pytest.raises(MinipostError, match=rf"rloo\.py: PROOF: .*{said}"):
        estimates.stated("rloo")
