"""Two ranks make what one makes, of every method and every helper that shares work (ranks.py).

Weights, metrics, samples, scores and measurements, to rounding; and both ranks hold the same.
"""

import json
from pathlib import Path

import pytest
import torch
from anew import CASES
from ranks import HELPERS, differ


@pytest.fixture(scope="module")
def differences(python):
    done = python("-W", "ignore", Path(__file__).with_name("ranks.py"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*CASES, *HELPERS])
def test_two_ranks_make_what_one_makes(differences, name):
    assert differences[name] == {}


def test_what_differs_is_seen():
    """The control: another number, another shape, a missing part."""
    one = {"x": torch.ones(2).double(), "y": 1.0, "z": [1, "a"]}
    assert differ(one, {"x": torch.ones(2).double(), "y": 1.0, "z": [1, "a"]}) == {}
    assert list(differ(one, {**one, "x": torch.ones(2).double() + 1e-8})) == ["/x"]
    assert list(differ(one, {**one, "y": 1.0 + 1e-8})) == ["/y"]
    assert list(differ(one, {**one, "z": [1, "b"]})) == ["/z/1"]
    assert list(differ(one, {"x": torch.ones(3).double(), "y": 1.0})) and differ(one, {"y": 1.0})
