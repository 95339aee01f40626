"""Which rows of a batch a rank computes, so that all ranks have about the same work.

Rows that share a prompt come together, since it is then read once (packed.py).
"""

from dataclasses import dataclass
from statistics import fmean

from minipost.engine.packed import alike


@dataclass(frozen=True)
class Row:
    """A row as work: tokens of its own, and those of its group's prompt."""

    index: int
    group: int
    own: int
    shared: int


def by_prompt(rows, seqs):
    """The Rows of each prompt, a list each, shorter ones first.

    Prompts come in order of the mean length of their rows.
    """
    if not rows:
        return []
    spans = [part.spans() for part in seqs]
    which, _ = alike(seqs[0].tokens[rows], spans[0][0][rows])
    prompts, ends = (sum(part) for part in zip(*spans))
    groups = {}
    for tokens, index, group, shared in sorted(zip(
            ends[rows].tolist(), rows, which.tolist(), prompts[rows].tolist())):
        groups.setdefault(group, []).append(Row(index, group, tokens - shared, shared))
    found = sorted(groups.values(), key=lambda group: group[0].group)
    return sorted(found, key=lambda group: fmean(row.own + row.shared for row in group))


def share_out(groups, world, rank):
    """One rank's rows.  Ranks have about the same number of tokens to read.

    Groups are dealt whole, or in pieces of at most a quarter of what a rank has, whichever makes
    the busiest rank's work the less: a rank that has a piece reads the prompt too.
    """
    most = max(1, sum(map(len, groups)) // (4 * world))
    pieces = [group[k : k + most] for group in groups for k in range(0, len(group), most)]
    return min(dealt(groups, world), dealt(pieces, world), key=lambda deal: deal[0])[1][rank]


def dealt(pieces, world):
    """(tokens of the busiest rank, each rank's rows): the largest piece first, to the least busy.

    A piece is of one group.
    """
    own = [sum(max(1, row.own) for row in piece) for piece in pieces]
    load, groups, owned = [0] * world, [set() for _ in range(world)], [[] for _ in range(world)]
    for k in sorted(range(len(pieces)), key=lambda k: -own[k] - pieces[k][0].shared):
        group, shared = pieces[k][0].group, pieces[k][0].shared
        after = [load[r] + own[k] + shared * (group not in groups[r]) for r in range(world)]
        least = after.index(min(after))
        load[least] = after[least]
        groups[least].add(group)
        owned[least].append(k)
    return max(load), [[row for k in sorted(ks) for row in pieces[k]] for ks in owned]
