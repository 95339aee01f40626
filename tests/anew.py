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

from minipost.errors import Descent
from minipost.methods import (
    a2c,
    cispo,
    clicks,
    dapo,
    distill,
    dpo,
    dr_grpo,
    grpo,
    gspo,
    ipo,
    kto,
    math_shepherd,
    maxrl,
    mdpo,
    minimum_risk,
    mixer,
    oreo,
    orm,
    orpo,
    plackett_luce,
    ppo,
    prime,
    prm,
    process_grpo,
    reinforce,
    reinforce_pp,
    reward,
    rft,
    rloo,
    rpo,
    sapo,
    sdpo,
    self_critical,
    sft,
    simpo,
    step_by_step,
    trpo,
    vineppo,
)
from minipost.methods import (
    entropy as held,
)
from minipost.optim import Learner
from minipost.run import REWARD_MODEL, Run
from minipost.tasks.base import Problem

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


def sums(module, rows, tau=1.0):
    """The log-prob of every whole response: a list of ()."""
    return [x.sum() for x in chances(module, rows, tau)]


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

    def __init__(self, module, betas=(0.9, 0.999), eps=1e-8):
        self.module, (self.b1, self.b2) = copy.deepcopy(module).requires_grad_(), betas
        self.eps, self.decay, self.t = eps, 0.0, 0
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
        nets = {name: Net(learner.module, **ADAM) for name, learner in run.learners.items()}
        self.policy = nets["policy"]
        self.critic, self.scorer = nets.get("critic"), nets.get(REWARD_MODEL)
        self.implicit = nets.get("implicit")
        part = run.parts.get("frozen/reference")
        self.reference = self.start = copy.deepcopy(part.module) if part else None
        self.task, self.seed, self.step, self.longest = run.task, run.seed, 0, run.max_new_tokens
        self.carried, self.first = {}, 0    # the step at which the stage began
        # what the run made in this step, and at which temperatures it sampled
        self.samples, self.encoded, self.problems, self.heats = [], [], [], []
        self.branches = []
        self.completed = []     # beginnings of answers, and what the run made of them

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
    surprise = -sum(float(row.old.sum()) for row in rows)
    found = {"reward": fmean(earned), "entropy": surprise / count(rows),
             "completions/mean_length": count(rows) / len(rows),
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
                   mean="tokens", correct="clip", cap=None):
    """GRPO, Dr. GRPO and DAPO after their answers have advantages."""
    rows, logged, policy = mirror.rows, Logged(), mirror.policy
    policy.norms.clear()
    for part in mirror.passes(rows, cfg.minibatch_size, cfg.epochs):
        seen = [rows[k] for k in part]
        now = laws(policy.module, seen, cfg.temperature)
        then = laws(mirror.reference, seen, cfg.temperature)
        tokens, loss, price, shut = divisor or count(seen), 0.0, 0.0, 0
        for k, row, law, ref in zip(part, seen, now, then):
            over = len(seen) * len(row.said) if mean == "answers" else tokens
            each = range(len(row.said)), row.said
            adv = torch.tensor(advantages[k], dtype=torch.float64)
            gain, out = clipped(law[each], row.old, adv, low, high)
            if correct != "clip":                           # the ratio is a weight, and no variable
                rho = (law[each].detach() - row.old).exp()
                if correct == "masked-answers":
                    rho = rho.prod().expand(len(rho))
                out = (rho > cap) | ((rho < 1 / cap) & correct.startswith("masked"))
                out = (out & (correct != "none")).double()
                weight = {"none": torch.ones_like(rho), "truncated": rho.clamp(max=cap)}.get(
                    correct, rho * (1 - out))
                gain = weight * adv * law[each]
                loss = loss + gain.detach().sum() / over    # only its slope is compared
            gap = ref.detach()[each] - law[each]
            cost = kl(law, ref.detach()) if form == "exact" else gap.exp() - gap - 1
            loss = loss - gain.sum() / over
            if beta:
                loss = loss + beta * cost.sum() / over
            price, shut = price + cost.sum() / tokens, shut + out.sum() / over
        logged.log(loss=loss, clip_ratio=shut, **({"kl": price} if beta else {}))
        policy.step(loss, eta(mirror, cfg), cfg.max_grad_norm)
    return {**logged.means(), "grad_norm": fmean(policy.norms), "learning_rate": eta(mirror, cfg)}


def grpo_anew(mirror, cfg):
    earned = mirror.reward(mirror.rows)
    found = group_relative(mirror, cfg, normalised(earned, cfg.group_size), cfg.clip, cfg.clip,
                           beta=cfg.beta, form=cfg.kl, mean=cfg.mean,
                           correct=cfg.correct, cap=cfg.cap)
    if cfg.correct != "clip":
        found.pop("loss")
    return {"kl": 0.0, **found, **described(mirror.rows, earned, cfg.group_size)}


def process_grpo_anew(mirror, cfg, learnt=False):
    """learnt: by the chances of the scorer, not by the labels."""
    rows, whole, ended, adv = mirror.rows, mirror.reward(mirror.rows), [], []
    for k, row in enumerate(rows):
        letter = mirror.problems[0][row.prompt].columns["letter"]
        texts = [Letters().decode([i]) for i in row.said]
        ended.append({t: float(letter in "".join(texts[:t]).split("h")[-1])
                      for t, text in enumerate(texts) if text == "h"})
        ended[k][len(texts) - 1] = whole[k]
    if learnt:
        said = marks(mirror.scorer.module, rows)
        ended = [{t: float(torch.sigmoid(s[t]).detach()) for t in steps}
                 for steps, s in zip(ended, said)]
    for k, row in enumerate(rows):
        first = k - k % cfg.group_size
        values = [r for steps in ended[first : first + cfg.group_size] for r in steps.values()]
        mean, spread = fmean(values), stdev(values)
        adv.append([sum((r - mean) / (spread + 1e-4) for end, r in ended[k].items() if end >= t)
                    for t in range(len(row.said))])
    found = group_relative(mirror, cfg, adv, cfg.clip, cfg.clip, beta=cfg.beta)
    earned = [steps[max(steps)] for steps in ended]
    return {"kl": 0.0, **found, **described(rows, earned, cfg.group_size),
            "step_reward": fmean(r for steps in ended for r in steps.values())}


def dr_grpo_anew(mirror, cfg):
    rows, earned, logged, policy = mirror.rows, mirror.reward(mirror.rows), Logged(), mirror.policy
    adv = centred(earned, cfg.group_size)
    policy.norms.clear()
    for part in mirror.passes(rows, cfg.minibatch_size, cfg.epochs):
        over, loss, shut = len(part) * mirror.longest, 0.0, 0.0
        now = laws(policy.module, [rows[k] for k in part], cfg.temperature)
        for k, law in zip(part, now):
            gain, out = clipped(law[range(len(law)), rows[k].said], rows[k].old,
                                torch.tensor(adv[k], dtype=torch.float64), cfg.clip, cfg.clip)
            loss, shut = loss - gain.sum() / over, shut + out.sum() / over
        logged.log(loss=loss, clip_ratio=shut)
        policy.step(loss, eta(mirror, cfg), cfg.max_grad_norm)
    return {**logged.means(), **described(rows, earned, cfg.group_size),
            "grad_norm": fmean(policy.norms), "learning_rate": eta(mirror, cfg)}


def by_answer(mirror, cfg, gain_of, **more):
    """A method whose loss is the mean over answers of -gain_of(answer, its log-probs, advantage).

    gain_of gives that gain and further numbers by name, of which the mean is logged; `over` says
    how much the answer weighs in the mean, of answers where it is left out.
    """
    rows, policy, logged = mirror.rows, mirror.policy, Logged()
    earned = mirror.reward(rows)
    adv = normalised(earned, cfg.group_size)
    policy.norms.clear()
    for part in mirror.passes(rows, cfg.minibatch_size, cfg.epochs):
        seen, sums = [rows[k] for k in part], {}
        for k, row, logp in zip(part, seen, chances(policy.module, seen, cfg.temperature)):
            gain, facts = gain_of(row, logp, adv[k])
            for name, x in {"loss": -gain, **facts}.items():
                sums[name] = sums.get(name, 0.0) + x / more.get("over", len)(seen)
        logged.log(**sums)
        policy.step(sums["loss"], eta(mirror, cfg), cfg.max_grad_norm)
    return {**logged.means(), **described(rows, earned, cfg.group_size),
            "grad_norm": fmean(policy.norms), "learning_rate": eta(mirror, cfg)}


def gspo_anew(mirror, cfg):
    def gain_of(row, logp, adv):
        s = ((logp - row.old).sum() / len(row.said)).exp()
        gain, out = clipped(s.log(), torch.zeros_like(s), torch.tensor(adv, dtype=torch.float64),
                            cfg.clip_low, cfg.clip_high)
        return gain, {"clip_ratio": out}
    return by_answer(mirror, cfg, gain_of)


def cispo_anew(mirror, cfg):
    def gain_of(row, logp, adv):
        ratio = (logp - row.old).exp().detach()
        weight = ratio.clamp(1 - cfg.clip_low, 1 + cfg.clip_high)
        return (weight * adv * logp).sum(), {
            "clip_ratio": (adv != 0) * (ratio != weight).double().sum()}
    found = by_answer(mirror, cfg, gain_of, over=count)
    found.pop("loss")                                       # only its slope is compared
    return found


def sapo_anew(mirror, cfg):
    def gain_of(row, logp, adv):
        tau, ratio = cfg.tau_pos if adv > 0 else cfg.tau_neg, (logp - row.old).exp()
        f = 4 / tau / (1 + (-tau * (ratio - 1)).exp())
        width = 1 / (tau / 2 * (ratio.detach() - 1)).cosh().square()
        return adv * f.mean(), {"closed": (adv != 0) * (1 - width.mean())}
    return by_answer(mirror, cfg, gain_of)


def vineppo_anew(mirror, cfg):
    rows, policy, logged = mirror.rows, mirror.policy, Logged()
    earned, (drawn,), known = mirror.reward(rows), mirror.branches, {}
    drawn, end = rows_of(drawn), Letters().response("h")[0]

    def begun(row, k):
        """V of the state after k tokens; the branches of new states follow in their order."""
        key = row.prompt, tuple(row.said[:k])
        if key not in known:
            place = len(known) * cfg.branches
            group = drawn[place : place + cfg.branches]
            assert all(one.ids[: one.start] == row.ids[: row.start + k] for one in group)
            assert all(one.start < len(one.ids) for one in group)
            known[key] = fmean(mirror.reward([
                Row(one.ids[: row.start + mirror.longest], row.start, row.old, True, row.prompt)
                for one in group]))
        return known[key]

    adv = []
    for row, r in zip(rows, earned):
        starts = [0] + [k + 1 for k, i in enumerate(row.said[:-1]) if i == end]
        worth = [begun(row, k) for k in starts] + [r]
        adv.append(torch.tensor([worth[j + 1] - worth[j] for t in range(len(row.said))
                                 for j in [sum(k <= t for k in starts) - 1]],
                                dtype=torch.float64))
    assert len(known) * cfg.branches == len(drawn)
    assert len(known) > len({row.prompt for row in rows})   # some answers have several steps
    policy.norms.clear()
    for part in mirror.passes(rows, cfg.minibatch_size, cfg.epochs):
        seen, loss, shut = [rows[k] for k in part], 0.0, 0.0
        for k, logp in zip(part, chances(policy.module, seen, cfg.temperature)):
            gain, out = clipped(logp, rows[k].old, adv[k], cfg.clip, cfg.clip)
            loss, shut = loss - gain.sum() / count(seen), shut + out.sum() / count(seen)
        logged.log(loss=loss, clip_ratio=shut)
        policy.step(loss, eta(mirror, cfg), cfg.max_grad_norm)
    return {**logged.means(), **described(rows, earned, cfg.group_size), "states": len(known),
            "value": fmean(known.values()), "grad_norm": fmean(policy.norms),
            "learning_rate": eta(mirror, cfg)}


def entropy_anew(mirror, cfg):
    rows, policy, logged = mirror.rows, mirror.policy, Logged()
    earned = mirror.reward(rows)
    adv = normalised(earned, cfg.group_size)
    rng = random.Random(f"{mirror.seed}/{mirror.step}/covariance")
    policy.norms.clear()
    for part in mirror.passes(rows, cfg.minibatch_size, cfg.epochs):
        seen = [rows[k] for k in part]
        over, loss, shut, kept = count(seen), 0.0, 0.0, 0
        now = laws(policy.module, seen, cfg.temperature)
        said = [law[range(len(law)), row.said] for law, row in zip(now, seen)]
        fixed = [x.detach() for x in said]
        spot = [(j, t) for j, k in enumerate(part) if adv[k] for t in range(len(seen[j].said))]
        unsure = sorted((float(entropy(now[j][t].detach())) for j, t in spot), reverse=True)
        edge = unsure[max(1, round(cfg.share * len(spot))) - 1] if spot else 0.0
        middle = fmean(float(fixed[j][t]) for j, t in spot), fmean(adv[part[j]] for j, t in spot)
        many = [(j, t) for j, t in spot
                if 1 < (float(fixed[j][t]) - middle[0]) * (adv[part[j]] - middle[1]) < 5]
        out = rng.sample(many, min(len(many), round(cfg.cov_share * len(spot))))
        for j, k in enumerate(part):
            gain, closed = clipped(said[j], seen[j].old, torch.tensor(adv[k], dtype=torch.float64),
                                   cfg.clip_low, cfg.clip_high)
            for t, law in enumerate(now[j]):
                loss = loss - cfg.entropy_weight * entropy(law) / over
                kept_here = (j, t) in spot and float(entropy(law.detach())) >= (1 - 1e-5) * edge
                if kept_here and (j, t) not in out:
                    loss, shut, kept = loss - gain[t] / over, shut + closed[t] / over, kept + 1
        logged.log(loss=loss, clip_ratio=shut, kept=kept / over)
        policy.step(loss, eta(mirror, cfg), cfg.max_grad_norm)
    return {**logged.means(), **described(rows, earned, cfg.group_size),
            "grad_norm": fmean(policy.norms), "learning_rate": eta(mirror, cfg)}


def dapo_anew(mirror, cfg):
    kept, earned, first = [], [], None
    for k, rollout in enumerate(mirror.samples):
        rows, before = rows_of(rollout), len(kept)
        found = mirror.reward(rows, k)
        asked = mirror.task.sample(cfg.prompts, random.Random(
            f"{mirror.seed}/{mirror.step}/problems {k}"))
        assert [p.prompt for p in mirror.problems[k]] == [p.prompt for p in asked]
        first = first or described(rows, found, cfg.group_size)
        for start in range(0, len(rows), cfg.group_size):
            group = slice(start, start + cfg.group_size)
            if len(set(found[group])) > 1 and len(kept) < cfg.prompts * cfg.group_size:
                kept += rows[group]
                least = mirror.longest - cfg.overlong
                earned += [r - min(1.0, max(0.0, (len(row.said) - least) / cfg.overlong))
                           for r, row in zip(found[group], rows[group])]
        assert before < cfg.prompts * cfg.group_size        # else it had enough
    assert len(kept) == cfg.prompts * cfg.group_size or len(mirror.samples) == cfg.rounds
    drawn = [{p.prompt: [row.said for row in rows_of(rollout) if row.prompt == k]
              for k, p in reversed(list(enumerate(problems)))}
             for rollout, problems in zip(mirror.samples, mirror.problems)]
    again = [prompt for prompt in drawn[0] if len(drawn) > 1 and prompt in drawn[1]]
    assert not again or any(drawn[0][prompt] != drawn[1][prompt] for prompt in again)
    mirror.rows = kept
    return {**group_relative(mirror, cfg, normalised(earned, cfg.group_size), cfg.clip_low,
                             cfg.clip_high), **first, "rounds": len(mirror.samples)}


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
        loss = shut = 0.0
        for k, law in zip(part, laws(policy.module, seen, cfg.temperature)):
            gain, out = clipped(law[range(len(law)), rows[k].said], rows[k].old, adv[k], cfg.clip,
                                cfg.clip)
            loss, shut = loss - gain.sum() / count(seen), shut + out.sum() / count(seen)
        logged.log(loss=loss, clip_ratio=shut)
        policy.step(loss, eta(mirror, cfg), cfg.max_grad_norm)
    return {**logged.means(), **described(rows, earned, cfg.group_size),
            "kl": float(torch.cat(ratio).mean()), "grad_norm": fmean(policy.norms),
            "learning_rate": eta(mirror, cfg)}


def prime_anew(mirror, cfg):
    rows, policy, phi, logged = mirror.rows, mirror.policy, mirror.implicit, Logged()
    earned, g, loss, hits = mirror.reward(rows), cfg.group_size, 0.0, []
    ref = [x.detach() for x in chances(mirror.reference, rows)]
    early = list(chances(phi.module, rows))
    for now, old, right in zip(early, ref, earned):
        part, hit = entropic(cfg.beta * (now - old).sum(), right)
        loss, hits = loss + part / len(rows), [*hits, hit]
    phi.step(loss, rated(cfg, cfg.implicit_lr, mirror.step), cfg.max_grad_norm)
    verdict = early if cfg.judge == "before" else chances(phi.module, rows)
    each = [cfg.beta * (now.detach() - old) for now, old in zip(verdict, ref)]
    adv = []
    for k, own in enumerate(each):
        others = [j for j in range(k - k % g, k - k % g + g) if j != k]
        base, outcome = fmean(float(each[j].mean()) for j in others), fmean(
            earned[j] for j in others)
        adv.append(torch.stack([(own[t:] - base).sum() + earned[k] - outcome
                                for t in range(len(own))]))
    policy.norms.clear()
    for part in mirror.passes(rows, cfg.minibatch_size, cfg.epochs):
        seen, value, shut = [rows[k] for k in part], 0.0, 0.0
        for k, law in zip(part, laws(policy.module, seen, cfg.temperature)):
            gain, out = clipped(law[range(len(law)), rows[k].said], rows[k].old, adv[k], cfg.clip,
                                cfg.clip)
            value, shut = value - gain.sum() / count(seen), shut + out.sum() / count(seen)
        logged.log(loss=value, clip_ratio=shut)
        policy.step(value, eta(mirror, cfg), cfg.max_grad_norm)
    return {**logged.means(), **described(rows, earned, g), "implicit/loss": float(loss.detach()),
            "implicit/accuracy": fmean(hits),
            "process_reward": fmean(float(x.sum()) for x in each),
            "grad_norm": fmean(policy.norms), "learning_rate": eta(mirror, cfg)}


def plain_gradient(mirror, cfg, adv):
    """-(1/N) sum A_i logp_t, and one update."""
    rows, n = mirror.rows, count(mirror.rows)
    now = laws(mirror.policy.module, rows, cfg.temperature)
    loss = -sum(a * law[range(len(law)), row.said].sum()
                for a, law, row in zip(adv, now, rows)) / n
    mirror.policy.norms.clear()
    mirror.policy.step(loss, eta(mirror, cfg), cfg.max_grad_norm)
    return {"loss": float(loss.detach()), "grad_norm": mirror.policy.norms[0],
            "learning_rate": eta(mirror, cfg)}


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


def maxrl_anew(mirror, cfg):
    earned, g, adv = mirror.reward(mirror.rows), cfg.group_size, []
    right = [float(r >= cfg.least) for r in earned]
    for k, own in enumerate(right):
        group = right[k - k % g : k - k % g + g]
        adv.append(own * g / sum(group) - 1 if any(group) else 0.0)
    return {**plain_gradient(mirror, cfg, adv), **described(mirror.rows, earned, g)}


def minimum_risk_anew(mirror, cfg):
    rows, g, loss, kinds = mirror.rows, cfg.group_size, 0.0, 0
    earned, now = mirror.reward(rows), chances(mirror.policy.module, rows, cfg.temperature)
    for start in range(0, len(rows), g):
        drawn = {tuple(rows[k].said): k for k in reversed(range(start, start + g))}
        kinds += len(drawn)
        if len({earned[k] for k in drawn.values()}) > 1:
            odds = {k: (now[k].sum() * cfg.alpha).exp() for k in drawn.values()}
            loss = loss - sum(odds[k] * earned[k] for k in odds) / sum(odds.values()) / cfg.prompts
    return {**updated(mirror, mirror.policy, loss, eta(mirror, cfg), cfg.max_grad_norm),
            "candidates": kinds / cfg.prompts, **described(rows, earned, g)}


def mixer_anew(mirror, cfg):
    """The known answers, or from step `start` on what the policy made of their beginnings."""
    g, shown = cfg.group_size, rows_of(mirror.encoded[0])
    k = max(0, mirror.step - cfg.start + cfg.every) // cfg.every * cfg.delta
    if not k:
        loss = -sum(sums(mirror.policy.module, shown, cfg.temperature)) / count(shown)
        return {**updated(mirror, mirror.policy, loss, eta(mirror, cfg), cfg.max_grad_norm),
                "end": 0, "known": 1.0}
    rows, told, loss = mirror.rows, 0, 0.0
    whole = []
    for row in rows:
        known = shown[row.prompt]
        begin = known.said[: max(0, len(known.said) - k)]
        assert row.ids[known.start : row.start] == begin
        told += len(begin)
        whole.append(replace(row, start=known.start))
    earned, n = mirror.reward(whole), count(whole)
    now = chances(mirror.policy.module, whole, cfg.temperature)
    for j, (row, logp) in enumerate(zip(rows, now)):
        others = [earned[i] for i in range(j - j % g, j - j % g + g) if i != j]
        size = row.start - shown[row.prompt].start
        loss = loss - (logp[:size].sum() + (earned[j] - fmean(others)) * logp[size:].sum()) / n
    return {**updated(mirror, mirror.policy, loss, eta(mirror, cfg), cfg.max_grad_norm),
            "end": k, "known": told / n, **described(rows, earned, g)}


def sdpo_anew(mirror, cfg):
    rows, found, n, task = mirror.rows, 0.0, 0, mirror.task
    earned, faulty = mirror.reward(rows), []
    for row in rows:
        problem = mirror.problems[0][row.prompt]
        critique = task.criticise(problem, row.text)
        if not task.approves(critique):
            told = Letters().prompt(task.revise(problem, row.text, critique))
            faulty.append((row, replace(row, ids=told + row.said, start=len(told))))
    teacher = mirror.reference if cfg.teacher == "start" else copy.deepcopy(mirror.policy.module)
    for row, told in faulty:
        p, = laws(mirror.policy.module, [row], cfg.temperature)
        q, = laws(teacher, [told], cfg.temperature)
        found, n = found + kl(p, q.detach()).sum(), n + len(row.said)
    return {**updated(mirror, mirror.policy, found / n, eta(mirror, cfg), cfg.max_grad_norm),
            "faults": len(faulty) / len(rows), **described(rows, earned, cfg.group_size)}


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
    for net in (mirror.policy, mirror.critic):
        net.norms.clear()
    mirror.policy.step(-gain - cfg.entropy_weight * spread, eta(mirror, cfg), cfg.max_grad_norm)
    mirror.critic.step(cfg.value_weight * error, eta(mirror, cfg, cfg.critic_lr),
                       cfg.max_grad_norm)
    logged = Logged()
    logged.log(loss=loss, value_loss=error)
    return {**logged.means(),
            **described(rows, earned, cfg.group_size), "explained_variance": explained(before, ret),
            "grad_norm": mirror.policy.norms[0], "learning_rate": eta(mirror, cfg)}


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
        policy.step(-gained, eta(mirror, cfg), cfg.max_grad_norm)
        critic.step(error, eta(mirror, cfg, cfg.critic_lr), cfg.max_grad_norm)
    far = float(torch.cat(gap).sum()) / len(rows)
    if cfg.control == "adaptive":
        error = min(0.2, max(-0.2, far / cfg.kl_target - 1))
        mirror.carried["beta"] = beta * (1 + error * len(rows) / cfg.horizon)
    return {**logged.means(), **described(rows, earned, 1), "beta": beta, "kl_per_answer": far,
            "kl": float(torch.cat(gap).mean()), "explained_variance": explained(before, ret),
            "grad_norm": fmean(policy.norms), "learning_rate": eta(mirror, cfg)}


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
            "cg_residual": float(r.norm() / g.norm()), "grad_norm": float(g.norm())}


# ---- methods that learn from given answers, or from those of a frozen policy

def rated(cfg, peak, step, steps=None, warmup=None):
    """A climb to the peak over `warmup` steps, then a line or half a cosine to zero."""
    steps, warmup = steps or cfg.steps, cfg.warmup_steps if warmup is None else warmup
    if step < warmup:
        return peak * (step + 1) / warmup
    part = (step - warmup) / max(1, steps - warmup)
    return peak * {"constant": 1.0, "linear": 1.0 - part,
                   "cosine": 0.5 * (1 + math.cos(math.pi * part))}[cfg.schedule]


def eta(mirror, cfg, peak=None):
    """The rate in the mirror's step, the policy's if no peak is given."""
    return rated(cfg, cfg.lr if peak is None else peak, mirror.step - mirror.first)


def dealt(mirror, rows, n, since=0):
    """Each step takes the next n rows; when all are used up, they are shuffled anew."""
    endless = []
    for epoch in range((mirror.step - since + 1) * n // len(rows) + 1):
        order = list(range(len(rows)))
        random.Random(f"{mirror.seed}/epoch {epoch}").shuffle(order)
        endless += order
    return [rows[k] for k in endless[(mirror.step - since) * n :][:n]]


def updated(mirror, net, loss, lr, most, **metrics):
    """Make the update; these metrics, the loss, the norm of its gradient and the rate."""
    net.norms.clear()
    net.step(loss, lr, most)
    return {"loss": float(loss.detach()), "grad_norm": net.norms[0], "learning_rate": lr,
            **{name: float(x.detach()) if torch.is_tensor(x) else x for name, x in metrics.items()}}


def sft_anew(mirror, cfg, first=0):
    rows = rows_of(mirror.encoded[0])
    assert len(rows) == cfg.batch_size and all(row.done for row in rows)
    prompts = [Letters().decode(row.ids[: row.start]) for row in rows]
    assert [row.text for row in rows] == [2 * prompt for prompt in prompts]
    loss = -sum(sums(mirror.policy.module, rows)) / count(rows)
    return updated(mirror, mirror.policy, loss, rated(cfg, cfg.lr, mirror.step - first),
                   cfg.max_grad_norm)


def step_by_step_anew(mirror, cfg):
    if mirror.samples:                                      # the teacher speaks once
        assert mirror.step == 0 and len(mirror.rows) == cfg.examples
        asked = [p.prompt for p in mirror.problems[0]]
        assert all(prompt[1:] == "h" for prompt in asked)   # in the mode that is worked out
        mirror.file = [(prompt[0], row.text) for prompt, row in zip(asked, mirror.rows) if row.text]
    rows, half, words = rows_of(mirror.encoded[0]), cfg.batch_size, Letters()
    for k, (prompt, text) in enumerate(dealt(mirror, mirror.file, half)):
        for row, cue, answer in ((rows[k], "", text[0]), (rows[k + half], "h", text)):
            assert row.ids == words.prompt(prompt + cue) + words.response(answer)
    label, rationale = (-sum(sums(mirror.policy.module, some)) / count(some)
                        for some in (rows[:half], rows[half:]))
    return updated(mirror, mirror.policy, label + cfg.lam * rationale, eta(mirror, cfg),
                   cfg.max_grad_norm, examples=len(mirror.file),
                   **{"loss/label": label, "loss/rationale": rationale})


def flips(mirror, name, n):
    rng = random.Random(f"{mirror.seed}/{mirror.step}/{name}")
    return [-1 if rng.random() < mirror.task.noise else 1 for _ in range(n)]


def preferred(mirror, cfg):
    """The step's pairs (better, worse), sampled and labelled, or from the task's list."""
    if mirror.task.training:
        given = mirror.task.training()
        mirror.file = mirror.encoded[:] or mirror.file      # they are read once
        better, worse = (rows_of(seqs) for seqs in mirror.file)
        assert [row.text for row in better] == [p.columns["chosen"] for p in given]
        assert [row.text for row in worse] == [p.columns["rejected"] for p in given]
        kept = likely(mirror, cfg, better)
        picked = dealt(mirror, range(len(given)), cfg.pairs)
        return [(better[k], worse[k]) for k in picked if k in kept]
    rows, pairs = mirror.rows, []
    earned = mirror.reward(rows)
    for k, sign in enumerate(flips(mirror, "noise", cfg.pairs)):
        one, two = rows[2 * k], rows[2 * k + 1]
        lead = sign * (earned[2 * k] - earned[2 * k + 1])
        if lead and one.said != two.said:
            pairs.append((one, two) if lead > 0 else (two, one))
    kept = likely(mirror, cfg, [better for better, _ in pairs])
    return [pair for k, pair in enumerate(pairs) if k in kept]


def likely(mirror, cfg, better):
    """The numbers of the pairs whose better answer has the least perplexity, a share of all."""
    if not better:
        return set()
    ppl = [math.exp(-float(x.detach().mean())) for x in chances(mirror.start, better)]
    place = cfg.likeliest * (len(ppl) - 1)
    low, high = sorted(ppl)[math.floor(place)], sorted(ppl)[math.ceil(place)]
    return {k for k, x in enumerate(ppl) if x <= low + (high - low) * (place % 1) + 1e-12}


def pairwise(mirror, cfg, of_pair, implied, referred=True):
    """DPO's relatives: of_pair(better, worse) -> loss, where each side is (log-probs, drift)."""
    pairs = preferred(mirror, cfg)
    n, policy = len(pairs), mirror.policy
    better, worse = ([pair[side] for pair in pairs] for side in (0, 1))
    now = [chances(policy.module, rows) for rows in (better, worse)]
    ref = [chances(mirror.start, rows) for rows in (better, worse)]
    loss, lead = 0.0, []
    drift = [[(x - r.detach()).sum() for x, r in zip(*sides)] for sides in zip(now, ref)]
    for k in range(n):
        sides = [(now[side][k], drift[side][k]) for side in (0, 1)]
        loss = loss + of_pair(*sides) / n
        lead.append(float(implied(*sides).detach()))
    named = dict(zip(("logps/chosen", "logps/rejected"),
                     (sum(x.sum() for x in side) / n for side in now)))
    if referred:
        named |= dict(zip(("drift/chosen", "drift/rejected"), (sum(side) / n for side in drift)))
    return updated(mirror, policy, loss, eta(mirror, cfg), cfg.max_grad_norm, pairs=n, **named, **{
        "rewards/margins": fmean(lead),
        "rewards/accuracies": fmean((x > 0) + (x == 0) / 2 for x in lead)})


def softplus(x):
    return (1 + x.exp()).log()


def dpo_anew(mirror, cfg):
    e = cfg.label_smoothing

    def lead(better, worse):
        return cfg.beta * (better[1] - worse[1])

    def of_pair(*sides):
        right, wrong = softplus(-lead(*sides)), softplus(lead(*sides))
        if cfg.robust:
            return ((1 - e) * right - e * wrong) / (1 - 2 * e)
        return (1 - e) * right + e * wrong

    return pairwise(mirror, cfg, of_pair, lead)


def rpo_anew(mirror, cfg):
    rows, loss, lead, told = mirror.rows, 0.0, [], []
    earned = mirror.reward(rows)
    kept = [(k, k + 1) if earned[k] > earned[k + 1] else (k + 1, k) for k in range(0, len(rows), 2)
            if earned[k] != earned[k + 1] and rows[k].said != rows[k + 1].said]
    drift = [a - b.detach() for a, b in zip(sums(mirror.policy.module, rows),
                                            sums(mirror.reference, rows))]
    for w, v in kept:
        a = torch.sigmoid(cfg.beta * (drift[w] - drift[v]))
        b = 1 / (1 + math.exp(-cfg.eta * (earned[w] - earned[v])))
        loss = loss + (b * (b / a).log() + (1 - b) * ((1 - b) / (1 - a)).log()) / len(kept)
        lead.append(float(cfg.beta * (drift[w] - drift[v]).detach()))
        told.append(earned[w] - earned[v])
    return updated(mirror, mirror.policy, loss, eta(mirror, cfg), cfg.max_grad_norm,
                   pairs=len(kept), gap=fmean(told), **{
                       "rewards/margins": fmean(lead),
                       "rewards/accuracies": fmean((x > 0) + (x == 0) / 2 for x in lead)})


def ipo_anew(mirror, cfg):
    return pairwise(mirror, cfg, lambda w, v: (w[1] - v[1] - 1 / (2 * cfg.tau)) ** 2,
                    lambda w, v: cfg.tau * (w[1] - v[1]))


def simpo_anew(mirror, cfg):
    def lead(w, v):
        return cfg.beta * (w[0].mean() - v[0].mean())

    return pairwise(mirror, cfg, lambda w, v: softplus(cfg.gamma - lead(w, v)), lead, False)


def orpo_anew(mirror, cfg):
    def odds(side):
        p = side[0].mean().exp()
        return (p / (1 - p)).log()

    return pairwise(mirror, cfg,
                    lambda w, v: -w[0].mean() + cfg.lam * softplus(odds(v) - odds(w)),
                    lambda w, v: odds(w) - odds(v), False)


def kto_anew(mirror, cfg):
    if mirror.encoded:
        rows = rows_of(mirror.encoded[0])
        given = {p.columns.get("completion", p.prompt): p.columns for p in mirror.task.training()}
        if "label" in mirror.task.training()[0].columns:
            good = [given[row.text]["label"] for row in rows]
        else:
            good = [row.text == given[Letters().decode(row.ids[: row.start])]["chosen"]
                    for row in rows]
            assert good == [True] * (len(rows) // 2) + [False] * (len(rows) // 2)
    else:
        rows = mirror.rows
        earned = mirror.reward(rows)
        good = [r > fmean(earned) for r in earned]
    assert 0 < sum(good) < len(rows)
    wrong = [replace(row, ids=row.ids[: row.start] + other.said)
             for row, other in zip(rows, rows[1:] + rows[:1])]
    gap = [float((a - b).detach()) for a, b in zip(sums(mirror.policy.module, wrong),
                                                  sums(mirror.reference, wrong))]
    z0 = max(0.0, fmean(gap))
    drift = [a - b.detach() for a, b in zip(sums(mirror.policy.module, rows),
                                            sums(mirror.reference, rows))]
    loss = sum(cfg.good_weight * (1 - torch.sigmoid(cfg.beta * (h - z0))) if g else
               cfg.bad_weight * (1 - torch.sigmoid(cfg.beta * (z0 - h)))
               for h, g in zip(drift, good)) / len(rows)
    sides = {name: fmean(float(h.detach()) for h, g in zip(drift, good) if g == kind)
             for name, kind in (("drift/good", True), ("drift/bad", False))}
    return updated(mirror, mirror.policy, loss, eta(mirror, cfg), cfg.max_grad_norm, z0=z0,
                   good=fmean(good), **sides)


def mdpo_anew(mirror, cfg):
    rows, k, lead = mirror.rows, cfg.group_size, []
    earned = mirror.reward(rows)
    drift = [a - b.detach() for a, b in zip(sums(mirror.policy.module, rows),
                                            sums(mirror.reference, rows))]
    for start in range(0, len(rows), 2 * k):
        sets = [slice(start, start + k), slice(start + k, start + 2 * k)]
        worth = [fmean(earned[part]) for part in sets]
        if worth[0] != worth[1]:
            means = [sum(drift[part]) / k for part in sets]
            lead.append(cfg.beta * (means[0] - means[1]) * (1 if worth[0] > worth[1] else -1))
    n = len(lead)
    return updated(mirror, mirror.policy, sum(softplus(-u) for u in lead) / n,
                   eta(mirror, cfg),
                   cfg.max_grad_norm, comparisons=n, **{
                       "rewards/margins": sum(lead) / n,
                       "rewards/accuracies": fmean(float(u > 0) for u in lead)})


def parted(mirror, cfg):
    """At the start of a part of the run, its new answers; else those of before."""
    starts = [k * cfg.steps // cfg.iterations for k in range(cfg.iterations + 1)]
    assert bool(mirror.samples) == (mirror.step in starts)
    if mirror.samples:
        mirror.since = mirror.step
        mirror.length = starts[starts.index(mirror.step) + 1] - mirror.step
        mirror.data = mirror.rows
        mirror.earned = mirror.reward(mirror.rows)
        mirror.asked = [mirror.problems[0][row.prompt].prompt for row in mirror.rows]
    return mirror.data, mirror.earned


def oreo_anew(mirror, cfg):
    data, earned = parted(mirror, cfg)
    picked = dealt(mirror, range(len(data)), cfg.batch_size, mirror.since)
    rows, r = [data[k] for k in picked], [earned[k] for k in picked]
    now, then = laws(mirror.policy.module, rows), laws(mirror.reference, rows)
    value, n, loss, rest, far = worths(mirror.critic.module, rows), len(rows), 0.0, 0.0, []
    for row, law, ref, v, reward_ in zip(rows, now, then, value, r):
        each, t = (range(len(row.said)), row.said), len(row.said)
        ratio = law[each] - ref[each].detach()
        starts = {"token": range(t), "response": [0], "step": sorted(
            {0} | {k + 1 for k in range(t - 1) if Letters().decode([row.said[k]]) == "h"}
            | ({t - 1} if row.done else set()))}[cfg.level]
        ends = [*starts[1:], t]
        for a, b in zip(starts, ends):
            held = ratio.detach()
            of_policy = v[a].detach() + cfg.beta * (ratio[a:b].sum() + held[b:].sum()) - reward_
            of_value = v[a] + cfg.beta * held[a:].sum() - reward_
            loss = loss + (of_policy**2 + of_value**2) / (len(starts) * n)
            rest = rest + float(of_value.detach()) ** 2 / (len(starts) * n)
        far.append(kl(law, ref.detach()))
        loss = loss + cfg.alpha * far[-1].mean() / n
    rate, critic_rate = (rated(cfg, peak, mirror.step)
                         for peak in (cfg.lr, cfg.critic_lr))
    mirror.critic.norms.clear()
    grown = torch.autograd.grad(loss, mirror.critic.params, retain_graph=True)
    found = updated(mirror, mirror.policy, loss, rate, cfg.max_grad_norm, residual=rest,
                    kl=torch.cat(far).mean(), reward=fmean(r))
    mirror.critic.step(sum((g.detach() * p).sum() for g, p in zip(grown, mirror.critic.params)),
                       critic_rate, cfg.max_grad_norm)
    return {**found, "critic_grad_norm": mirror.critic.norms[0]}


def rft_anew(mirror, cfg):
    fresh = bool(mirror.samples)
    hinted = mirror.samples[1:]
    data, earned = parted(mirror, cfg)
    if fresh:
        found = {}
        for row, r, asked in zip(data, earned, mirror.asked):
            if r >= cfg.least:
                found.setdefault(asked, {})[tuple(row.said)] = row
        failed = [p.prompt for p in mirror.problems[0] if p.prompt not in found]
        assert bool(hinted) == bool(failed and cfg.hint)
        if hinted:
            rows = rows_of(hinted[0])
            failed = list(dict.fromkeys(failed))
            assert [p.prompt for p in mirror.problems[1]] == [2 * text for text in failed]
            for row, r in zip(rows, mirror.reward(rows, 1)):
                if r >= cfg.least:
                    asked = failed[row.prompt]
                    ahead = Letters().prompt(asked)
                    found.setdefault(asked, {})[tuple(row.said)] = replace(
                        row, ids=[*ahead, *row.said], start=len(ahead))
        mirror.kept = [(row, 1 / len(rows) if cfg.weigh == "prompt" else 1.0)
                       for rows in found.values() for row in rows.values()]
        mirror.solved = len(found) / len(set(mirror.asked))
        if cfg.restart:
            mirror.policy = Net(mirror.reference, **ADAM)
            mirror.policy.decay = cfg.weight_decay
    some = dealt(mirror, mirror.kept, cfg.batch_size, mirror.since)
    rows = [row for row, _ in some]
    whole = sum(w * len(row.said) for row, w in some)
    loss = -sum(w * x for (_, w), x in zip(some, sums(mirror.policy.module, rows))) / whole
    return updated(mirror, mirror.policy, loss, rated(
        cfg, cfg.lr, mirror.step - mirror.since, mirror.length,
        min(cfg.warmup_steps, mirror.length // 2)), cfg.max_grad_norm, kept=len(mirror.kept),
        solved=mirror.solved, reward=fmean(earned))


def distill_anew(mirror, cfg):
    own = round(cfg.on_policy * cfg.batch_size)
    sides = [rows_of(rollout) for rollout in mirror.samples]
    assert [len(side) for side in sides] == [n for n in (own, cfg.batch_size - own) if n]
    rows, loss, b = sum(sides, []), 0.0, cfg.mix
    for row, law, ref in zip(rows, laws(mirror.policy.module, rows), laws(mirror.reference, rows)):
        q = ref.detach()
        if cfg.level == "sequence":
            part = -law[range(len(row.said)), row.said]
        elif b == 0:
            part = kl(q, law)
        elif b == 1:
            part = kl(law, q)
        else:
            middle = (b * q.exp() + (1 - b) * law.exp()).log()
            part = b * kl(q, middle) + (1 - b) * kl(law, middle)
        loss = loss + part.sum() / count(rows)
    return updated(mirror, mirror.policy, loss, eta(mirror, cfg), cfg.max_grad_norm)


# ---- reward models

def score(mirror, rows):
    return [x[-1] for x in marks(mirror.scorer.module, rows)]


def reward_anew(mirror, cfg, label=None, first=0, older=()):
    """older: pairs (better, worse) that are learnt beside the step's own."""
    if mirror.encoded:
        pairs = list(zip(*map(rows_of, mirror.encoded)))
        groups, better = pairs, [[(0, 1)] for _ in pairs]
    else:
        g, rows, earned = cfg.group_size, mirror.rows, mirror.reward(mirror.rows)
        groups = [rows[k : k + g] for k in range(0, len(rows), g)]
        asked = [(p, i, j) for p in range(len(groups)) for i, j in
                 itertools.combinations(range(g), 2)]
        better = [[] for _ in groups]
        for (p, i, j), sign in zip(asked, flips(mirror, "noise", len(asked))):
            lead = sign * (earned[p * g + i] - earned[p * g + j])
            if lead and groups[p][i].said != groups[p][j].said:
                better[p].append((i, j) if lead > 0 else (j, i))
    groups, better = [*groups, *older], [*better, *([(0, 1)] for _ in older)]
    n, loss, lead = sum(map(len, better)), 0.0, []
    for group, wins in zip(groups, better):
        s = score(mirror, list(group))
        for i, j in wins:
            loss = loss + (softplus(cfg.margin - s[i] + s[j])
                           + cfg.center * (s[i] + s[j]) ** 2) / n
            lead.append(float((s[i] - s[j]).detach()))
    return updated(mirror, mirror.scorer, loss, rated(cfg, cfg.lr, mirror.step - first),
                   cfg.max_grad_norm, pairs=n,
        accuracy=fmean((x > 0) + (x == 0) / 2 for x in lead), margin=fmean(lead))


def plackett_luce_anew(mirror, cfg):
    g, rows, earned = cfg.group_size, mirror.rows, mirror.reward(mirror.rows)
    rng = random.Random(f"{mirror.seed}/{mirror.step}/ranks")
    orders = []
    for start in range(0, len(rows), g):
        sign = -1 if rng.random() < mirror.task.noise else 1
        keyed = [(-sign * earned[start + k], rng.random(), start + k) for k in range(g)]
        if len({key for key, _, _ in keyed}) > 1:
            orders.append([rows[k] for _, _, k in sorted(keyed)])
    n, loss, right = len(orders), 0.0, []
    for order in orders:
        s = score(mirror, order)
        for k in range(g):
            loss = loss - (s[k] - torch.stack(s[k:]).exp().sum().log()) / n
            right += [0.5 if order[k].said == order[j].said else float(s[k] > s[j])
                      for j in range(k + 1, g)]
    return updated(mirror, mirror.scorer, loss, eta(mirror, cfg), cfg.max_grad_norm, rankings=n,
        accuracy=fmean(right))


def entropic(s, y):
    """Binary cross-entropy of a chance sigmoid(s), and whether it is on the right side."""
    p = torch.sigmoid(s)
    return -(y * p.log() + (1 - y) * (1 - p).log()), float((s > 0) == (y > 0.5))


def clicks_anew(mirror, cfg):
    g, rows, loss, tops, all_ = cfg.group_size, mirror.rows, 0, 0, 0
    earned = mirror.reward(rows)
    users = random.Random(f"{mirror.seed}/{mirror.step}/users")
    shuffle = random.Random(f"{mirror.seed}/{mirror.step}/lists")
    scored = score(mirror, rows)
    keys = [shuffle.random() if cfg.shown == "random" else float(row.old.sum()) for row in rows]
    for start in range(0, len(rows), g):
        here = range(start, start + g)
        order = sorted(here, key=lambda k: (-keys[k], k))
        for i in here:
            better = sum((earned[i] > earned[j]) + (earned[i] == earned[j]) / 2
                         for j in here if j != i) / (g - 1)
            looked = (order.index(i) + 1) ** -cfg.eta
            for _ in range(cfg.users):
                if users.random() >= looked or users.random() >= 0.1 + 0.9 * better:
                    continue
                if users.expovariate(1 / (10 + 50 * better)) < cfg.dwell:
                    continue
                all_, tops = all_ + 1 / cfg.users, tops + (order[0] == i) / cfg.users
                weight = 1 / looked if cfg.correct == "propensity" else 1.0
                for j in here:
                    if j != i:
                        loss = loss + weight * softplus(scored[j] - scored[i]) / (
                            cfg.prompts * cfg.users)
    assert all_
    return updated(mirror, mirror.scorer, loss, eta(mirror, cfg), cfg.max_grad_norm,
                   clicks=all_ / cfg.prompts, top=tops / all_)


def orm_anew(mirror, cfg):
    rows, earned = mirror.rows, mirror.reward(mirror.rows)
    found = [entropic(s, y) for s, y in zip(score(mirror, rows), earned)]
    return updated(mirror, mirror.scorer, sum(x for x, _ in found) / len(rows),
                   eta(mirror, cfg), cfg.max_grad_norm,
        accuracy=fmean(hit for _, hit in found), right=fmean(earned))


def cooled(cfg, step):
    """Hot in the first half, then straight down towards `temperature`."""
    if step <= cfg.steps / 2:
        return cfg.hot
    return cfg.hot + (2 * step / cfg.steps - 1) * (cfg.temperature - cfg.hot)


def prm_anew(mirror, cfg):
    rows, earned, found, labels = mirror.rows, mirror.reward(mirror.rows), [], []
    for row, s, whole in zip(rows, marks(mirror.scorer.module, rows), earned):
        letter, ended = mirror.problems[0][row.prompt].columns["letter"], {}
        texts = [Letters().decode([i]) for i in row.said]
        for k, text in enumerate(texts):
            if text == "h" and not cfg.last_only:
                step = "".join(texts[:k]).split("h")[-1]
                ended[k] = float(letter in step)
        ended[len(texts) - 1] = whole
        found += [entropic(s[k], y) for k, y in ended.items()]
        labels += ended.values()
    return updated(mirror, mirror.scorer, sum(x for x, _ in found) / len(found),
                   eta(mirror, cfg), cfg.max_grad_norm,
        accuracy=fmean(hit for _, hit in found), right=fmean(labels),
        temperature=cooled(cfg, mirror.step))


def math_shepherd_anew(mirror, cfg):
    if mirror.samples:
        mirror.data, mirror.known = annotated(mirror, cfg)
    assert bool(mirror.samples) == (mirror.step == 0)
    rows = [mirror.data[k] for k in dealt(mirror, range(len(mirror.data)), cfg.batch_size)]
    found = []
    for s, (_, ended) in zip(marks(mirror.scorer.module, [row for row, _ in rows]), rows):
        found += [entropic(s[t], y) for t, y in ended.items()]
    return updated(mirror, mirror.scorer, sum(x for x, _ in found) / len(found),
                   eta(mirror, cfg), cfg.max_grad_norm,
        accuracy=fmean(hit for _, hit in found), **mirror.known)


def annotated(mirror, cfg):
    """The answers, hot and not, with the label of each place in them; what is logged of those."""
    hot, cool = map(rows_of, mirror.samples)
    assert len(hot) == cfg.prompts // 2 * cfg.group_size
    asked = [mirror.problems[k][row.prompt] for k, side in enumerate((hot, cool)) for row in side]
    rows, earned, labels, wrong = [*hot, *cool], [], [], []
    for row, problem in zip(rows, asked):
        earned += mirror.task.reward([problem.prompt], [row.text],
                                     letter=[problem.columns["letter"]])
    places = [(k, t) for k, row in enumerate(rows) for t, i in enumerate(row.said[:-1])
              if Letters().decode([i]) == "h"]
    worth, sound = {}, {}
    for k, t in places:
        letter = asked[k].columns["letter"]
        steps = Letters().decode(rows[k].said[: t + 1]).split("h")[:-1]
        sound[k, t] = float(all(letter in step for step in steps))
    if cfg.estimation == "exact":
        assert not mirror.completed
        worth = sound
    else:
        (begun, rollout, heat), = mirror.completed
        assert begun == [rows[k].ids[: rows[k].start + t + 1] for k, t in places]
        assert heat == cfg.temperature
        ends = rows_of(rollout)
        for row, logp in zip(ends, chances(mirror.policy.module, ends, heat)):
            assert (row.old - logp.detach()).abs().max() < 1e-5
        for m, (k, t) in enumerate(places):
            problem, values = asked[k], []
            for end in ends[m * cfg.rollouts : (m + 1) * cfg.rollouts]:
                said = (rows[k].said[: t + 1] + end.said)[: mirror.longest]
                values += mirror.task.reward(
                    [problem.prompt], [Letters().decode([i for i in said if i != EOS])],
                    letter=[problem.columns["letter"]])
            worth[k, t] = max(values) if cfg.estimation == "hard" else fmean(values)
    data = []
    for k, (row, whole) in enumerate(zip(rows, earned)):
        ended = {t: y for (j, t), y in worth.items() if j == k} | {len(row.said) - 1: whole}
        data.append((row, ended))
        labels += ended.values()
    for place, y in worth.items():
        wrong.append(0.5 if y == 0.5 else float((y > 0.5) != (sound[place] > 0.5)))
    assert wrong
    return data, {"right": fmean(labels), "label_error": fmean(wrong)}


# ---- the cases

class Mixed(Echo):
    """Rewards of many sizes, exact in any precision, that tie now and then."""

    name = "mixed"

    def reward(self, prompts, completions, letter, **columns):
        return [text.count(c) / 2 + len(text) % 2 / 4 + ("h" in text) / 8
                for text, c in zip(completions, letter)]


class Chance(Steps):
    """Rewards within 0..1, and steps that are right or wrong."""

    def reward(self, prompts, completions, letter, **columns):
        return [min(4, 2 * text.count(c) + len(text) % 2) / 4
                for text, c in zip(completions, letter)]


class Fair(Mixed):
    """Rewards within 0..1."""

    def reward(self, *args, **columns):
        return [x / 4 for x in super().reward(*args, **columns)]


class Critic(Mixed):
    """Finds fault with answers that lack the prompt's letter, and says which one that is."""

    def criticise(self, problem, draft):
        return "" if problem.columns["letter"] in draft else "h" + problem.columns["letter"]

    def approves(self, critique):
        return not critique

    def revise(self, problem, draft, critique):
        return problem.prompt + draft + critique


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
    seed: int = 32          # with which answers differ, tie, end and are cut off
    train: Any = None       # in place of the module's
    who: tuple = ("policy",)  # whose samples the step's are, in turn; the last of them all others

    def config(self):
        """Its Config, with a schedule and a decay that no method has by default."""
        kind = self.module.Config
        return kind(**(MOVED if issubclass(kind, Descent) else {}) | self.cfg)


MOVED = dict(schedule="linear", warmup_steps=2, weight_decay=0.3)
PASSES = dict(steps=2, prompts=4, group_size=3, temperature=0.8, minibatch_size=5, epochs=2,
              lr=0.02, max_grad_norm=0.35)
ONCE = {name: value for name, value in PASSES.items() if name not in ("minibatch_size", "epochs")}
PPO = dict(steps=2, prompts=9, temperature=0.8, minibatch_size=4, epochs=3, clip=0.1,
           value_clip=0.15, gamma=0.9, lam=0.7, beta=0.2, missing_eos=0.4, lr=0.04, critic_lr=0.07,
           max_grad_norm=0.35)
VERIFIER = ("verifier",)
NOT_ADAPTIVE = ("kl_target", "horizon", "control")
STAGES = ("sft_steps", "reward_steps")

ON_POLICY = {
    "grpo": Case(grpo, dict(PASSES, clip=0.07, beta=0.3), grpo_anew,
                 same=("kl", "mean", "correct", "cap")),
    "grpo, k3": Case(grpo, dict(PASSES, clip=0.07, beta=0.3, kl="k3", mean="answers"), grpo_anew,
                     same=("correct", "cap")),
    "grpo, ratios truncated": Case(grpo, dict(PASSES, correct="truncated", cap=1.02, beta=0.3),
                                   grpo_anew, same=("kl", "mean", "clip")),
    "grpo, no ratios": Case(grpo, dict(PASSES, correct="none", beta=0.3, mean="answers"),
                            grpo_anew, same=("kl", "clip", "cap")),
    "grpo, no KL": Case(grpo, dict(PASSES, clip=0.07, beta=0.0, max_grad_norm=0.25), grpo_anew,
                        same=("kl", "mean", "correct", "cap")),
    **{f"grpo, {what}": Case(grpo, dict(PASSES, correct=correct, cap=cap, beta=0.3), grpo_anew,
                             same=("kl", "mean", "clip"))
       for what, correct, cap in (("tokens masked", "masked", 1.05),
                                  ("answers masked", "masked-answers", 1.1))},
    "gspo": Case(gspo, dict(PASSES, clip_low=0.03, clip_high=0.04), gspo_anew),
    "cispo": Case(cispo, dict(PASSES, clip_low=0.06, clip_high=0.08), cispo_anew),
    "sapo": Case(sapo, dict(PASSES, tau_pos=3.0, tau_neg=7.0), sapo_anew),
    "entropy": Case(held, dict(PASSES, clip_low=0.05, clip_high=0.08, share=0.7, cov_share=0.3,
                               entropy_weight=0.2), entropy_anew),
    "vineppo": Case(vineppo, dict(PASSES, branches=3, clip=0.07), vineppo_anew, Chance,
                    dict(max_new_tokens=8), seed=34),
    "dr-grpo": Case(dr_grpo, dict(PASSES, clip=0.07, max_grad_norm=0.05), dr_grpo_anew),
    "dapo": Case(dapo, dict(PASSES, clip_low=0.05, clip_high=0.12, overlong=2, rounds=3),
                 dapo_anew),
    "reinforce": Case(reinforce, dict(ONCE, momentum=0.6), reinforce_anew),
    "reinforce-pp": Case(reinforce_pp, dict(PASSES, clip=0.07, beta=0.3), reinforce_pp_anew),
    "rloo": Case(rloo, dict(ONCE, lr=0.004, beta=0.3), rloo_anew),
    "rloo, ties": Case(rloo, dict(ONCE, steps=1, beta=0.3), rloo_anew, seed=37),
    "rloo, no KL": Case(rloo, dict(ONCE, beta=0.0), rloo_anew),
    "maxrl": Case(maxrl, dict(ONCE, least=0.75), maxrl_anew),
    "minimum-risk": Case(minimum_risk, dict(ONCE, alpha=0.6), minimum_risk_anew),
    "mixer": Case(mixer, dict(ONCE, steps=4, start=1, every=2, delta=2), mixer_anew),
    "prime": Case(prime, dict(PASSES, clip=0.07, beta=0.3, implicit_lr=0.03), prime_anew, Fair,
                  same=("judge",)),
    "prime, learns first": Case(prime, dict(PASSES, clip=0.07, beta=0.3, implicit_lr=0.03,
                                            judge="after"), prime_anew, Fair),
    "sdpo": Case(sdpo, dict(ONCE, schedule="cosine"), sdpo_anew, Critic, same=("teacher",)),
    "sdpo, by itself": Case(sdpo, dict(ONCE, schedule="cosine", teacher="policy", lr=0.01),
                            sdpo_anew, Critic),
    "self-critical": Case(self_critical, ONCE, self_critical_anew,
                          who=("policy", "greedy")),
    "a2c": Case(a2c, dict(ONCE, gamma=0.9, lam=0.7, value_weight=0.6, entropy_weight=0.2,
                          critic_lr=0.07), a2c_anew),
    "ppo": Case(ppo, PPO, ppo_anew, same=(*NOT_ADAPTIVE, *STAGES)),
    "ppo, adaptive": Case(ppo, dict(PPO, control="adaptive", kl_target=0.9, horizon=30), ppo_anew,
                          same=STAGES),
    "trpo": Case(trpo, dict(steps=1, prompts=4, group_size=3, temperature=0.8, delta=0.02,
                            damping=0.3, iterations=3, fisher=5, shrink=0.5, tries=6), trpo_anew),
}


class Noisy(Mixed):
    noise = 0.3

    def hint(self, problem):
        return 2 * problem.prompt


class Listed(Noisy):
    """Given pairs, of answers of several lengths."""

    def training(self):
        return [Problem(a + b, {"chosen": b * n + a, "rejected": a + b * (n % 3), "letter": a})
                for n, (a, b) in enumerate(zip("abcdabc", "efgefge"), 1)]


class Labelled(Mixed):
    """Given answers, each of them right or wrong."""

    def training(self):
        return [Problem(row.prompt, {"completion": row.columns["chosen"], "label": n % 3 == 0,
                                     "letter": "a"})
                for n, row in enumerate(Listed().training())]


@dataclass(frozen=True)
class Modes(Mixed):
    """Answered at once by a letter, or in a mode whose prompts end in h."""

    direct: bool = True

    def like(self, problem):
        return Problem(problem.prompt[0] + "h" * (not self.direct), problem.columns)

    def parse(self, text):
        return text[:1] or None


LEARN = dict(steps=4, lr=0.02, warmup_steps=2, max_grad_norm=0.35)
PAIRS = dict(steps=3, pairs=6, temperature=0.8, lr=0.02, max_grad_norm=0.35)
PARTS = dict(LEARN, prompts=4, group_size=3, iterations=2, batch_size=5, temperature=0.8)
RATED = dict(LEARN, prompts=5, group_size=3, temperature=0.8)


def taught(run, cfg):
    """distill.train with the run's reference for a teacher."""
    return distill.train(run, cfg, run.reference())


def told(run, cfg):
    """The same of step_by_step.train."""
    return step_by_step.train(run, cfg, run.reference())


DISTILL = dict(LEARN, batch_size=5, temperature=0.8)
OREO = dict(PARTS, beta=0.4, alpha=0.3, critic_lr=0.07)
SEARCH, TEACHER, OTHER = ("width", "branching"), ("teacher",), ("reference",)

OFF_POLICY = {
    "sft": Case(sft, dict(LEARN, batch_size=5), sft_anew, same=("replay", "replay_share")),
    "dpo": Case(dpo, dict(PAIRS, beta=0.3, label_smoothing=0.2, likeliest=0.7), dpo_anew, Noisy,
                same=("robust",), who=OTHER),
    "dpo, robust": Case(dpo, dict(PAIRS, beta=0.3, label_smoothing=0.2, likeliest=0.7,
                                  robust=True), dpo_anew, Noisy, who=OTHER),
    "dpo, pairs": Case(dpo, dict(PAIRS, beta=0.3, label_smoothing=0.2, likeliest=0.7), dpo_anew,
                       Listed, same=("robust",)),
    "rpo": Case(rpo, dict(PAIRS, beta=0.3, eta=0.8), rpo_anew, who=OTHER,
                same=("reward_steps",)),
    "ipo": Case(ipo, dict(PAIRS, tau=0.3, likeliest=0.7), ipo_anew, Noisy, who=OTHER),
    "simpo": Case(simpo, dict(PAIRS, beta=2.0, gamma=0.7, likeliest=0.7), simpo_anew, Noisy,
                  who=OTHER),
    "simpo, pairs": Case(simpo, dict(PAIRS, beta=2.0, gamma=0.7, likeliest=0.7), simpo_anew,
                         Listed),
    "orpo": Case(orpo, dict(PAIRS, lam=0.6, likeliest=0.7), orpo_anew, Noisy, who=OTHER),
    **{f"kto{name}": Case(kto, dict(steps=3, batch_size=size, temperature=0.8, beta=0.3,
                                    good_weight=0.75, bad_weight=1.5, lr=0.02, max_grad_norm=0.35),
                          kto_anew, task, who=OTHER)
       for name, task, size in (("", Mixed, 7), (", pairs", Listed, 6), (", labels", Labelled, 5))},
    "mdpo": Case(mdpo, dict(steps=3, prompts=5, group_size=3, temperature=0.8, beta=0.3, lr=0.02,
                            max_grad_norm=0.35), mdpo_anew, who=OTHER),
    **{f"oreo, {level}": Case(oreo, dict(OREO, level=level), oreo_anew, Chance,
                              same=(*SEARCH, "level"))
       for level in ("token", "step", "response")},
    "rft": Case(rft, dict(PARTS, least=0.25, hint=True, restart=True, weigh="prompt"), rft_anew,
                Noisy),
    "rft, answer": Case(rft, dict(PARTS, least=0.25), rft_anew, Noisy,
                        same=("hint", "restart", "weigh")),
    "distill": Case(distill, dict(DISTILL, mix=0.3, on_policy=0.6), distill_anew,
                    same=("level", *TEACHER), train=taught, who=("policy", "reference")),
    "distill, forward": Case(distill, dict(DISTILL, on_policy=0.3), distill_anew,
                             same=("level", "mix", *TEACHER), train=taught,
                             who=("policy", "reference")),
    "distill, reverse": Case(distill, dict(DISTILL, mix=1.0, on_policy=1.0), distill_anew,
                             same=("level", *TEACHER), train=taught),
    "distill, sequence": Case(distill, dict(DISTILL, level="sequence", on_policy=0.0),
                              distill_anew, same=("mix", *TEACHER), train=taught, who=OTHER),
    "step-by-step": Case(step_by_step, dict(DISTILL, examples=7, lam=0.6), step_by_step_anew,
                         Modes, same=TEACHER, train=told, who=OTHER),
    "reward": Case(reward, dict(RATED, margin=0.4, center=0.1), reward_anew, Noisy),
    "reward, pairs": Case(reward, dict(RATED, margin=0.4, center=0.1), reward_anew, Listed),
    "plackett-luce": Case(plackett_luce, RATED, plackett_luce_anew, Noisy),
    "orm": Case(orm, RATED, orm_anew, Chance),
    "clicks": Case(clicks, dict(RATED, eta=0.7, dwell=9.0, users=3), clicks_anew,
                   same=("shown", "correct")),
    "clicks, random, as they are": Case(clicks, dict(RATED, eta=0.7, dwell=9.0, shown="random",
                                                     users=2, correct="none"), clicks_anew),
    "prm": Case(prm, dict(RATED, hot=1.7), prm_anew, Chance, same=("last_only", "aggregate")),
    "prm, last": Case(prm, dict(RATED, hot=1.7, last_only=True), prm_anew, Chance,
                      same=("aggregate",)),
    "math-shepherd": Case(math_shepherd, dict(RATED, hot=1.7, rollouts=3, batch_size=7),
                          math_shepherd_anew, Chance, same=("aggregate", "estimation")),
    **{f"math-shepherd, {how}": Case(
        math_shepherd, dict(RATED, hot=1.7, estimation=how, rollouts=2, batch_size=7),
        math_shepherd_anew, Chance,
        same=("aggregate",))
       for how in ("soft", "exact")},
}


def by_a_scorer(run, cfg):
    """process_grpo.train with the run's reward model for a verifier."""
    return process_grpo.train(run, cfg, partial(process_grpo.learnt, run,
                                                run.learners[REWARD_MODEL].module))


PROCESS = dict(PASSES, clip=0.07, beta=0.3)
ON_POLICY |= {
    "process-grpo": Case(process_grpo, PROCESS, process_grpo_anew, Chance, same=VERIFIER),
    "process-grpo, no KL": Case(process_grpo, dict(PROCESS, beta=0.0), process_grpo_anew, Chance,
                                same=VERIFIER),
    "process-grpo, learnt": Case(process_grpo, PROCESS, partial(process_grpo_anew, learnt=True),
                                 Chance, same=VERIFIER, train=by_a_scorer),
}
CASES = {**ON_POLICY, **OFF_POLICY}


# ---- how a case is run

def scene(case):
    """A run whose reference and critic are other networks than the policy, and all of float64.

    So are the log-probs that were sampled, and the rewards with them.  Its micro-batches are of two
    rows, and Adam's numbers are not the usual ones.
    """
    task, seed = case.task(), case.seed
    run = Run(Learner(tiny(seed=seed), **ADAM), Letters(), task, task.reward,
              **{"seed": seed, "max_new_tokens": 4, "micro_batch_size": 2, **case.options})
    run.frozen("reference", lambda: tiny(seed=seed + 1))
    run.frozen("start", lambda: tiny(seed=seed + 1))
    run.learner("critic", lambda: valuer(seed + 2), **ADAM)
    run.learner(REWARD_MODEL, lambda: scalar(seed, tiny(seed=seed + 4)), **ADAM)
    run.learner("implicit", lambda: tiny(seed=seed + 5), **ADAM)
    return exactly(run)


def exactly(run):
    """The run, which samples with log-probs of float64."""
    sample = run.sample

    def exact(*args, **options):
        rollout = sample(*args, **options)
        return replace(rollout, logp=rollout.logp.double())

    run.sample = exact
    return run


def steps(case, run):
    """The method's steps, one at a time, each as its metrics."""
    learn = (case.train or case.module.train)(run, case.config())
    for _ in range(case.cfg["steps"]):
        yield next(learn)
        run.step += 1


def watch(run, mirror):
    """Let the mirror see what the run samples and encodes."""
    sample, encode, complete = run.sample, run.encode, run.complete

    def sampled(problems, *args, **options):
        rollout = sample(problems, *args, **options)
        mirror.samples.append(rollout)
        mirror.heats.append(options["temperature"])
        mirror.problems.append(problems)
        return rollout

    def encoded(prompts, answers):
        seqs = encode(prompts, answers)
        mirror.encoded.append(seqs)
        return seqs

    def finished(prompts, *args, **options):
        rollout = complete(prompts, *args, **options)
        if options.get("purpose") == "branches":
            mirror.branches.append(rollout)
        if options.get("purpose") == "roll-outs":
            mirror.completed.append((prompts, rollout, options["temperature"]))
        return rollout

    run.sample, run.encode, run.complete = sampled, encoded, finished


def compare(case, tolerance=1e-9):
    """Hold a case's steps to its formula: the metrics of each, and all weights after it."""
    run = scene(case)
    mirror, cfg = Mirror(run), case.config()
    for net in filter(None, (mirror.policy, mirror.critic, mirror.scorer, mirror.implicit)):
        net.decay = getattr(cfg, "weight_decay", 0.0)
    watch(run, mirror)
    logged = []
    for metrics in steps(case, run):
        mirror.rows = rows_of(mirror.samples[0]) if mirror.samples else []
        sampled_by(mirror, case, cfg)
        expected = case.anew(mirror, cfg)
        same_numbers(metrics, expected, tolerance)
        same_weights(run, mirror, tolerance)
        logged.append(metrics)
        for made in (mirror.samples, mirror.problems, mirror.encoded, mirror.heats,
                     mirror.branches, mirror.completed):
            made.clear()
        mirror.step += 1
    return run, logged


def same_numbers(metrics, expected, tolerance=1e-9):
    """Those metrics that are expected are the same; some are means of float32."""
    for name, value in expected.items():
        rough = name in ("completions/mean_length", "completions/clipped_ratio",
                         "frac_reward_zero_std")
        off = abs(metrics[name] - value)
        assert off <= (1e-6 if rough else tolerance) * max(1.0, abs(value)), (
            name, metrics[name], value)


def same_weights(run, mirror, tolerance=1e-9):
    for learner, net in (("policy", mirror.policy), ("critic", mirror.critic),
                         (REWARD_MODEL, mirror.scorer), ("implicit", mirror.implicit)):
        if learner in run.learners:
            pairs = zip(run.learners[learner].module.named_parameters(),
                        net.module.named_parameters(), strict=True)
            for (name, ours), (_, theirs) in pairs:
                assert (ours - theirs).abs().max() <= tolerance, (mirror.step, learner, name)


def sampled_by(mirror, case, cfg):
    """Who answered, and at what temperature: the recorded log-probs are those of that."""
    for k, (rollout, heat) in enumerate(zip(mirror.samples, mirror.heats)):
        who = case.who[min(k, len(case.who) - 1)]
        if who == "greedy":
            assert heat == 0
            continue
        if case.module is math_shepherd:
            assert heat == (cfg.hot, cfg.temperature)[k]
        else:
            assert heat == (cooled(cfg, mirror.step) if hasattr(cfg, "hot") else cfg.temperature)
        module = mirror.policy.module if who == "policy" else mirror.reference
        rows = rows_of(rollout)
        for row, logp in zip(rows, chances(module, rows, heat)):
            assert (row.old - logp.detach()).abs().max() < 1e-5, (who, heat)
