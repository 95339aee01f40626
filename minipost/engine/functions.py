"""The network's pieces as functions, with derivatives by hand where those of autograd cost more.

    product    y = x W^T                                dx = dy W,   dW = dy^T x
    rms_norm   y = w x s,  s = (mean x^2 + eps)^(-1/2)  dx = s w dy - x s^3 mean(x w dy)
                                                        dw = sum over rows of x s dy
    turn       y = x cos + swapped(x) sin               dx = dy cos - swapped(dy) sin
    swiglu     y = silu(a) b                            da = silu'(a) b dy,   db = silu(a) dy
    attention  y = softmax(q k^T / sqrt(E)) v           PyTorch's fused kernel

By autograd each of them is a chain of small operations, and each operation keeps a tensor and walks
through memory once more on the way back.  By hand a training step keeps half as much and takes an
eighth less time.  `explicit` asks for the plain chain instead, of which every kind of derivative
exists, second and forward ones too: the Fisher-vector products of TRPO need them.
tests/test_functions.py holds one against the other.

RMSNorm is Zhang & Sennrich 2019 (arxiv.org/abs/1910.07467), rotary positions Su et al. 2021
(arxiv.org/abs/2104.09864, in the rotate-half form of Llama), SwiGLU Shazeer 2020
(arxiv.org/abs/2002.05202), grouped queries Ainslie et al. 2023 (arxiv.org/abs/2305.13245).
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDE = (torch.float32, torch.float64)  # norms are computed in these


# ---- matrix products

HAS_ONEDNN = (
    hasattr(torch.ops.mkldnn, "_linear_pointwise")
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


class Product(torch.autograd.Function):
    """y = x W^T through oneDNN:  dx = dy W,  dW = dy^T x.

    PyTorch calls MKL for float32 products.  On some AMD processors with AVX-512, MKL runs at half
    of what the machine can do.  oneDNN does not.  The operator is PyTorch's but undocumented, so
    `product` checks that it exists.  The derivatives are made of differentiable products again,
    because second and forward derivatives need that.
    """

    @staticmethod
    def forward(x, weight):
        return onednn(x, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        times = Product.apply if torch.is_grad_enabled() else onednn  # second derivatives, or none
        # oneDNN copies its first factor where it is transposed, so that is to be the smaller one.
        small = grad.shape[1] <= x.shape[1]
        dweight = times(grad.t(), x.t()) if small else times(x.t(), grad.t()).t()
        return times(grad, weight.t()), dweight

    @staticmethod
    def jvp(ctx, dx, dweight):
        x, weight = ctx.saved_tensors
        return F.linear(dx, weight) + F.linear(x, dweight)


def uses_onednn(x):
    return HAS_ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"


def product(x, weight):
    """x W^T by whichever way is faster.  (..., D), (V, D) -> (..., V)"""
    rows = x.numel() // x.shape[-1]
    if not uses_onednn(x) or rows < FEW_ROWS:
        return F.linear(x, weight)
    flat, extra = x.reshape(rows, -1), even(rows) - rows
    y = Product.apply(F.pad(flat, (0, 0, 0, extra)), weight)[:rows] if extra else \
        Product.apply(flat, weight)
    return y.view(*x.shape[:-1], -1)


# ---- RMSNorm

class Norm(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x if x.dtype in WIDE else x.float()
        # The norm's own kernel is faster than a mean of squares.
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx, dy):
        x, weight, scale = ctx.saved_tensors
        wide, factor, dy = x.to(scale.dtype), weight.to(scale.dtype), dy.to(scale.dtype)
        both = (wide * dy).flatten(0, -2)                                   # (N, D)
        mean = (both @ factor).div_(x.shape[-1]).view_as(scale)             # of x w dy
        dx = (dy * factor).mul_(scale).addcmul_(wide, mean * scale**3, value=-1)
        return dx.to(x.dtype), torch.mv(both.t(), scale.flatten()).to(weight.dtype), None


def rms_norm(x, weight, eps, explicit=False):
    """weight * x / sqrt(mean(x^2) + eps), over the last axis, computed in float32 or float64."""
    if not explicit and x.is_cuda:  # there is a fused kernel, forward and backward
        return F.rms_norm(x, weight.shape, weight, eps)
    if not explicit:
        return Norm.apply(x, weight, eps)
    wide = x if x.dtype in WIDE else x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


# ---- rotary positions

def rotary_table(config, dtype, device, length=None):
    """cos and signed sin of the first positions' rotations, for `rotate`.  (P, E), (P, E)

    length: P, the model's whole context if None.

    Pair i of a head turns by position * theta^(-2i/E).  The sine carries the minus sign of the
    rotation in its first half, so that `rotate` needs no negation.
    """
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    place = torch.arange(length or config.max_position_embeddings, dtype=torch.float64)
    angle = torch.outer(place, config.rope_theta ** (-half / config.head_dim))
    cos, sin = angle.cos(), angle.sin()
    tables = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    return tuple(table.to(dtype).to(device) for table in tables)  # some devices have no float64


def rotate(x, cos, sin):
    """Turn each head's pairs (i, i + E/2) by their angle.  (..., E) -> (..., E)"""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Turn(torch.autograd.Function):

    @staticmethod
    def forward(ctx, qkv, cos, sin, turned):
        ctx.save_for_backward(cos, sin)
        ctx.turned = turned
        return turn_heads(qkv, cos, sin, turned, 1)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return turn_heads(grad, cos, sin, ctx.turned, -1), None, None, None


def turn_heads(x, cos, sin, turned, sign):
    """The first `turned` heads turned, forwards or backwards; the others copied."""
    out, half = torch.empty_like(x), x.shape[-1] // 2
    out[..., turned:, :] = x[..., turned:, :]
    source, goal = x[..., :turned, :], out[..., :turned, :]
    torch.mul(source, cos, out=goal)
    goal[..., :half].addcmul_(source[..., half:], sin[..., :half], value=sign)
    goal[..., half:].addcmul_(source[..., :half], sin[..., half:], value=sign)
    return out


def turn(qkv, cos, sin, turned, explicit=False):
    """`rotate` the first `turned` heads of queries, keys and values.  (..., H + 2K, E), as given"""
    if not explicit:
        return Turn.apply(qkv, cos, sin, turned)
    return torch.cat([rotate(qkv[..., :turned, :], cos, sin), qkv[..., turned:, :]], -2)


# ---- SwiGLU

class SwiGLU(torch.autograd.Function):

    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):
        gate_up, = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)                                     # both halves in place
        dgate, dup = out.chunk(2, -1)
        torch.mul(F.silu(gate), grad, out=dup)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=dgate)
        return out


def swiglu(gate_up, explicit=False):
    """silu(gate) * up.  (..., 2F) -> (..., F)"""
    if not explicit:
        return SwiGLU.apply(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


# ---- attention

# All but cuDNN's, which prepares a plan for each new shape.  That takes as long as many steps.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def fast_kernels(device):
    """A block in which attention on a GPU takes one of the KERNELS."""
    return sdpa_kernel(KERNELS) if device.type == "cuda" else nullcontext()


def attention(q, k, v, bias=None, explicit=False):
    """softmax(q k^T / sqrt(E) + bias) v; without a bias no query sees a later key.

    q (B, H, T, E), k and v (B, K, S, E), bias (B, 1, T, S)  ->  (B, H, T, E)
    """
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
