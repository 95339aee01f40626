"""How far values are from the exact ones: of branches as VinePPO draws them, and of a critic.

The world knows V(s), the mean reward of the policy's answers that pass through a state.  The error
is the root mean square over states, as often as the policy passes them.

    K branches     sqrt(E[Var(r | s)] / K), exactly: they have no bias
    a critic       a copy of the policy with a value head, by Adam on the squared error to the
                   rewards of sampled answers, as PPO's; after so many of them

The policy stands still here, which helps the critic: in training it learns values of a policy that
moves on.
"""

import copy

import torch

from minipost.gpt import ValueHead
from minipost.optim import Learner
from minipost.rollout import values

BRANCHES = (1, 3, 9, 27)
ANSWERS, STEPS, LR = 64, (0, 1, 10, 100, 300), 1e-3  # answers of a step; steps; A2C's rate


def value_errors(world, seed=0):
    """[{"name", "rms", "answers"}]: answers sampled, of a state's branches or of all states."""
    with torch.no_grad():
        chance = world.log_chance(world.policy).exp().flatten() / 2         # (M,)
    reward, mask = world.reward.flatten(), world.seqs.mask
    exact = world.given(chance, reward)                                     # (M, T)
    spread = world.given(chance, reward.square()) - exact.square()
    weight = chance[:, None] * mask
    weight = weight / weight.sum()
    found = [{"name": f"{k} branches from the state", "answers": k,
              "rms": float(((weight * spread).sum() / k).sqrt())} for k in BRANCHES]
    critic = Learner(ValueHead(copy.deepcopy(world.policy)))
    generator, steps = torch.Generator().manual_seed(seed), 0
    for wanted in STEPS:
        while steps < wanted:
            rows = torch.multinomial(chance, ANSWERS, replacement=True, generator=generator)
            batch = world.seqs[rows]
            error = (values(critic.module, batch) - reward[rows][:, None])[batch.mask]
            (error.square().mean() / 2).backward()
            critic.step(LR)
            steps += 1
        with torch.no_grad():
            off = values(critic.module, world.seqs) - exact
        found.append({"name": f"critic after {wanted * ANSWERS:,} answers",
                      "answers": wanted * ANSWERS,
                      "rms": float((weight * off.square()).sum().sqrt())})
    return found
