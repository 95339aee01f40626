"""Fill in: REINFORCE's loss (chapter 2 of docs/learn.md).

    L = -(1/N) sum_i sum_t A_i logp_t

The sum goes over the answers i and their tokens t, and over no prompt and no padding.
masked_sum(x, mask) adds up the entries of x at which the mask is True.

Write it, then run `make exercise-reinforce` again.
"""

from minipost.ops import masked_sum  # noqa: F401


def loss(logp, adv, mask, *, count):
    """logp (B, T); adv (B,): A_i; mask (B, T): True on answer tokens; count = N  ->  one number"""
    raise NotImplementedError("write the body of `loss`")
