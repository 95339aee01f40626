"""The oracle against itself: the identities that must hold before a world can judge a method.

Each statement equates two ways to compute the same quantity: a sum over all answers and the code
that the methods use, or a closed form and an induction.
"""

import copy

import torch

from minipost import ops
from minipost.methods import trpo
from minipost.proof.oracle import Recorder, divergence, mean_reward, optimum, regularised, relative
from minipost.rollout import distribution

ROUNDING = 1e-9     # up to this relative distance, two float64 numbers are the same
SQUARES = 1e-4      # the same for second differences; their error is of the order of their step


FEW = 1000          # most answers for which the score of each is computed


def identities(world, beta):
    """[{"name", "error", "holds"}], one dict per statement."""
    policy, ref = world.policy, world.reference
    log_p, log_ref = world.log_chance(policy), world.log_chance(ref).detach()
    reward, p = world.reward, log_p.detach()
    slope = world.slope(policy, mean_reward(log_p, reward))
    best, top = optimum(log_ref, reward, beta)
    soft = world.soft_values(beta)
    roots = torch.stack([soft[row][world.seqs.mask[row]][0] for row in (0, world.count)])
    errors = {
        "the chances of all answers add up to one": abs(float(p.exp().sum()) / 2 - 1),
        "the gradient of J is E[(r - b) grad log pi] for any number b": relative(
            world.slope(policy, (p.exp() * (reward - 0.7) * world.log_chance(policy)).sum() / 2),
            slope),
        "KL(pi || ref) of answers is the expected sum of the tokens' exact KL":
            chain_rule(world, policy, ref),
        "KL(ref || pi) likewise": chain_rule(world, ref, policy),
        "V* by induction over the tree is beta log E_ref exp(r/beta)": relative(roots, top),
        "E r - beta KL(pi || ref) of pi* = ref exp(r/beta) / Z is V*":
            relative(regularised(best, log_ref, reward, beta), top.mean()),
        "any other policy falls short of it by beta KL(pi || pi*)":
            relative(top.mean() - regularised(p, log_ref, reward, beta),
                     beta * divergence(p, best)),
    }
    found = [{"name": name, "error": error, "holds": error < ROUNDING}
             for name, error in errors.items()]
    return found + (fisher_identities(world) if len(world.seqs) <= FEW else [])


def fisher_identities(world):
    """The statements on F = E g g', by the scores g of all answers."""
    scores = world.scores(world.policy)                                     # (M, W)
    chance = world.log_chance(world.policy).detach().exp().flatten() / 2
    along = torch.randn(scores.shape[1], generator=torch.Generator().manual_seed(0),
                        dtype=scores.dtype)
    fisher = (chance[:, None] * scores).T @ (scores @ along)                # F v = E g (g.v)
    half = float(along @ fisher) / 2
    found = [(f"F v = E[g (g.v)] is what TRPO computes by {name}",
              relative(fisher_product(world, product, along), fisher), ROUNDING)
             for name, product in (("forward and reverse mode", trpo.product_jacobian),
                                   ("double backward", trpo.product_hessian))]
    found += [(f"v.F v / 2 is the second difference of {name}",
               abs(second_difference(world, along, turned) - half) / half, SQUARES)
              for name, turned in (("KL(old || new)", False), ("KL(new || old)", True))]
    return [{"name": name, "error": error, "holds": error < bound} for name, error, bound in found]


def chain_rule(world, p, q):
    """Relative distance of the tokens' KL(p || q), summed and averaged, from the answers' KL."""
    with torch.no_grad():
        tokens = ops.spread(ops.kl_exact(distribution(p, world.seqs), distribution(q, world.seqs)),
                            world.seqs.mask)
        chance = world.log_chance(p).exp().flatten() / 2
        return relative(chance @ tokens.sum(1),
                        divergence(world.log_chance(p), world.log_chance(q)))


def fisher_product(world, product, along):
    """The mean over all answers of one of TRPO's products.  Each sums over an answer's tokens."""
    learner = Recorder(copy.deepcopy(world.policy))
    chance = world.log_chance(world.policy).detach().exp().flatten() / 2
    return sum(c * product(learner, world.seqs[[row]], 1.0, along)
               for row, c in enumerate(chance))


def second_difference(world, along, turned, h=1e-3):
    """(KL at h v + KL at -h v) / (2 h^2), which is v F v / 2 up to terms of order h^2."""
    total, old = 0.0, world.log_chance(world.policy).detach()
    for sign in (1, -1):
        learner = Recorder(copy.deepcopy(world.policy))
        learner.assign(learner.flat + sign * h * along / along.norm())
        with torch.no_grad():
            new = world.log_chance(learner.module)
        total += float(divergence(new, old) if turned else divergence(old, new))
    return total / (2 * h**2) * float(along @ along)
