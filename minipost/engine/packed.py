"""Where tokens stand: in padded rows, or packed, with a prompt that rows share read once.

The network does almost everything token by token.  Only attention looks at other tokens, so only
attention must know where they are.  A layout has the position of each token (as `cos` and `sin` of
its rotation) and `attend`:

    Padded    tokens (B, T), padded on the right.  A token sees what stands before it.
    Packed    a flat list of n real tokens: each different prompt once, then the responses.
              A prompt's token sees what stands before it in the prompt, a response's token its
              whole prompt and what stands before it in the response.

A layer with a window sees of that the last so many tokens, the token itself included.

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

from minipost.engine.functions import attention, even, window_bias

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
        self.biases = {}                                                    # of each window

    def attend(self, qkv, heads, kv, window=None, prefix=None):
        """(B, T, H + 2K, E) -> (B, T, H E)"""
        q, k, v = qkv.transpose(1, 2).split([heads, kv, kv], 1)
        if self.keep is not None:
            self.keep.append((k, v))
        if window not in self.biases:
            self.biases[window] = window_bias(self.cos, len(self.cos), window)
        return attention(q, k, v, self.biases[window], self.explicit,
                         prefix).transpose(1, 2).flatten(2)


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
        at_row = (column[: response.shape[1]] + prompts[:, None]).clamp(max=width - 1)
        found = torch.cat([tokens[first, : real.shape[1]][real],
                           tokens.gather(1, at_row)[response]])
        placed = torch.cat([column[: real.shape[1]].expand_as(real)[real], at_row[response]])
        # At least one token of the list is no row's.  It stands where the padded places are empty.
        count = even(len(found) + 1)
        self.blank = count - len(found)
        self.tokens, self.positions = (F.pad(x, (0, self.blank)) for x in (found, placed))
        # Padded places, of prompts (p, L) and behind them of responses (B, R): which token of the
        # list stands there, and the way back.
        full = torch.cat([real.flatten(), response.flatten()])
        self.there = torch.full((len(full),), count - 1)
        self.there[full] = torch.arange(len(found))
        self.back = F.pad(full.nonzero()[:, 0], (0, self.blank))
        self.which, self.shapes, self.begins = which, (real.shape, response.shape), prompts
        at_prompt, at_response = (
            part.view(shape) for part, shape in
            zip(self.there.split([real.numel(), response.numel()]), self.shapes))
        self.places = torch.where(
            column < prompts[:, None],
            F.pad(at_prompt[which], (0, width - real.shape[1])),
            F.pad(at_response, (0, 1)).gather(
                1, (column - prompts[:, None]).clamp(0, response.shape[1])))[row]
        near = column[: response.shape[1]]
        hidden = torch.cat([(~real)[which][:, None].expand(-1, len(near), -1),
                            (near > near[:, None]).expand(rows, -1, -1)], 2)
        self.hidden = hidden[:, None]                                       # (B, 1, R, L + R)
        # Built on the CPU, since it is many small operations.
        for name in ("tokens", "positions", "there", "back", "which", "places", "hidden"):
            setattr(self, name, getattr(self, name).to(goal))

    def rotated_by(self, cos, sin):
        """Give it the rotary table, (P, E) each.  -> itself"""
        self.cos, self.sin = cos[self.positions][:, None], sin[self.positions][:, None]
        self.biases = {None: (None, self.bias_of(self.hidden))}             # of each window
        return self

    def bias_of(self, hidden):
        return self.cos.new_zeros(hidden.shape).masked_fill_(hidden, -math.inf)

    def within(self, window):
        """The biases of prompts and of responses in a layer with a window."""
        if window not in self.biases:
            far, near = (torch.arange(width, device=self.cos.device) for _, width in self.shapes)
            here = self.begins.to(far.device)[:, None] + near               # (B, R) positions
            ago = torch.cat([here[:, :, None] - far,
                             (near[:, None] - near).expand(len(here), -1, -1)], 2)
            self.biases[window] = (
                window_bias(self.cos, len(far), window),
                self.bias_of(self.hidden | (ago >= window)[:, None]))       # (B, 1, R, L + R)
        return self.biases[window]

    def attend(self, qkv, heads, kv, window=None, prefix=None):
        """(n, H + 2K, E) -> (n, H E)"""
        padded = Rearranged.apply(qkv.flatten(1), self.there, self.back, self.blank)
        parts = padded.split([rows * width for rows, width in self.shapes])
        prompts, responses = (part.view(*shape, heads + 2 * kv, qkv.shape[2])
                              for part, shape in zip(parts, self.shapes))
        of_prompts, of_responses = self.within(window)
        q, k, v = prompts.transpose(1, 2).split([heads, kv, kv], 1)
        mixed = [attention(q, k, v, of_prompts, prefix=prefix)]
        if responses.numel():
            far, near = prompts[:, :, heads:], responses[:, :, heads:]
            # As an embedding, since its derivative is faster than that of indexing.
            far = F.embedding(self.which, far.flatten(1)).view(-1, *far.shape[1:])
            keys, values = torch.cat([far, near], 1).transpose(1, 2).split(kv, 1)
            mixed.append(attention(responses[:, :, :heads].transpose(1, 2), keys, values,
                                   of_responses, prefix=prefix))
        rows = [part.transpose(1, 2).flatten(0, 1).flatten(1) for part in mixed]
        found = torch.cat(rows) if len(rows) > 1 else rows[0]
        return Rearranged.apply(found, self.back, self.there, 0)


class Rearranged(torch.autograd.Function):
    """x[to], where `back` says at which place of x[to] each row of x stands.

    So the derivative is dy[back] instead of a sum.  The last `blank` rows of x fill places where
    nothing is, and get no gradient, since nothing that is wanted depends on those places.
    """

    @staticmethod
    def forward(ctx, x, to, back, blank):
        ctx.save_for_backward(back)
        ctx.blank = blank
        return x.index_select(0, to)

    @staticmethod
    def backward(ctx, dy):
        back, = ctx.saved_tensors
        dx = dy.index_select(0, back)
        dx[len(dx) - ctx.blank :] = 0
        return dx, None, None, None


def spans(mask):
    """Of rows that are wanted where mask is true: tokens of the prompt, and all.  (B,), (B,)

    A prompt ends at the first wanted place; what stands behind the last one is not needed.
    """
    if not mask.shape[1]:
        return (torch.zeros(len(mask), dtype=torch.long, device=mask.device),) * 2
    column = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    ends = (mask * column).amax(1)
    return torch.minimum(mask.int().argmax(1) + 1, ends), ends


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
    return (torch.tensor(which, dtype=torch.long, device=tokens.device),
            torch.tensor(first, dtype=torch.long, device=tokens.device))
