"""The optimiser: AdamW on one flat vector, and the schedule of its learning rate."""

import math

import torch

from minipost import parallel
from minipost.errors import MinipostError

PIECE = 2**17      # weights that are updated at once
SKIPS_ALLOWED = 5  # steps in a row that may be dropped for a gradient that is not finite


class Learner:
    """A module with AdamW (Loshchilov & Hutter 2019, arxiv.org/abs/1711.05101).

        m <- b1 m + (1-b1) g      v <- b2 v + (1-b2) g^2      t <- t + 1
        w <- w - lr ( m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + decay w )

    Parameters are views into one vector, and so are their gradients.  So the sum over ranks, the
    norm and the update are a few operations on long vectors, and TRPO finds its vectors ready.
    Decay applies to matrices only.  With weights below float32 the update runs on a float32 copy.
    """

    def __init__(self, module, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.module, self.betas, self.eps, self.weight_decay = module, betas, eps, weight_decay
        self.params = sorted((p for p in module.parameters()), key=lambda p: p.dim() < 2)
        self.matrix_part = sum(p.numel() for p in self.params if p.dim() >= 2)
        self.flat = torch.cat([p.detach().flatten() for p in self.params])
        self.grad = torch.zeros_like(self.flat)
        start = 0
        for p in self.params:
            part = slice(start, start := start + p.numel())
            p.data, p.grad = self.flat[part].view_as(p), self.grad[part].view_as(p)
        self.master = self.flat if self.flat.dtype == torch.float64 else self.flat.float()
        self.m, self.v = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.updates = self.skipped = self.skips_in_a_row = 0

    def collect(self):
        """Sum over all ranks the gradients that backward() left; returns their norm.

        A gradient that is not finite is dropped and counted; MinipostError after 5 in a row.
        """
        parallel.all_reduce(self.grad)
        norm = float(self.grad.norm())
        if norm < float("inf"):
            self.skips_in_a_row = 0
            return norm
        self.skipped += 1
        self.skips_in_a_row += 1
        self.grad.zero_()
        if self.skips_in_a_row >= SKIPS_ALLOWED:
            raise MinipostError(
                f"the gradient was not finite {SKIPS_ALLOWED} steps in a row; lower the "
                "learning rate or look at the rewards"
            )
        return norm

    @torch.no_grad()
    def step(self, lr, max_grad_norm=1.0):
        """One update from the gradients that backward() left; returns their norm before clipping.

        A gradient that is not finite makes no update, see `collect`.
        """
        norm = self.collect()
        if not norm < float("inf"):
            return norm
        self.updates += 1
        b1, b2 = self.betas
        self.master[: self.matrix_part].mul_(1 - lr * self.weight_decay)
        # On a CPU in pieces that fit its cache, so that no second vector of this length is needed.
        size = PIECE if self.master.device.type == "cpu" else len(self.master)
        for grad, m, v, w in zip(*(x.split(size) for x in (self.grad, self.m, self.v,
                                                           self.master))):
            grad = grad.to(w.dtype)
            if norm > max_grad_norm:
                grad = grad * (max_grad_norm / norm)
            m.lerp_(grad, 1 - b1)
            v.mul_(b2).addcmul_(grad, grad, value=1 - b2)
            scale = (v / (1 - b2**self.updates)).sqrt_().add_(self.eps)
            w.addcdiv_(m, scale, value=-lr / (1 - b1**self.updates))
        self.assign(self.master)
        self.grad.zero_()
        return norm

    @torch.no_grad()
    def assign(self, weights):
        """Set the weights to this vector, which is in the order of `flat`."""
        if weights is not self.master:
            self.master.copy_(weights)
        if self.master is not self.flat:
            self.flat.copy_(self.master)

    def become(self, module):
        """Copy the weights of a module of the same shape, and reset Adam."""
        params = sorted(module.parameters(), key=lambda p: p.dim() < 2)
        self.assign(torch.cat([p.detach().flatten() for p in params]).to(self.master))
        self.reset_optimizer()

    def reset_optimizer(self):
        """Reset Adam, for another loss."""
        self.m.zero_()
        self.v.zero_()
        self.updates = 0

    def state(self):
        """Tensors and numbers that `restore` needs to continue exactly."""
        tensors = {"weights": self.master, "m": self.m, "v": self.v}
        return tensors, [self.updates, self.skipped, self.skips_in_a_row]

    def restore(self, tensors, numbers):
        for mine, saved in ((self.master, "weights"), (self.m, "m"), (self.v, "v")):
            mine.copy_(tensors[saved])
        self.assign(self.master)
        self.updates, self.skipped, self.skips_in_a_row = numbers


def cosine(peak, step, steps, warmup_steps):
    """Learning rate of a step: a linear climb to `peak`, then a cosine that ends at zero."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (
        1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps)))) / 2
