"""A layer of gpt.py in three steps, each with its derivative by hand.

    n = x s w,  s = (mean x^2 + eps)^(-1/2)
    Project     q, k, v = turn(n Wqkv^T), or turn(n Wqkv^T + bias)
    NormTurn    q, k = turn(rmsnorm(q)), turn(rmsnorm(k)) of each head, where a family has that
                (attention is the layout's, its derivative PyTorch's)
    Add         y = x + o Wo^T
    AddMLP      z = y + h Wdown^T,    h = silu(g) u,    [g u] = n(y) Wgate_up^T

Backwards, where d. is the derivative of the loss by .:

    dh = dz Wdown               dWdown = dz^T h
    du = silu(g) dh             dg = silu'(g) u dh
    dn = [dg du] Wgate_up       dWgate_up = [dg du]^T n
    dy = dz + dx(dn)            dx(dn) = s w dn - x s^3 mean(x w dn),   dw = sum of x s dn over rows
    dturned -> turned back      and so on, likewise

Where a matrix has an adapter (lora.py) its product has a second part, and the matrix no derivative.
A coded one (coded.py) is made anew for each product.  Where a layer has bottlenecks (bottleneck.py)
Add and AddMLP leave out the x, and autograd does the rest.

By autograd each of these is a chain of small operations; each keeps a tensor and walks through
memory again on the way back.  By hand a step keeps x, s and [g u] of an MLP where autograd keeps
nine tensors as wide, and computes n and h again, which costs less than to keep them.

tests/test_block.py holds it against the layer's own forward in float64.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from minipost.engine.coded import dense, save, saved, stored
from minipost.engine.functions import WIDE, outer, times
from minipost.errors import MinipostError


def recompute(module):
    """Let each layer of a module keep its input alone, and compute the rest again on the way back.

    The gradient is the same to the bit.  It costs one more forward pass.  -> the module
    """
    for part in module.modules():
        if hasattr(part, "self_attn"):
            part.recompute = True
    return module


def block(layer, x, layout, pick=None):
    """What a Block of gpt.py gives; it comes here itself, unless its layout is explicit."""
    if getattr(layer, "recompute", False) and torch.is_grad_enabled():
        return checkpoint(steps, layer, x, layout, pick, use_reentrant=False,
                          preserve_rng_state=False)  # nothing here is random
    return steps(layer, x, layout, pick)


def steps(layer, x, layout, pick):
    """The three steps in turn."""
    attention, mlp = layer.self_attn, layer.mlp
    norm, after = layer.input_layernorm, layer.post_attention_layernorm
    heads, kv = attention.heads, attention.kv_heads
    qkv = Project.apply(x, norm.weight, norm.eps, stored(attention.qkv_proj), layout.cos,
                        layout.sin, 0 if attention.qk_norm else attention.turned,
                        attention.qkv_proj.bias, *adapter_of(attention.qkv_proj))
    if attention.qk_norm:
        qkv = NormTurn.apply(qkv, attention.q_norm.weight, attention.k_norm.weight,
                             attention.q_norm.eps, layout.cos, layout.sin, attention.turned,
                             [heads, kv, kv])
    mixed = layout.attend(qkv, heads, kv, attention.window, attention.prefix)
    bent = layer.after_attention
    f = Add.apply(x if bent is None else None, mixed, stored(attention.o_proj),
                  *adapter_of(attention.o_proj))
    x = f if bent is None else x + bent(f)
    if pick is not None:
        x = x[pick]
    bent = layer.after_mlp
    f = AddMLP.apply(x, after.weight, after.eps, stored(mlp.gate_up_proj), stored(mlp.down_proj),
                     *adapter_of(mlp.gate_up_proj), *adapter_of(mlp.down_proj), bent is None)
    return f if bent is None else x + bent(f)


def adapter_of(linear):
    """A Linear's adapter, and its two matrices as what a step is to differentiate by."""
    adapter = linear.adapter
    return (None, None, None) if adapter is None else (adapter, adapter.a, adapter.b)


def multiply(x, matrix, adapter):
    """x W^T and what an adapter adds."""
    y = times(x, dense(matrix))
    return y if adapter is None else adapter.add(y, x)


def to_input(dy, matrix, adapter):
    """-> dx of `multiply`, and what `to_weights` needs again of an adapter."""
    dx = times(dy, dense(matrix).t())
    return (dx, None) if adapter is None else adapter.to_input(dx, dy)


def to_weights(dy, x, low, adapter, wanted):
    """-> dW of `multiply`, if it is wanted, dA, dB."""
    dmatrix = outer(dy, x) if wanted else None
    return (dmatrix, None, None) if adapter is None else (dmatrix, *adapter.to_weights(dy, x, low))


class Project(torch.autograd.Function):
    """Queries, keys and values of x, the first `turned` heads turned.  (..., D) -> (..., H + 2K, E)

    bias ((H + 2K) E,) or None.
    """

    @staticmethod
    def forward(ctx, x, weight, eps, matrix, cos, sin, turned, bias=None, adapter=None, *_):
        scale = scale_of(x, eps)
        qkv = multiply(scaled(x, scale, weight), matrix, adapter)
        if bias is not None:
            qkv.add_(bias)
        save(ctx, [matrix], x, weight, scale, cos, sin)
        ctx.turned, ctx.biased, ctx.adapter = turned, bias is not None, adapter
        return turn_heads(qkv.unflatten(-1, (-1, cos.shape[-1])), cos, sin, turned, 1)

    @staticmethod
    def backward(ctx, grad):
        once()
        matrix, x, weight, scale, cos, sin = saved(ctx)
        grad = turn_heads(grad, cos, sin, ctx.turned, -1).flatten(-2)
        dn, low = to_input(grad, matrix, ctx.adapter)
        dmatrix, da, db = to_weights(grad, scaled(x, scale, weight), low, ctx.adapter,
                                     ctx.needs_input_grad[3])
        dx, dweight = norm_back(x, scale, weight, dn)
        dbias = grad.flatten(0, -2).sum(0) if ctx.biased else None
        return dx, dweight, None, dmatrix, None, None, None, dbias, None, da, db


class NormTurn(torch.autograd.Function):
    """Each head's query and key normalised, then the first `turned` heads turned.

    qkv (..., H + 2K, E), query and key (E,): the norms' weights  ->  (..., H + 2K, E)
    """

    @staticmethod
    def forward(ctx, qkv, query, key, eps, cos, sin, turned, sizes):
        q, k, v = qkv.split(sizes, -2)
        of_q, of_k = scale_of(q, eps), scale_of(k, eps)
        ctx.save_for_backward(qkv, query, key, of_q, of_k, cos, sin)
        ctx.turned, ctx.sizes = turned, sizes
        normed = torch.cat([scaled(q, of_q, query), scaled(k, of_k, key), v], -2)
        return turn_heads(normed, cos, sin, turned, 1)

    @staticmethod
    def backward(ctx, grad):
        once()
        qkv, query, key, of_q, of_k, cos, sin = ctx.saved_tensors
        q, k, _ = qkv.split(ctx.sizes, -2)
        dq, dk, dv = turn_heads(grad, cos, sin, ctx.turned, -1).split(ctx.sizes, -2)
        dq, dquery = norm_back(q, of_q, query, dq)
        dk, dkey = norm_back(k, of_k, key, dk)
        return torch.cat([dq, dk, dv], -2), dquery, dkey, None, None, None, None, None


class Add(torch.autograd.Function):
    """x + y W^T; y W^T alone if x is None.  (..., D), (..., H E), (D, H E) -> (..., D)"""

    @staticmethod
    def forward(ctx, x, y, matrix, adapter=None, *_):
        save(ctx, [matrix], y)
        ctx.adapter, ctx.adds = adapter, x is not None
        found = multiply(y, matrix, adapter)
        return found if x is None else found.add_(x)

    @staticmethod
    def backward(ctx, grad):
        once()
        matrix, y = saved(ctx)
        grad = grad.contiguous()
        dy, low = to_input(grad, matrix, ctx.adapter)
        dmatrix, da, db = to_weights(grad, y, low, ctx.adapter, ctx.needs_input_grad[2])
        return grad if ctx.adds else None, dy, dmatrix, None, da, db


class AddMLP(torch.autograd.Function):
    """x + down(silu(gate) * up), gate and up of x normalised.  (..., D) -> (..., D)

    adds: False leaves out the x.
    """

    @staticmethod
    def forward(ctx, x, weight, eps, wide, narrow, of_wide=None, a=None, b=None, of_narrow=None,
                c=None, d=None, adds=True):
        scale = scale_of(x, eps)
        gate_up = multiply(scaled(x, scale, weight), wide, of_wide)
        save(ctx, [wide, narrow], x, weight, scale, gate_up)
        ctx.adapters, ctx.adds = (of_wide, of_narrow), adds
        gate, up = gate_up.chunk(2, -1)
        found = multiply(F.silu(gate).mul_(up), narrow, of_narrow)
        return found.add_(x) if adds else found

    @staticmethod
    def backward(ctx, grad):
        once()
        wide, narrow, x, weight, scale, gate_up = saved(ctx)
        grad = grad.contiguous()
        gate, up = gate_up.chunk(2, -1)
        bent, (of_wide, of_narrow) = F.silu(gate), ctx.adapters
        dinner, low = to_input(grad, narrow, of_narrow)
        inner = torch.empty_like(gate_up)                                   # both halves in place
        dgate, dup = inner.chunk(2, -1)
        torch.mul(bent, dinner, out=dup)
        torch.ops.aten.silu_backward.grad_input(dinner.mul_(up), gate, grad_input=dgate)
        of_down = to_weights(grad, bent.mul_(up), low, of_narrow, ctx.needs_input_grad[4])
        dn, low = to_input(inner, wide, of_wide)
        dwide, da, db = to_weights(inner, scaled(x, scale, weight), low, of_wide,
                                   ctx.needs_input_grad[3])
        dx, dweight = norm_back(x, scale, weight, dn)
        return (dx.add_(grad) if ctx.adds else dx, dweight, None, dwide, of_down[0], None, da, db,
                None, *of_down[1:], None)


def once():
    """MinipostError where somebody wants a second derivative, which these steps do not have."""
    if torch.is_grad_enabled():
        raise MinipostError("a layer's fast form has no second derivative; ask the model with "
                            "explicit=True")


def scale_of(x, eps):
    """1 / sqrt(mean(x^2) + eps), in float32 or float64.  (..., D) -> (..., 1)"""
    wide = x if x.dtype in WIDE else x.float()
    # The norm's own kernel is faster than a mean of squares.
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def scaled(x, scale, weight):
    """The normalised x, in its own type."""
    return (x * scale).to(x.dtype).mul_(weight)


def norm_back(x, scale, weight, dn):
    """The derivatives by x and by the norm's weight, from that by the normalised x."""
    wide, factor, dn = x.to(scale.dtype), weight.to(scale.dtype), dn.to(scale.dtype)
    both = (wide * dn).flatten(0, -2)                                       # (N, D)
    mean = (both @ factor).div_(x.shape[-1]).view_as(scale)                 # of x w dn
    dweight = torch.mv(both.t(), scale.flatten())
    dx = (dn * factor).mul_(scale).addcmul_(wide, mean * scale**3, value=-1)
    return dx.to(x.dtype), dweight.to(weight.dtype)


def turn_heads(x, cos, sin, turned, sign):
    """The first `turned` heads turned, forwards or backwards; the others copied."""
    if not turned:
        return x
    out, half = torch.empty_like(x), x.shape[-1] // 2
    out[..., turned:, :] = x[..., turned:, :]
    source, goal = x[..., :turned, :], out[..., :turned, :]
    torch.mul(source, cos, out=goal)
    goal[..., :half].addcmul_(source[..., half:], sin[..., :half], value=sign)
    goal[..., half:].addcmul_(source[..., :half], sin[..., half:], value=sign)
    return out
