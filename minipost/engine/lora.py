"""LoRA: a low-rank matrix learns beside each matrix of the layers, which stays as it is.

Hu et al. 2021, arxiv.org/abs/2106.09685, sec. 4.1, with the rank r and s = alpha / r:

    y = x W^T + s (x A^T) B^T        W (V, D) fixed, A (r, D), B (V, r);  A random, B zero at first

Backwards, where dy is the derivative of the loss by y:

    t = s dy B      dx = dy W + t A      dA = t^T x      dB = s dy^T (x A^T)      and no dW

So the first policy is the model as it was, and the reference is the model with its adapters
switched off.  Gradient, moments and saved states have the size of A and B, and all copies of a
module (critic, reward model, reference) share the fixed weights.

The matrices that gpt.py stores as one (queries, keys, values; gate and up) have an A and a B each,
as elsewhere: here the A's stand in one matrix, one below the other, and so do the B's.

With fewer numbers than a rank of 1 has (TinyLoRA, Morris et al. 2026, arxiv.org/abs/2602.04118,
after LoRA-XS): A = V^T and U S are the first r singular vectors of W, fixed, with P fixed too,

    B = U S R,   R = sum_i v_i P_i        v (u,) alone learns, zero at first      `Tied`
    dR = (U S)^T dB,    dv_i = <P_i, dR>, summed over all matrices

The paper shares v among groups of matrices.  Here all share it, so u is what a model learns.  It
does not say what P is; N(0, 1/r) here, as in peft.  Such an adapter is saved as any other, A and B.

With ranks that are shared out while they learn (AdaLoRA, adalora.py): A = e Q and B = P, where e
(r,) stand for singular values, P (V, r) and Q (r, D) for singular vectors; all learn.  `Pruned`

    dQ = e dA,   de_i = <Q_i, dA_i>,   dP = dB        e zero at first;  P and Q random, orthonormal

The sampler multiplies W + s B A out before it decodes (`whole`), so a token costs what it did.
Products with A and B are PyTorch's own: oneDNN takes a hundred times as long for some of them.

tests/test_lora.py holds the derivative against autograd, and the layout against peft.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from minipost.errors import MinipostError

# {matrix of gpt.py: the matrices that Hugging Face makes of it}
STACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "o_proj": ("o_proj",),
           "gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
TARGETS = tuple(name for names in STACKED.values() for name in names)


class Fixed(nn.Parameter):
    """A weight that nobody trains.  Copies of its module share it."""

    def __deepcopy__(self, memo):
        return self


class Adapter(nn.Module):
    """s B A beside a matrix that is made of `rows` rows of each of several matrices.

    adapted: which of them have a part in it.  a (k r, D), b (rows of those k, r).
    """

    fixed_a = False     # whether A does not learn

    def __init__(self, weight, rows, adapted, rank, alpha):
        super().__init__()
        self.rank, self.scale, self.rows, self.adapted = rank, alpha / rank, rows, adapted
        new = dict(dtype=weight.dtype, device=weight.device)
        count = sum(n for n, has in zip(rows, adapted) if has)
        self.a = nn.Parameter(torch.empty(sum(adapted) * rank, weight.shape[1], **new))
        self.b = nn.Parameter(torch.zeros(count, rank, **new))

    def parts(self):
        """(rows of W, rows of B, rows of A) of each adapted matrix, as slices."""
        at = of_b = of_a = 0
        for n, has in zip(self.rows, self.adapted):
            if has:
                yield (slice(at, at + n), slice(of_b, of_b := of_b + n),
                       slice(of_a, of_a := of_a + self.rank))
            at += n

    def forward(self, x):
        """s (x A^T) B^T in plain operations.  (..., D) -> (..., V)"""
        low, b, pieces = F.linear(x, self.a), self.b, []
        for at, of_b, of_a in self.parts():
            found = F.linear(low[..., of_a], b[of_b])
            pieces.append(F.pad(found, (at.start, sum(self.rows) - at.stop)))
        return self.scale * sum(pieces)

    def add(self, y, x):
        """Add s (x A^T) B^T to y, in place.  -> y"""
        low, b = F.linear(x, self.a), self.b
        for at, of_b, of_a in self.parts():
            y[..., at].add_(F.linear(low[..., of_a], b[of_b]), alpha=self.scale)
        return y

    def to_input(self, dx, dy):
        """Add t A to dx, in place.  -> dx, t"""
        t, b = dy.new_empty(*dy.shape[:-1], len(self.a)), self.b
        for at, of_b, of_a in self.parts():
            torch.mul(dy[..., at] @ b[of_b], self.scale, out=t[..., of_a])
        return dx.add_(t @ self.a), t

    def to_weights(self, dy, x, t):
        """-> dA, or None where A is fixed, and dB"""
        low, db = F.linear(x, self.a).flatten(0, -2), torch.empty_like(self.b)
        for at, of_b, of_a in self.parts():
            torch.mul(dy[..., at].flatten(0, -2).t() @ low[:, of_a], self.scale, out=db[of_b])
        return t.flatten(0, -2).t() @ x.flatten(0, -2) if not self.fixed_a else None, db

    @torch.no_grad()
    def matrix(self, weight):
        """W + s B A.  (V, D)"""
        found, b = weight.clone(), self.b
        for at, of_b, of_a in self.parts():
            found[at].addmm_(b[of_b], self.a[of_a], alpha=self.scale)
        return found


class Tied(Adapter):
    """An Adapter on fixed directions of its matrix.  v (u,), which others have too, alone learns.

    left, a: U S (V, r) and V^T (r, D) of each of k adapted matrices, one below the other.
    p (k, u, r r).
    """

    fixed_a = True
    left: torch.Tensor
    p: torch.Tensor

    def __init__(self, weight, rows, adapted, rank, alpha, v, generator):
        nn.Module.__init__(self)
        self.rank, self.scale, self.rows, self.adapted = rank, alpha / rank, rows, adapted
        parts = [directions(part, rank) for part, has in zip(weight.split(rows), adapted) if has]
        drawn = torch.randn(len(parts), len(v), rank * rank, generator=generator)
        self.v = v
        for name, fixed in (("left", torch.cat([left for left, _ in parts])),
                            ("a", torch.cat([right for _, right in parts])),
                            ("p", drawn.to(weight) / math.sqrt(rank))):
            self.register_buffer(name, fixed.contiguous(), persistent=False)

    @property
    def b(self):  # type: ignore[override]  # which is no parameter here
        """U S R of each adapted matrix, made anew from v.  (V, r)"""
        mixed = (self.v @ self.p).view(-1, self.rank, self.rank)            # (k, r, r)
        return torch.cat([self.left[of_b] @ each
                          for (_, of_b, _), each in zip(self.parts(), mixed)])


class Pruned(Adapter):
    """s P diag(e) Q, of whose e all but the most important are 0 (adalora.py).

    p (rows of the k adapted matrices, r), e (k r,), q (k r, D).  budget: the mean number of e that
    a matrix keeps.
    """

    def __init__(self, weight, rows, adapted, rank, alpha, budget, generator):
        nn.Module.__init__(self)
        self.rank, self.scale, self.rows, self.adapted = rank, alpha / rank, rows, adapted
        self.budget = budget
        p, q = (torch.cat([nn.init.orthogonal_(torch.empty(*shape), generator=generator)
                           for shape in shapes]) for shapes in (
            [(n, rank) for n, has in zip(rows, adapted) if has],
            [(rank, weight.shape[1])] * sum(adapted)))
        self.p, self.q = nn.Parameter(p.to(weight)), nn.Parameter(q.to(weight))
        self.e = nn.Parameter(weight.new_zeros(len(q)))

    @property
    def a(self):  # type: ignore[override]  # which is no parameter here
        return self.e[:, None] * self.q

    @property
    def b(self):  # type: ignore[override]
        return self.p


@torch.no_grad()
def directions(weight, rank):
    """U S (V, r) and V^T (r, D) of a matrix's first singular vectors, V's largest numbers above 0.

    MinipostError where it has fewer.
    """
    if rank > min(weight.shape):
        raise MinipostError(f"--lora {rank} --lora-numbers: a matrix of {len(weight)} x "
                            f"{weight.shape[1]} has {min(weight.shape)} directions; lower the rank")
    u, s, right = torch.linalg.svd(
        weight.to(torch.promote_types(weight.dtype, torch.float32)), full_matrices=False)
    right = right[:rank]
    sign = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()      # (r, 1)
    return ((u[:, :rank] * s[:rank] * sign.t()).to(weight.dtype),
            (right * sign).to(weight.dtype))


def whole(linear):
    """The matrix that a Linear of gpt.py multiplies with, its adapter included.  (V, D)"""
    return linear.weight if linear.adapter is None else linear.adapter.matrix(linear.weight)


def linears(module):
    """(name in its layer, Linear, rows of the matrices that it is made of) of all layers."""
    for name, part in module.named_modules():
        kind = name.rpartition(".")[2]
        if kind == "qkv_proj":
            attention = module.get_submodule(name.rpartition(".")[0])
            one = attention.kv_heads * attention.head_dim
            yield name, part, [attention.heads * attention.head_dim, one, one]
        elif kind in STACKED:
            n = len(STACKED[kind])
            yield name, part, [part.out_features // n] * n


def fix(module, but=()):
    """Make all parameters Fixed but these."""
    kept = set(but)
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if weight not in kept:
                setattr(part, name, Fixed(weight.data, requires_grad=False))


def adapt(module, rank, alpha=0.0, targets=(), seed=0, numbers=0, budget=0):
    """Fix all weights of a module and give its layers adapters.  -> the module

    alpha: if 0, 2 rank, and with `numbers` the rank.  targets: of TARGETS, all if none.  numbers:
    how many learn in all, `Tied`; 0: A and B learn.  budget: the mean rank that is left at the end,
    `Pruned`; 0: all of it.  MinipostError for other names.
    """
    if unknown := [name for name in targets if name not in TARGETS]:
        raise MinipostError(f"--lora-targets {unknown[0]:.40}: there is no such matrix; choose "
                            f"among {', '.join(TARGETS)}")
    fix(module)
    generator = torch.Generator().manual_seed(seed)
    v = nn.Parameter(next(module.parameters()).new_zeros(numbers))
    for name, linear, rows in list(linears(module)):
        kinds = STACKED[name.rpartition(".")[2]]
        adapted = [not targets or kind in targets for kind in kinds]
        if any(adapted) and numbers:
            linear.adapter = Tied(linear.weight, rows, adapted, rank, alpha or rank, v, generator)
        elif any(adapted) and budget:
            linear.adapter = Pruned(linear.weight, rows, adapted, rank, alpha or 2 * rank, budget,
                                    generator)
        elif any(adapted):
            linear.adapter = Adapter(linear.weight, rows, adapted, rank, alpha or 2 * rank)
            bound = 1 / math.sqrt(linear.weight.shape[1])
            drawn = torch.rand(linear.adapter.a.shape, generator=generator)  # the same everywhere
            linear.adapter.a.data.copy_((2 * drawn - 1) * bound)
    return module


def adapters(module):
    """(name, Linear, Adapter) of those that a module has."""
    return [(f"{name}.adapter", linear, linear.adapter) for name, linear, _ in linears(module)
            if linear.adapter is not None]


def trained(module):
    """The parameters that are not fixed, matrices first: the order of an optimiser's vectors."""
    return sorted((p for p in module.parameters() if not isinstance(p, Fixed)),
                  key=lambda p: p.dim() < 2)


def own(module):
    """{name: parameter or buffer} of a module, without those that its copies share.

    What has several names is there once.
    """
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    mine = {name for name, p in module.named_parameters() if not isinstance(p, Fixed)}
    return {name: x for name, x in module.state_dict().items() if name in mine or name not in every}


def fill(module, tensors):
    """Set what `own` gave.  Adapters that it does not have are taken away.

    KeyError where the tensors are of another module.
    """
    held = {p for name, p in module.named_parameters(remove_duplicate=False) if name in tensors}
    for _, linear, adapter in adapters(module):
        if not held & {*adapter.parameters()}:
            linear.adapter = None
    if others := own(module).keys() ^ tensors.keys():
        raise KeyError(min(others))
    module.load_state_dict(tensors, strict=False)


def off(module):
    """Take away the adapters that change nothing.  -> the module"""
    for _, linear, adapter in adapters(module):
        if not (adapter.a.any() and adapter.b.any()):
            linear.adapter = None
    return module


@torch.no_grad()
def merged(module):
    """A copy without adapters: its matrices have them added.  What is fixed is shared."""
    found = copy.deepcopy(module)
    for _, linear, _ in adapters(found):
        linear.become(whole(linear))
        linear.adapter = None
    return found
