"""OREO: Offline REasoning Optimization (Wang et al. 2024, arxiv.org/abs/2412.16145).

Reward less beta KL(pi || ref) is greatest at a policy and a value that satisfy the soft Bellman
equation on every trajectory, whoever made it (theorems 1 and 2; survey sec. 3.2.7).  With
l = log pi/ref and the reward R at the end, V(s_t) = R - beta sum_(i>=t) l_i.  So policy and value
learn from one fixed set of answers, right and wrong, by making the residual of each state small.  A
state begins an action.  An answer has K actions.  Action k is the tokens from t_k up to t_(k+1):

    d_k = V(s_(t_k)) + beta sum_(i >= t_k) l_i - R

    L_V  = (1/B) sum over answers (1/K) sum_k d_k^2        its l held fixed                 (eq. 8)
    L_pi = the same number, with V and the l of later actions held fixed                   (eq. 9)
    L    = L_V + L_pi + (alpha/B) sum over answers (1/T) sum_t KL(pi || ref)(s_t)          T tokens

    dL/dV_(t_k) = 2 d_k / (K B)     dL/dlogp_t = 2 beta d_k / (K B), t in action k
    dL/dKL_t = alpha / (T B)

The survey prints L_pi without the l of later actions.  The optimum does not satisfy that form.

`--level` says what an action is: a token, a step or the whole response (eq. 10).  A step ends in
the task's `step_end`.  At the level of steps EOS is an action of its own, so V learns what a
finished answer is worth.  V is a nano-GPT of its own that starts as the policy with a head of
zeros.  One forward pass serves both updates, so each uses the other model as it was before.  KL is
exact over the vocabulary.

At test time V guides a beam search over the policy's steps (test_time/beam.py).  It reads the
prompt and the answer so far, without an EOS.  For a whole answer that is the last state on which V
was trained.  At the level of responses V is trained on the first state alone and guides nothing.

With `--iterations` the policy samples new answers at the start of each part of the run.  The
reference stays the first policy, so the optimum stays the same.  With --data the answers are rows
of `completion` and `reward`.
"""

import copy
from dataclasses import dataclass
from typing import Literal

from minipost.datasets.trajectories import Trajectories, given_answers, reward_of, stated
from minipost.errors import Descent, Schedule
from minipost.gpt import RewardModel
from minipost.measure.meter import Meter
from minipost.measure.results import Result, results
from minipost.measure.texts import Texts
from minipost.ops import masked_sum, shapes
from minipost.rollout import logprobs, readings, values
from minipost.sampler import ends
from minipost.test_time import beam

TASK = "countdown"
METRIC = "sampled"
READS = ("completion", "label", "reward")
EXPORTS = {"policy": "model", "critic": "critic"}
PROOF = [dict(config=dict(prompts=1, group_size=1, batch_size=1, level="response", beta=0.3),
              rows=1, loss="path_consistency", factor=1.0)]


@dataclass(frozen=True)
class Config(Descent):
    """Policy and value from one fixed set of answers with rewards, by soft Bellman consistency."""

    steps: int = 200            # gradient steps
    prompts: int = 512          # problems answered before learning, unless --data has answers
    group_size: int = 8         # answers per problem
    iterations: int = 1         # parts of the run, each with new answers by the policy
    batch_size: int = 64        # answers per gradient step (B)
    temperature: float = 1.0    # sampling temperature of the answers
    level: Literal["token", "step", "response"] = "step"  # what an action is
    beta: float = 0.05          # price of leaving the reference (beta)
    alpha: float = 0.1          # weight of the KL regulariser (alpha)
    lr: float = 2e-4            # peak learning rate of the policy (eta); it ends at zero
    critic_lr: float = 5e-4     # peak learning rate of the value; it ends at zero
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 10      # steps over which the learning rates climb to their peaks
    max_grad_norm: float = 1.0  # each gradient is clipped to this norm
    width: int = 4              # beams of the search that measures the value
    branching: int = 4          # samples that continue each beam

    LIMITS = {"beta": "> 0"}


def of_action(x, starts):
    """Sum of x over the action that each token belongs to.  (b, T), (b, T) -> (b, T)"""
    action = starts.cumsum(1)                               # 1, 2, ...; 0 before the first
    return x.new_zeros(len(x), x.shape[1] + 1).scatter_add(1, action, x).gather(1, action)


def residuals(logp, value, logp_held, value_held, logp_ref, reward, mask, starts, beta):
    """d_k in the policy's loss and in the value's, where actions start, else 0.  (b, T) twice"""
    ratio, ratio_held = ((x - logp_ref).where(mask, 0.0) for x in (logp, logp_held))
    rest = ratio_held.flip(1).cumsum(1).flip(1)             # of this token and all that follow
    later = rest - of_action(ratio_held, starts)
    target = reward[:, None]
    return ((value_held + beta * (of_action(ratio, starts) + later) - target).where(starts, 0.0),
            (value + beta * rest - target).where(starts, 0.0))


def rows(run, cfg):
    """The answers that the data gives, or that are sampled, and how many a step takes."""
    return (len(given_answers(run)) or cfg.prompts * cfg.group_size * cfg.iterations,
            cfg.batch_size)


def fixed(cfg):
    """Why a run cannot be made longer, if it cannot."""
    return "its iterations divide the steps" if cfg.iterations > 1 else ""


@shapes(logp="B T", value="B T", kl="B T", logp_held="B T", value_held="B T", logp_ref="B T",
        reward="B", mask="B T", starts="B T")
def loss(logp, value, kl, logp_held, value_held, logp_ref, reward, mask, starts, *, beta, alpha,
         count):
    """reward (b,), the rest (b, T), mask and starts bool; count = B  ->  scalar loss, metrics

    logp_held and value_held are logp and value without a gradient.
    """
    for_policy, for_value = residuals(logp, value, logp_held, value_held, logp_ref, reward, mask,
                                      starts, beta)
    share = starts.sum(1, keepdim=True) * count
    l_policy, l_value = ((d.square() / share).sum() for d in (for_policy, for_value))
    price = alpha * masked_sum(kl / (mask.sum(1, keepdim=True) * count), mask)
    total = l_policy + l_value + price
    return total, {"loss": total.detach(), "residual": l_value.detach()}


def loss_grad(logp, value, kl, logp_held, value_held, logp_ref, reward, mask, starts, *, beta,
              alpha, count):
    """The derivative of `loss`: {"logp": (b, T), "value": (b, T), "kl": (b, T)}."""
    for_policy, for_value = residuals(logp, value, logp_held, value_held, logp_ref, reward, mask,
                                      starts, beta)
    share = starts.sum(1, keepdim=True) * count
    return {"logp": (2 * beta * of_action(for_policy / share, starts)).where(mask, 0.0),
            "value": 2 * for_value / share,
            "kl": alpha * mask.to(kl) / (mask.sum(1, keepdim=True) * count)}


def starts(run, seqs, level):
    """True where an action begins.  (B, T)"""
    mask = seqs.mask
    if level == "token":
        return mask
    found = mask & (mask.cumsum(1) == 1)
    if level == "step":
        for row, (targets, chosen) in enumerate(zip(seqs.targets, mask)):
            ids, columns = targets[chosen].tolist(), chosen.nonzero()[:, 0].tolist()
            over = [len(ids) - 1] if ids[-1] in run.vocabulary.eos else []
            for k in [*(k + 1 for k in ends(run.vocabulary, ids, run.task.step_end)), *over]:
                if k < len(ids):
                    found[row, columns[k]] = True
    return found


def learner(run):
    """The learner of V, which is saved in a directory beside the policy's."""
    return run.learner("critic", lambda: RewardModel(copy.deepcopy(run.policy.module)))


def measure(run, splits, cfg):
    """The policy's results, greedy, sampled and by a beam search that V guides.

    The search asks no tool, so it is left out where the task's answers are made with one.
    On a file's rewards: how often V(s_0) + beta sum l, the reward that policy and value imply, is
    on the right side of 1/2.
    """
    critic = learner(run).module
    if all(stated(problems[0]) for problems in splits.values()):
        return {split: outcomes(run, problems, cfg, critic)
                for split, problems in splits.items()}
    found = results(run, splits)
    searched = cfg.level != "response" and not run.task.acts
    for split, problems in splits.items() if searched else ():
        found[split]["value-guided beam"] = beam.measure(
            problems, Texts(run, verifier=critic, stream="search"), cfg.width, cfg.branching)
    return found


def implied(run, seqs, critic, beta):
    """V(s_0) + beta sum l of each answer.  (B,)"""
    reference, policy = run.reference(), run.policy.module

    def pieces(batch):
        ratio = logprobs(policy, batch) - logprobs(reference, batch)
        first = batch.mask & (batch.mask.cumsum(1) == 1)
        return [beta * ratio + critic(batch.inputs).where(first, 0.0)]

    return run.for_all(pieces, seqs)[0].sum(1)


def outcomes(run, problems, cfg, critic):
    """How often the implied reward of a file's answer is on the same side of 1/2 as the stated."""
    texts = [p.columns["completion"] for p in problems]
    guess = implied(run, run.encode(problems, texts), critic, cfg.beta)
    right = [float((g > 0.5) == (reward_of(p) > 0.5)) for g, p in zip(guess.tolist(), problems)]
    return {"outcome accuracy": Result.of(right, texts)}


def check(run, cfg):
    """MinipostError where a file's answers cannot be learnt from."""
    Trajectories(run, cfg)


def train(run, cfg):
    """answers of the set -> log-probs, values -> loss -> two updates.  Yields metrics per step."""
    policy, critic, reference = run.policy, learner(run), run.reference()
    data = Trajectories(run, cfg)
    while True:
        if data.refresh():
            begins = starts(run, data.seqs, cfg.level)                      # (N, T)
        rows = data.deal(range(len(data.seqs)), cfg.batch_size)
        batch, begin, reward = data.seqs.take(rows, begins, data.reward)
        data.count(batch)
        tokens = batch.mask.sum()
        meter = Meter("loss", "residual", "kl")
        for i in run.micro_batches(range(len(batch)), batch):
            part, here, earned = batch.take(i, begin, reward)
            logp, _, kl, logp_ref = readings(policy.module, part, reference=reference)
            value = values(critic.module, part)                             # (b, t)
            total, stats = loss(logp, value, kl, logp.detach(), value.detach(), logp_ref, earned,
                                part.mask, here, beta=cfg.beta, alpha=cfg.alpha, count=len(batch))
            total.backward()
            meter.add(**stats, kl=kl.detach().sum() / tokens)
        rates = [cfg.rate(peak, run.step) for peak in (cfg.lr, cfg.critic_lr)]
        norms = [each.step(rate, cfg.max_grad_norm, cfg.weight_decay)
                 for each, rate in zip((policy, critic), rates)]
        yield {**meter.means(), "reward": float(reward.mean()), "grad_norm": norms[0],
               "critic_grad_norm": norms[1], "learning_rate": rates[0]}
