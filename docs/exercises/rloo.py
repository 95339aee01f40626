"""Fill in: RLOO's advantages (chapter 3 of docs/learn.md).

    A_i = R_i - the mean of the other R_j of the group

The rewards of a group stand beside each other: with groups of 4, the first four belong to the first
prompt, the next four to the second.

Write it, then run `make exercise-rloo` again.
"""


def leave_one_out(reward, group_size):
    """reward (P*G,), group_size = G  ->  the advantages (P*G,)"""
    raise NotImplementedError("write the body of `leave_one_out`")
