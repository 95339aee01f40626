"""Fill in: the gradient of a reward model's loss, by hand (chapter 7 of docs/learn.md).

    D = r_w - r_l - margin
    L = -(1/B) sum log sigmoid(D) + c/B sum (r_w + r_l)^2

What is dL/dr_w, and what is dL/dr_l?  The derivative of log sigmoid(D) is sigmoid(-D).

Write it, then run `make exercise-preference` again.  It is compared with autograd on the real loss.
"""


def loss_grad(score_w, score_l, *, margin, center, count):
    """score_w, score_l (B,): scores of preferred and other answers; center = c; count = B

    ->  {"score_w": dL/dr_w (B,), "score_l": dL/dr_l (B,)}
    """
    raise NotImplementedError("write the body of `loss_grad`")
