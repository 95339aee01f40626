"""The optimisers: AdamW on one flat vector, and Muon for the matrices of the layers.

AdamW (Loshchilov & Hutter 2019, arxiv.org/abs/1711.05101), with the gradient g:

    m <- b1 m + (1-b1) g      v <- b2 v + (1-b2) g^2      t <- t + 1
    w <- w - lr ( m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + decay w )

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix by the nearest matrix
with orthonormal rows or columns: of the momentum's singular values it makes ones, roughly.

    m <- mu m + g             d = g + mu m                            (Nesterov's momentum)
    o = U f(S) V^T            of d / |d| = U S V^T, see `orthogonalised`
    w <- w - lr ( 0.2 sqrt(max(rows, columns)) o + decay w )

The factor gives the update the size that AdamW's usually has, so --lr means the same for both (Liu
et al. 2025, arxiv.org/abs/2502.16982, sec. 2.2).  Matrices that are stored as one, such as those of
queries, keys and values, are taken one by one.  Embeddings, heads and norms stay with AdamW.

Where decay applies, it applies to matrices alone, as is usual.
"""

from functools import partial
from typing import Literal

import torch

from minipost import parallel
from minipost.engine.adalora import Allocator
from minipost.engine.lora import Adapter, Pruned, trained
from minipost.errors import MinipostError

PIECE = 2**17      # weights that are updated at once: they fit a CPU's cache
GPU_PIECE = 2**24  # the same on other devices
MOMENTUM = 0.95    # of Muon (mu)
QUINTIC = 3.4445, -4.7750, 2.0315  # Muon's polynomial: f(s) = a s + b s^3 + c s^5
Optimizer = Literal["adamw", "muon"]
SKIPS_ALLOWED = 5  # steps in a row that may be dropped for a gradient that is not finite


@torch.no_grad()
def add_up(total, parameter):
    """Add to `total` the gradient that a parameter has just got, and take it away."""
    total += parameter.grad
    parameter.grad = None


@torch.no_grad()
def orthogonalised(matrix, steps=5):
    """A matrix of the same singular vectors whose singular values are near 1.  (R, C) -> (R, C)

    Newton and Schulz's iteration needs products alone.  Each step maps every singular value s to
    a s + b s^3 + c s^5.  Five of them take all from 0.01 to 1 into 0.6 .. 1.3.
    """
    a, b, c = QUINTIC
    x = matrix.t() if matrix.shape[0] > matrix.shape[1] else matrix     # the smaller product
    x = x / x.norm().clamp(min=1e-30)                                   # all s are at most 1 then
    for _ in range(steps):
        square = x @ x.t()
        x = a * x + (b * square + c * square @ square) @ x
    return x.t() if matrix.shape[0] > matrix.shape[1] else x


def layer_matrices(module):
    """{parameter: the rows of each matrix that it holds} of the layers' matrices.

    A layer's fused matrices hold queries, keys and values, or gate and up.
    """
    found = {}
    for layers in (m.layers for m in module.modules() if hasattr(m, "layers")):
        for part in layers.modules():
            if hasattr(part, "qkv_proj"):
                one = part.kv_heads * part.head_dim
                found[part.qkv_proj.weight] = [part.heads * part.head_dim, one, one]
            if hasattr(part, "gate_up_proj"):
                found[part.gate_up_proj.weight] = [len(part.gate_up_proj.weight) // 2] * 2
            if isinstance(part, Adapter):
                found[part.a] = [part.rank] * sum(part.adapted)
                found[part.b] = [n for n, has in zip(part.rows, part.adapted) if has]
        for weight in layers.parameters():
            if weight.dim() == 2:
                found.setdefault(weight, [len(weight)])
    return found


def adamw(grad, m, v, w, betas, eps, updates, lr, clipped):
    """AdamW on a stretch of the weights w, in place: (n,) each.  updates: how many, this included.

    clipped: the factor of the gradient, at most 1.
    """
    b1, b2 = betas
    size = PIECE if w.device.type == "cpu" else GPU_PIECE
    for g, first, second, part in zip(*(x.split(size) for x in (grad, m, v, w))):
        g = g.to(part.dtype)
        if clipped < 1:
            g = g * clipped
        first.lerp_(g, 1 - b1)
        second.mul_(b2).addcmul_(g, g, value=1 - b2)
        scale = (second / (1 - b2**updates)).sqrt_().add_(eps)
        part.addcdiv_(first, scale, value=-lr / (1 - b1**updates))


class Learner:
    """A module with its optimiser.

    Parameters are views into one vector, and so are their gradients.  So the sum over ranks, the
    norm and the update are a few operations on long vectors, and TRPO finds its vectors ready.
    With weights below float32 the update runs on a float32 copy, and gradients of micro-batches add
    up in float32: a small one would be lost beside a large one in bfloat16.  An update is made in
    place and in pieces: nothing of the length of all weights is made for it.

    gone(): the share of its steps that this one ends, by which an `Allocator` lowers its budget.
    """

    gone = staticmethod(lambda: 0.0)
    allocator = None        # of a module with adapters whose ranks have a budget

    def __init__(self, module, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
                 optimizer: Optimizer = "adamw"):
        self.module, self.betas, self.eps, self.weight_decay = module, betas, eps, weight_decay
        self.params = trained(module)
        self.matrix_part = sum(p.numel() for p in self.params if p.dim() >= 2)
        self.flat = torch.cat([p.detach().flatten() for p in self.params])
        self.master = self.flat if self.flat.dtype == torch.float64 else self.flat.float()
        self.dtype, self.grad = self.master.dtype, torch.zeros_like(self.master)
        layers = layer_matrices(module) if optimizer == "muon" else {}
        self.muon = []     # (where in the vectors, shape) of each matrix that Muon moves
        self.adam = []     # where AdamW's stretches are
        start, places = 0, {}
        for p in self.params:
            part = places[p] = slice(start, start := start + p.numel())
            if p in layers:
                at = part.start
                for rows in layers[p]:
                    self.muon.append((slice(at, at := at + rows * p.shape[1]), (rows, p.shape[1])))
            elif self.adam and self.adam[-1].stop == part.start:
                self.adam[-1] = slice(self.adam[-1].start, part.stop)
            else:
                self.adam.append(part)
            p.data, grad = self.flat[part].view_as(p), self.grad[part].view_as(p)
            if grad.dtype == p.dtype:
                p.grad = grad
            else:
                p.register_post_accumulate_grad_hook(partial(add_up, grad))
        if any(isinstance(part, Pruned) for part in module.modules()):
            self.allocator = Allocator(module, *(
                {p: x[part].view_as(p) for p, part in places.items()}
                for x in (self.master, self.grad)))
        self.m = torch.zeros_like(self.master)
        self.v = self.master.new_zeros(sum(part.stop - part.start for part in self.adam))
        self.updates = self.skipped = self.skips_in_a_row = 0

    def collect(self):
        """Sum over all ranks the gradients that backward() left; returns their norm.

        A gradient that is not finite is dropped and counted; MinipostError after 5 in a row.
        """
        norm = self.summed_norm()
        if norm < float("inf"):
            self.skips_in_a_row = 0
            return norm
        self.skipped += 1
        self.skips_in_a_row += 1
        self.clear()
        if self.skips_in_a_row >= SKIPS_ALLOWED:
            raise MinipostError(
                f"the gradient was not finite {SKIPS_ALLOWED} steps in a row" + (
                    "; lower the learning rate or look at the rewards" if self.updates else
                    " from its first on; look at the loss and the rewards, not at the learning "
                    "rate"))
        return norm

    def summed_norm(self):
        """Sum the gradient over all ranks.  -> its norm"""
        parallel.all_reduce(self.grad)
        return float(self.grad.norm())

    def clear(self):
        """Take the gradient away."""
        self.grad.zero_()

    @torch.no_grad()
    def step(self, lr, max_grad_norm=1.0, weight_decay=None):
        """One update from the gradients that backward() left; returns their norm before clipping.

        weight_decay: the learner's own if None.  A gradient that is not finite makes no update, see
        `collect`.
        """
        norm = self.collect()
        if not norm < float("inf"):
            return norm
        if self.allocator:
            self.allocator.weigh()
            norm = float(self.grad.norm())
        self.updates += 1
        decay = self.weight_decay if weight_decay is None else weight_decay
        self.update(lr, decay, max_grad_norm / norm if norm > max_grad_norm else 1.0)
        self.clear()
        return norm

    def update(self, lr, decay, clipped):
        """Move the weights.  clipped: the factor of the gradient, at most 1."""
        self.master[: self.matrix_part].mul_(1 - lr * decay)
        start = 0
        for part in self.adam:
            second = self.v[start : (start := start + part.stop - part.start)]
            adamw(self.grad[part], self.m[part], second, self.master[part], self.betas, self.eps,
                  self.updates, lr, clipped)
        for part, shape in self.muon:
            self.orthogonal(part, shape, lr, clipped)
        if self.allocator:
            self.allocator.prune(self.gone())
        self.assign(self.master)

    def orthogonal(self, part, shape, lr, clipped):
        """Muon on one matrix."""
        m, grad = self.m[part], self.grad[part].to(self.m.dtype)
        grad = grad * clipped
        m.mul_(MOMENTUM).add_(grad)
        move = orthogonalised(grad.add_(m, alpha=MOMENTUM).view(shape))
        self.master[part].view(shape).sub_(move, alpha=0.2 * lr * max(shape) ** 0.5)

    @torch.no_grad()
    def assign(self, weights):
        """Set the weights to this vector, which is in the order of `flat`."""
        if weights is not self.master:
            self.master.copy_(weights)
        if self.master is not self.flat:
            self.flat.copy_(self.master)

    def become(self, module):
        """Copy the weights of a module of the same shape, and reset the optimiser."""
        self.assign(torch.cat([p.detach().flatten() for p in trained(module)]).to(self.master))
        self.reset_optimizer()

    def reset_optimizer(self):
        """Forget the moments, for another loss."""
        self.m.zero_()
        self.v.zero_()
        if self.allocator:
            self.allocator.forget()
        self.updates = 0

    def finite(self):
        """Whether all weights are."""
        return bool(self.master.isfinite().all())

    def state(self):
        """Tensors and numbers that `restore` needs to continue exactly."""
        tensors = {"weights": self.master, "m": self.m, "v": self.v}
        tensors |= self.allocator.state() if self.allocator else {}
        return tensors, [self.updates, self.skipped, self.skips_in_a_row]

    def restore(self, tensors, numbers):
        for name, mine in self.state()[0].items():
            mine.copy_(tensors[name])
        self.assign(self.master)
        self.updates, self.skipped, self.skips_in_a_row = numbers
