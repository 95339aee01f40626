"""IPO: its optimum in closed form."""

import torch
from fakes import bandit, descend

from minipost.methods import ipo


def test_ipo_finds_its_closed_form_optimum():
    """With preferences p(i > j) over all pairs, h_i - h_j = (p_i - p_j) / tau, p_i the mean
    preference over answers of the reference (Azar et al., sec. 5.1)."""
    ref, r = bandit()
    tau = 0.7
    i, j = (1 - torch.eye(4)).nonzero(as_tuple=True)
    chance = torch.sigmoid(r[i] - r[j])

    def total(logp):
        pairs = [x[:, None] for x in (logp[i], logp[j], ref.log()[i], ref.log()[j])]
        ones = torch.ones_like(pairs[0]).bool()
        each = [ipo.loss(*(x[k: k + 1] for x in (*pairs, ones, ones)), tau=tau, count=1)[0]
                for k in range(len(i))]
        return (torch.stack(each) * ref[i] * ref[j] * chance).sum()

    preferred = (ref[None] * torch.sigmoid(r[:, None] - r[None])).sum(1)
    best = ref * (preferred / tau).exp()
    assert (descend(total) - best / best.sum()).abs().max() < 1e-6
