"""Fill in: generalised advantage estimation, the advantages of PPO (chapter 5 of docs/learn.md).

    delta_t = r_t + gamma V_(t+1) - V_t
    A_t     = delta_t + gamma lambda A_(t+1)

After the last token of an answer V and A are 0.  Off the mask A is 0.

Write it, then run `make exercise-gae` again.  Go through the tokens from the last to the first.
"""


def gae(reward, value, mask, gamma, lam):
    """reward, value (B, T); mask (B, T): one unbroken stretch of True in each row  ->  A (B, T)"""
    raise NotImplementedError("write the body of `gae`")
