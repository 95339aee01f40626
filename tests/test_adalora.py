"""AdaLoRA: a budget of ranks, by brute force and in float64."""

import copy
import json

import pytest
import torch
from conftest import tiny_model
from fakes import Echo, Letters, sequences, tiny
from test_lora import theirs

import minipost
from minipost import checkpoint, train
from minipost.cli.defaults import for_adapters
from minipost.engine.adalora import B1, B2, BEGIN, END, GAMMA, Allocator, allowed, penalty_grad
from minipost.engine.lora import adapt, adapters, merged, off, trained
from minipost.errors import MinipostError
from minipost.gpt import ValueHead
from minipost.layout import lora_file
from minipost.methods import es, sft, trpo
from minipost.optim import Learner
from minipost.rollout import logprobs
from minipost.run import Run

SOME = ("q_proj", "v_proj", "up_proj", "o_proj")


def pruned(budget=2, rank=4, targets=(), model=None, learnt=True):
    """A model with adapters whose e are not 0."""
    model = adapt(tiny() if model is None else model, rank, targets=targets, budget=budget)
    generator = torch.Generator().manual_seed(7)
    for _, _, adapter in adapters(model) if learnt else ():
        adapter.e.data.copy_(0.3 * torch.randn(adapter.e.shape, generator=generator))
    return model


def descend(learner, seqs, steps, gone=lambda k: 0.0):
    for k in range(steps):
        learner.gone = lambda k=k: gone(k)
        logprobs(learner.module, seqs).sum().backward()
        learner.step(0.01)


def values(module):
    return torch.cat([adapter.e.detach() for _, _, adapter in adapters(module)])


# ---- the form

@pytest.mark.parametrize("targets", [(), SOME])
def test_what_is_added_is_a_sum_of_triplets(targets):
    """W + s sum_i e_i P_i Q_i, each by hand; the forward pass, and what is merged."""
    model, seqs = pruned(targets=targets), sequences(5)
    for name, linear, adapter in adapters(model):
        want, done, k = linear.weight.clone(), 0, 0
        for at, n, has in zip((0, *torch.tensor(adapter.rows).cumsum(0).tolist()), adapter.rows,
                              adapter.adapted):
            for i in range(4) if has else ():
                row = 4 * k + i
                want[at : at + n] += 2 * adapter.e[row] * torch.outer(
                    adapter.p[done : done + n, i], adapter.q[row])
            done, k = done + n * has, k + has
        found = merged(model).get_submodule(name.removesuffix(".adapter")).weight
        assert torch.allclose(found, want, atol=1e-12)
        assert not torch.allclose(found, linear.weight)
    assert torch.allclose(logprobs(merged(model), seqs), logprobs(model, seqs), atol=1e-12)


@pytest.mark.parametrize("targets", [(), SOME])
def test_all_three_parts_learn_by_the_derivative_by_hand(targets):
    model, seqs = pruned(targets=targets), sequences(6)
    by_hand = torch.autograd.grad(logprobs(model, seqs).sum(), trained(model))
    logits = model.head(model.hidden(seqs.inputs, explicit=True))
    logp = logits.log_softmax(-1).gather(2, seqs.targets[..., None])[..., 0]
    plain = torch.autograd.grad((logp * seqs.mask).sum(), trained(model))
    assert len(plain) == 3 * len(adapters(model))
    for ours, other in zip(by_hand, plain):
        assert other.abs().max() > 1e-3 and torch.allclose(ours, other, atol=1e-11)


def test_at_first_nothing_changes_and_the_vectors_are_orthonormal():
    plain, seqs = tiny(), sequences(5)
    model = pruned(model=copy.deepcopy(plain), learnt=False)
    assert torch.equal(logprobs(model, seqs), logprobs(plain, seqs))
    assert not adapters(off(copy.deepcopy(model))) and len(adapters(off(pruned()))) == 8
    for _, _, adapter in adapters(model):
        for _, of_p, of_q in adapter.parts():
            p, q = adapter.p[of_p], adapter.q[of_q]
            assert torch.allclose(p.t() @ p, torch.eye(4).double(), atol=1e-6)
            assert torch.allclose(q @ q.t(), torch.eye(4).double(), atol=1e-6)
    again = pruned(learnt=False)
    assert torch.equal(torch.cat([p.flatten() for p in trained(again)]),
                       torch.cat([p.flatten() for p in trained(model)]))


# ---- the penalty

def test_the_penalty_pulls_towards_right_angles_by_the_derivative_by_hand():
    model, seqs = pruned(), sequences(4)
    for p in trained(model):
        p.data.mul_(1.3)
    learner, total = Learner(model), 0
    for _, _, adapter in adapters(model):
        for _, of_p, of_q in adapter.parts():
            p, q = adapter.p[of_p], adapter.q[of_q]
            total = total + sum((x - torch.eye(4)).square().sum() for x in (p.t() @ p, q @ q.t()))
    want = torch.autograd.grad(logprobs(model, seqs).sum() + GAMMA * total, learner.params)
    logprobs(model, seqs).sum().backward()
    learner.allocator.weigh()
    assert torch.allclose(learner.grad, torch.cat([x.flatten() for x in want]), atol=1e-10)
    learner.clear()
    logprobs(model, seqs).sum().backward()
    assert learner.step(0.0) == pytest.approx(float(torch.cat([x.flatten() for x in want]).norm()))
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    r = sum((part @ part.t() - torch.eye(3)).square().sum() for part in x.split(3))
    assert torch.allclose(penalty_grad(x, 3), torch.autograd.grad(r, x)[0])


# ---- the schedule

def test_the_budget_is_whole_then_falls_by_a_cube_then_stays():
    assert BEGIN == 0.1 and END == 0.3
    assert [allowed(t, 160, 40) for t in (0, 0.05, 0.1)] == [160, 160, 160]
    for t in (0.2, 0.3, 0.4, 0.5, 0.65):
        assert allowed(t, 160, 40) == round(40 + 120 * ((0.7 - t) / 0.6) ** 3)
    assert allowed(0.4, 160, 40) == 55                      # half way: an eighth of 120 is left
    assert [allowed(t, 160, 40) for t in (0.7, 0.9, 1.0)] == [40, 40, 40]
    assert {allowed(t / 99, 70, 70) for t in range(100)} == {70}


def test_a_run_lowers_the_budget_step_by_step():
    task = Echo()
    run = Run(Learner(pruned(learnt=False)), Letters(), task, task.reward)
    run.total, seen = 20, []
    first = run.policy.allocator.first
    assert first == 4 * 14 and run.policy.allocator.last == 2 * 14
    for k, _ in enumerate(sft.train(run, sft.Config(steps=20, batch_size=4, lr=0.01))):
        seen.append(int((values(run.policy.module) != 0).sum()))
        run.step += 1
        if k == 19:
            break
    assert seen == [allowed((k + 1) / 20, first, 28) for k in range(20)]
    assert seen[0] == 56 and seen[-7:] == [28] * 7


# ---- importance

def test_importance_is_that_of_the_paper_by_loops():
    """Two moving averages of |w dL/dw| for every number, over three updates."""
    model, seqs = pruned(targets=SOME), sequences(4)
    learner, mean, spread = Learner(model), {}, {}
    for _ in range(3):
        logprobs(model, seqs).sum().backward()
        before = [p.detach().clone() for p in learner.params]
        noted = []
        weigh = Allocator.weigh
        learner.allocator.weigh = lambda: (weigh(learner.allocator), noted.extend(
            p.grad.clone() for p in learner.params))
        learner.step(0.01)
        for k, (w, g) in enumerate(zip(before, noted, strict=True)):
            for n, (x, slope) in enumerate(zip(w.flatten().tolist(), g.flatten().tolist())):
                now, old, far = abs(x * slope), mean.get((k, n), 0.0), spread.get((k, n), 0.0)
                mean[k, n] = B1 * old + (1 - B1) * now
                spread[k, n] = B2 * far + (1 - B2) * abs(now - mean[k, n])
    at, want = {p: k for k, p in enumerate(learner.params)}, []

    def s(p, n):
        return mean[at[p], n] * spread[at[p], n]

    for _, _, adapter in adapters(model):
        for _, rows, of_q in adapter.parts():
            for i in range(4):
                columns = range(rows.start, rows.stop)
                row, width = of_q.start + i, adapter.q.shape[1]
                want.append(s(adapter.e, row)
                            + sum(s(adapter.p, 4 * v + i) for v in columns) / len(columns)
                            + sum(s(adapter.q, width * row + d) for d in range(width)) / width)
    assert torch.allclose(learner.allocator.importance(), torch.tensor(want, dtype=torch.float64),
                          rtol=1e-9)


def test_the_most_important_triplets_of_all_matrices_are_left():
    model, seqs = pruned(), sequences(4)
    learner = Learner(model)
    descend(learner, seqs, 3)
    score, before = learner.allocator.importance(), values(model)
    learner.allocator.prune(0.4)                            # 28 + 28 / 8 are left
    left = values(model) != 0
    assert int(left.sum()) == 32 and score[left].min() > score[~left].max()
    assert torch.equal(values(model)[left], before[left])
    shares = {int(left.view(-1, 4)[k].sum()) for k in range(14)}
    assert len(shares) > 1                                  # not the same in each matrix


def prize(learner):
    """Let what was pruned be most important now."""
    learner.allocator.mean = {p: torch.where(p == 0, 1e6, x) if p.dim() == 1 else x
                              for p, x in learner.allocator.mean.items()}


def test_once_the_budget_is_reached_what_was_pruned_stays_zero():
    model, seqs = pruned(), sequences(4)
    learner = Learner(model)
    descend(learner, seqs, 12, lambda k: k / 11)
    gone = values(model) == 0
    assert int(gone.sum()) == 28
    prize(learner)
    descend(learner, sequences(4, seed=9), 12, lambda k: 1.0)
    assert torch.equal(values(model) == 0, gone)
    assert (values(model)[~gone].abs() > 0).all()


def test_before_that_a_triplet_may_come_back():
    model, seqs = pruned(), sequences(4)
    learner = Learner(model)
    descend(learner, seqs, 2, lambda k: 0.3)
    gone = values(model) == 0
    prize(learner)
    descend(learner, seqs, 1, lambda k: 0.3)
    assert (values(model)[gone] != 0).any()


def test_a_whole_budget_prunes_nothing():
    """Bit for bit what the same adapters learn that nobody prunes."""
    one, other = (Learner(pruned(budget=4)) for _ in range(2))
    other.allocator.prune = lambda t: None
    for learner in (one, other):
        descend(learner, sequences(4), 4, lambda k: k / 3)
    assert torch.equal(one.flat, other.flat) and (values(one.module) != 0).all()
    less = Learner(pruned(budget=3))
    descend(less, sequences(4), 4, lambda k: k / 3)
    assert not torch.equal(one.flat, less.flat)


# ---- a run

def test_a_state_holds_what_the_next_steps_depend_on():
    seqs = sequences(4)
    whole = Learner(pruned())
    descend(whole, seqs, 6, lambda k: k / 5)
    for at in range(1, 6):
        first, second = Learner(pruned()), Learner(pruned())
        descend(first, seqs, at, lambda k: k / 5)
        tensors, numbers = first.state()
        second.restore({name: x.clone() for name, x in tensors.items()}, numbers)
        assert torch.equal(second.allocator.kept, first.allocator.kept)
        descend(second, seqs, 6 - at, lambda k, at=at: (k + at) / 5)
        assert torch.equal(second.flat, whole.flat)
    whole.reset_optimizer()
    assert not whole.allocator.importance().any()


def test_another_loss_forgets_the_importance_and_not_what_is_pruned():
    """A pipeline's next stage: r1, satori."""
    learner, seqs = Learner(pruned()), sequences(4)
    descend(learner, seqs, 12, lambda k: k / 11)
    gone = values(learner.module) == 0
    learner.reset_optimizer()
    descend(learner, seqs, 1, lambda k: 1.0)
    assert torch.equal(values(learner.module) == 0, gone) and not gone.all()


def late(total=250, step=210):
    """A run that is at this step, whose policy has learnt nothing yet."""
    task = Echo()
    run = Run(Learner(pruned()), Letters(), task, task.reward)
    run.total, run.step = total, step
    return run


def learn(run, learner, steps, seqs):
    """So many steps of a run.  -> how many triplets each leaves"""
    left = []
    for _ in range(steps):
        logprobs(learner.module, seqs).sum().backward()
        learner.step(0.01)
        run.step += 1
        left.append(int(learner.allocator.kept.sum()))
    return left


def test_a_learner_that_begins_late_has_the_rest_of_the_run():
    """A critic, or PPO's policy after other stages: t is the share of the steps from its first."""
    run, seqs = late(), sequences(4)
    critic = run.learner("critic", lambda: copy.deepcopy(run.policy.module))
    want = [allowed((k + 1) / 40, 56, 28) for k in range(40)]
    assert want[0] == 56 and want[8] == 42 and want[-1] == 28
    assert learn(run, critic, 40, seqs) == want


def test_the_budget_of_another_loss_falls_from_what_is_left():
    run, seqs = late(20, 0), sequences(4)
    assert learn(run, run.policy, 8, seqs) == [allowed((k + 1) / 20, 56, 28) for k in range(8)]
    left = int(run.policy.allocator.kept.sum())
    assert left == 32
    run.step += 2                                           # a stage in which others learn
    run.policy.reset_optimizer()
    assert learn(run, run.policy, 10, seqs) == [allowed((k + 1) / 10, 32, 28) for k in range(10)]


def test_a_late_learner_resumes_bit_for_bit():
    def begun(at=210):
        run = late(step=at)
        return run, run.learner("critic", lambda: copy.deepcopy(run.policy.module))

    seqs = sequences(4)
    whole, critic = begun()
    learn(whole, critic, 15, seqs)
    critic.reset_optimizer()
    learn(whole, critic, 10, seqs)
    for at in (3, 15, 18):
        first, stopped = begun()
        learn(first, stopped, min(at, 15), seqs)
        if at >= 15:
            stopped.reset_optimizer()
            learn(first, stopped, at - 15, seqs)
        tensors, facts = first.state()
        second = late(step=0)
        second.restore({name: x.clone() for name, x in tensors.items()}, facts)
        again = second.learner("critic", lambda run=second: copy.deepcopy(run.policy.module))
        if at < 15:
            learn(second, again, 15 - at, seqs)
            again.reset_optimizer()
        learn(second, again, 225 + 10 - second.step, seqs)
        assert torch.equal(again.flat, critic.flat)
        assert torch.equal(again.allocator.kept, critic.allocator.kept)


def test_a_critic_has_a_budget_of_its_own():
    learner = Learner(ValueHead(copy.deepcopy(pruned())))
    assert learner.allocator.last == 28
    assert not {*learner.allocator.mean} & {*pruned().parameters()}
    assert Learner(tiny()).allocator is None and Learner(adapt(tiny(), 3)).allocator is None


def test_weights_below_float32_are_pruned_where_the_optimiser_has_them():
    learner = Learner(pruned(model=tiny().to(torch.bfloat16)))
    descend(learner, sequences(4), 6, lambda k: k / 5)
    assert int((values(learner.module) == 0).sum()) == 28
    assert learner.allocator.kept.dtype == torch.float32


@pytest.mark.parametrize("targets", [(), SOME])
def test_it_is_saved_as_plain_lora(tmp_path, words, targets):
    checkpoint.create(tmp_path / "base", tiny_model(True), words)
    model = pruned(targets=targets, model=checkpoint.load(tmp_path / "base")[0])
    checkpoint.save(tmp_path / "adapter", model, tmp_path / "base", end=5)
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(checkpoint.load(tmp_path / "adapter")[0](tokens), model(tokens),
                          atol=1e-5)
    said = json.loads((tmp_path / "adapter" / lora_file.CONFIG).read_text())
    assert said["peft_type"] == "LORA" and said["r"] == 4 and said["lora_alpha"] == 8


@pytest.mark.filterwarnings("ignore")
def test_peft_opens_it(tmp_path, words):
    checkpoint.create(tmp_path / "base", tiny_model(True), words)
    model = pruned(targets=SOME, model=checkpoint.load(tmp_path / "base")[0])
    checkpoint.save(tmp_path / "adapter", model, tmp_path / "base", end=5)
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.allclose(theirs(tmp_path / "adapter")(tokens).logits, model(tokens), atol=1e-5)


def test_what_does_not_go_together_is_refused():
    for given, said in ((["--lora-budget", "4"], "goes with a --lora of at least as much"),
                        (["--lora", "4", "--lora-budget", "5"], "it is 4"),
                        (["--lora", "4", "--lora-budget", "2", "--lora-numbers", "3"],
                         "leave out --lora-numbers"),
                        (["--lora", "4", "--lora-budget", "2", "--optimizer", "muon"],
                         "--optimizer muon")):
        with pytest.raises(MinipostError, match=said):
            train.settings_of(["--algo", "sft", *given])
    task = Echo()
    run = Run(Learner(pruned()), Letters(), task, task.reward)
    for method in (es, trpo):
        with pytest.raises(MinipostError, match="--lora-budget shares out ranks in an optimiser"):
            method.check(run, method.Config())


def test_the_rate_is_fifty_times_that_of_all_weights_unless_it_is_given():
    cfg = sft.Config()
    found, said = for_adapters(16, 0, cfg, set(), 4)
    assert found.lr == pytest.approx(50 * cfg.lr) and "a budget, fifty times the rates" in said
    assert for_adapters(16, 0, cfg, {"lr"}, 4) == (cfg, "")
    assert for_adapters(16, 0, cfg, set())[0].lr == pytest.approx(10 * cfg.lr)
    run = minipost.open("checkpoints/base", task="facts", lora=4, lora_budget=2)
    assert next(minipost.train(run, "sft", steps=9, warmup_steps=0, batch_size=2))[
        "learning_rate"] == pytest.approx(50 * cfg.lr)


def test_a_run_ends_with_the_ranks_of_its_budget(command, tmp_path, rows, capsys):
    from safetensors.torch import load_file

    assert train.main(command("sft", "--steps", 6, "--lora", 4, "--lora-budget", 1,
                              "--batch-size", 4)) == 0
    found = load_file(tmp_path / "run/model/adapter_model.safetensors")
    left = [int(x.any(1).sum()) for name, x in found.items() if "lora_A" in name]
    assert sum(left) == len(left) and max(left) > 1
