"""The losses that the methods should descend, as plain sums over all answers of a World.

They are written from the equations, not from the methods' code, so each can reveal a fault in the
other.  Pairs are drawn as the methods draw them.  As in the methods, two answers of the same words
are left out.
"""

import math

import torch
from torch.nn.functional import logsigmoid, softplus

from minipost import ops
from minipost.gpt import RewardModel
from minipost.proof.oracle import divergence, mean_reward, regularised
from minipost.rollout import distribution, final_score, step_scores

BETA = 0.3  # KL coefficient of every method that has one


class Exact:
    """The quantities that a loss may be an expectation of, one value per answer.  (P, S)

    Outputs of the policy or of a scorer have a gradient in the weights of `module`.  The rest has
    none.
    """

    def __init__(self, world, module):
        self.world, self.reward = world, world.reward
        self.length = world.seqs.lengths.view(2, -1)
        self.log_ref = world.log_chance(world.reference).detach()
        self.ref = self.log_ref.exp()                       # chances under the reference
        scorer = isinstance(module, RewardModel)
        self.log_p = world.log_chance(world.policy if scorer else module)
        self.p = self.log_p.detach().exp()                  # chances under the policy
        self.h = self.log_p - self.log_ref
        self.mean_logp = self.log_p / self.length
        if scorer:
            self.score = final_score(module, world.seqs).view(2, -1)
            self.step_score = step_scores(module, world.seqs)           # (M, T)

    def pairs(self, chance, loss):
        """Mean of loss (P, S, S), of a better answer i and a worse one j, over two drawn answers.

        Both are drawn with `chance`.  Two answers of the same words are a tie and make no pair.
        """
        better = self.reward[:, :, None] > self.reward[:, None, :]
        return 2 * (chance[:, :, None] * chance[:, None, :] * loss).where(
            better, 0.0).sum((1, 2)).mean()


def gap(x):
    """x_i - x_j.  (P, S) -> (P, S, S)"""
    return x[:, :, None] - x[:, None, :]


def total(x):
    """x_i + x_j.  (P, S) -> (P, S, S)"""
    return x[:, :, None] + x[:, None, :]


def expected(chance, x):
    """The mean over prompts of an expectation.  (P, S) twice -> ()"""
    return (chance * x).sum(1).mean()


# ---- losses

def maximum_likelihood(e):
    """The demonstrations are the answers that end by themselves, all equally often."""
    shown = torch.tensor([[len(text) < e.world.horizon for text in e.world.texts]] * 2).double()
    return -expected(shown / shown.sum(1, keepdim=True), e.log_p)


def minus_reward(e):
    return -mean_reward(e.log_p, e.reward)


def minus_regularised(e):
    return -regularised(e.log_p, e.log_ref, e.reward, BETA)


def bradley_terry(e):
    return e.pairs(e.p, softplus(-gap(e.score)))


def centred_bradley_terry(e):
    return bradley_terry(e) + e.pairs(e.p, 0.1 * total(e.score).square())


def click_ranking(e):
    """Lists of two, and the chance that an answer which is looked at gets a click of 30 s."""
    loser, winner = (share * math.exp(-30 / stay) for share, stay in ((0.1, 10), (1.0, 60)))
    lead = gap(e.score)
    return e.pairs(e.p, winner * softplus(-lead) + loser * softplus(lead))


def outcome_entropy(e):
    return expected(e.p, softplus(e.score) - e.reward * e.score)


def step_entropy(e):
    """Over every token that ends a step, and over the last token, whose label is the reward."""
    world, task = e.world, e.world.task
    each = torch.zeros(len(world.seqs), dtype=torch.float64)
    for row, (ids, mask) in enumerate(zip(world.seqs.targets.tolist(), world.seqs.mask.tolist())):
        columns = [t for t, chosen in enumerate(mask) if chosen]
        text = world.texts[row % world.count]
        ends = [t for t in columns if world.words.decode([ids[t]]) == task.step_end]
        right = dict(zip(ends, map(float, task.check_steps(None, text))))
        right[columns[-1]] = float(e.reward.flatten()[row])
        for t, y in right.items():
            each[row] = each[row] + softplus(e.step_score[row, t]) - y * e.step_score[row, t]
    return expected(e.p, each.view(2, -1))


def implicit_entropy(e):
    """PRIME's model of outcomes, while it is the policy."""
    score = BETA * e.h
    return expected(e.p, softplus(score) - e.reward * score)


def minimum_risk(e):
    """Of two drawn answers, weighed by chances to the power 0.7.  Drawing them has no gradient."""
    share = torch.sigmoid(0.7 * gap(e.log_p))               # Q of i beside j
    mean = share * e.reward[:, :, None] + (1 - share) * e.reward[:, None, :]
    return -(e.p[:, :, None] * e.p[:, None, :] * mean).sum((1, 2)).mean()


def value_entropy(e):
    """As `step_entropy`, and the label of a step is the mean reward of what may follow it."""
    world, reward, chance = e.world, e.reward.flatten(), e.p.flatten()
    tokens, mask = world.seqs.tokens, world.seqs.mask
    each = torch.zeros(len(tokens), dtype=torch.float64)
    for row in range(len(tokens)):
        columns = mask[row].nonzero()[:, 0].tolist()
        for t in columns:
            s = e.step_score[row, t]
            if t == columns[-1]:
                y = reward[row]
            elif world.words.decode([int(tokens[row, t + 1])]) == world.task.step_end:
                after = mask[:, t] & (tokens[:, : t + 2] == tokens[row, : t + 2]).all(1)
                y = (chance * reward)[after].sum() / chance[after].sum()
            else:
                continue
            each[row] = each[row] + softplus(s) - y * s
    return expected(e.p, each.view(2, -1))


def dpo_loss(e):
    return e.pairs(e.ref, softplus(-BETA * gap(e.h)))


def ipo_loss(e):
    return e.pairs(e.ref, (gap(e.h) - 1 / (2 * BETA)).square())


def rpo_loss(e):
    """The KL of two coins: one of the rewards' gap (eta = 1), one of the implied rewards'."""
    wanted, found = gap(e.reward), BETA * gap(e.h)
    return e.pairs(e.ref, sum(torch.sigmoid(s * wanted) * (logsigmoid(s * wanted)
                                                           - logsigmoid(s * found))
                              for s in (1, -1)))


def simpo_loss(e):
    return e.pairs(e.ref, softplus(1.0 - 2.0 * gap(e.mean_logp)))


def orpo_loss(e):
    odds = e.mean_logp - torch.log(-torch.expm1(e.mean_logp))
    return e.pairs(e.ref, -e.mean_logp[:, :, None] - 3.0 * logsigmoid(gap(odds)))


def kto_loss(e):
    """With z0 = KL(pi || ref), of which the method has an estimate."""
    z0 = (e.p * e.h.detach()).sum(1).mean()
    good, bad = (torch.sigmoid(s * BETA * (e.h - z0)) for s in (-1, 1))
    same = expected(e.ref, e.ref * bad)                     # of two alike, neither beats the mean
    return e.pairs(e.ref, (good[:, :, None] + bad[:, None, :]) / 2) + same


def path_consistency(e):
    """OREO at the level of responses, while the value of every state is still zero."""
    world = e.world
    kl = ops.spread(
        ops.kl_exact(distribution(world.policy, world.seqs),
                     distribution(world.reference, world.seqs).detach()), world.seqs.mask)
    price = 0.1 * kl.sum(1).view(2, -1) / e.length
    return expected(e.p, (BETA * e.h - e.reward).square() + price)


def forward_kl(e):
    return divergence(e.log_ref, e.log_p)


def reverse_kl(e):
    return divergence(e.log_p, e.log_ref)


def minus_success(e):
    return -mean_reward(e.log_p, (e.reward >= 0.5).double())
