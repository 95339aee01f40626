"""Sharding: every rank keeps a part of each weight, gradient and moment (`--shard`).

It is PyTorch's FSDP2 (Zhao et al. 2023, arxiv.org/abs/2304.11277; `fully_shard`).  A parameter of
R rows lies in W ranks, R/W rows in each.  With N weights a rank holds 16 N / W bytes of weights,
gradients and moments in float32 instead of 16 N, and beside them

    a layer         gathered before its forward and backward pass, and freed behind it
    the rest        embedding, final norm and head: gathered from a pass to the end of its backward
    all weights     while answers are sampled: each rank decodes alone, without a collective
    a layer's gradient until the ranks have summed it; then each keeps its rows of the sum

The sum over ranks is made in every backward pass, not once a step.  So each rank has to make as
many passes as the others, some of them perhaps without a row (run.micro_batches).

With weights below float32 the parts are float32, which is the copy that the optimiser moves, and
are rounded as they are gathered.  Gradients are summed in float32 then.

A state is a folder of safetensors, a file for each rank, by torch.distributed.checkpoint.  Any
number of ranks can go on from it.
"""

import copy
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard, zeros

from minipost import files, parallel
from minipost.errors import MinipostError
from minipost.optim import Learner, adamw

# Nothing here writes into what a layer gave.
warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
FACTS, DIGESTS = "facts.json", "digests.json"
WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


def mesh_of(device):
    """All ranks, in a row."""
    return init_device_mesh(torch.device(device).type, (parallel.world(),))


# ---- modules

def sharded(module, device):
    """Let every rank keep a part of a GPT or ValueHead, which may lie on the CPU.  -> the module

    A deep copy of it is a usual module on the CPU.
    """
    plain = copy.deepcopy(module, {id(p): nn.Parameter(torch.empty_like(p, device="meta"),
                                                       p.requires_grad)
                                   for p in module.parameters()})
    narrow = next(module.parameters()).dtype
    learns = any(p.requires_grad for p in module.parameters())
    how = {"mesh": mesh_of(device)}
    if wide := WIDE.get(narrow) if learns else None:
        how["mp_policy"] = MixedPrecisionPolicy(narrow, wide, cast_forward_inputs=False)
    for part in [*getattr(module, "trunk", module).layers, module]:
        fully_shard(part.to(wide) if wide else part, **how)
        part.set_gradient_divide_factor(1.0)  # a sum, as in Learner.collect, not a mean
        part.set_force_sum_reduction_for_comms(True)
    for name in ("hidden", "hidden_at", "at"):
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)
    module.plain = (plain,)  # in a tuple, so that it is no part of the module
    module.__deepcopy__ = lambda memo: gathered(module, "cpu", copied=True)
    return module


def resharded(module):
    """Free what a module holds beyond its parts: it may be older than they are.  -> the module"""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return module


@torch.no_grad()
def gathered(module, device=None, copied=False, keep=True):
    """A usual module with all weights of a sharded one, in their own type; else the module itself.

    All ranks have to ask for it.  device: its own if None.  copied: whether it shares no memory.
    keep: whether this rank wants it; None if not.
    """
    if not isinstance(module, FSDPModule):
        return module
    module = resharded(module)
    plain, = module.plain
    have = dict([*module.named_parameters(), *module.named_buffers()])
    device, memo = device or next(iter(have.values())).device, {}
    for name, like in [*plain.named_parameters(), *plain.named_buffers()]:
        full = have[name].detach().to(like.dtype)
        full = full.full_tensor() if isinstance(full, DTensor) else full
        if keep:
            full = full.to(device, copy=copied)
            memo[id(like)] = (nn.Parameter(full, like.requires_grad)
                              if isinstance(like, nn.Parameter) else full)
    return copy.deepcopy(plain, memo) if keep else None


# ---- learning

class ShardedLearner(Learner):
    """A Learner of which each rank holds a part of every parameter, and moves it."""

    def __init__(self, module, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, optimizer="adamw",
                 device="cpu"):
        if optimizer != "adamw":
            raise MinipostError(f"--optimizer {optimizer} moves whole matrices, of which --shard "
                                "leaves a part in each rank; use --optimizer adamw")
        self.module, self.betas, self.eps, self.weight_decay = (
            sharded(module, device), betas, eps, weight_decay)
        self.named = dict(self.module.named_parameters())
        self.dtype = self.parts()[0].dtype
        self.m, self.v = ([torch.zeros_like(w) for w in self.parts()] for _ in "mv")  # type: ignore
        self.updates = self.skipped = self.skips_in_a_row = 0

    @torch.no_grad()
    def parts(self):
        """This rank's part of each parameter."""
        return [p.to_local() for p in self.named.values()]

    def summed_norm(self):
        """The norm of the gradient; the ranks have summed it already."""
        square = sum(float(p.grad.to_local().norm()) ** 2
                     for p in self.named.values() if p.grad is not None)
        total = torch.tensor([square], dtype=torch.float64)
        parallel.all_reduce(total)
        return float(total.sqrt())

    def clear(self):
        for p in self.named.values():
            p.grad = None

    @torch.no_grad()
    def update(self, lr, decay, clipped):
        resharded(self.module)
        for p, w, m, v in zip(self.named.values(), self.parts(), self.m, self.v):
            if p.dim() >= 2:
                w.mul_(1 - lr * decay)
            grad = torch.zeros_like(w) if p.grad is None else p.grad.to_local()
            adamw(grad.view(-1), m.view(-1), v.view(-1), w.view(-1), self.betas, self.eps,
                  self.updates, lr, clipped)

    @torch.no_grad()
    def become(self, module):
        resharded(self.module)
        for mine, other in zip(self.parts(), resharded(module).parameters(), strict=True):
            mine.copy_(other.to_local())
        self.reset_optimizer()

    def reset_optimizer(self):
        for x in (*self.m, *self.v):
            x.zero_()
        self.updates = 0

    def finite(self):
        broken = torch.tensor([float(not all(bool(w.isfinite().all()) for w in self.parts()))])
        parallel.all_reduce(broken)
        return not broken

    def state(self):
        tensors = {}
        for kind, parts in (("weights", self.parts()), ("m", self.m), ("v", self.v)):
            for (name, p), part in zip(self.named.items(), parts):
                tensors[f"{kind}/{name}"] = DTensor.from_local(
                    part, p.device_mesh, p.placements, run_check=False, shape=p.shape,
                    stride=p.stride())
        return tensors, [self.updates, self.skipped, self.skips_in_a_row]

    @torch.no_grad()
    def restore(self, tensors, numbers):
        resharded(self.module)
        for kind, parts in (("weights", self.parts()), ("m", self.m), ("v", self.v)):
            for name, part in zip(self.named, parts):
                part.copy_(tensors[f"{kind}/{name}"].to_local())
        self.updates, self.skipped, self.skips_in_a_row = numbers


# ---- states

def save_state(path, tensors, facts, aside):
    """Write a state into a folder, a file for each rank, and then put it in place of `path`.

    All ranks have to call it; rank 0 gives the facts, a dict that JSON can hold.  aside: where what
    was there before is kept.  The folder holds the SHA-256 of each of its files.
    """
    path, lead = Path(path), parallel.rank() == 0
    new = path.with_name(f".{path.name}")
    try:
        if lead:
            files.make_directory(path.parent)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            (new / FACTS).write_text(json.dumps(facts, sort_keys=True))
        meet()
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(new), save_distributed=True))
        meet()
        names = sorted(each.name for each in new.iterdir())
        digests = shared_out(names, lambda name: bytes.fromhex(files.sha256(new / name)))
        if lead:
            files.write_json(new / DIGESTS, dict(zip(names, map(bytes.hex, digests))))
            shutil.rmtree(aside, ignore_errors=True)
            if path.exists():
                os.replace(path, aside)
            os.replace(new, path)
            files.sync_directory(path.parent)
        meet()
    except (OSError, dcp.api.CheckpointException) as error:
        raise MinipostError(f"{path}: could not be written ({error!s:.100}); what was there before "
                            "is unchanged") from None


def load_state(path, device):
    """What `save_state` wrote, by any number of ranks: (tensors, facts).  All ranks call it.

    MinipostError if any of it has changed since.
    """
    path = Path(path)
    written = files.read_json(path / DIGESTS)
    names = sorted(written)
    found = shared_out(names, lambda name: digest_or_none(path / name))
    wrong = [name for name, digest in zip(names, found) if digest.hex() != written[name]]
    if wrong or FACTS not in names:
        raise MinipostError(f"{path / (wrong or [FACTS])[0]}: damaged; what it holds is not what "
                            "was written")
    reader, mesh = HuggingFaceStorageReader(str(path)), mesh_of(device)
    tensors = {}
    held: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
    for name, said in held.items():
        kind = said.properties.dtype
        tensors[name] = zeros(*said.size, dtype=kind, device_mesh=mesh,
                              placements=[Shard(0)]) if said.size else torch.zeros((), dtype=kind)
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)))
    return tensors, json.loads(files.read_bytes(path / FACTS))


def shared_out(names, digest):
    """digest(name) of each, 32 bytes; the ranks share the work."""
    found = torch.zeros(len(names), 32, dtype=torch.int32)
    for k in range(parallel.rank(), len(names), parallel.world()):
        found[k] = torch.tensor(list(digest(names[k])))
    parallel.all_reduce(found)
    return [bytes(row) for row in found.tolist()]


def digest_or_none(path):
    """The SHA-256 of a file, or 32 zeros where it cannot be read."""
    try:
        return bytes.fromhex(files.sha256(path))
    except MinipostError:
        return bytes(32)


def meet():
    """Wait for all ranks."""
    parallel.all_reduce(torch.zeros(1))
