"""Find the bug: the clipped gain of PPO and GRPO (chapter 5 of docs/learn.md).

    rho = pi/old,   S = min(rho A, clip(rho, 1 - low, 1 + high) A)

The clip should take away the reward for moving further once a token has moved far enough.  In this
version it never does.

Mend it, then run `make exercise-clip` again.
"""

import torch


def clipped_surrogate(logp, logp_old, adv, low, high):
    """logp, logp_old, adv (N,)  ->  the gain of each token (N,), which training makes larger"""
    ratio = (logp - logp_old).exp()
    return torch.maximum(ratio * adv, ratio.clamp(1 - low, 1 + high) * adv)
