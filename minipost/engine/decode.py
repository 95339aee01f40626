"""Decoding: the network of gpt.py, a new token per row at a time, in few operations.

A step is small.  At 32 rows its matrix products take half of its time, and most of the rest is what
it costs to start an operation.  So the same numbers are computed with a third fewer of them:

    rotation    The rows of Wq and Wk are permuted, so that the pairs (i, i + E/2) of a head stand
                side by side.  Then a pair is a complex number, and one product in place turns all
                of them.  Queries and keys are permuted alike, so their products stay what they are.
                Biases and the weights of norms of heads are permuted with them.
    queries     The 1/sqrt(E) of attention is multiplied into Wq, or into what normalises queries.
    windows     All rows write into the same column, so a window is the last columns of the cache.
    norms       x / sqrt(mean x^2 + eps) = sqrt(D) x / hypot(|x|, sqrt(D eps)), and the sqrt(D) is
                multiplied into the norm's weight.
    buffers     Results are written where those of the step before stood.
    packing     oneDNN reads matrices of 256 columns and more a third faster in an order of its own.

tests/test_decode.py holds it against `GPT.forward` in float64.

Axes as in gpt.py: B rows, D hidden, F inner width of the MLP, H query heads, K key/value heads,
R = H/K, E head width; P prompts, L their longest, S columns of the cache.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F

from minipost.engine.functions import uses_onednn
from minipost.engine.lora import whole

LARGE = 256  # inputs and outputs from which on a matrix is packed
ROWS = 8     # packed products take rows by so many


class Decoder:
    """A model that has read prompts and goes on, a token per row at a time.  tree.py fills it.

    model: a GPT; layers: its Layers; rotations: its rotary table as complex numbers.
    hidden (B, D): the final hidden states behind the last token of each row.
    lengths (B,): tokens of each row's prompt.  at: the column of the cache that the next token
    goes to.  width: how many columns the prompts take, flush right, so that all rows write their
    next token into the same one.  bias (B, 1, S): hides what is left of a shorter prompt, or None.
    shared: the prompts that rows share, where these are not in the cache of each row.
    """

    model: Any
    layers: list
    rotations: torch.Tensor
    hidden: torch.Tensor
    lengths: torch.Tensor
    at: int
    width: int
    bias: Any = None
    shared: Any = None
    output: Any = None

    def make_buffers(self):
        """To be called where the number of rows has changed."""
        first, rows = self.layers[0], len(self.lengths)
        self.norm = Norm(self.model.norm)
        self.buffers = [self.hidden.new_empty(rows, size) for size in (
            self.hidden.shape[1], first.qkv.outputs, first.gate_up.outputs)]

    def logits(self):
        """Logits of each row's next token.  (B, V)"""
        if self.output is None:
            model = self.model
            tied = model.config.tie_word_embeddings
            self.output = Matrix(model.embed_tokens.weight if tied else model.lm_head.weight)
        return self.model.known(self.output(self.hidden))

    def step(self, token):
        """Append one token to every row.  (B,)"""
        rotation = self.rotations[self.lengths + (self.at - self.width)][:, None]  # (B, 1, E/2)
        bias = None if self.bias is None else self.bias[:, :, : self.at + 1]
        x = F.embedding(token, self.model.embed_tokens.weight)              # (B, D)
        for layer in self.layers:
            layer.step(x, rotation, self.at, bias, self.shared, *self.buffers)
        self.hidden = self.norm(x, torch.empty_like(x))
        self.at += 1


class Layer:
    """A layer's matrices, for rows on the left, and its keys and values (2, B, K, S, E).

    prompts: those of prompts that rows share, (2, P, K, L, E).  prefix: (2, K, N, E), or None.
    """

    cache: torch.Tensor
    prompts: torch.Tensor

    def __init__(self, block, config):
        attention = block.self_attn
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.width, self.turned = config.head_dim, attention.turned
        self.window, self.head_norms = attention.window, []
        device = block.input_layernorm.weight.device
        self.order = torch.arange(self.width, device=device).view(2, -1).t().flatten()
        self.prefix = None if attention.prefix is None else torch.stack([
            attention.prefix.keys[..., self.order], attention.prefix.values]).transpose(1, 2)
        self.after_attention, self.after_mlp = block.after_attention, block.after_mlp
        self.norm, self.mlp_norm = Norm(block.input_layernorm), Norm(block.post_attention_layernorm)
        qkv, shrink = attention.qkv_proj, self.width**-0.5
        if attention.qk_norm:
            self.head_norms = [Norm(attention.q_norm, self.order, shrink),
                               Norm(attention.k_norm, self.order)]
            shrink = None
        self.qkv = Matrix(self.arranged(whole(qkv), shrink))                # D -> (H + 2K) E
        self.bias = None if qkv.bias is None else self.arranged(qkv.bias, shrink)
        self.out = Matrix(whole(attention.o_proj))                         # H E -> D
        self.gate_up = Matrix(whole(block.mlp.gate_up_proj))                # D -> 2F
        self.down = Matrix(whole(block.mlp.down_proj))                      # F -> D

    def arranged(self, rows, shrink):
        """Rows of Wqkv, or of its bias: the pairs of queries and keys stand side by side."""
        both = self.heads + self.kv
        qk, v = rows.split([both * self.width, self.kv * self.width])
        qk = qk.unflatten(0, (both, self.width))[:, self.order]             # 0, E/2, 1, ...
        if shrink is not None:
            qk[: self.heads] *= shrink
        return torch.cat([qk.flatten(0, 1), v])

    def step(self, x, rotation, at, bias, shared, normed, qkv, gate_up):
        """Add to x (B, D), in place, what the layer adds.  normed, qkv, gate_up are buffers."""
        rows = len(x)
        qkv = self.qkv(self.norm(x, normed), qkv)
        if self.bias is not None:
            qkv.add_(self.bias)
        heads = qkv.view(rows, -1, self.width)
        for norm, part in zip(self.head_norms, heads.split([self.heads, self.kv, self.kv], 1)):
            norm(part, part)
        if self.turned:
            turn(heads[:, : self.turned], rotation)
        new = heads[:, self.heads :].view(rows, 2, self.kv, self.width)
        self.cache.select(3, at).copy_(new.transpose(0, 1))
        first = 0 if self.window is None else max(0, at + 1 - self.window)
        keys, values = self.cache.narrow(3, first, at + 1 - first).flatten(1, 2)  # (B K, seen, E)
        queries = heads[:, : self.heads].reshape(len(keys), -1, self.width)  # (B K, R, E)
        if shared is None:
            mixed = mix(queries, keys, values, None if bias is None else bias[..., first:])
        else:
            prompts = self.prompts
            if self.window is not None:  # what is left of it reaches into the prompts
                length = prompts.shape[3]
                prompts = prompts[..., length - min(length, self.window - keys.shape[1]) :, :]
            mixed = shared.mix(queries, keys, values, *prompts)
        self.add(self.out, mixed.view(rows, -1), x, self.after_attention)
        gate, up = self.gate_up(self.mlp_norm(x, normed), gate_up).chunk(2, -1)
        self.add(self.down, F.silu(gate, inplace=True).mul_(up), x, self.after_mlp)

    def add(self, matrix, inner, x, bent):
        """Add a product to x in place, or what a bottleneck makes of it."""
        if bent is None:
            matrix.add(inner, x)
        else:
            x.add_(bent(matrix(inner)))


class Matrix:
    """x W^T for few rows.  weight (outputs, inputs)"""

    def __init__(self, weight):
        self.outputs, large = len(weight), min(weight.shape) >= LARGE
        self.packed = None
        if large and uses_onednn(weight):
            self.packed = pack(weight.detach().contiguous(), ROWS)
        else:
            self.turned = weight.t() if large else weight.t().contiguous()

    def __call__(self, x, out=None):
        """The product, which is in `out` if that is given and nothing is packed.  (B, outputs)"""
        if self.packed is None:
            return torch.mm(x, self.turned) if out is None else torch.mm(x, self.turned, out=out)
        # oneDNN makes code for every number of rows, and rows leave one by one.
        extra = -len(x) % ROWS
        wide = F.pad(x, (0, 0, 0, extra)) if extra else x
        return torch.ops.mkldnn._linear_pointwise(wide, self.packed, None, "none", [], "")[: len(x)]

    def add(self, x, to):
        """Add the product to a tensor, in place."""
        return to.addmm_(x, self.turned) if self.packed is None else to.add_(self(x))


def pack(weight, rows):
    """A weight in oneDNN's own order, the best for so many rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def mix(queries, keys, values, bias):
    """Attention.  (B K, R, E), (B K, seen, E) twice, bias (B, 1, seen) or None -> (B K, R, E)

    Two batched products beat the fused kernel for a single query.  The R queries that share a key
    head stand where a sequence of queries would, so grouped heads need no copies.
    """
    score = torch.bmm(queries, keys.transpose(1, 2))                        # (B K, R, seen)
    if bias is not None:
        score.view(len(bias), -1, score.shape[2]).add_(bias)
    return torch.bmm(score.softmax(-1), values)


class Norm:
    """An RMSNorm, written into a buffer.  As in training it is computed in float32 or float64."""

    def __init__(self, norm, order=slice(None), factor=1.0):
        """order: of the elements.  factor: of what is normalised."""
        size = len(norm.weight)
        self.wide = torch.promote_types(norm.weight.dtype, torch.float32)
        self.weight = norm.weight[order] * (math.sqrt(size) * factor)
        self.floor = torch.tensor(math.sqrt(size * norm.eps), dtype=self.wide,
                                  device=norm.weight.device)

    def __call__(self, x, out):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.wide)
        return torch.div(x, length.hypot_(self.floor), out=out).mul_(self.weight)


def turn(heads, rotation):
    """Turn the pairs of (B, heads, E) by (B, 1, E/2) complex numbers, in place."""
    pairs = heads.unflatten(-1, (-1, 2))
    if heads.dtype in (torch.float32, torch.float64):
        torch.view_as_complex(pairs).mul_(rotation)
    else:  # there are no complex numbers of this precision
        heads.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * rotation).flatten(-2))
