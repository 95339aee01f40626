"""Rotary positions of a context that is longer than the one a model was first trained with.

Pair i of a head turns by position * pace_i, pace_i = theta^(-2i/E).  The rules slow pairs down:

    linear    all, by the factor (Chen et al. 2023, arxiv.org/abs/2306.15595)
    llama3    by the factor those that turn less than `low` times in the original context, not at
              all those that turn more than `high` times, in between a mean of both
    yarn      likewise; the mean is linear in i, and queries and keys are multiplied by `attention`
              (Peng et al. 2023, arxiv.org/abs/2309.00071)
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rope:
    """A rule.  kind: linear, llama3 or yarn.  original: the context in tokens before it.

    low, high: turns in that context.  truncate: the pairs where yarn's mean begins and ends are
    whole numbers.  attention: the factor of the rotary table.
    """

    kind: str
    factor: float
    original: int = 0
    low: float = 1.0
    high: float = 32.0
    truncate: bool = True
    attention: float = 1.0


def usual_attention(factor):
    """What yarn multiplies queries and keys by where nothing else is said."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def slowed(pace, rope, theta):
    """What each pair turns by per position.  (E/2,), as theta gives it -> (E/2,)"""
    if rope.kind == "linear":
        return pace / rope.factor
    kept = share_kept(pace, rope, theta)                                    # (E/2,) from 0 to 1
    return kept * pace + (1 - kept) * pace / rope.factor


def share_kept(pace, rope, theta):
    """How much of a pair's own pace is in the mean.  (E/2,) -> (E/2,)"""
    if rope.kind == "llama3":
        turns = rope.original * pace / (2 * math.pi)
        return ((turns - rope.low) / (rope.high - rope.low)).clamp(0, 1)
    first, last = (pair_of(turns, len(pace), rope.original, theta)
                   for turns in (rope.high, rope.low))
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * len(pace) - 1)
    last += 0.001 * (first == last)
    return 1 - ((torch.arange(len(pace)) - first) / (last - first)).clamp(0, 1).to(pace)


def pair_of(turns, pairs, context, theta):
    """The number, not whole, of the pair that makes so many turns in a context."""
    return pairs * math.log(context / (turns * 2 * math.pi)) / math.log(theta)
