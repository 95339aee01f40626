"""Find the bug: TRPO's line search (chapter 6 of docs/learn.md).

The search tries the whole step, then shrink times the step, then shrink^2 times the step.  It takes
the first try that is good.  If no try is good, it keeps the old weights.

This version takes steps that it should not.  Mend it, then run `make exercise-trust` again.
"""


def line_search(evaluate, old, step, delta, shrink, tries):
    """evaluate(weights) -> (gain over the old policy, KL from it)

    ->  (weights, how many tries were made before, gain, KL), or (old, tries, 0.0, 0.0)
    """
    for k in range(tries):
        weights = old + shrink**k * step
        gain, kl = evaluate(weights)
        if gain > 0:
            return weights, k, gain, kl
    return old, tries, 0.0, 0.0
