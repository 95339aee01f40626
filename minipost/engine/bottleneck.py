"""Adapters of Houlsby et al. 2019 (arxiv.org/abs/1902.00751): a bottleneck behind each sublayer.

What attention and the MLP of a layer give goes through a small network of its own before it is
added to x (sec. 2.1).  With f = attention(n(x)) or MLP(n(x)):

    x <- x + f + gelu(f D^T + c) U^T + d        D (m, H), c (m,), U (H, m), d (H,) learn alone

At first U and d are zero, so nothing changes; the paper's are nearly zero.  Its norms learn too,
ours do not.  Unlike LoRA's matrices it cannot be added to the weights, and a token costs more.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minipost.engine.lora import fix
from minipost.errors import MinipostError

STD = 0.01  # of a new D


class Bottleneck(nn.Module):
    """f + gelu(f D^T + c) U^T + d.  (..., H) -> (..., H)"""

    def __init__(self, size, width):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.zeros(width, size)), nn.Parameter(
            torch.zeros(size, width))
        self.inner, self.outer = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(size))

    def forward(self, f):
        return f + F.linear(F.gelu(F.linear(f, self.down, self.inner)), self.up, self.outer)


def bottlenecks(module):
    """All that a module has."""
    return [part for part in module.modules() if isinstance(part, Bottleneck)]


def width_of(module):
    """The m of a module's bottlenecks; 0 without one."""
    return next((len(part.down) for part in bottlenecks(module)), 0)


def put(model, width):
    """Give each layer of a GPT two that change nothing yet."""
    for layer in model.layers:
        for name in ("after_attention", "after_mlp"):
            setattr(layer, name, Bottleneck(model.config.hidden_size, width).to(model.norm.weight))


def attach(model, width, seed=0):
    """Fix all weights of a GPT and put bottlenecks into it.  -> the model

    One that has them goes on with them; width: 0, or its own.
    """
    fix(model, [p for part in bottlenecks(model) for p in part.parameters()])
    there = width_of(model)
    if there and width not in (0, there):
        raise MinipostError(f"--bottleneck {width}: the model has some of width {there} already; "
                            "leave out --bottleneck to train those on, or begin from the model "
                            "beneath")
    if not there:
        put(model, width)
        generator = torch.Generator().manual_seed(seed)
        for part in bottlenecks(model):
            part.down.data.copy_(STD * torch.randn(part.down.shape, generator=generator))
    return model
