"""The optimisers: AdamW with clipping, Muon, weights below float32, gradients that are not finite;
the schedule of the learning rate."""

import math

import pytest
import torch
from fakes import Largest, sequences, tiny

from minipost import methods, optim
from minipost.errors import Descent, MinipostError
from minipost.optim import QUINTIC, Learner, layer_matrices, orthogonalised
from minipost.rollout import logprobs


def test_the_optimizer_is_adamw_with_clipping():
    """Five steps against PyTorch's AdamW and clip_grad_norm_, decay on matrices only."""
    mine, theirs, seqs = tiny(), tiny(), sequences(4)
    learner = Learner(mine, betas=(0.8, 0.95), weight_decay=0.1)
    groups = [{"params": [p for p in theirs.parameters() if p.dim() == 2], "weight_decay": 0.1},
              {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95))
    for _ in range(5):
        for model in (mine, theirs):
            (-logprobs(model, seqs).sum()).backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert learner.step(0.01, 1.0) == pytest.approx(float(expected))
    for a, b in zip(mine.parameters(), theirs.parameters()):
        assert torch.allclose(a, b, atol=1e-6)      # clip_grad_norm_ adds 1e-6 to the norm
    assert not torch.allclose(mine.norm.weight, tiny().norm.weight)


def test_bfloat16_weights_learn_through_a_float32_copy():
    """Updates far below bfloat16's spacing add up instead of vanishing."""
    module = torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    start = module.weight.detach().clone()
    learner = Learner(module)
    for _ in range(300):
        learner.grad.fill_(1.0)
        learner.step(1e-5)
    assert learner.master.dtype == torch.float32
    assert ((start - module.weight) - 0.003).abs().max() < 0.002
    assert torch.equal(learner.flat, learner.master.to(torch.bfloat16))
    other = Learner(torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16))
    other.restore(*learner.state())
    assert torch.equal(other.master, learner.master) and torch.equal(other.flat, learner.flat)


def test_small_gradients_of_bfloat16_weights_add_up_and_a_tiny_rate_moves_them():
    """256 and sixty-four halves are 288, where bfloat16 would stay at 256; a rate of 1e-6 moves the
    master copy by 1e-6 a step, although bfloat16's spacing here is 2^-8 of the weight."""
    module = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    module.weight.data.fill_(1.0)
    learner = Learner(module)
    for size in (256.0, *[0.5] * 64):
        (size * module.weight.sum()).backward()
    assert learner.grad.dtype == torch.float32 and learner.grad.tolist() == [288.0]
    learner.step(1e-6)
    assert not learner.grad.any() and module.weight.grad is None
    for _ in range(99):
        module.weight.sum().backward()
        learner.step(1e-6)
    assert module.weight.item() == 1.0
    assert learner.master.item() == pytest.approx(1 - 1e-4, abs=2e-6)
    for _ in range(300):
        module.weight.sum().backward()
        learner.step(1e-5)
    assert module.weight.item() < 1.0


def test_a_gradient_that_is_not_finite_is_dropped_and_five_in_a_row_end_the_run():
    learner = Learner(tiny())
    start = learner.flat.clone()
    for _ in range(4):
        learner.grad.fill_(float("nan"))
        learner.step(0.1)
    assert torch.equal(learner.flat, start) and learner.skipped == 4
    learner.grad.fill_(1.0)
    learner.step(0.1)
    assert not torch.equal(learner.flat, start)
    with pytest.raises(MinipostError, match="not finite 5 steps in a row; lower the"):
        for _ in range(5):
            learner.grad.fill_(float("inf"))
            learner.step(0.1)
    fresh = Learner(tiny())
    with pytest.raises(MinipostError, match="5 steps in a row from its first on; look at the loss"):
        for _ in range(5):
            fresh.grad.fill_(float("inf"))
            fresh.step(0.1)


def test_adamw_is_exactly_pytorchs_and_makes_nothing_as_long_as_the_weights(monkeypatch):
    """Twenty steps in float64, in pieces of odd length; the largest new tensor is one piece."""
    monkeypatch.setattr(optim, "PIECE", 7)
    generator = torch.Generator().manual_seed(0)
    mine, theirs = tiny(), tiny()
    learner = Learner(mine)
    groups = [{"params": [p for p in theirs.parameters() if (p.dim() == 2) == matrix],
               "weight_decay": 0.3 * matrix} for matrix in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for _ in range(20):
        for a, b in zip(mine.parameters(), theirs.parameters()):
            b.grad = torch.randn(b.shape, generator=generator, dtype=torch.float64)
            a.grad.copy_(b.grad)
        optimizer.step()
        with Largest() as seen:
            learner.step(0.01, 1e9, 0.3)
        assert seen.most <= 7
    for a, b in zip(mine.parameters(), theirs.parameters()):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_muons_move_has_the_same_singular_vectors_and_the_polynomials_singular_values(shape):
    a, b, c = QUINTIC
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    s = values / values.norm()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert torch.allclose(orthogonalised(matrix), left @ s.diag() @ right, atol=1e-10)
    assert 0.6 < s.min() and s.max() < 1.3
    assert not orthogonalised(torch.zeros(shape)).any()


def test_muon_moves_each_matrix_of_a_layer_and_adamw_the_rest():
    """Three steps by the definition, queries, keys and values one by one; the rest is AdamW's."""
    mine, plain, seqs = tiny(), tiny(), sequences(4)
    learner, adam = Learner(mine, optimizer="muon"), Learner(plain)
    layers = layer_matrices(mine)
    assert len(layers) == 4 * len(mine.layers) and len(learner.muon) == 7 * len(mine.layers)
    assert len(learner.v) == sum(p.numel() for p in learner.params if p not in layers)
    names = {weight: name for name, weight in mine.named_parameters()}
    weight = {name: p.detach().clone() for name, p in mine.named_parameters()}
    momentum = {names[p]: torch.zeros_like(p) for p in layers}
    for _ in range(3):
        logprobs(mine, seqs).sum().backward()
        grad = {name: p.grad.clone() for name, p in mine.named_parameters()}
        adam.grad.copy_(learner.grad)
        learner.step(0.01, 1e9, 0.2)
        adam.step(0.01, 1e9, 0.2)
        for p, rows in layers.items():
            name = names[p]
            momentum[name] = 0.95 * momentum[name] + grad[name]
            parts = (grad[name] + 0.95 * momentum[name]).split(rows)
            move = torch.cat([0.2 * max(part.shape) ** 0.5 * orthogonalised(part)
                              for part in parts])
            weight[name] = weight[name] * (1 - 0.01 * 0.2) - 0.01 * move
            assert torch.allclose(p, weight[name], atol=1e-12), name
    for name, p in mine.named_parameters():
        if p not in layers:
            assert torch.equal(p, dict(plain.named_parameters())[name]), name
    other = Learner(tiny(), optimizer="muon")
    other.restore(*learner.state())
    for each in (learner, other):
        each.grad.fill_(0.1)
        each.step(0.01)
    assert torch.equal(other.flat, learner.flat)


def test_the_schedules_climb_and_end_at_zero():
    for schedule, halfway, end in (("constant", 8.0, 8.0), ("linear", 4.0, 0.0),
                                   ("cosine", 4.0, 0.0)):
        cfg = Descent(steps=24, schedule=schedule, warmup_steps=4)
        rates = [cfg.rate(8.0, step) for step in range(30)]
        assert rates[:5] == [2.0, 4.0, 6.0, 8.0, 8.0]
        assert rates[14] == pytest.approx(halfway) and rates[24:] == pytest.approx([end] * 6)
        assert cfg.rate(8.0, 3, 4, 2) == pytest.approx(
            {"constant": 8.0, "linear": 4.0, "cosine": 4.0}[schedule])
    assert cfg.rate(8.0, 9) == pytest.approx(4 * (1 + math.cos(math.pi / 4)))


def test_every_method_with_a_learning_rate_has_the_schedule():
    without = {name for name in methods.names()
               if not issubclass(methods.load(name).Config, Descent)}
    assert without == {"trpo", "es"}
