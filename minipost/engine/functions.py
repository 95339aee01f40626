"""The network's pieces: products, RMSNorm, rotary positions, SwiGLU, attention.

RMSNorm is Zhang & Sennrich 2019 (arxiv.org/abs/1910.07467), rotary positions Su et al. 2021
(arxiv.org/abs/2104.09864, in the rotate-half form of Llama), SwiGLU Shazeer 2020
(arxiv.org/abs/2002.05202), grouped queries Ainslie et al. 2023 (arxiv.org/abs/2305.13245).

`explicit` asks for plain operations, of which every kind of derivative exists, second and forward
ones too: the Fisher-vector products of TRPO need them.  (On a GPU a norm is PyTorch's own kernel
all the same, which has them.)
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minipost.engine.rotary import slowed

WIDE = (torch.float32, torch.float64)  # norms are computed in these


# ---- matrix products

HAS_ONEDNN = (
    all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    and torch.backends.mkldnn.is_available()
    and "AVX512" in torch.backends.cpu.get_cpu_capability()
)
FEW_ROWS = 256  # below this many rows oneDNN's products gain nothing


def even(rows):
    """The next number of rows, of at most eight between a power of two and the next, from 64 on.

    oneDNN makes code for every shape of a product: a millisecond and half a megabyte each.  Numbers
    of tokens differ from pass to pass.  Rounded up, there are few.
    """
    step = max(64, 2 ** (rows.bit_length() - 4))
    return -(-rows // step) * step


def onednn(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def uses_onednn(x):
    return HAS_ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"


def times(x, weight):
    """x W^T by whichever way is faster, without a derivative.  (..., D), (V, D) -> (..., V)"""
    rows = x.numel() // x.shape[-1]
    if not uses_onednn(x) or rows < FEW_ROWS:
        return F.linear(x, weight)
    return onednn(filled(x), weight)[:rows].view(*x.shape[:-1], -1)


def outer(dy, x):
    """dy^T x, summed over all rows: the derivative by W of x W^T.  (..., V), (..., D) -> (V, D)"""
    if not uses_onednn(x) or x.numel() < FEW_ROWS * x.shape[-1]:
        return dy.flatten(0, -2).t() @ x.flatten(0, -2)
    dy, x = filled(dy), filled(x)
    # oneDNN copies its first factor where it is transposed, so that is to be the smaller one.
    small = dy.shape[1] <= x.shape[1]
    return onednn(dy.t(), x.t()) if small else onednn(x.t(), dy.t()).t()


def filled(x):
    """The rows of x, and rows of zeros up to an `even` number.  (..., D) -> (N, D)"""
    flat = x.reshape(-1, x.shape[-1])
    extra = even(len(flat)) - len(flat)
    return F.pad(flat, (0, 0, 0, extra)) if extra else flat


class Product(torch.autograd.Function):
    """y = x W^T:  dx = dy W,  dW = dy^T x.

    PyTorch calls MKL for float32 products.  On some AMD processors with AVX-512, MKL runs at half
    of what the machine can do.  oneDNN does not.  The operator is PyTorch's but undocumented, so
    its presence is checked.  Second and forward derivatives are made of products again.
    """

    @staticmethod
    def forward(x, weight):
        return onednn(x, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants a second derivative
            return product(dy, weight.t()), product(dy.t(), x.t())
        return times(dy, weight.t()), outer(dy, x) if ctx.needs_input_grad[1] else None

    @staticmethod
    def jvp(ctx, dx, dweight):
        x, weight = ctx.saved_tensors
        return F.linear(dx, weight) + F.linear(x, dweight)


def product(x, weight):
    """x W^T by whichever way is faster.  (..., D), (V, D) -> (..., V)"""
    if not uses_onednn(x) or x.numel() < FEW_ROWS * x.shape[-1]:
        return F.linear(x, weight)
    rows = x.numel() // x.shape[-1]
    return Product.apply(filled(x), weight)[:rows].view(*x.shape[:-1], -1)


# ---- RMSNorm

def rms_norm(x, weight, eps):
    """weight * x / sqrt(mean(x^2) + eps), over the last axis, computed in float32 or float64.

    The fused kernel of a GPU is for passes without a derivative: its forward derivative of bfloat16
    is in float32 (torch 2.11), which the next product refuses.
    """
    if x.is_cuda and not torch.is_grad_enabled():
        return F.rms_norm(x, weight.shape, weight, eps)
    wide = x if x.dtype in WIDE else x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


# ---- rotary positions

def rotary_table(config, dtype, device, length=None):
    """cos and signed sin of the first positions' rotations, for `rotate`.  (P, E), (P, E)

    length: P, the model's whole context if None.

    Pair i of a head turns by position * theta^(-2i/E), or slower by a rule (rotary.py).  The sine
    carries the minus sign of the rotation in its first half, so that `rotate` needs no negation.
    """
    rope = config.family.rope
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    place = torch.arange(length or config.max_position_embeddings, dtype=torch.float64)
    pace = config.rope_theta ** (-half / config.head_dim)
    angle = torch.outer(place, pace if rope is None else slowed(pace, rope, config.rope_theta))
    cos, sin = angle.cos(), angle.sin()
    if rope is not None:
        cos, sin = cos * rope.attention, sin * rope.attention
    tables = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    return tuple(table.to(dtype).to(device) for table in tables)  # some devices have no float64


def rotate(x, cos, sin):
    """Turn each head's pairs (i, i + E/2) by their angle.  (..., E) -> (..., E)"""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def turn(qkv, cos, sin, turned):
    """`rotate` the first `turned` heads of queries, keys and values.  (..., H + 2K, E), as given"""
    return torch.cat([rotate(qkv[..., :turned, :], cos, sin), qkv[..., turned:, :]], -2)


def swiglu(gate_up):
    """silu(gate) * up.  (..., 2F) -> (..., F)"""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


# ---- attention

def window_bias(like, length, window):
    """A bias that lets a token see itself and the window - 1 before it.  (1, 1, T, T), or None

    None where that is all before it, as without a window.
    """
    if window is None or length <= window:
        return None
    sees = torch.ones(length, length, dtype=torch.bool, device=like.device).tril().triu(1 - window)
    return like.new_zeros(1, 1, length, length).masked_fill_(~sees, -math.inf)


# All but cuDNN's, which prepares a plan for each new shape.  That takes as long as many steps.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def fast_kernels(device):
    """A block in which attention on a GPU takes one of the KERNELS."""
    return sdpa_kernel(KERNELS) if device.type == "cuda" else nullcontext()


def behind(prefix, k, v, bias):
    """Keys and values of a text behind those of a prefix (prefix.py), and the bias for both."""
    if bias is None:
        later = torch.ones(k.shape[2], k.shape[2], dtype=torch.bool, device=k.device).triu(1)
        bias = k.new_zeros(1, 1, *later.shape).masked_fill_(later, -math.inf)
    k, v = (torch.cat([part.transpose(0, 1).expand(len(x), -1, -1, -1), x], 2)
            for part, x in ((prefix.keys, k), (prefix.values, v)))
    return k, v, F.pad(bias, (len(prefix), 0))


def attention(q, k, v, bias=None, explicit=False, prefix=None):
    """softmax(q k^T / sqrt(E) + bias) v; without a bias no query sees a later key.

    q (B, H, T, E), k and v (B, K, S, E), bias (B, 1, T, S)  ->  (B, H, T, E)
    prefix: keys and values that each query sees too, or None.
    """
    if prefix is not None:
        k, v, bias = behind(prefix, k, v, bias)
    share = q.shape[1] // k.shape[1]
    if not explicit:
        if bias is not None and share > 1:  # fused kernels with a bias want as many key heads
            k, v, share = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1), 1
        with fast_kernels(q.device):
            return F.scaled_dot_product_attention(q, k, v, bias, is_causal=bias is None,
                                                  enable_gqa=share > 1)
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    score = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])                  # (B, H, T, S)
    if bias is None:
        future = torch.ones(score.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        score = score.masked_fill(future, -math.inf)
    else:
        score = score + bias
    return score.softmax(-1) @ v
