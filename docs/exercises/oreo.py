"""Find the bug: OREO's residuals (chapter 9 of docs/learn.md).

    d_k = V(s_k) + beta sum_(i >= t_k) l_i - R

This is how a well-known survey prints the policy's residual.  At the best policy and value every
residual should be 0.  With this version it is not, so training leads away from the best policy.

Mend it, then run `make exercise-oreo` again.  The second result, the value's residual, is right.
"""

from minipost.methods.oreo import of_action


def residuals(logp, value, logp_held, value_held, logp_ref, reward, mask, starts, beta):
    """The policy's and the value's residual where an action starts, else 0  ->  (B, T) twice

    logp and value carry a gradient; logp_held and value_held are the same numbers without one.
    of_action(x, starts) is at each token the sum of x over the action that the token belongs to.
    """
    ratio, ratio_held = ((x - logp_ref).where(mask, 0.0) for x in (logp, logp_held))
    rest = ratio_held.flip(1).cumsum(1).flip(1)             # of this token and all that follow
    target = reward[:, None]
    return ((value_held + beta * of_action(ratio, starts) - target).where(starts, 0.0),
            (value + beta * rest - target).where(starts, 0.0))
