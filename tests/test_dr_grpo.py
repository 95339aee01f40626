"""Dr. GRPO: the advantage is the reward less its group's mean."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from minipost.ops import group_centred

eight_rewards = st.lists(st.floats(-3, 3, width=32), min_size=8, max_size=8)


@given(eight_rewards)
def test_dr_grpo_advantage_is_the_reward_less_its_mean(values):
    r = torch.tensor(values, dtype=torch.float64)
    adv = group_centred(r, 4)
    assert torch.allclose(adv, r.view(2, 4) - r.view(2, 4).mean(1, keepdim=True))
