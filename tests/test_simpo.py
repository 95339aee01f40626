"""SimPO: Bradley-Terry with a margin on mean log-probs."""

import torch
from fakes import REFERRED, log_probs, make_run
from hypothesis import given
from hypothesis import strategies as st

from minipost.datasets.preferences import starting_policy
from minipost.methods import reward, simpo
from minipost.ops import row_means

PLAIN = {name: shape for name, shape in REFERRED.items() if not name.startswith("ref")}


@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(0, 5))
def test_simpo_is_bradley_terry_with_a_margin_on_mean_log_probs(seed, beta, gamma):
    found = log_probs(PLAIN, seed)
    scores = [beta * row_means(found[f"logp_{side}"], found[f"mask_{side}"]) for side in "wl"]
    value = simpo.loss(**found, beta=beta, gamma=gamma, count=3)[0]
    assert torch.allclose(value, reward.loss(*scores, margin=gamma, center=0.0, count=3)[0])


def test_a_run_that_an_earlier_version_saved_goes_on_with_its_start():
    """Its state calls the starting policy a reference."""
    run, again = make_run(), make_run()
    start = run.policy.flat.clone()
    run.reference()
    run.policy.flat.add_(1.0)                               # what was learnt before the stop
    again.restore(*run.state())
    kept = sorted(starting_policy(again).parameters(), key=lambda p: p.dim() < 2)
    assert torch.equal(torch.cat([p.flatten() for p in kept]), start)
    assert {name.split("/")[1] for name in again.state()[0]} == {"policy", "start"}
