"""Every method's training step written anew, and the settings under which it is held to that.

The formulas are those of the papers, in plain loops over answers and tokens.  Nothing is taken from
the package but the networks' outputs, what was sampled, and the words.  An optimiser of its own
makes the update.  So a step agrees with this only if all its parts do: the passes over a rollout,
the ratio, the temperature, the clip, the price of KL, the rates, the metrics.

    CASES       {name: Case}: a method, its settings, and its formula
    scene       the run in which a case makes its steps
    Mirror      the networks of that run and their optimisers, once more
"""

import copy
import itertools
import math
import random
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean, pstdev, stdev
from types import ModuleType
from typing import Any

import torch
from fakes import EOS, Echo, Letters, Steps, scalar, tiny, valuer

from minipost.methods import (
    a2c,
    dapo,
    distill,
    dpo,
    dr_grpo,
    grpo,
    ipo,
    kto,
    mdpo,
    oreo,
    orm,
    orpo,
    plackett_luce,
    ppo,
    prm,
    reinforce,
    reinforce_pp,
    reward,
    rft,
    rloo,
    self_critical,
    sft,
    simpo,
    trpo,
)
from minipost.optim import Learner
from minipost.run import REWARD_MODEL, Run

ADAM = dict(betas=(0.7, 0.9), eps=1e-2)  # so large an eps that the size of a gradient matters


# ---- answers

@dataclass
class Row:
    """An answer: all its ids, where the response starts, what the sampler recorded of it."""

    ids: list
    start: int
    old: torch.Tensor       # (n,)
    done: bool
    prompt: int

    @property
    def said(self):
        return self.ids[self.start:]

    @property
    def text(self):
        return Letters().decode([i for i in self.said if i != EOS])


def rows_of(seqs):
    """The answers of Sequences, without any padding."""
    found = []
    for k, (tokens, mask) in enumerate(zip(seqs.tokens.tolist(), seqs.mask.tolist())):
        places = [t for t, chosen in enumerate(mask) if chosen]
        assert places == list(range(places[0], places[-1] + 1))
        found.append(Row(
            tokens[: places[-1] + 2], places[0] + 1,
            seqs.logp[k, places].double() if hasattr(seqs, "logp") else torch.zeros(0),
            tokens[places[-1] + 1] == EOS, int(seqs.prompt[k]) if hasattr(seqs, "prompt") else k))
    return found


def padded(rows):
    width = max(len(row.ids) for row in rows)
    return torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])


def laws(module, rows, tau=1.0):
    """Log-probs over the vocabulary before every response token: a list of (n, V)."""
    if not rows:
        return []
    logits = module(padded(rows), explicit=True) / tau
    return [logits[k, row.start - 1 : len(row.ids) - 1].log_softmax(-1)
            for k, row in enumerate(rows)]


def chances(module, rows, tau=1.0):
    """The log-prob of every response token: a list of (n,)."""
    return [law[range(len(row.said)), row.said] for law, row in zip(laws(module, rows, tau), rows)]


def sums(module, rows):
    """The log-prob of every whole response: a list of ()."""
    return [x.sum() for x in chances(module, rows)]


def worths(module, rows):
    """A critic's value before every response token: a list of (n,)."""
    found = module(padded(rows))
    return [found[k, row.start - 1 : len(row.ids) - 1] for k, row in enumerate(rows)]


def marks(module, rows):
    """A reward model's output after every response token: a list of (n,)."""
    found = module(padded(rows))
    return [found[k, row.start : len(row.ids)] for k, row in enumerate(rows)]


def entropy(law):
    return -(law.exp() * law).sum(-1)


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


# ---- the networks and their optimisers

class Net:
    """A copy of a learner's network with AdamW, as its paper writes it."""

    def __init__(self, learner):
        self.module, (self.b1, self.b2) = copy.deepcopy(learner.module), learner.betas
        self.eps, self.decay, self.t = learner.eps, 0.0, 0
        self.params = list(self.module.parameters())
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.norms = []

    def step(self, loss, lr, most):
        """Descend this loss; its gradient is cut to the norm `most`.  Keeps the norm it had."""
        grads = torch.autograd.grad(loss, self.params, allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, self.params)]
        norm = math.sqrt(sum(float((g * g).sum()) for g in grads))
        self.norms.append(norm)
        self.t += 1
        with torch.no_grad():
            for p, g, m, v in zip(self.params, grads, self.m, self.v):
                g = g * min(1.0, most / norm) if norm else g
                m.copy_(self.b1 * m + (1 - self.b1) * g)
                v.copy_(self.b2 * v + (1 - self.b2) * g * g)
                up = (m / (1 - self.b1**self.t)) / ((v / (1 - self.b2**self.t)).sqrt() + self.eps)
                p -= lr * (up + (self.decay * p if p.dim() >= 2 else 0.0))


class Mirror:
    """The networks of a run once more, with what a formula may ask of a step."""

    def __init__(self, run):
        self.policy = Net(run.policy)
        self.critic = Net(run.learners["critic"]) if "critic" in run.learners else None
        self.scorer = Net(run.learners[REWARD_MODEL]) if REWARD_MODEL in run.learners else None
        self.reference = copy.deepcopy(run.reference())
        self.task, self.seed, self.step, self.longest = run.task, run.seed, 0, run.max_new_tokens
        self.carried = {}
        self.samples, self.encoded, self.problems = [], [], []  # of the step, as the run made them

    def reward(self, rows, sample=0):
        """The exact reward of some answers to the problems of one sample."""
        asked = [self.problems[sample][row.prompt] for row in rows]
        return self.task.reward([p.prompt for p in asked], [row.text for row in rows],
                                letter=[p.columns["letter"] for p in asked])

    def passes(self, rows, size, epochs):
        """The answers of each gradient step, with their numbers."""
        rng = random.Random(f"{self.seed}/{self.step}/order")
        for _ in range(epochs):
            order = list(range(len(rows)))
            rng.shuffle(order)
            for k in range(0, len(order), size):
                yield order[k : k + size]


def count(rows):
    return sum(len(row.said) for row in rows)


def described(rows, earned, size):
    """The metrics of a rollout whose answers to a prompt stand side by side."""
    groups = [earned[k : k + size] for k in range(0, len(earned), size)]
    found = {"reward": fmean(earned), "completions/mean_length": count(rows) / len(rows),
             "completions/clipped_ratio": fmean(not row.done for row in rows)}
    if size == 1:
        return {**found, "reward_std": pstdev(earned)}
    return {**found, "reward_std": fmean(map(stdev, groups)),
            "frac_reward_zero_std": fmean(len(set(group)) == 1 for group in groups)}


def centred(earned, size):
    """Each answer's reward less the mean of its group."""
    groups = [earned[k : k + size] for k in range(0, len(earned), size)]
    return [0.0 if len(set(group)) == 1 else r - fmean(group) for group in groups for r in group]


def normalised(earned, size):
    spread = [stdev(earned[k - k % size : k - k % size + size]) for k in range(len(earned))]
    return [a / (s + 1e-4) for a, s in zip(centred(earned, size), spread)]


def whitened(values):
    flat = torch.cat(values)
    mean, var = flat.mean(), flat.var(correction=0)
    return [(v - mean) / (var + 1e-8).sqrt() for v in values]


def clipped(new, old, gain, low, high):
    """PPO's gain of every token, and whether the clip acts: (n,), (n,)."""
    ratio = (new - old).exp()
    held = torch.clamp(ratio, 1 - low, 1 + high)
    out = (gain > 0) * (ratio > 1 + high) + (gain < 0) * (ratio < 1 - low)
    return torch.min(ratio * gain, held * gain), out.double()


class Logged(dict):
    """Sums of metrics; each gradient step adds its own number."""

    def log(self, **numbers):
        for name, number in numbers.items():
            number = number.detach() if torch.is_tensor(number) else number
            self.setdefault(name, []).append(float(number))

    def means(self):
        return {name: fmean(numbers) for name, numbers in self.items()}


# ---- on-policy methods

def group_relative(mirror, cfg, advantages, low, high, divisor=None, beta=0.0, form="exact",
                   live=True):
    """GRPO, Dr. GRPO and DAPO after their answers have advantages."""
    rows, logged, policy = mirror.rows, Logged(), mirror.policy
    policy.norms.clear()
    for part in mirror.passes(rows, cfg.minibatch_size, cfg.epochs):
        seen = [rows[k] for k in part]
        now = laws(policy.module, seen, cfg.temperature)
        then = laws(mirror.reference, seen, cfg.temperature)
        over, loss, price, shut, spread, lively = divisor or count(seen), 0.0, 0.0, 0, 0.0, 0
        for k, row, law, ref in zip(part, seen, now, then):
            each = range(len(row.said)), row.said
            adv = torch.tensor(advantages[k], dtype=torch.float64)
            gain, out = clipped(law[each], row.old, adv, low, high)
            gap = ref.detach()[each] - law[each]
            cost = kl(law, ref.detach()) if form == "exact" else gap.exp() - gap - 1
            loss = loss - gain.sum() / over
            if beta:
                loss = loss + beta * cost.sum() / over
            price, shut = price + cost.sum() / over, shut + out.sum() / over
            if not live or abs(advantages[k]) > 1e-12:
                spread, lively = spread + entropy(law).sum(), lively + len(row.said)
        logged.log(loss=loss, clip_ratio=shut, entropy=spread / max(1, lively),
                   **({"kl": price} if beta else {}))
        policy.step(loss, cfg.lr, cfg.max_grad_norm)
    return {**logged.means(), "grad_norm": fmean(policy.norms), "learning_rate": cfg.lr}


def grpo_anew(mirror, cfg):
    earned = mirror.reward(mirror.rows)
    found = group_relative(mirror, cfg, normalised(earned, cfg.group_size), cfg.clip, cfg.clip,
                           beta=cfg.beta, form=cfg.kl, live=not cfg.beta)
    return {"kl": 0.0, **found, **described(mirror.rows, earned, cfg.group_size)}


def dr_grpo_anew(mirror, cfg):
    rows, earned, logged, policy = mirror.rows, mirror.reward(mirror.rows), Logged(), mirror.policy
    adv = centred(earned, cfg.group_size)
    policy.norms.clear()
    for part in mirror.passes(rows, cfg.minibatch_size, cfg.epochs):
        over, loss, shut, spread, lively = len(part) * mirror.longest, 0.0, 0.0, 0.0, 0
        now = laws(policy.module, [rows[k] for k in part], cfg.temperature)
        for k, law in zip(part, now):
            gain, out = clipped(law[range(len(law)), rows[k].said], rows[k].old,
                                torch.tensor(adv[k], dtype=torch.float64), cfg.clip, cfg.clip)
            loss, shut = loss - gain.sum() / over, shut + out.sum() / over
            if abs(adv[k]) > 1e-12:
                spread, lively = spread + entropy(law).sum(), lively + len(law)
        logged.log(loss=loss, clip_ratio=shut, entropy=spread / max(1, lively))
        policy.step(loss, cfg.lr, cfg.max_grad_norm)
    return {**logged.means(), **described(rows, earned, cfg.group_size),
            "grad_norm": fmean(policy.norms), "learning_rate": cfg.lr}


def dapo_anew(mirror, cfg):
    kept, earned, first = [], [], None
    for k, rollout in enumerate(mirror.samples):
        rows = rows_of(rollout)
        found = mirror.reward(rows, k)
        first = first or described(rows, found, cfg.group_size)
        for start in range(0, len(rows), cfg.group_size):
            group = slice(start, start + cfg.group_size)
            if len(set(found[group])) > 1 and len(kept) < cfg.prompts * cfg.group_size:
                kept += rows[group]
                least = mirror.longest - cfg.overlong
                earned += [r - min(1.0, max(0.0, (len(row.said) - least) / cfg.overlong))
                           for r, row in zip(found[group], rows[group])]
    full = len(kept) == cfg.prompts * cfg.group_size
    assert full or len(mirror.samples) == cfg.rounds
    mirror.rows = kept
    return {**group_relative(mirror, cfg, normalised(earned, cfg.group_size), cfg.clip_low,
                             cfg.clip_high, live=False), **first, "rounds": len(mirror.samples)}


def reinforce_pp_anew(mirror, cfg):
    rows, policy, logged = mirror.rows, mirror.policy, Logged()
    earned, ref = mirror.reward(rows), chances(mirror.reference, rows, cfg.temperature)
    ratio = [row.old - r.detach() for row, r in zip(rows, ref)]
    paid = [-cfg.beta * x for x in ratio]
    for x, r in zip(paid, earned):
        x[-1] += r
    adv = whitened([torch.stack([x[t:].sum() for t in range(len(x))]) for x in paid])
    policy.norms.clear()
    for part in mirror.passes(rows, cfg.minibatch_size, cfg.epochs):
        seen = [rows[k] for k in part]
        loss = shut = spread = 0.0
        for k, law in zip(part, laws(policy.module, seen, cfg.temperature)):
            gain, out = clipped(law[range(len(law)), rows[k].said], rows[k].old, adv[k], cfg.clip,
                                cfg.clip)
            loss, shut = loss - gain.sum() / count(seen), shut + out.sum() / count(seen)
            spread = spread + entropy(law).sum() / count(seen)
        logged.log(loss=loss, clip_ratio=shut, entropy=spread)
        policy.step(loss, cfg.lr, cfg.max_grad_norm)
    return {**logged.means(), **described(rows, earned, cfg.group_size),
            "kl": float(torch.cat(ratio).mean()), "grad_norm": fmean(policy.norms),
            "learning_rate": cfg.lr}


def plain_gradient(mirror, cfg, adv):
    """-(1/N) sum A_i logp_t, and one update."""
    rows, n = mirror.rows, count(mirror.rows)
    now = laws(mirror.policy.module, rows, cfg.temperature)
    loss = -sum(a * law[range(len(law)), row.said].sum()
                for a, law, row in zip(adv, now, rows)) / n
    lively = [entropy(law).detach() for a, law in zip(adv, now) if abs(a) > 1e-12]
    mirror.policy.norms.clear()
    mirror.policy.step(loss, cfg.lr, cfg.max_grad_norm)
    return {"loss": float(loss.detach()), "entropy": float(torch.cat(lively).mean()) if lively else 0.0,
            "grad_norm": mirror.policy.norms[0], "learning_rate": cfg.lr}


def reinforce_anew(mirror, cfg):
    earned, base = mirror.reward(mirror.rows), mirror.carried.get("baseline", 0.0)
    mirror.carried["baseline"] = cfg.momentum * base + (1 - cfg.momentum) * fmean(earned)
    return {**plain_gradient(mirror, cfg, [r - base for r in earned]), "baseline": base,
            **described(mirror.rows, earned, cfg.group_size)}


def rloo_anew(mirror, cfg):
    rows, g = mirror.rows, cfg.group_size
    earned, ref = mirror.reward(rows), chances(mirror.reference, rows, cfg.temperature)
    paid = [float((row.old - r.detach()).sum()) for row, r in zip(rows, ref)]
    value = [r - cfg.beta * x for r, x in zip(earned, paid)]
    adv = []
    for k, own in enumerate(value):
        group = range(k - k % g, k - k % g + g)
        alike = len({(tuple(rows[j].said), earned[j]) for j in group}) == 1
        adv.append(0.0 if alike else own - fmean(value[j] for j in group if j != k))
    return {**plain_gradient(mirror, cfg, adv), "kl": sum(paid) / count(rows) if cfg.beta else 0.0,
            **described(rows, earned, g)}


def self_critical_anew(mirror, cfg):
    greedy = rows_of(mirror.samples[1])
    for row in greedy:
        ahead = row.ids[: row.start]
        for said in row.said:
            best = mirror.policy.module(torch.tensor([ahead]))[0, -1].argmax()
            assert int(best) == said
            ahead = [*ahead, said]
    base, earned = mirror.reward(greedy, 1), mirror.reward(mirror.rows)
    adv = [r - base[row.prompt] for r, row in zip(earned, mirror.rows)]
    return {**plain_gradient(mirror, cfg, adv), "baseline": fmean(base),
            **described(mirror.rows, earned, cfg.group_size)}


def generalised(paid, value, gamma, lam):
    """GAE as the sum that it is: A_t = sum_j (gamma lam)^j delta_(t+j)."""
    after = torch.cat([value[1:], value.new_zeros(1)])
    delta = paid + gamma * after - value
    return torch.stack([sum((gamma * lam) ** (j - t) * delta[j] for j in range(t, len(delta)))
                        for t in range(len(delta))])


def explained(value, ret):
    value, ret = torch.cat(value), torch.cat(ret)
    return float(1 - (ret - value).var() / ret.var())


def a2c_anew(mirror, cfg):
    rows, n, earned = mirror.rows, count(mirror.rows), mirror.reward(mirror.rows)
    before, adv = [v.detach() for v in worths(mirror.critic.module, rows)], []
    for v, r in zip(before, earned):
        paid = torch.zeros_like(v)
        paid[-1] = r
        adv.append(generalised(paid, v, cfg.gamma, cfg.lam))
    ret = [a + v for a, v in zip(adv, before)]
    now, value = laws(mirror.policy.module, rows, cfg.temperature), worths(mirror.critic.module,
                                                                           rows)
    gain = sum((a * law[range(len(law)), row.said]).sum()
               for a, law, row in zip(whitened(adv), now, rows)) / n
    spread = sum(entropy(law).sum() for law in now) / n
    error = sum((v - r).square().sum() for v, r in zip(value, ret)) / (2 * n)
    loss = -gain - cfg.entropy_weight * spread + cfg.value_weight * error
    for net, rate in ((mirror.policy, cfg.lr), (mirror.critic, cfg.critic_lr)):
        net.norms.clear()
    mirror.policy.step(-gain - cfg.entropy_weight * spread, cfg.lr, cfg.max_grad_norm)
    mirror.critic.step(cfg.value_weight * error, cfg.critic_lr, cfg.max_grad_norm)
    return {"loss": float(loss.detach()), "value_loss": float(error.detach()), "entropy": float(spread.detach()),
            **described(rows, earned, cfg.group_size), "explained_variance": explained(before, ret),
            "grad_norm": mirror.policy.norms[0], "learning_rate": cfg.lr}


def ppo_anew(mirror, cfg):
    rows, policy, critic, logged = mirror.rows, mirror.policy, mirror.critic, Logged()
    beta = mirror.carried.setdefault("beta", cfg.beta)
    earned, ref = mirror.reward(rows), chances(mirror.reference, rows, cfg.temperature)
    gap = [kl(p, q).detach() for p, q in zip(laws(policy.module, rows, cfg.temperature),
                                             laws(mirror.reference, rows, cfg.temperature))]
    before, adv = [v.detach() for v in worths(critic.module, rows)], []
    for row, v, r, score in zip(rows, before, ref, earned):
        paid = -beta * (row.old - r.detach())
        paid[-1] += score - (0.0 if row.done else cfg.missing_eos)
        adv.append(generalised(paid, v, cfg.gamma, cfg.lam))
    ret = [a + v for a, v in zip(adv, before)]
    adv = whitened(adv)
    policy.norms.clear()
    for part in mirror.passes(rows, cfg.minibatch_size, cfg.epochs):
        seen = [rows[k] for k in part]
        n, gained, error, shut = count(seen), 0.0, 0.0, 0.0
        for k, new, value in zip(part, chances(policy.module, seen, cfg.temperature),
                                 worths(critic.module, seen)):
            gain, out = clipped(new, rows[k].old, adv[k], cfg.clip, cfg.clip)
            held = torch.max(torch.min(value, before[k] + cfg.value_clip),
                             before[k] - cfg.value_clip)
            worse = torch.max((value - ret[k]) ** 2, (held - ret[k]) ** 2)
            gained, error = gained + gain.sum() / n, error + worse.sum() / (2 * n)
            shut = shut + out.sum() / n
        logged.log(loss=-gained, value_loss=error, clip_ratio=shut)
        policy.step(-gained, cfg.lr, cfg.max_grad_norm)
        critic.step(error, cfg.critic_lr, cfg.max_grad_norm)
    far = float(torch.cat(gap).sum()) / len(rows)
    if cfg.control == "adaptive":
        error = min(0.2, max(-0.2, far / cfg.kl_target - 1))
        mirror.carried["beta"] = beta * (1 + error * len(rows) / cfg.horizon)
    return {**logged.means(), **described(rows, earned, 1), "beta": beta, "kl_per_answer": far,
            "kl": float(torch.cat(gap).mean()), "explained_variance": explained(before, ret),
            "grad_norm": fmean(policy.norms), "learning_rate": cfg.lr}


def trpo_anew(mirror, cfg):
    rows, n, net = mirror.rows, count(mirror.rows), mirror.policy
    earned = mirror.reward(rows)
    adv = centred(earned, cfg.group_size)
    start = [law.detach() for law in laws(net.module, rows, cfg.temperature)]

    def gain():
        return sum(a * (law[range(len(law)), row.said]
                        - old[range(len(law)), row.said]).exp().sum()
                   for a, law, old, row in zip(adv, laws(net.module, rows, cfg.temperature), start,
                                               rows)) / n

    def flat(parts):
        return torch.cat([part.reshape(-1) for part in parts])

    some = random.Random(f"{mirror.seed}/{mirror.step}/fisher").sample(
        range(len(rows)), min(cfg.fisher, len(rows)))

    def product(v):
        seen = [rows[k] for k in some]
        far = sum(kl(start[k], law).sum()
                  for k, law in zip(some, laws(net.module, seen, cfg.temperature))) / count(seen)
        slope = flat(torch.autograd.grad(far, net.params, create_graph=True))
        return flat(torch.autograd.grad(slope @ v, net.params)) + cfg.damping * v

    value = gain()
    g = flat(torch.autograd.grad(value, net.params)).detach()
    x, r, d = torch.zeros_like(g), g.clone(), g.clone()
    for _ in range(cfg.iterations):
        image = product(d)
        x, left = x + (r @ r) / (d @ image) * d, r - (r @ r) / (d @ image) * image
        d, r = left + (left @ left) / (r @ r) * d, left
    step = x * math.sqrt(2 * cfg.delta / float(x @ product(x)))
    here = [p.detach().clone() for p in net.params]
    found = {"surrogate": 0.0, "predicted": 0.0, "kl": 0.0, "backtracks": cfg.tries,
             "accepted": 0.0}
    for k in range(cfg.tries):
        with torch.no_grad():
            for p, w, s in zip(net.params, here, step.split([p.numel() for p in here])):
                p.copy_(w + cfg.shrink**k * s.view_as(w))
            far = float(sum(kl(old, law).sum() for old, law in zip(
                start, laws(net.module, rows, cfg.temperature))) / n)
            more = float((gain() - value).detach())
        if far <= cfg.delta and more > 0:
            found = {"surrogate": more, "predicted": float(g @ step) * cfg.shrink**k, "kl": far,
                     "backtracks": k, "accepted": 1.0}
            break
        with torch.no_grad():
            for p, w in zip(net.params, here):
                p.copy_(w)
    return {"loss": -float(value.detach()), **found, **described(rows, earned, cfg.group_size),
            "entropy": float(torch.cat([entropy(law) for law in start]).mean()),
            "cg_residual": float(r.norm() / g.norm()), "grad_norm": float(g.norm())}


# ---- the cases

class Mixed(Echo):
    """Rewards of many sizes, exact in any precision, that tie now and then."""

    name = "mixed"

    def reward(self, prompts, completions, letter, **columns):
        return [text.count(c) / 2 + len(text) % 2 / 4 + ("h" in text) / 8
                for text, c in zip(completions, letter)]



@dataclass
class Case:
    """A method's settings and its step written anew: anew(mirror, cfg) -> metrics.

    task: makes the task.  options: of the Run.  same: settings that are left at their default.
    """

    module: ModuleType
    cfg: dict
    anew: Any
    task: Any = Mixed
    options: dict = field(default_factory=dict)
    same: tuple = ()


PASSES = dict(steps=2, prompts=4, group_size=3, temperature=0.8, minibatch_size=5, epochs=2,
              lr=0.02, max_grad_norm=0.35)
ONCE = {name: value for name, value in PASSES.items() if name not in ("minibatch_size", "epochs")}
PPO = dict(steps=2, prompts=9, temperature=0.8, minibatch_size=4, epochs=3, clip=0.1,
           value_clip=0.15, gamma=0.9, lam=0.7, beta=0.2, missing_eos=0.4, lr=0.04, critic_lr=0.07,
           max_grad_norm=0.35)
NOT_ADAPTIVE = ("kl_target", "horizon", "control")
STAGES = ("sft_steps", "reward_steps")

ON_POLICY = {
    "grpo": Case(grpo, dict(PASSES, clip=0.07, beta=0.3), grpo_anew, same=("kl",)),
    "grpo, k3": Case(grpo, dict(PASSES, clip=0.07, beta=0.3, kl="k3"), grpo_anew),
    "grpo, no KL": Case(grpo, dict(PASSES, clip=0.07, beta=0.0, max_grad_norm=0.25), grpo_anew,
                        same=("kl",)),
    "dr-grpo": Case(dr_grpo, dict(PASSES, clip=0.07, max_grad_norm=0.05), dr_grpo_anew),
    "dapo": Case(dapo, dict(PASSES, clip_low=0.05, clip_high=0.12, overlong=2, rounds=3),
                 dapo_anew),
    "reinforce": Case(reinforce, dict(ONCE, momentum=0.6), reinforce_anew),
    "reinforce-pp": Case(reinforce_pp, dict(PASSES, clip=0.07, beta=0.3), reinforce_pp_anew),
    "rloo": Case(rloo, dict(ONCE, lr=0.004, beta=0.3), rloo_anew),
    "rloo, no KL": Case(rloo, dict(ONCE, beta=0.0), rloo_anew),
    "self-critical": Case(self_critical, ONCE, self_critical_anew),
    "a2c": Case(a2c, dict(ONCE, gamma=0.9, lam=0.7, value_weight=0.6, entropy_weight=0.2,
                          critic_lr=0.07), a2c_anew),
    "ppo": Case(ppo, PPO, ppo_anew, same=(*NOT_ADAPTIVE, *STAGES)),
    "ppo, adaptive": Case(ppo, dict(PPO, control="adaptive", kl_target=0.9, horizon=30), ppo_anew,
                          same=STAGES),
    "trpo": Case(trpo, dict(steps=2, prompts=4, group_size=3, temperature=0.8, delta=0.02,
                            damping=0.3, iterations=3, fisher=5, shrink=0.5, tries=6), trpo_anew),
}


# ---- how a case is run

def scene(case, seed=32):
    """A run whose reference and critic are other networks than the policy, and all of float64.

    So are the log-probs that were sampled, and the rewards with them.  Its micro-batches are of two
    rows, and Adam's numbers are not the usual ones.
    """
    task = case.task()
    run = Run(Learner(tiny(seed=seed), **ADAM), Letters(), task, task.reward,
              **{"seed": seed, "max_new_tokens": 4, "micro_batch_size": 2, **case.options})
    run.frozen("reference", lambda: tiny(seed=seed + 1))
    run.frozen("start", lambda: tiny(seed=seed + 1))
    run.learner("critic", lambda: valuer(seed + 2), **ADAM)
    run.learner(REWARD_MODEL, lambda: scalar(seed, tiny(seed=seed + 4)), **ADAM)
    sample = run.sample

    def exact(*args, **options):
        rollout = sample(*args, **options)
        return replace(rollout, logp=rollout.logp.double())

    run.sample = exact
    return run


def steps(case, run):
    """The method's steps, one at a time, each as its metrics."""
    learn = case.module.train(run, case.module.Config(**case.cfg))
    for _ in range(case.cfg["steps"]):
        yield next(learn)
        run.step += 1


def watch(run, mirror):
    """Let the mirror see what the run samples and encodes."""
    sample, encode = run.sample, run.encode

    def sampled(problems, *args, **options):
        rollout = sample(problems, *args, **options)
        mirror.samples.append(rollout)
        mirror.problems.append(problems)
        return rollout

    def encoded(prompts, answers):
        seqs = encode(prompts, answers)
        mirror.encoded.append(seqs)
        return seqs

    run.sample, run.encode = sampled, encoded


def compare(case, tolerance=1e-9):
    """Hold a case's steps to its formula: the metrics of each, and all weights after it."""
    run = scene(case)
    mirror, cfg = Mirror(run), case.module.Config(**case.cfg)
    watch(run, mirror)
    logged = []
    for metrics in steps(case, run):
        mirror.rows = rows_of(mirror.samples[0]) if mirror.samples else []
        expected = case.anew(mirror, cfg)
        for name, value in expected.items():
            off = abs(metrics[name] - value)
            assert off <= tolerance * max(1.0, abs(value)) or (  # these are means of float32
                name in ("completions/mean_length", "completions/clipped_ratio",
                         "frac_reward_zero_std") and off < 1e-6), (name, metrics[name], value)
        for net, learner in ((mirror.policy, "policy"), (mirror.critic, "critic"),
                             (mirror.scorer, REWARD_MODEL)):
            for (name, ours), (_, theirs) in zip(
                    run.learners[learner].module.named_parameters(),
                    net.module.named_parameters(), strict=True):
                assert (ours - theirs).abs().max() <= tolerance, (run.step, learner, name)
        logged.append(metrics)
        mirror.samples.clear(), mirror.problems.clear(), mirror.encoded.clear()
        mirror.step += 1
    return run, logged
