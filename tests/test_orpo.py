"""ORPO: odds from log-probs, near certainty too."""

import math

import pytest
import torch
from torch.func import jacrev

from minipost.methods import orpo


def test_odds_of_near_certain_and_hopeless_answers():
    mean = torch.tensor([-1e-12, -1e-5, -0.1, -0.69, -0.70, -5.0, -800.0], dtype=torch.float64)
    exact = [-math.log(math.expm1(-min(m, -1e-6))) if m > -700 else m for m in mean.tolist()]
    assert orpo.log_odds(mean).tolist() == pytest.approx(exact, rel=1e-9)
    single = torch.tensor([-1e-6, -3e-6], dtype=torch.float32)
    assert orpo.log_odds(single).tolist() == pytest.approx(
        [-math.log(math.expm1(-m)) for m in single.double().tolist()], rel=1e-6)
    slopes = jacrev(lambda x: orpo.log_odds(x).sum())(mean)
    assert slopes.isfinite().all() and (slopes[1:] >= 1).all()
