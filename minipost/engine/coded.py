"""Fixed weights in 8 or 4 bits, beside which adapters learn (QLoRA).

Dettmers et al. 2023, arxiv.org/abs/2305.14314, sec. 3.  A matrix is cut into blocks of 64 weights:

    scale c = max |w| of a block        code = the level nearest to w / c        w ~ c level(code)

    4 bits      the 16 levels of NF4: quantiles of the normal distribution, 0 and both ends among
                them, so that weights that are normal use all codes about equally often
    8 bits      the levels -127/127 .. 127/127

The scales of 4 bits would take half a bit a weight more.  So they are coded too, less their mean,
in 8 bits and blocks of 256 (double quantisation; the paper's second code is a float of 8 bits,
ours the 8 bits above): 4.13 bits a weight, and 8.13.

Beside a scale that is far larger, small ones may be decoded as anything within half a level, even
as negative numbers, which would turn the signs of their weights.  So a matrix keeps its smallest
scale, and what is decoded as less than half of it is taken for it.  (The paper's code, which is
bitsandbytes, adds the mean back without such a bound; its float is finer near the mean.)

A product makes its matrix anew, forwards and backwards, and drops it; the way back keeps no matrix
(block.py).  Nothing is differentiated by a code.  Embedding, head and norms stay as they are.  The
sampler holds whole matrices while it answers.

tests/test_coded.py holds the levels against the paper's table.
"""

import math

import torch
from torch import nn

from minipost.engine.functions import product
from minipost.engine.lora import Fixed, linears

BLOCK, SCALES = 64, 256  # weights of a block; scales of a block
HELD = "codes", "scale_codes", "steps", "mean", "least"     # of a coded matrix
# The outermost quantile: halfway between what 15 and what 16 levels in all would leave beyond.
OFFSET = (2 - 1 / 30 - 1 / 32) / 2


def levels(bits):
    """The numbers in [-1, 1] that codes stand for, in order.  (16,) or (255,), float64"""
    if bits == 8:
        return torch.arange(-127, 128, dtype=torch.float64) / 127
    above, below = (torch.special.ndtri(torch.linspace(OFFSET, 0.5, n, dtype=torch.float64))[:-1]
                    for n in (9, 8))
    found = torch.cat([-below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return found / above[0]


def encode(x, bits, block):
    """-> codes (uint8, two in a byte if bits is 4), scale of each block.  x of any shape"""
    flat = x.flatten()
    rows = nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scales = rows.abs().amax(1)
    known = levels(bits).to(x)
    # The level whose middle to the next one is the first that is not below.
    codes = torch.bucketize(rows / scales.clamp(min=1e-30)[:, None], (known[1:] + known[:-1]) / 2)
    codes = codes.to(torch.uint8).flatten()
    return (codes[::2] * 16 + codes[1::2] if bits == 4 else codes), scales


def decode(codes, scales, bits, count):
    """The `count` numbers that `encode` coded, in the scales' type.  (count,)"""
    if bits == 4:
        codes = torch.stack([codes >> 4, codes & 15], 1).flatten()
    values = levels(bits).to(scales)[codes.int()].view(len(scales), -1)
    return values.mul_(scales[:, None]).flatten()[:count]


class Coded(nn.Module):
    """A Linear of gpt.py whose matrix is coded.  Copies of a module share the codes.

    adapter, bias: as of a Linear.  weight: the matrix, made anew each time.  (V, D)
    """

    codes: Fixed
    scale_codes: Fixed
    steps: Fixed
    mean: Fixed
    least: Fixed

    def __init__(self, linear, bits):
        super().__init__()
        weight = linear.weight.detach()
        self.bits, self.shape, self.kind = bits, tuple(weight.shape), weight.dtype
        wide = weight.to(torch.promote_types(self.kind, torch.float32))
        codes, scales = encode(wide, bits, BLOCK)
        mean = scales.mean()
        scale_codes, steps = encode(scales - mean, 8, SCALES)
        least = torch.where(scales > 0, scales, scales.amax()).amin()
        for name, part in zip(HELD, (codes, scale_codes, steps, mean, least)):
            setattr(self, name, Fixed(part, requires_grad=False))
        self.adapter, self.bias, self.whole = linear.adapter, linear.bias, None
        self.out_features = self.shape[0]       # of which `linears` asks, without making the matrix

    @property
    def weight(self):
        if self.whole is not None:
            return self.whole
        found = decode(self.codes, self.scales(), self.bits, math.prod(self.shape))
        return found.view(self.shape).to(self.kind)

    def scales(self):
        """The scale of each block, none below half of the least."""
        blocks = -(-math.prod(self.shape) // BLOCK)
        found = decode(self.scale_codes, self.steps, 8, blocks) + self.mean
        return torch.where(found < self.least / 2, self.least, found)

    def become(self, weight):
        """Be this matrix from now on."""
        self.whole = weight

    def forward(self, x):
        found = product(x, self.weight)
        if self.adapter is not None:
            found = found + self.adapter(x)
        return found if self.bias is None else found + self.bias


def code(module, bits):
    """Code the matrices of a module's layers.  -> the module, which nothing can train then"""
    for name, linear, _ in list(linears(module)):
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, Coded(linear, bits))
    return module


def is_coded(module):
    """Whether a module holds codes."""
    return any(isinstance(part, Coded) for part in module.modules())


def count(module):
    """How many parameters a module has; a coded matrix has as many as it stands for."""
    coded = [part for part in module.modules() if isinstance(part, Coded)]
    held = [getattr(part, name) for part in coded for name in HELD]
    return (sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in held)
            + sum(math.prod(part.shape) for part in coded))


def stored(linear):
    """What a product of block.py keeps of a matrix: the matrix, or itself where that is coded."""
    return linear if isinstance(linear, Coded) else linear.weight


def dense(matrix):
    """The matrix of what `stored` gave."""
    return matrix.weight if isinstance(matrix, Coded) else matrix


def save(ctx, matrices, *tensors):
    """Keep matrices and tensors for the way back, of a coded matrix nothing but its codes."""
    ctx.coded = [each if isinstance(each, Coded) else None for each in matrices]
    ctx.save_for_backward(*(None if isinstance(each, Coded) else each for each in matrices),
                          *tensors)


def saved(ctx):
    """What `save` kept, in its order."""
    found = ctx.saved_tensors
    return *(coded or each for coded, each in zip(ctx.coded, found)), *found[len(ctx.coded) :]
