"""The floor of a GRPO step: the time of its matrix products alone, with their real shapes.

    floor(config, prompts=8, prompt_tokens=16, group_size=8, new_tokens=48)
        -> {"sampling": seconds, "training": seconds}

A pass over n positions multiplies them by four matrices per layer and, where a token is predicted,
by the head.  Nothing else of a step is counted: no attention, norm, copy, draw or update.  The work
is the least that gives the same step:

    sampling   Each prompt is read once, and its last position goes through the head.  Then every
               unfinished row is decoded, one token at a time.
    training   One pass forward, and two products backward for each product (dx = dy W and
               dW = dy^T x).  A prompt is read once for its group.  The last token of a row is
               predicted but not read.

A pass runs through the matrices in their order, each with the faster of PyTorch's two kernels.  So
a weight that does not fit a cache is read from memory, as in a step.  `attention` gives the time of
attention's batched products in the same form.
"""

import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from minipost.gpt import GPTConfig

LONG = 50e9   # operations of a long pass; a longer one is timed in part
PART = 256    # rows that the part has at least
SOME = 16     # steps of decoding whose attention is timed
LEAST = 0.2   # seconds for which a pass is repeated, if it is not long


@dataclass(frozen=True)
class Pass:
    """One pass: `rows` positions through the layers, `predicted` of them through the head."""

    rows: int
    predicted: int
    backward: bool = False


def matrices(config):
    """(inputs, outputs) of a layer's four matrices, then of the head."""
    hidden, width = config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    return [(hidden, (heads + 2 * kv) * width), (heads * width, hidden),
            (hidden, 2 * config.intermediate_size), (config.intermediate_size, hidden),
            (hidden, config.vocab_size)]


def operations(config, step):
    """Floating-point operations of a Pass; a multiplication and an addition are two."""
    *layer, head = (inputs * outputs for inputs, outputs in matrices(config))
    forward = step.rows * config.num_hidden_layers * sum(layer) + step.predicted * head
    return 2 * forward * (3 if step.backward else 1)


def passes(prompts, prompt_tokens, lengths):
    """The passes of a GRPO step, as {"sampling": {Pass: how often}, "training": {Pass: 1}}.

    lengths: the tokens of each of the group's responses, for all prompts, EOS included.
    """
    sampling = Counter([Pass(prompts * prompt_tokens, prompts)])
    for t in range(1, max(lengths)):
        rows = sum(length > t for length in lengths)
        sampling[Pass(rows, rows)] += 1
    read = prompts * prompt_tokens + sum(lengths) - len(lengths)
    return {"sampling": sampling, "training": Counter([Pass(read, sum(lengths), backward=True)])}


def floor(config: GPTConfig, *, prompts: int, prompt_tokens: int, group_size: int, new_tokens: int,
          threads: int = 1) -> dict[str, float]:
    """Seconds of the matrix products of one GRPO step, {"sampling": s, "training": s}.

    One process of `threads` threads does it, in float32, with responses of `new_tokens` tokens.
    """
    return seconds_of(config, passes(prompts, prompt_tokens, [new_tokens] * prompts * group_size),
                      threads)


# ---- the products, timed

def seconds_of(config, work, threads=1):
    """Seconds of the products of these passes, {part: Counter of Passes} -> {part: seconds}."""
    with using(threads):
        model = Matrices(config)
        return {part: sum(often * model.seconds(step) for step, often in steps.items())
                for part, steps in work.items()}


def attention(config, prompts, prompt_tokens, lengths, threads=1):
    """Seconds of attention's batched products, {"sampling": s, "training": s}.

    Training needs two of them forward and four backward.  Half of each is of no use, because a
    position sees no later one, so half of their time is counted.
    """
    kv, width = config.num_key_value_heads, config.head_dim
    share = config.num_attention_heads // kv
    steps = range(1, max(lengths))
    some = steps[:: -(-len(steps) // SOME)] if steps else []
    with using(threads):
        decoding = sum(batched(sum(length > t for length in lengths) * kv, share,
                               prompt_tokens + t, width, 2) for t in some)
        decoding *= len(steps) / max(1, len(some))
        reading = batched(prompts * kv * share, prompt_tokens, prompt_tokens, width, 2) / 2
        read = Counter(prompt_tokens + length - 1 for length in lengths)
        training = sum(batched(often * kv * share, length, length, width, 6) / 2
                       for length, often in read.items())
    layers = config.num_hidden_layers
    return {"sampling": layers * (reading + decoding), "training": layers * training}


@contextmanager
def using(threads):
    """Inside the block PyTorch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def timed(act, reps=5, share=1.0):
    """The median seconds of act() after one call to warm up.

    It is called `reps` times and for a share of LEAST, but twice are enough in ten times that.
    """
    act()
    found, least = [], share * LEAST
    while len(found) < 2 or sum(found) < 10 * least and (
            len(found) < reps or sum(found) < least):
        start = time.perf_counter()
        act()
        found.append(time.perf_counter() - start)
    return median(found)


def mkl(left, right):
    return torch.mm(left, right.t())


def onednn(left, right):
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


def fastest(left, right):
    """PyTorch's faster kernel for left right^T.  (m, k), (n, k) -> (m, n)"""
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    return min([mkl, onednn] if there else [mkl],
               key=lambda kernel: timed(lambda: kernel(left, right), 3, 0.03))


class Matrices:
    """The matrices of a model, to be multiplied by any number of rows."""

    def __init__(self, config):
        self.config = config
        shapes = matrices(config)
        self.layers = [[torch.randn(outputs, inputs) for inputs, outputs in shapes[:-1]]
                       for _ in range(config.num_hidden_layers)]
        self.head = torch.randn(*reversed(shapes[-1]))

    def seconds(self, step):
        """The median time of a Pass."""
        part = min(1.0, max(LONG / operations(self.config, step), PART / step.rows))
        rows, predicted = max(1, round(part * step.rows)), round(part * step.predicted)
        kinds = [Kind(weight, rows, step.backward) for weight in self.layers[0]]
        head = [Kind(self.head, predicted, step.backward)] if predicted else []

        def act():
            for layer in self.layers:
                for kind, weight in zip(kinds, layer):
                    kind(weight)
            for kind in head:
                kind(self.head)

        return timed(act) / part


class Kind:
    """The products of a pass with any weight like this one (n, k)."""

    def __init__(self, weight, rows, backward):
        self.x, self.grad = torch.randn(rows, weight.shape[1]), None
        self.forward = fastest(self.x, weight)
        if backward:
            self.grad = torch.randn(rows, weight.shape[0])
            self.by_input = fastest(self.grad, weight.t())
            self.by_weight = fastest(self.grad.t(), self.x.t())

    def __call__(self, weight):
        self.forward(self.x, weight)
        if self.grad is not None:
            self.by_input(self.grad, weight.t())
            self.by_weight(self.grad.t(), self.x.t())


def batched(heads, queries, keys, width, products):
    """Seconds of so many products of attention, half of them with keys and half with values."""
    part = max(1, min(heads, round(heads * LONG / (2 * heads * queries * keys * width * products))))
    q, k = torch.randn(part, queries, width), torch.randn(part, keys, width)
    score = torch.randn(part, queries, keys)

    def act():
        torch.bmm(q, k.transpose(1, 2))
        torch.bmm(score, k)

    return timed(act, 3, 0.1) * products / 2 * heads / part
