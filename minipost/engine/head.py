"""Log-probs, entropy and KL of a head, in pieces of rows, so that (N, V) never exists whole.

    z = h W^T / tau     log p = z - log sum exp z     and log q likewise, of the reference
    logp = log p_y      H = -sum p log p              KL = sum p (log p - log q)

Backwards, where g1, g2, g3 are the derivatives of the loss by logp, H and KL:

    dz = g1 (onehot(y) - p) - g2 p (log p + H) + g3 p (log p - log q - KL)
    dh = dz W / tau         dW = sum over rows of dz^T h / tau

With a vocabulary of 152,000 the logits of 1,024 tokens are 0.6 GB, and autograd keeps several
tensors of their size.  Here a piece's logits are made, used and dropped, and made again on the way
back: one more product with W.  Where all logits are few (WHOLE), rollout.py computes them at once.

tests/test_head.py holds it against that in float64.
"""

import torch

from minipost.engine.block import once
from minipost.engine.functions import WIDE, times

WHOLE = 2**23       # logits that may exist at once: 32 MB of float32
LEAST_ROWS = 128    # of a piece, however large the vocabulary: fewer make W's product slow
NEVER = -1e9        # a logit whose probability is exactly 0, finite so that 0 times it is 0
COPIES = 5          # tensors as large as a piece's logits that exist at once


def rows_of_a_piece(vocabulary):
    """Rows whose logits are made at once."""
    return max(LEAST_ROWS, WHOLE // vocabulary)


def bytes_of_a_piece(vocabulary):
    """What the logits of a piece take, and what is made of them."""
    return 4 * COPIES * rows_of_a_piece(vocabulary) * vocabulary


def adds_in_place(weight):
    """Whether the derivative of a large matrix is added to the gradient that it has, on a CPU.

    A tensor of its size is then neither made nor added.  torch.autograd.grad by such a weight gets
    nothing, or what other uses of it give: use backward.
    """
    if not weight.is_leaf or weight.numel() <= WHOLE or weight.device.type != "cpu":
        return False
    grad = weight.grad
    return grad is not None and grad.layout == torch.strided and grad.dtype == weight.dtype


def log_softmax(hidden, weight, unused, temperature):
    """A piece's log-probs, in float32 or float64.  (n, D), (V, D), (V,) or None -> (n, V)"""
    z = times(hidden, weight)
    z = z if z.dtype in WIDE else z.float()
    if temperature != 1:
        z = z.div_(temperature)
    if unused is not None:
        z = z.masked_fill_(unused, NEVER)
    return z.sub_(z.logsumexp(-1, keepdim=True))


class Readings(torch.autograd.Function):
    """-> logp, entropy, KL to the reference, the reference's logp, each (N,).

    hidden (N, D), weight (V, D), ids (N,); reference: (hidden (N, D), weight (V, D), unused) or
    None, which has no gradient.  What is not asked for is zero.
    """

    @staticmethod
    def forward(ctx, hidden, weight, ids, unused, temperature, reference, entropy):
        ctx.unused, ctx.temperature, ctx.reference = unused, temperature, reference
        ctx.entropy = entropy
        kind = hidden.dtype if hidden.dtype in WIDE else torch.float32
        found = hidden.new_zeros(4, len(hidden), dtype=kind)
        for part in pieces(hidden, weight):
            logp_all = log_softmax(hidden[part], weight, unused, temperature)
            found[0, part] = picked(logp_all, ids[part])
            if not entropy and reference is None:
                continue
            p = logp_all.exp()
            if entropy:
                found[1, part] = -(p * logp_all).sum(-1)
            if reference is not None:
                logq_all = log_softmax(reference[0][part], reference[1], reference[2], temperature)
                found[3, part] = picked(logq_all, ids[part])
                found[2, part] = torch.sub(logp_all, logq_all, out=logq_all).mul_(p).sum(-1)
        logp, h, kl, logp_ref = found.unbind()
        ctx.save_for_backward(hidden, weight, ids, h, kl)
        ctx.mark_non_differentiable(logp_ref)
        return logp, h, kl, logp_ref

    @staticmethod
    def backward(ctx, g1, g2, g3, _):
        once()
        hidden, weight, ids, h, kl = ctx.saved_tensors
        dhidden = torch.empty_like(hidden)
        wanted, in_place = ctx.needs_input_grad[1], adds_in_place(weight)
        dweight = None
        if wanted:
            dweight = weight.grad if in_place else torch.zeros_like(weight)
        for part in pieces(hidden, weight):
            logp_all = log_softmax(hidden[part], weight, ctx.unused, ctx.temperature)
            more = ctx.entropy or ctx.reference is not None  # log p is used once more
            p, slope = logp_all.exp() if more else logp_all.exp_(), -g1[part, None]
            if ctx.entropy:
                slope = slope - g2[part, None] * (logp_all + h[part, None])
            if ctx.reference is not None:
                other, matrix, without = ctx.reference
                logq_all = log_softmax(other[part], matrix, without, ctx.temperature)
                gap = torch.sub(logp_all, logq_all, out=logq_all).sub_(kl[part, None])
                slope = slope + gap.mul_(g3[part, None])
            dz = p.mul_(slope)
            dz.scatter_add_(1, ids[part, None], g1[part, None])
            dz = dz.div_(ctx.temperature).to(weight.dtype)
            dhidden[part] = dz @ weight
            if dweight is not None:
                dweight.addmm_(dz.t(), hidden[part])
        return dhidden, None if in_place else dweight, None, None, None, None, None


def picked(logp_all, ids):
    return logp_all.gather(1, ids[:, None])[:, 0]


def pieces(hidden, weight):
    size = rows_of_a_piece(len(weight))
    return [slice(k, min(k + size, len(hidden))) for k in range(0, len(hidden), size)]
