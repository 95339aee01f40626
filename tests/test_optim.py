"""The optimiser: AdamW with clipping, weights below float32, gradients that are not finite."""

import pytest
import torch
from fakes import sequences, tiny

from minipost.errors import MinipostError
from minipost.optim import Learner
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
    with pytest.raises(MinipostError, match="not finite 5 steps in a row"):
        for _ in range(5):
            learner.grad.fill_(float("inf"))
            learner.step(0.1)
