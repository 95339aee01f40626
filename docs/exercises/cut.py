"""Find the bug: the loss of supervised fine-tuning (chapter 1 of docs/learn.md).

A training step may be too large for the memory.  Then it is cut into pieces, "micro-batches", and
the gradients of the pieces are added up.  `count` is N, the number of answer tokens in the WHOLE
step.  This loss was written for a step that is not cut.  Cut into pieces, it learns something else.

Mend it, then run `make exercise-cut` again.
"""

from minipost.ops import masked_sum


def loss(logp, mask, *, count):
    """logp (B, T): log-probs of the tokens; mask (B, T): True on answer tokens  ->  one number"""
    return -masked_sum(logp, mask) / mask.sum()
