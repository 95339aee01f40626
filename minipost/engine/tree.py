"""Decoding a tree: what samples have in common is computed once.

Samples of one prompt begin alike.  As long as two of them have drawn the same tokens, their hidden
states, keys and values are the same, and one row of the decoder serves both:

    node      a beginning that unfinished samples share; a row of the decoder
    sample    stands at a node and draws from its distribution by a random number of its own
    grow      each pair (node, drawn token) is a node of the next step

So equal prompts are read once, equal samples cost one, and a finished sample leaves at once.  Once
every sample has a node of its own, it is a Decoder of samples.

Prompts that begin alike are read once as far as they do.  Each distinct beginning of sorted prompts
is one token of a packed row, and a token sees those before it on its own way from the root.

Attention reads the keys and values of a prompt once for every row that has it.  Where the prompt is
long and rows are many, that is most of what a step reads.  There prompts have keys and values of
their own (`Shared`), which all rows of a prompt read in one product, and rows keep those of their
responses alone.

In tree-of-thoughts search this leaves a third of the rows to decode and a quarter of the prompts'
tokens to read.  tests/test_tree.py holds it against `GPT.forward` in float64.

Axes as in decode.py, and n nodes.
"""

import math
from itertools import takewhile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from minipost.engine.decode import Decoder, Layer, mix
from minipost.engine.functions import attention
from minipost.engine.packed import Padded
from minipost.engine.prefix import length_of

COLUMNS = 64    # columns of the cache behind the prompts, at first
LONG, MANY = 64, 4  # tokens of prompts and rows of each from which on rows read prompts together
PACKED = 128    # tokens that a packed row has beyond the longest prompt, at most
PAIRS = 2**21   # pairs of tokens, seen and seeing, that are computed together
TOKENS = 2**15  # tokens that are read together where no pairs are given
SAVING = 0.1    # prompts are packed where that saves at least this part of their tokens,
WIDEST = 2048   # and none is longer: what a token sees takes the square of it


class Tree(Decoder):
    """A Decoder of B samples in n <= B rows.

    prompts: P lists of ids; the G samples of each stand side by side.

    node (B,): the row of `logits()`, (n, V), from which each unfinished sample draws.
    """

    def __init__(self, model, prompts, max_new_tokens, group_size=1):
        self.model, device = model, model.device
        distinct = {ids: k for k, ids in enumerate(dict.fromkeys(map(tuple, prompts)))}
        self.node = torch.tensor([distinct[tuple(ids)] for ids in prompts],
                                 device=device).repeat_interleave(group_size)
        self.lengths = torch.tensor([len(ids) for ids in distinct], device=device)  # (n,)
        self.width = self.at = longest = int(self.lengths.max())
        self.rotations = rotations(model, self.width + max_new_tokens)
        ways, states, kept = read(model, list(distinct))
        # Prompts stand flush right.
        places = torch.tensor([[0] * (longest - len(way)) + way for way in ways], device=device)
        self.hidden = states[places[:, -1]]
        ahead = length_of(model)                    # of a prefix, which stands before all prompts
        self.width = self.at = ahead + longest
        columns = self.width + min(COLUMNS, max_new_tokens)
        column = torch.arange(columns, device=device)
        empty = (column >= ahead) & (column < (self.width - self.lengths)[:, None])
        if bool(empty.any()):
            self.bias = states.new_zeros(empty.shape).masked_fill_(empty, -math.inf)[:, None]
        self.layers = [Layer(block, model.config) for block in model.layers]
        for layer, (keys, values) in zip(self.layers, kept):
            layer.prompts = torch.stack([keys[..., layer.order][places], values[places]]) \
                .transpose(2, 3).contiguous()                               # (2, n, K, L, E)
            if layer.prefix is not None:
                before = layer.prefix[:, None].expand(-1, len(places), -1, -1, -1)
                layer.prompts = torch.cat([before, layer.prompts], 3)
        # Rows that are never used are never touched, and take no memory.
        if self.width >= LONG and len(self.node) >= MANY * len(places):
            hidden = None if self.bias is None else self.bias[:, :, : self.width]
            self.shared = Shared(torch.arange(len(places), device=device), hidden)
            self.bias, self.width, self.at, columns = None, 0, 0, columns - self.width
        heads, size = kept[0][0].shape[1:]
        self.cache = states.new_empty(len(kept), 2, len(self.node), heads, columns, size)
        if self.shared is None:
            for layer, store in zip(self.layers, self.cache):
                store[:, : len(places), :, : self.width] = layer.prompts
                del layer.prompts
        self.view()

    def view(self):
        """Let the layers see the rows of the cache that are in use."""
        for layer, store in zip(self.layers, self.cache):
            layer.cache = store[:, : len(self.lengths)]
        self.make_buffers()

    def grow(self, samples, token):
        """Append a token to each of these samples; the others have ended.  samples, token: (b,)"""
        parent, which, n = self.node[samples], slice(None), len(self.lengths)
        apart = len(self.node) == n
        if not apart:
            size = self.model.config.vocab_size
            pairs, which = (parent * size + token).unique(return_inverse=True)
            parent, token = pairs // size, pairs % size
        place = parent
        if len(parent) < n or not (apart or torch.equal(parent, torch.arange(n).to(parent))):
            place, origin = arrange(parent, n)
            self.follow(origin)
        self.node = place[which]
        if self.at == self.cache.shape[4]:
            self.widen()
        self.step(torch.empty_like(place).scatter_(0, place, token))

    def follow(self, origin):
        """Let each row hold what the row `origin` holds.  (m,), as `arrange` gives it"""
        self.lengths = self.lengths[origin]
        self.bias = None if self.bias is None else self.bias[origin]
        if self.shared is not None:
            self.leave(self.shared.owner[origin], self.shared.bias)
        moved = (origin != torch.arange(len(origin), device=origin.device)).nonzero()[:, 0]
        if len(moved):
            seen = self.cache[..., : self.at, :]
            seen[:, :, moved] = seen[:, :, origin[moved]]
        self.view()

    def leave(self, owner, bias):
        """Rows belong to these prompts now.  Forget the prompts that nobody has."""
        kept, owner = owner.unique(return_inverse=True)
        if len(kept) < self.layers[0].prompts.shape[1]:
            bias = None if bias is None else bias[kept]
            for layer in self.layers:
                layer.prompts = layer.prompts[:, kept]
        self.shared = Shared(owner, bias)

    def widen(self):
        """Enlarge the cache by half."""
        old, more = self.cache, max(1, self.at // 2)
        self.cache = old.new_empty(*old.shape[:4], self.at + more, old.shape[5])
        used = slice(len(self.lengths))
        self.cache[:, :, used, :, : self.at] = old[:, :, used]
        self.bias = None if self.bias is None else F.pad(self.bias, (0, more))
        self.view()


class Shared:
    """Attention of n rows to prompts that they share, and to what each has of its own.

    owner (n,): the prompt of each row; bias (P, 1, L) hides what is left of a shorter prompt, or is
    None.  Each of the P prompts has a row.

    The rows of a prompt stand together in a line of C places, filled up with rows that others own.
    """

    def __init__(self, owner, bias):
        self.owner, self.bias = owner, bias
        order, count = owner.argsort(stable=True), owner.bincount()
        begins = count.cumsum(0) - count                                    # (P,) in the order
        widest = torch.arange(int(count.max()), device=owner.device)
        self.rows = order[(begins[:, None] + widest).clamp(max=len(order) - 1)]  # (P, C)
        number = order.argsort() - begins[owner]                            # of a row in its line
        self.place = owner * len(widest) + number                           # (n,)

    def mix(self, queries, keys, values, far_keys, far_values):
        """Attention.  queries (n K, R, E), keys and values (n K, S, E), far ones (P, K, L, E)

        Of the far ones there may be the last only.
        """
        n, (lines, kv, length, _) = len(self.owner), far_keys.shape

        def together(x):
            """(n K, R, Z) -> (P K, C R, Z)"""
            x = x.view(n, kv, -1, x.shape[-1])[self.rows]                   # (P, C, K, R, Z)
            return x.transpose(1, 2).flatten(2, 3).flatten(0, 1)

        def apart(x):
            """(P K, C R, Z) -> (n K, R, Z)"""
            x = x.view(lines, kv, self.rows.shape[1], -1, x.shape[-1]).transpose(1, 2)
            return x.flatten(0, 1)[self.place].flatten(0, 1)

        if not length:  # of a window nothing reaches into the prompts any more
            return mix(queries, keys, values, None)
        far = torch.bmm(together(queries), far_keys.flatten(0, 1).transpose(1, 2))
        if self.bias is not None:
            far.view(lines, -1, length).add_(self.bias[..., -length:])
        score = torch.cat([apart(far), torch.bmm(queries, keys.transpose(1, 2))], -1).softmax(-1)
        far, near = score.split([length, keys.shape[1]], -1)
        found = torch.bmm(together(far.contiguous()), far_values.flatten(0, 1))
        return torch.bmm(near, values).add_(apart(found))


def rotations(model, length):
    """The rotary table as complex numbers.  (length, E/2)"""
    cos, sin = model.rotary(length)
    half, wide = cos.shape[1] // 2, torch.promote_types(cos.dtype, torch.float32)
    return torch.complex(cos[:, :half].to(wide), sin[:, half:].to(wide))


def arrange(parent, n):
    """Rows for the children of n nodes, so that few move.  parent (m,): the row of each one's own

    -> place (m,): each child's row, of the first m; origin (m,): which old row each row is to hold.

    A first child stays in its parent's row, if that is among the first m.  So no row is overwritten
    that another one is still to be copied from.
    """
    child = torch.arange(len(parent), device=parent.device)
    first = child.new_full((n,), len(parent)).scatter_reduce_(0, parent, child, "amin")
    stays = (first[parent] == child) & (parent < len(parent))
    free = torch.ones_like(stays).index_fill_(0, parent[stays], False)
    place = parent.masked_scatter(~stays, free.nonzero()[:, 0])
    return place, torch.empty_like(place).scatter_(0, place, parent)


def pack_ways(prompts):
    """Packed rows, in which prompts share the places of what they begin with alike.

    prompts: distinct tuples of ids.  -> a list of {prompt: places of its tokens in the row}

    Where that saves too little, each prompt has a row of its own.
    """
    rows, used, last, way = [], 0, (), []
    most = max(map(len, prompts)) + PACKED
    for ids in sorted(prompts):
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, last)))
        if not rows or used + len(ids) - same > most:
            rows.append({})
            used = same = 0
        way = way[:same] + list(range(used, used + len(ids) - same))
        used += len(ids) - same
        rows[-1][ids] = way
        last = ids
    tokens = sum(map(len, prompts))
    read = sum(1 + max(way[-1] for way in row.values()) for row in rows)
    if max(map(len, prompts)) > WIDEST or read > (1 - SAVING) * tokens:
        return [{ids: list(range(len(ids)))} for ids in sorted(prompts, key=len)]
    return rows


def read(model, prompts):
    """Read prompts, and what they have in common once.

    prompts: distinct tuples of ids.  -> for each a list of its tokens' places; the final hidden
    states (places, D); each layer's keys and values, a list of pairs (places, K, E)
    """
    rows = pack_ways(prompts)
    width = 1 + max(way[-1] for row in rows for way in row.values())
    apart = len(rows) == len(prompts)  # then a token sees all before it, and nobody needs a mask
    before = np.tri(1 if apart else max(map(len, prompts)), dtype=bool)
    places, parts = {}, []
    size = max(1, TOKENS // width if apart else PAIRS // width**2)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        tokens, depth = np.zeros((2, len(batch), width), dtype=np.int64)
        sees = None if apart else np.tile(np.eye(width, dtype=bool), (len(batch), 1, 1))
        for k, row in enumerate(batch):
            for ids, way in row.items():
                tokens[k, way], depth[k, way] = ids, range(len(ids))
                if sees is not None:  # padding sees itself
                    sees[k][np.ix_(way, way)] |= before[: len(ids), : len(ids)]
                places[ids] = [(start + k) * width + place for place in way]
        parts.append(forward(model, *(None if x is None else torch.from_numpy(x).to(model.device)
                                      for x in (tokens, depth, sees))))
    states, *kept = (torch.cat(found) for found in zip(*parts))
    return [places[ids] for ids in prompts], states, list(zip(kept[::2], kept[1::2]))


class Ways:
    """A layout (packed.py) in which each token's position, and what it sees, is given.

    cos, sin (P, E): the rotary table; depth (B, T): positions; sees (B, T, T) bool.  keep: receives
    each layer's keys and values, a pair of (B, K, T, E).
    """

    explicit = False

    def __init__(self, cos, sin, depth, sees):
        self.cos, self.sin, self.keep = cos[depth][:, :, None], sin[depth][:, :, None], []
        self.depth, self.sees, self.biases = depth, sees, {}

    def within(self, window):
        """The bias of a layer with this window.  (B, 1, T, T)"""
        if window not in self.biases:
            sees = self.sees
            if window is not None:
                sees = sees & (self.depth[:, :, None] - self.depth[:, None] < window)
            bias = self.cos.new_zeros(sees.shape).masked_fill_(~sees, -math.inf)
            self.biases[window] = bias[:, None]
        return self.biases[window]

    def attend(self, qkv, heads, kv, window=None, prefix=None):
        """(B, T, H + 2K, E) -> (B, T, H E)"""
        q, k, v = qkv.transpose(1, 2).split([heads, kv, kv], 1)
        self.keep.append((k, v))
        return attention(q, k, v, self.within(window),
                         prefix=prefix).transpose(1, 2).flatten(2)


def forward(model, tokens, depth, sees):
    """GPT.hidden where positions and what a token sees are given.

    tokens, depth: (B, T); sees (B, T, T) bool, or None where that is all before it.  -> final
    hidden states (B T, D), and of each layer the keys and the values (B T, K, E)
    """
    cos, sin = model.turns(tokens.shape[1] if sees is None else int(depth.max()) + 1)
    layout: Any = (Padded(cos, sin, keep=[]) if sees is None
                   else Ways(cos, sin, depth, sees))
    states = model.through(tokens, layout).flatten(0, 1)
    return states, *(part.transpose(1, 2).flatten(0, 1) for pair in layout.keep for part in pair)
