"""The parts of a run: modules that learn, modules that no longer do, and the policy of before."""

import copy

import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from minipost.engine.head import NEVER
from minipost.engine.lora import fill, own, trained
from minipost.optim import Learner

NOTHING = "nothing"        # the tensor in a state of what has none


def sharding():
    """The code of sharding, which takes a second to import."""
    from minipost import shard

    return shard


def learner(module, shard="", **options):
    """The Learner of a module, where `shard` names a device the sharded one."""
    if shard:
        return sharding().ShardedLearner(module, device=shard, **options)
    return Learner(module, **options)


class Frozen:
    """A module that no longer learns, as a part of a run.  shard: as in Run."""

    def __init__(self, module, shard=""):
        module.requires_grad_(False)
        self.module = sharding().sharded(module, shard) if shard else module

    def state(self):
        # A reference without adapters has nothing of its own, and its state must be there.
        return own(self.module) or {NOTHING: torch.zeros(1)}, []

    def restore(self, tensors, numbers):
        fill(self.module, {name: x for name, x in tensors.items() if name != NOTHING})


@torch.no_grad()
def rounded(module, bits):
    """A frozen copy whose matrices are rounded, as a server that samples with few bits has them.

    Each row is rounded to multiples of a step of its own: its largest size over 2^(bits-1) - 1.
    """
    found = copy.deepcopy(module).requires_grad_(False)
    for part in found.modules():
        for name, weight in part.named_parameters(recurse=False):
            if weight.dim() >= 2:
                step = weight.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
                near = torch.where(step > 0, (weight / step).round() * step, weight)
                # A new one, since the module itself has a Fixed one too.
                setattr(part, name, nn.Parameter(near, requires_grad=False))
    return found


def likeliest(module, k):
    """The module with all but the k likeliest tokens impossible, as for top-k sampling.

    Its weights are the module's own.  Where several are as likely as the k-th, all of them stay.
    """
    found = copy.copy(module)

    def known(logits):
        logits = module.known(logits)
        least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
        return logits.masked_fill(logits < least, NEVER)

    found.known = known
    return found


class Past:
    """The policy as it was up to `lag` steps ago, as a part of a run."""

    def __init__(self, policy, lag):
        self.module = copy.deepcopy(policy.module).requires_grad_(False)
        self.weights = [policy.flat.clone() for _ in range(lag + 1)]  # of a step: step % (lag + 1)

    def at(self, step, policy):
        """The module of `lag` steps before this one, or of the first step that asked."""
        self.weights[step % len(self.weights)] = policy.flat.clone()
        vector_to_parameters(self.weights[(step + 1) % len(self.weights)], trained(self.module))
        return self.module

    def state(self):
        return {str(k): weights for k, weights in enumerate(self.weights)}, []

    def restore(self, tensors, numbers):
        for k, weights in enumerate(self.weights):
            weights.copy_(tensors[str(k)])
