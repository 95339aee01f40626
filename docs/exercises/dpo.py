"""Fill in: DPO's loss (chapter 8 of docs/learn.md).

    h = sum_t (logp_t - ref_t)            of an answer, over its own tokens
    L = -(1/B) sum log sigmoid(beta (h_w - h_l))

row_sums(x, mask) adds up each row of x over the entries at which the mask is True: (B, T) -> (B,).
logsigmoid(u) is log sigmoid(u), without rounding errors for large u.

Write it, then run `make exercise-dpo` again.
"""

from torch.nn.functional import logsigmoid  # noqa: F401

from minipost.ops import row_sums  # noqa: F401


def loss(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, *, beta, count):
    """Log-probs of policy and reference, and masks, of preferred (w) and other (l) answers

    Those of w are (B, T), those of l (B, S); count = B  ->  one number
    """
    raise NotImplementedError("write the body of `loss`")
