"""What is logged of one training step."""

from collections.abc import Iterator

import torch

from minipost import parallel
from minipost.errors import MinipostError

OWN = {"step", "num_tokens", "seconds"}  # metrics of the run, beside its measurements, eval/...


def next_step(learn, method):
    """The metrics of the next step of a method's train(run, cfg).

    MinipostError unless that is a generator that makes a step and yields {name: number}.
    """
    file = method.module.__file__
    if not isinstance(learn, Iterator):
        raise MinipostError(f"{file}: train gives a {type(learn).__name__}; expected a generator, "
                            "which yields the metrics of each step")
    try:
        metrics = next(learn)
    except StopIteration:
        raise MinipostError(f"{file}: train ended before the last step; expected a step each time "
                            "it is asked (while True)") from None
    if not isinstance(metrics, dict):
        raise MinipostError(f"{file}: train yields a {type(metrics).__name__}; expected a dict of "
                            "metrics, {name: number}")
    if taken := own(metrics):
        raise MinipostError(f"{file}: logs the metric {min(taken)!r}, which is one of the run's "
                            "own; give it another name")
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            raise MinipostError(f"{file}: the metric {name!r} is a {type(value).__name__}; "
                                "expected a number, as by float(x)")
    return metrics


def own(names):
    """Those of the names of metrics that only the run itself may log."""
    return {name for name in names if name in OWN or name.startswith("eval/")}


class Meter:
    """The metrics of one training step.

    `add` takes pieces.  Over the micro-batches and ranks of a gradient step, they sum to its value.
    `means` averages over the gradient steps of the training step.
    """

    def __init__(self, *names):
        self.sums = dict.fromkeys(names, 0.0)

    def add(self, **pieces):
        for name, piece in pieces.items():
            self.sums[name] += float(piece)

    def means(self, updates=1):
        values = torch.tensor(list(self.sums.values()), dtype=torch.float64)
        parallel.all_reduce(values)
        return dict(zip(self.sums, (values / max(1, updates)).tolist()))


def describe(rollout, reward, group_size):
    """The most common metrics of a rollout, under TRL's names.

    entropy: of the policy that sampled, nats per token, as its own samples estimate it without
    bias.  They are all answers, with those whose group ties and teaches nothing.
    A reward of NaN is none: what is said of rewards leaves such answers out.
    """
    if reward.isnan().any():
        return {**described(rollout), **partly(reward, group_size)}
    by_group = reward.view(-1, group_size)
    found = {"reward": float(reward.mean())}
    if group_size > 1:
        ties = (by_group == by_group[:, :1]).all(1)
        found |= {"reward_std": float(by_group.std(1).mean()),
                  "frac_reward_zero_std": float(ties.float().mean())}
    else:  # a single answer has no siblings to tie with
        found["reward_std"] = float(reward.std(correction=0))
    right, lengths = reward == 1, rollout.lengths.float()
    if right.any() and bool((right | (reward == 0)).all()) and not right.all():
        found |= {"completions/mean_length/right": float(lengths[right].mean()),
                  "completions/mean_length/wrong": float(lengths[~right].mean())}
    return {**found, **described(rollout)}


def averaged(name, reward):
    """{name: the mean of the rewards that are there}, {} where none is.  For what is only logged.
    """
    known = reward[~reward.isnan()]
    return {name: float(known.mean())} if len(known) else {}


def described(rollout):
    """What can be said of answers without their rewards."""
    return {
        "entropy": -float(rollout.logp.sum() / rollout.mask.sum()),
        "completions/mean_length": float(rollout.lengths.float().mean()),
        "completions/clipped_ratio": float((~rollout.finished).float().mean()),
    }


def partly(reward, group_size):
    """The metrics of rewards of which some are NaN: of those that are not."""
    groups = [group[~group.isnan()] for group in reward.view(-1, group_size)]
    known = torch.cat(groups)
    found = {"unscored_ratio": float(reward.isnan().float().mean())}
    if len(known):
        found["reward"] = float(known.mean())
    if several := [group for group in groups if len(group) > 1]:
        found |= {"reward_std": float(torch.stack([group.std() for group in several]).mean()),
                  "frac_reward_zero_std": sum(bool((g == g[0]).all()) for g in several)
                  / len(several)}
    return found
