"""Decoding a tree: what samples have in common is computed once.

Samples of one prompt begin alike.  As long as two of them have drawn the same tokens, their hidden
states, keys and values are the same, and one row of the decoder serves both:

    node      a beginning that at least one unfinished sample has; a row of the decoder
    samples   each stands at a node, and draws from its distribution by a random number of its own
    grow      each pair (node, drawn token) is a node of the next step

So equal prompts are read once, equal samples cost one, and a finished sample leaves at once.  Where
all samples differ after a few tokens this costs a comparison a step and gains the first ones.

Prompts that begin alike are read once as far as they do (`read`).  Sorted prompts are cut into rows
of about PACKED tokens.  A row holds each distinct beginning of its prompts once, and a token sees
those before it on its own way from the root.

What it gained in tree-of-thoughts search: a third of the rows to decode and a quarter of the prompt
tokens to read.

Axes as in decode.py, and n nodes, C rows and N layers of the cache.
"""

import math

import torch
import torch.nn.functional as F

from minipost.decode import Decoder, Layer

PACKED = 128    # tokens of a packed row; with more, attention to other prompts' tokens costs more
COLUMNS = 32    # columns of the cache that are added when it is full
ROWS = 64       # rows of the cache at first


class Tree(Decoder):
    """A Decoder of B samples in n <= B rows.

    prompts: P lists of ids.  G samples of each stand side by side.

    node (B,): the row of `logits()`, (n, V), from which each unfinished sample draws.
    """

    def __init__(self, model, prompts, max_new_tokens, group_size=1):
        self.model, device = model, model.device
        distinct = {ids: k for k, ids in enumerate(dict.fromkeys(map(tuple, prompts)))}
        self.node = torch.tensor([distinct[tuple(ids)] for ids in prompts],
                                 device=device).repeat_interleave(group_size)
        self.lengths = torch.tensor([len(ids) for ids in distinct], device=device)
        self.width = self.at = int(self.lengths.max())
        self.rotations = rotations(model, self.width + max_new_tokens)
        ways, states, kept = read(model, list(distinct))
        # Prompts stand flush right, as in Decoder.
        column = torch.arange(self.width, device=device)
        empty = column < (self.width - self.lengths)[:, None]               # (P, L)
        place = torch.tensor([[0] * (self.width - len(way)) + way for way in ways], device=device)
        self.hidden = states[place[:, -1]]
        self.bias = None
        if bool(empty.any()):
            self.bias = torch.zeros_like(empty, dtype=states.dtype).masked_fill_(empty, -math.inf)
            self.bias = F.pad(self.bias, (0, COLUMNS))[:, None]
        self.layers = [Layer(block, model.config) for block in model.layers]
        rows = min(len(self.node), max(ROWS, 2 * len(distinct)))
        kv, size = kept[0][0].shape[1:]
        self.cache = states.new_empty(len(kept), 2, rows, kv, self.width + COLUMNS, size)
        for layer, store, (keys, values) in zip(self.layers, self.cache, kept):
            for found, part in zip((keys[..., layer.order], values), store):
                part[: len(place), :, : self.width] = found[place].transpose(1, 2)
        self.view(len(distinct))

    def view(self, nodes):
        """Let the layers see this many rows of the cache."""
        for layer, store in zip(self.layers, self.cache):
            layer.cache = store[:, :nodes]
        self.make_buffers()

    def grow(self, rows, token):
        """Append a token to each of these samples; the others have ended.  rows, token: (b,)"""
        size = self.model.config.vocab_size
        pairs, which = (self.node[rows] * size + token).unique(return_inverse=True)
        place, origin = arrange(pairs // size, len(self.lengths))
        self.node = place[which]
        self.lengths, self.hidden = self.lengths[origin], self.hidden[origin]
        self.bias = None if self.bias is None else self.bias[origin]
        self.make_room(len(origin))
        moved = (origin != torch.arange(len(origin), device=origin.device)).nonzero()[:, 0]
        if len(moved):
            seen = self.cache[..., : self.at, :]
            seen[:, :, moved] = seen[:, :, origin[moved]]
        self.view(len(origin))
        self.step(torch.empty_like(place).scatter_(0, place, pairs % size))

    def make_room(self, nodes):
        """Enlarge the cache where it does not hold so many rows, or one more column."""
        rows, columns = self.cache.shape[2], self.cache.shape[4]
        if nodes <= rows and self.at < columns:
            return
        more = [nodes * 2 if nodes > rows else rows, columns + COLUMNS * (self.at == columns)]
        old, shape = self.cache, list(self.cache.shape)
        shape[2], shape[4] = more
        self.cache = old.new_empty(shape)
        self.cache[:, :, :rows, :, : self.at] = old[..., : self.at, :]
        if self.bias is not None:
            self.bias = F.pad(self.bias, (0, more[1] - columns))


def rotations(model, length):
    """The rotary table as complex numbers.  (length, E/2)"""
    cos, sin = model.rotary(length)
    half, wide = cos.shape[1] // 2, torch.promote_types(cos.dtype, torch.float32)
    return torch.complex(cos[:, :half].to(wide), sin[:, half:].to(wide))


def arrange(parent, rows):
    """Rows for the children of `rows` nodes, so that few move.  parent (m,): where each has its own

    -> place (m,): each child's row, of the first m; origin (m,): which old row each row is to hold.
    A first child stays in its parent's row if that is among the first m.  So no row that is written
    is one that others are still to be copied from.
    """
    m, device = len(parent), parent.device
    first = torch.full((rows,), m, device=device).scatter_reduce_(
        0, parent, torch.arange(m, device=device), "amin")              # (rows,) m: no child
    stays = (first[parent] == torch.arange(m, device=device)) & (parent < m)
    taken = torch.zeros(m, dtype=torch.bool, device=device)
    taken[parent[stays]] = True
    place = parent.clone()
    place[~stays] = (~taken).nonzero()[:, 0]
    return place, torch.empty_like(place).scatter_(0, place, parent)


def pack_prompts(prompts):
    """Rows that hold the beginnings of prompts once, and where each prompt's tokens are.

    prompts: tuples of ids.  -> rows of ids, rows of each token's parent (a place in the row, -1 for
    the root), ways: for each prompt the pairs (row, place in it) of its tokens
    """
    rows, parents, ways, last = [], [], [[] for _ in prompts], ()
    longest = max(PACKED, max(map(len, prompts)))
    for k in sorted(range(len(prompts)), key=prompts.__getitem__):
        ids, way = prompts[k], []
        if rows:
            same = next((i for i, (a, b) in enumerate(zip(ids, last)) if a != b), min(len(ids), len(last)))
            way = before[:same]
        if not rows or len(rows[-1]) + len(ids) - len(way) > longest:
            rows.append([])
            parents.append([])
            way = []
        for token in ids[len(way) :]:
            parents[-1].append(way[-1] if way else -1)
            way.append(len(rows[-1]))
            rows[-1].append(token)
        ways[k] = len(rows) - 1, way
        last, before = ids, way
    return rows, parents, ways


@torch.no_grad()
def read(model, prompts):
    """Read prompts, what they have in common once.

    prompts: tuples of ids.  -> ways: for each prompt the places of its tokens; final hidden states
    (places, D); each layer's keys and values (places, K, E)
    """
    rows, parents, ways = pack_prompts(prompts)
    width, device = max(map(len, rows)), model.device
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    depth = torch.zeros(len(rows), width, dtype=torch.long)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    for k, (ids, above) in enumerate(zip(rows, parents)):
        tokens[k, : len(ids)] = torch.tensor(ids)
        deep, seen = [], sees[k].numpy()
        for place, parent in enumerate(above):
            deep.append(deep[parent] + 1 if parent >= 0 else 0)
            if parent >= 0:
                seen[place] |= seen[parent]
        depth[k, : len(ids)] = torch.tensor(deep)
    states, kept = forward(model, tokens.to(device), depth.to(device), sees[:, None].to(device))
    ways = [[row * width + place for place in way] for row, way in ways]
    return ways, states.flatten(0, 1), [
        tuple(x.transpose(1, 2).flatten(0, 1) for x in pair) for pair in kept]


def forward(model, tokens, place, sees):
    """GPT.hidden with any positions and any mask.

    tokens, place: (B, T); sees (B, 1, T, T), true where a token sees another.  -> (B, T, D), and
    each layer's keys and values (B, K, T, E)
    """
    cos, sin = (table[place][:, None] for table in model.rotary(int(place.max()) + 1))
    x, kept = F.embedding(tokens, model.embed_tokens.weight), []
    for block in model.layers:
        attention = block.self_attn
        q, k, v = attention.project(block.input_layernorm(x), cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=sees,
                                               enable_gqa=q.shape[1] != k.shape[1])
        x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.post_attention_layernorm(x))
        kept.append((k, v))
    return model.norm(x), kept
