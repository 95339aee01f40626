"""Fill in: pass@k (chapter 10 of docs/learn.md).

n answers were drawn, and c of them are right.  What is the chance that k answers, picked at random
from these n, hold at least one right answer?

math.comb(n, k) is the number of ways to pick k of n things.

Write it, then run `make exercise-pass-at-k` again.  It is compared with a count of all ways.
"""

import math  # noqa: F401


def pass_at_k(n, c, k):
    """Whole numbers, c <= n and k <= n  ->  a chance"""
    raise NotImplementedError("write the body of `pass_at_k`")
