"""RPO: Reward-aware Preference Optimisation (Nemotron-4 340B, arxiv.org/abs/2406.11704, sec. 3.3).

DPO hears that one answer is better and drives their implied rewards apart without end.  RPO hears
by how much, from a reward model r: the gap of the implied rewards should be that of the rewards
(survey, Table I).  With u = beta (h_w - h_l) as in methods/dpo.py and b = eta (r_w - r_l)

    L = (1/B) sum [ sigmoid(b) log sigmoid(b)/sigmoid(u) + sigmoid(-b) log sigmoid(-b)/sigmoid(-u) ]

    dL/dlogp_t = beta (sigmoid(u) - sigmoid(b)) / B on the chosen answer, minus that on the rejected

It is the KL of two coins, least and zero at u = b: on every pair at once for pi ~ ref exp(eta r /
beta).  As eta grows it becomes DPO.  The authors' library calls it rpo_bwd_kl, and has two other
distances.

Where the task hides its reward, or a file has pairs, a reward model is taught first
(methods/reward.py), unless --reward-model names one.  Its score is normalised, so eta is in
deviations of the starting policy's answers.

Where we differ: sampled answers of equal rewards are no pair, as in methods/dpo.py.  By the formula
they would have b = 0, and be pulled towards equal implied rewards.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from minipost.datasets import preferences
from minipost.errors import Descent
from minipost.measure import scorers
from minipost.measure.meter import Meter
from minipost.methods import dpo, reward
from minipost.ops import shapes
from minipost.rollout import logprobs_of_each
from minipost.run import REWARD_MODEL

TASK = "wording"
METRIC = "win rate"
READS = ("chosen", "rejected")
EXPORTS = {"policy": "model", REWARD_MODEL: "reward_model"}
TRACE = ("loss", "accuracy", "gap", "rewards/margins", "rewards/accuracies")
PROOF = [dict(config=dict(pairs=1, beta=0.3, eta=1.0), rows=2, loss="rpo_loss", factor=1.0)]


@dataclass(frozen=True)
class Config(Descent):
    """Preference optimisation towards the gap that a reward model sees."""

    steps: int = 110            # gradient steps
    pairs: int = 64             # prompts with two answers each per step (B, less ties)
    temperature: float = 1.0    # sampling temperature of the answers (tau)
    beta: float = 1.0           # how close the policy stays to the reference (beta)
    eta: float = 4.0            # how much of a gap a difference of rewards asks for (eta)
    lr: float = 5e-5            # learning rate
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm
    reward_steps: int = 100     # where a reward model is taught first: its steps, 64 pairs each

    LIMITS = {"beta": "> 0", "eta": "> 0"}


@shapes(logp_w="B T", logp_l="B S", ref_w="B T", ref_l="B S", mask_w="B T", mask_l="B S", gap="B")
def loss(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, gap, *, beta, eta, count):
    """As dpo.loss; gap (b,) = r_w - r_l  ->  scalar loss, metrics that add up"""
    u, wanted = dpo.lead(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, beta), eta * gap
    value = sum((torch.sigmoid(s * wanted) * (logsigmoid(s * wanted) - logsigmoid(s * u))).sum()
                for s in (1, -1)) / count
    return value, {"loss": value.detach(), **dpo.margins(u, count)}


def loss_grad(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, gap, *, beta, eta, count):
    """The derivative of `loss`: {"logp_w": (b, T), "logp_l": (b, S)}."""
    u = dpo.lead(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, beta)
    pull = beta * (torch.sigmoid(u) - torch.sigmoid(eta * gap))[:, None] / count    # (b, 1)
    return {"logp_w": pull * mask_w, "logp_l": -pull * mask_l}


def learns_reward(run):
    """Whether a reward model has to be taught first."""
    return run.reward_model is None and (
        run.hidden or "chosen" in run.problems(1)[0].columns)


def total(run, cfg):
    """Steps of both stages."""
    return cfg.steps + (cfg.reward_steps if learns_reward(run) else 0)


def measure(run, splits, cfg):
    """Win rate against the starting policy; on a file's pairs, the implied reward's ranking."""
    return scorers.report_policy(run, splits, cfg.beta)


def draw(run, cfg):
    """This step's pairs, the better answer first, and the gap of their rewards (b,)."""
    problems, pairs = preferences.step_pairs(run, cfg.pairs)
    if pairs is not None:
        scores = [run.final_scores(run.reward_model, side) for side in (pairs.chosen,
                                                                        pairs.rejected)]
        return pairs, scores[0] - scores[1]
    rollout = run.sample(problems, 2, temperature=cfg.temperature, purpose="pairs",
                         module=run.reference())
    first, second = run.score(problems, rollout).view(-1, 2).unbind(1)
    lead, words = first - second, rollout.responses()
    same = torch.tensor([a == b for a, b in zip(words[::2], words[1::2])], device=lead.device)
    lead = lead.where(~same, 0.0)
    return preferences.ranked_pairs(rollout, lead), lead[lead != 0].abs()


def train(run, cfg, label=preferences.by_reward):
    """A reward model where there is none; then pairs -> gaps -> loss -> update."""
    first = cfg.reward_steps if learns_reward(run) else 0
    if run.step < first:
        stage = reward.train(run, reward.Config(
            steps=cfg.reward_steps, prompts=64, group_size=2, temperature=cfg.temperature), label)
        while run.step < first:
            yield next(stage)
    if first:
        run.score_by(scorers.scorer(run).module)
    policy, reference = run.policy, run.reference()
    while True:
        rate = cfg.rate(cfg.lr, run.step - first)
        pairs, gap = draw(run, cfg)
        count, sides = len(pairs), (pairs.chosen, pairs.rejected)
        refs = [run.logprobs(reference, side) for side in sides]
        meter = Meter("loss", "rewards/margins", "rewards/accuracies")
        for i in run.micro_batches(range(count), *sides):
            batch, ref = preferences.take_pairs(pairs, i, refs)
            logp = logprobs_of_each(policy.module, (batch.chosen, batch.rejected))
            value, stats = loss(*logp, *ref, batch.chosen.mask, batch.rejected.mask, gap[i],
                                beta=cfg.beta, eta=cfg.eta, count=count)
            value.backward()
            meter.add(**stats)
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay) if count else 0.0
        yield {**meter.means(), "gap": float(gap.double().mean()) if count else 0.0,
               "pairs": count, "grad_norm": norm, "learning_rate": rate}
