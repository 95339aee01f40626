"""Find the bug: an estimate of KL(pi || ref) that is used as a loss (chapter 4 of docs/learn.md).

The estimate gets the log-probs that the policy and the reference give to sampled tokens.  On
average over the policy's own tokens the number below IS the KL, so a plot of it looks right.  But
a policy that descends it leaves its reference as if there were no price at all.

Put k3 in its place, then run `make exercise-kl` again.
"""


def kl_k3(logp, logp_ref):
    """logp, logp_ref (N,): log-probs of the sampled tokens  ->  the estimate per token (N,)"""
    return logp - logp_ref
