"""Decoding on a GPU, where a step is one replay of a CUDA graph.

A step of a small model is hundreds of small kernels.  To start them one by one takes a CPU several
times as long as the GPU needs to run them.  A CUDA graph starts all of them in one call, so a step
takes what the GPU needs.  But a graph replays the same kernels with the same shapes at the same
addresses.  So all that changes from one step to the next is in tensors that stay where they are:

    position    which column of the cache each row writes next, and by what it rotates
    cache       has room for the whole response
    bias        hides the columns that a row has not written yet
    response    the draw is part of the step, and what was drawn is written down by the GPU

The step is ordinary code that runs on any device, and `Recorded` records it.  The host only asks
now and then how many rows go on.  Fewer kernels than in decode.py: normalisation and attention are
PyTorch's fused ones, which a CPU does not have or is slower with.

tests/test_decode.py holds the step against decode.py and `GPT.forward` in float64.

Axes as in decode.py; S columns of the cache, N tokens of the longest response.
"""

import functools
import math
import os
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from minipost.engine.functions import fast_kernels, rotate
from minipost.engine.lora import adapters, merged
from minipost.engine.prefix import length_of
from minipost.errors import MinipostError

DEVICES = ("cuda",)
SWITCH = "MINIPOST_CUDA_GRAPHS"  # 0 in the environment: no graphs are recorded
NOT_FINITE = ("the model's logits are not finite, so there is nothing to sample from; its weights "
              "or the temperature are out of all bounds")
SPAN = 256  # steps of one recording; the next one sees more of the cache's columns
LOOK = 8    # steps after which the host asks how many rows go on
MANY = 128  # rows; with fewer, a step takes the same time for any number of them
ALIGN = 16  # columns; rows of the bias must begin at a multiple, or attention copies it first


def add(x, inner, weight, bent):
    """Add a product to x in place, or what a bottleneck makes of it."""
    if bent is None:
        x.addmm_(inner, weight.t())
    else:
        x.add_(bent(F.linear(inner, weight)))


def aligned(columns):
    return -(-columns // ALIGN) * ALIGN


class StaticDecoder:
    """A model that has read prompts and answers them, in tensors that stay where they are.

    model: a GPT.  read (P, L): prompts padded on the right, lengths (P,).  owner (B,): the prompt
    that each row answers.  stop: (V,) bool, the ids that end a response.  uniform: (B, N) random
    numbers, or None.  choose(logits (B, V), uniform (B,) or None) gives tokens (B,), their
    log-probs (B,), and whether a row's logits are not finite, ().  It must not wait for the GPU.

    response (B, N), logp (B, N): what was drawn.  What a row draws behind its end means nothing.
    """

    def __init__(self, model, read, lengths, max_new_tokens, owner, *, choose, uniform, stop,
                 pad):
        model = merged(model) if adapters(model) else model
        self.model, self.choose, self.uniform, self.stop = model, choose, uniform, stop
        self.ahead = length_of(model)               # columns of a prefix, before all others
        self.length, self.room = read.shape[1], max_new_tokens
        kept, device, rows = [], read.device, len(owner)
        hidden = model.hidden(read, keep=kept)
        last = hidden[torch.arange(len(read), device=device), lengths - 1]
        self.hidden = last[owner]                 # (B, D)
        self.position = lengths[owner]             # (B,)
        self.rows = self.here = torch.arange(rows, device=device)           # in cache, in response
        self.going = torch.ones(rows, dtype=torch.bool, device=device)      # has drawn no end yet
        self.broken = torch.zeros((), dtype=torch.bool, device=device)
        self.cos, self.sin = model.rotary(self.length + max_new_tokens)
        first, columns = self.ahead, aligned(self.ahead + self.length + max_new_tokens)
        # A column that nobody has written is hidden by -inf, but 0 times NaN would be NaN.
        self.cache = [[hidden.new_zeros(rows, columns, new.shape[1], new.shape[3]) for new in pair]
                      for pair in kept]                                     # (B, S, K, E) each
        for stores, pair, block in zip(self.cache, kept, model.layers):
            for store, new in zip(stores, pair):
                store[:, first : first + self.length] = new.transpose(1, 2)[owner]
            if first:
                prefix = block.self_attn.prefix
                stores[0][:, :first], stores[1][:, :first] = prefix.keys, prefix.values
        self.columns = torch.arange(columns, device=device)
        seen = self.columns < self.position[:, None] + self.ahead
        self.bias = hidden.new_full((rows, columns), -math.inf).masked_fill_(seen, 0.0)
        self.seen = columns                                                 # of them, looked at
        self.response = torch.full((rows, max_new_tokens), pad, device=device)
        self.logp = torch.zeros(rows, max_new_tokens, device=device)
        self.t = torch.zeros(1, dtype=torch.long, device=device)            # tokens drawn, for the
        self.drawn = 0                                                      # GPU and for the host

    def run(self):
        """Answer.  Returns how many tokens were drawn for each row, at most N.

        MinipostError where logits are not finite, or where a step cannot be recorded.
        """
        left = len(self.rows)
        while left and self.drawn < self.room:
            if left < len(self.rows):
                self.select(self.going.nonzero()[:, 0])
            enough = 1 if left < MANY else left // 2  # a new recording takes as long as many steps
            end = min(self.room, self.drawn + SPAN)
            self.seen = aligned(self.ahead + self.length + end)
            step = self.recorded()
            while self.drawn < end and left >= enough:
                step()
                self.drawn += 1
                if self.drawn % LOOK == 0 or self.drawn == end:
                    left, broken = torch.stack([self.going.sum(), self.broken.long()]).tolist()
                    if broken:
                        raise MinipostError(NOT_FINITE)
        return self.drawn

    def recorded(self):
        """The step as a function that a GPU replays."""
        if self.rows.device.type != "cuda" or os.environ.get(SWITCH) == "0":
            return self.step
        logits = 4 * len(self.rows) * self.model.config.vocab_size          # bytes, in float32
        return Recorded(self.step, self.rows.device, 8 * logits)

    def step(self):
        """Draw a token for every row, write it down and read it.  Nothing waits for the GPU."""
        uniform = None if self.uniform is None else self.uniform[self.here, self.t]
        token, logp, broken = self.choose(self.model.head(self.hidden), uniform)
        self.response[self.here, self.t] = token
        self.logp[self.here, self.t] = logp.to(self.logp.dtype)
        self.going.logical_and_(~self.stop[token])
        self.broken.logical_or_(broken)
        self.t.add_(1)
        self.read(token)

    def read(self, token):
        """Append one token to every row.  (B,)"""
        cos, sin = self.cos[self.position][:, None], self.sin[self.position][:, None]  # (B, 1, E)
        column = self.position + self.ahead
        self.bias.scatter_(1, column[:, None], 0.0)
        biases = {window: self.within(window) for window in
                  {block.self_attn.window for block in self.model.layers}}
        x = F.embedding(token, self.model.embed_tokens.weight)              # (B, D)
        with fast_kernels(x.device):
            for block, (keys, values) in zip(self.model.layers, self.cache):
                self.layer(block, x, cos, sin, column, keys, values,
                           biases[block.self_attn.window])
        self.hidden.copy_(self.model.norm(x))
        self.position.add_(1)

    def within(self, window):
        """The bias of layers with this window, in which a token sees itself too.  (B, S)"""
        if window is None:
            return self.bias
        return self.bias.masked_fill(self.columns <= self.position[:, None] - window, -math.inf)

    def layer(self, block, x, cos, sin, column, keys, values, bias):
        """Add to x (B, D), in place, what a layer adds.  keys, values (B, S, K, E) are its cache.

        column (B,): where in it a row's token goes.
        The R queries that share a key head stand where a sequence of queries would, so grouped
        heads need no copies.
        """
        attention, mlp = block.self_attn, block.mlp
        heads, kv = attention.heads, attention.kv_heads
        qkv = attention.project(block.input_layernorm(x))                   # (B, H + 2K, E)
        qk = qkv[:, : heads + kv]
        if attention.turned:
            qk = rotate(qk, cos, sin)
        keys[self.rows, column] = qk[:, heads:]
        values[self.rows, column] = qkv[:, heads + kv :]
        mixed = F.scaled_dot_product_attention(
            qk[:, :heads].unflatten(1, (kv, -1)),                           # (B, K, R, E)
            keys[:, : self.seen].transpose(1, 2), values[:, : self.seen].transpose(1, 2),
            attn_mask=bias[:, None, None, : self.seen])
        add(x, mixed.flatten(1), attention.o_proj.weight, block.after_attention)
        gate, up = mlp.gate_up_proj(block.post_attention_layernorm(x)).chunk(2, -1)
        add(x, F.silu(gate).mul_(up), mlp.down_proj.weight, block.after_mlp)

    def select(self, rows):
        """Keep only these rows, in this order."""
        self.hidden, self.position = self.hidden[rows], self.position[rows]
        self.here, self.going, self.bias = self.here[rows], self.going[rows], self.bias[rows]
        self.rows = torch.arange(len(rows), device=rows.device)
        for layer in self.cache:
            layer[:] = [store[rows] for store in layer]


# ---- recording

LATEST = {}  # {device: the graph recorded last}; the memory of its temporaries serves the next one
FAILED = []  # graphs whose recording failed; PyTorch's allocator goes on to ask them


class Recorded:
    """act() on a GPU: run as it is at the first call, then recorded, then replayed.

    The first call makes ready what a recording must not do, such as loading kernels and giving
    cuBLAS its workspace, which belongs to the stream.  So it runs on the stream of the recording.

    room: bytes that act() may need for its temporaries.  They are in a pool that all recordings of
    the process share.  It keeps the size of the largest, and is free for nothing else.

    A recording that fails raises MinipostError.  To go on without would make a run several times
    slower, and PyTorch gives no promise for its allocator after a failure.  It happens in the first
    seconds of a run or never, so nothing is lost, and the sentence names the switch.
    """

    def __init__(self, act, device, room):
        self.act, self.device, self.room = act, device, room
        self.ready, self.graph = False, None

    def __call__(self):
        if self.ready and self.graph is None:
            self.record()
        if self.graph is not None:
            self.graph.replay()
            return
        with aside(self.device):
            self.act()
        self.ready = True

    def record(self):
        # torch.cuda.graph would empty the allocator's cache each time, and training would have to
        # fill it again.  It is only needed where little is free, since a recording cannot do it.
        if torch.cuda.mem_get_info(self.device)[0] < self.room + 2**28:
            torch.cuda.empty_cache()
        graph, last = torch.cuda.CUDAGraph(), LATEST.get(self.device)
        try:
            with aside(self.device):
                graph.capture_begin(pool=last and last.pool(), capture_error_mode="thread_local")
                try:
                    self.act()
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            FAILED.append(graph)
            raise MinipostError(
                f"a decoding step could not be recorded as a CUDA graph; set {SWITCH}=0 in the "
                "environment to decode without graphs, several times slower, or choose --device "
                f"cpu ({error.__context__ or error})") from error
        self.graph = LATEST[self.device] = graph


@functools.cache
def side_stream(device):
    return torch.cuda.Stream(device)


@contextmanager
def aside(device):
    """Inside the block the GPU works on a stream of its own, behind what was asked of it before."""
    here, there = torch.cuda.current_stream(device), side_stream(device)
    there.wait_stream(here)
    with torch.cuda.stream(there):
        yield
    here.wait_stream(there)
