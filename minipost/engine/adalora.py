"""AdaLoRA: a budget of ranks, shared out among all matrices while they learn.

Zhang et al. 2023, arxiv.org/abs/2303.10512.  What is added to a matrix is s P diag(e) Q (`Pruned`
in lora.py).  Its r triplets (P_i, e_i, Q_i) should be singular vectors and values, so the loss gets
gamma R more (sec. 3.1), summed over the matrices:

    R = |P^T P - I|^2 + |Q Q^T - I|^2        dR/dP = 4 P (P^T P - I),   dR/dQ = 4 (Q Q^T - I) Q

A number w is important where the loss would change without it, I = |w dL/dw|, and where that is
uncertain (sec. 3.2).  Both are smoothed over the updates, and a triplet's importance is

    I' <- b1 I' + (1 - b1) I,   U <- b2 U + (1 - b2) |I - I'|,   s(w) = I' U
    S_i = s(e_i) + mean of s over P_i + mean of s over Q_i

After an update all e_i are set to 0 but those of the b most important triplets of the model.  With
b_0 triplets, b_T = budget x matrices, and t the share of its steps that is behind it (sec. 3.3):

    b = b_0                                              t < t_i
        b_T + (b_0 - b_T) (1 - (t - t_i) / (1 - t_i - t_f))^3
        b_T                                              t >= 1 - t_f

A triplet that lost its e keeps its P and Q, and may have e again.  Once b_T are left, these stay.
The steps of a learner are those of the run from its first update on; after `forget`, from the next
one on, and b_0 is what is left then.  One that stops before the run ends, such as the reward model
of --algo ppo, may keep more than its budget.

Where we differ from the paper: each update prunes, not one in Delta_T; P and Q begin orthonormal,
not small and random, so that the penalty does not decide what is pruned first.  b falls from b_0 at
t_i, as in the authors' code; printed is t - t_i - t_f, by which b would begin above b_0.  peft
takes the mean of the norms |...|, not the sum of their squares.
"""

import torch

from minipost.engine.lora import Pruned

GAMMA, B1, B2 = 0.1, 0.85, 0.85
BEGIN, END = 0.1, 0.3     # t_i and t_f, shares of a learner's steps


def allowed(t, first, last):
    """b, of `first` triplets and `last` at the end, when a share t of the steps is behind it."""
    left = min(1.0, max(0.0, 1 - (t - BEGIN) / (1 - BEGIN - END)))
    return round(last + (first - last) * left**3)


@torch.no_grad()
def penalty_grad(x, rows):
    """dR/dx, R = |x x^T - I|^2, summed over matrices of so many rows, one below the other."""
    return torch.cat([4 * (part @ part.t() - torch.eye(len(part)).to(x)) @ part
                      for part in x.split(rows)])


class Allocator:
    """The budget of a module whose adapters are Pruned, and the importance of its numbers.

    weights, slopes: {parameter: where an optimiser has its value, and its gradient}.
    """

    def __init__(self, module, weights, slopes):
        self.adapters = [part for part in module.modules() if isinstance(part, Pruned)]
        self.weights, self.slopes = weights, slopes
        self.mean, self.spread = ({p: torch.zeros_like(slopes[p])
                                   for each in self.adapters for p in each.parameters()}
                                  for _ in range(2))
        self.last = sum(each.budget * sum(each.adapted) for each in self.adapters)
        self.kept = torch.ones_like(torch.cat([slopes[each.e] for each in self.adapters]))
        # The run's step of the first update, -1 before there is one; how many triplets there were.
        self.start = torch.tensor([-1, len(self.kept)])

    @torch.no_grad()
    def weigh(self):
        """Add the penalty's gradient, and note how important each number is."""
        for each in self.adapters:
            p, q = self.weights[each.p], self.weights[each.q]
            self.slopes[each.q] += GAMMA * penalty_grad(q, each.rank)
            for _, rows, _ in each.parts():
                self.slopes[each.p][rows] += GAMMA * penalty_grad(p[rows].t(), each.rank).t()
        for x, mean in self.mean.items():
            now = (self.weights[x] * self.slopes[x]).abs()
            mean.lerp_(now, 1 - B1)
            self.spread[x].lerp_((now - mean).abs(), 1 - B2)

    def state(self):
        """Which triplets are left, since when, and the two means of each number, by name."""
        means = (("sensitivity", self.mean), ("uncertainty", self.spread))
        return {"kept": self.kept, "start": self.start} | {
            f"{name}/{k}": x for name, found in means for k, x in enumerate(found.values())}

    def forget(self):
        """Forget how important each number was, for another loss.  What is pruned stays so."""
        for x in (*self.mean.values(), *self.spread.values()):
            x.zero_()
        self.start.copy_(torch.tensor([-1, int(self.kept.sum())]))

    @property
    def first(self):
        """b_0."""
        return int(self.start[1])

    def since(self, step):
        """The run's step of the first update: this one if there was none."""
        if self.start[0] < 0:
            self.start[0] = step
        return int(self.start[0])

    def importance(self):
        """S of all triplets, of one adapter after the other.  (b_0,)"""
        found = []
        for each in self.adapters:
            p, e, q = (self.mean[x] * self.spread[x] for x in (each.p, each.e, each.q))
            of_p = torch.cat([p[rows].mean(0) for _, rows, _ in each.parts()])
            found.append(e + of_p + q.mean(1))
        return torch.cat(found)

    @torch.no_grad()
    def prune(self, t):
        """Set all e to 0 but those of the triplets that the budget allows."""
        if self.kept.sum() > self.last:
            best = self.importance().sort(descending=True, stable=True).indices
            self.kept.fill_(1)[best[allowed(t, self.first, self.last):]] = 0
        for each, mine in zip(self.adapters,
                              self.kept.split([len(each.e) for each in self.adapters])):
            self.weights[each.e] *= mine
