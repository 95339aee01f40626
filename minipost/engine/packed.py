"""Where tokens stand: in padded rows, or packed, with a prompt that rows share read once.

The network does almost everything token by token.  Only attention looks at other tokens, so only
attention must know where they are.  A layout has the position of each token (as `cos` and `sin` of
its rotation) and `attend`:

    Padded    tokens (B, T), padded on the right.  A token sees what stands before it.
    Packed    a flat list of n real tokens: each different prompt once, then the responses.
              A prompt's token sees what stands before it in the prompt, a response's token its
              whole prompt and what stands before it in the response.

The answers of a group, or the two of a pair, begin with the same prompt; some answers are equal.
What the network computes at a token depends on nothing behind it, so what rows share is computed
once, and the gradient there is the sum over its rows.  With 8 answers of 48 tokens to a prompt of
16 the list is a fifth shorter than the rows, to a prompt of 512 it is a fifth of them.

Axes as in gpt.py: B rows, T positions, H query heads, K key/value heads, E head width; p different
prompts of at most L tokens, responses of at most R.
"""

import math

import torch
import torch.nn.functional as F

from minipost.engine.functions import attention, even

# Rows share prompts where that saves at least this part of their tokens, on a CPU and on a GPU,
# whose fastest attention knows no bias.
SAVING = 0.1, 0.3


class Padded:
    """Rows padded on the right.  cos, sin (T, E)

    explicit: all in plain operations, see functions.py.  keep: a list that receives each layer's
    keys and values (B, K, T, E), or None.
    """

    def __init__(self, cos, sin, explicit=False, keep=None):
        self.cos, self.sin = cos[:, None], sin[:, None]                     # over the heads
        self.explicit, self.keep = explicit, keep

    def attend(self, qkv, heads, kv):
        """(B, T, H + 2K, E) -> (B, T, H E)"""
        q, k, v = qkv.transpose(1, 2).split([heads, kv, kv], 1)
        if self.keep is not None:
            self.keep.append((k, v))
        return attention(q, k, v, explicit=self.explicit).transpose(1, 2).flatten(2)


class Packed:
    """The real tokens of rows, once where rows share them.

    tokens (B, T), padded on the right.  prompts, ends (B,): of each row, how many tokens belong to
    its prompt, and how many it has at all.

    tokens (n,), positions (n,): the flat list, filled up to an `even` length.  places (B, T): where
    in the list a row's token is.

    Rows without much in common are kept whole: each of them is then a prompt without a response.
    """

    explicit = False

    def __init__(self, tokens, prompts, ends):
        goal, (tokens, prompts, ends) = tokens.device, (x.cpu() for x in (tokens, prompts, ends))
        row, kept = alike(tokens, ends)                                     # (B,) and its inverse
        tokens, prompts, ends = tokens[kept], prompts[kept], ends[kept]     # B different rows
        rows, width = tokens.shape
        column = torch.arange(width)
        which, first = alike(tokens, prompts)                               # (B,), (p,)
        shared = int(prompts.sum() - prompts[first].sum())
        if shared < SAVING[goal.type == "cuda"] * int(ends.sum()):
            prompts, which = ends, torch.arange(rows)
            first = which
        real = column[: int(prompts.max())] < prompts[first][:, None]       # (p, L)
        size = ends - prompts
        response = column[: int(size.max())] < size[:, None]                # (B, R)
        self.at_prompt = numbered(real, 0)                                  # (p, L)
        self.at_response = numbered(response, int(real.sum()))              # (B, R)
        self.at_keys = torch.cat([self.at_prompt[which], self.at_response], 1)  # (B, L + R)
        self.places = torch.where(
            column < prompts[:, None],
            F.pad(self.at_prompt[which], (0, width - real.shape[1])),
            F.pad(self.at_response, (0, 1)).gather(
                1, (column - prompts[:, None]).clamp(0, response.shape[1])))[row]
        near = column[: response.shape[1]]
        at_row = (near + prompts[:, None]).clamp(max=width - 1)
        found = torch.cat([tokens[first, : real.shape[1]][real],
                           tokens.gather(1, at_row)[response]])
        placed = torch.cat([column[: real.shape[1]].expand_as(real)[real], at_row[response]])
        extra = even(len(found)) - len(found)
        self.tokens, self.positions = F.pad(found, (0, extra)), F.pad(placed, (0, extra))
        # Where in the padded rows of prompts, and behind them of responses, each token stands.
        back = [mask.flatten().nonzero()[:, 0] for mask in (real, response)]
        self.back = F.pad(torch.cat([back[0], back[1] + real.numel()]), (0, extra))
        hidden = torch.cat([(~real)[which][:, None].expand(-1, len(near), -1),
                            (near > near[:, None]).expand(rows, -1, -1)], 2)
        self.hidden = hidden[:, None]                                       # (B, 1, R, L + R)
        dense = bool(real.all())
        for name, value in vars(self).items():  # built on the CPU: it is many small operations
            setattr(self, name, value.to(goal))
        self.dense = dense                                                  # prompts of one length

    def rotated_by(self, cos, sin):
        """Give it the rotary table, (P, E) each.  -> itself"""
        self.cos, self.sin = cos[self.positions][:, None], sin[self.positions][:, None]
        self.bias = cos.new_zeros(self.hidden.shape).masked_fill_(self.hidden, -math.inf)
        return self

    def attend(self, qkv, heads, kv):
        """(n, H + 2K, E) -> (n, H E)"""
        def padded(part, places):
            """(n, h, E) -> (b, h, t, E)"""
            # As an embedding, since its derivative is faster than that of indexing.
            return F.embedding(places, part.flatten(1)).unflatten(2, (-1, part.shape[2])) \
                .transpose(1, 2)

        if self.dense:
            prompts = qkv[: self.at_prompt.numel()].unflatten(0, self.at_prompt.shape)
            prompts = prompts.transpose(1, 2)
        else:
            prompts = padded(qkv, self.at_prompt)
        mixed = [attention(*prompts.split([heads, kv, kv], 1))]
        if self.at_response.numel():
            keys, values = padded(qkv[:, heads:], self.at_keys).split(kv, 1)
            mixed.append(attention(padded(qkv[:, :heads], self.at_response), keys, values,
                                   self.bias))
        rows = [part.transpose(1, 2).flatten(0, 1).flatten(1) for part in mixed]
        if self.dense and len(rows) == 1:
            return F.pad(rows[0], (0, 0, 0, len(qkv) - len(rows[0])))
        return F.embedding(self.back, torch.cat(rows) if len(rows) > 1 else rows[0])


def numbered(real, start):
    """A number from `start` on for each true place, in order; padding has number 0."""
    return (start - 1 + real.flatten().cumsum(0)).view_as(real) * real


def alike(tokens, lengths):
    """Rows that have the same first tokens.  -> the number of each one's kind (B,), a row of each

    tokens (B, T); lengths (B,): how many tokens of a row count.
    """
    seen, which, first = {}, [], []
    for row, (ids, length) in enumerate(zip(tokens.cpu().numpy(), lengths.tolist())):
        found = ids[:length].tobytes()
        if found not in seen:
            seen[found] = len(first)
            first.append(row)
        which.append(seen[found])
    return torch.tensor(which, device=tokens.device), torch.tensor(first, device=tokens.device)
