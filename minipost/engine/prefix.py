"""Prefix tuning: trained keys and values stand before those of the text, and no weight learns.

Li & Liang 2021 (arxiv.org/abs/2101.00190), and at every layer too Liu et al. 2021 (P-Tuning v2,
arxiv.org/abs/2110.07602).  With q, k, v of the text, and N keys P and values R of each layer:

    o_t = softmax(q_t [P; k]^T / sqrt(E)) [R; v]        every token sees the whole prefix

Backwards, where a_tj is the weight of P_j, and do_t the derivative of the loss by o_t:

    dR_j = sum_t a_tj do_t      dP_j = sum_t a_tj (do_t . (R_j - o_t)) q_t / sqrt(E)

Here PyTorch's attention computes it, as for all keys (functions.py).  Rows, packed lists and cached
columns get the prefix in front, so training and sampling read it alike.

P is compared with queries as it is.  The text's positions are what they are without a prefix, so
the context is as long.  Elsewhere (peft) the text begins at position N.  That is the same with each
P turned by N positions, since attention depends on differences alone.

At first P and R are N(0, 0.02^2): the prefix adds next to nothing, but its scores of 0 take
attention from the text, the more the longer it is.  So a long one changes answers before it has
learnt (docs/use.md), and the reference of a KL is the model with the new prefix.  The paper begins
with what the model computes of real words (sec. 7.4), and learns P and R through an MLP that it
then drops.  Such a beginning ruins a small model that has seen no text behind another.
"""

import torch
from torch import nn

from minipost.engine.functions import rotate
from minipost.engine.lora import fix
from minipost.errors import MinipostError

STD = 0.02  # of a new prefix


class Prefix(nn.Module):
    """Keys and values that a layer reads before the text's.  (N, K, E) each"""

    def __init__(self, keys, values):
        super().__init__()
        self.keys, self.values = (nn.Parameter(x.detach().clone().contiguous())
                                  for x in (keys, values))

    def __len__(self):
        return len(self.keys)


def attentions(module):
    """The attention of each layer."""
    return [part for part in module.modules() if hasattr(part, "qkv_proj")]


def length_of(module):
    """How many keys a module's prefix has; 0 without one."""
    first = attentions(module)[0].prefix
    return 0 if first is None else len(first)


def turned(model, attention, keys, sign):
    """Keys turned on (1) or back (-1) by as many positions as there are of them.  (N, K, E)"""
    if not attention.turned:
        return keys
    cos, sin = (table[len(keys)] for table in model.turns(len(keys) + 1))
    rope = model.config.family.rope
    scale = 1.0 if rope is None else rope.attention             # which the tables carry
    return rotate(keys, cos / scale, sign * sin / scale)


def put(model, prefixes):
    """Give each layer its Prefix.  MinipostError for a model in which a layer would not see it."""
    layers = attentions(model)
    if any(attention.window is not None for attention in layers):
        raise MinipostError("--prefix: the model has layers with a sliding window, which would not "
                            "see a prefix; use --lora")
    for attention, prefix in zip(layers, prefixes, strict=True):
        attention.prefix = prefix


@torch.no_grad()
def attach(model, length, seed=0):
    """Fix all weights of a GPT and put a prefix of so many keys before each layer.  -> the model

    One that has a prefix goes on with it; length: 0, or its own.
    """
    fix(model, [p for attention in attentions(model) if attention.prefix is not None
                for p in attention.prefix.parameters()])
    there = length_of(model)
    if there and length not in (0, there):
        raise MinipostError(f"--prefix {length}: the model has a prefix of {there} already; leave "
                            "out --prefix to train that on, or begin from the model beneath")
    if there:
        return model
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that it is the same everywhere
    shapes = [(2, length, each.kv_heads, each.head_dim) for each in attentions(model)]
    put(model, [Prefix(*(STD * torch.randn(shape, generator=generator)).to(model.norm.weight))
                for shape in shapes])
    return model
