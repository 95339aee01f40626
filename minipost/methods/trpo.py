"""TRPO: Trust Region Policy Optimization (Schulman et al. 2015, arxiv.org/abs/1502.05477).

For tokens a state is a prompt with the answer so far, and an action is the next token.  Over the N
answer tokens that the old policy sampled, the surrogate gain and its price are

    maximise L(w) = (1/N) sum_t rho_t A_t   subject to   K(w) = (1/N) sum_t KL(old || pi)_t <= delta
                                                                                      (eq. 14)
The step.  At the old weights K and its gradient are 0, so with a step s

    L = L_old + g.s + ...,    K = s.F s / 2 + ...,    F = (1/N) sum_t J_t' (diag p_t - p_t p_t') J_t

Here g is the gradient of L, and J_t = dz_t/dw is the derivative of the logits z_t.  F, the second
derivative of K, is the Fisher matrix.  Maximising g.s under s.F s / 2 = delta makes the gradients
parallel, F s ~ g, so

    x = F^-1 g,    s = sqrt(2 delta / x.F x) x                                    (appendix C)

F has a row per weight and is never written down.  Conjugate gradient finds x from products F v:

    F v = J' ((diag p - p p') J v)     forward mode gives J v, reverse mode J'    `product_jacobian`
        = d/dw (dK/dw . v)             a gradient of a gradient                   `product_hessian`

The first is used: the second takes about 1.5 times as long (`python -m scripts.bench fisher`).

F is singular (a constant added to all logits changes nothing), so it is damped: F + damping I.

The line search.  delta bounds the quadratic model of K, not K.  So s, s kappa, s kappa^2, ... are
tried on the whole rollout until K <= delta and L has grown, both computed exactly.  If no try
qualifies, the old weights are put back bit for bit.  So every accepted step keeps the bound.

    dL/dlogp_t = rho_t A_t / N    (`loss` is -L)

Where we differ from the paper: the advantage of an answer is its reward less its group's mean.
This is the vine estimate (sec. 5.2) with the prompt as the only branching state, and it needs no
critic.  As in the paper, F is taken over some of the rollout's answers, and K and L over all.  The
old policy is the one that is updated.  Where answers are of another (`--lag`, `--sampler-bits`,
`--sampler-top-k`), eq. 14 weighs them by the chance of either; here no ratio does.
"""

import math
from dataclasses import dataclass

import torch
from torch.autograd import forward_ad
from torch.func import functional_call

from minipost import ops, parallel
from minipost.errors import Bounded, MinipostError
from minipost.measure.meter import Meter, describe
from minipost.ops import masked_sum
from minipost.rollout import logprobs_and_distribution

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
TRACE = ("reward", "surrogate", "predicted", "kl", "backtracks", "cg_residual", "entropy")
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="minus_reward", factor=0.5,
              divisor="tokens")]


@dataclass(frozen=True)
class Config(Bounded):
    """Natural-gradient steps inside an exact bound on the KL to the policy that sampled."""

    steps: int = 18             # rollouts to learn from, one step each
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    delta: float = 0.003        # bound on the mean KL per token of a step, in nats (delta)
    damping: float = 1.0        # added to the diagonal of the Fisher matrix
    iterations: int = 8         # conjugate-gradient iterations
    fisher: int = 32            # answers of the rollout that the Fisher matrix is taken over
    shrink: float = 0.6         # factor between one try of the line search and the next (kappa)
    tries: int = 10             # tries of the line search

    LIMITS = {"group_size": ">= 2", "delta": "> 0", "shrink": "> 0, < 1"}


@ops.shapes(logp="B T", logp_old="B T", adv="B", mask="B T")
def loss(logp, logp_old, adv, mask, *, count):
    """logp, logp_old, mask (B, T); adv (B,); count = N  ->  scalar -L, metrics that add up"""
    value = -masked_sum((logp - logp_old).exp() * adv[:, None], mask) / count
    return value, {"loss": value.detach()}


def loss_grad(logp, logp_old, adv, mask, *, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    return {"logp": -((logp - logp_old).exp() * adv[:, None]).where(mask, 0.0) / count}


# ---- the natural gradient

def parameters(learner):
    """The parameters by name, in the order in which they lie in the learner's flat vector."""
    names = {id(p): name for name, p in learner.module.named_parameters()}
    return {names[id(p)]: p for p in learner.params}


def as_parameters(vector, params):
    """Cut a flat vector into the shapes of named parameters."""
    parts = vector.split([p.numel() for p in params.values()])
    return {name: part.view_as(p) for (name, p), part in zip(params.items(), parts)}


class Logits(torch.nn.Module):
    """The policy as a function of its parameters: logits where a token is predicted, (N, V)."""

    def __init__(self, policy, temperature):
        super().__init__()
        self.policy, self.temperature = policy, temperature

    def forward(self, batch):
        hidden = self.policy.hidden(batch.inputs, explicit=True)[batch.mask]
        return self.policy.head(hidden) / self.temperature


def product_jacobian(learner, batch, temperature, vector):
    """N F v of one batch as J'((diag p - pp') J v).  (W,) -> (W,)

    One forward pass carries J v beside the logits; its reverse pass applies J'.
    """
    params = {f"policy.{name}": p for name, p in parameters(learner).items()}
    tangents = as_parameters(vector.to(learner.flat.dtype), params)
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(p, tangents[name]) for name, p in params.items()}
        logits, change = forward_ad.unpack_dual(
            functional_call(Logits(learner.module, temperature), duals, (batch,)))
        p = logits.detach().softmax(-1)                                     # (N, V)
        change = p * change.detach()
    weighed = change - p * change.sum(-1, keepdim=True)
    found = torch.autograd.grad(logits, list(params.values()), weighed)
    return torch.cat([part.flatten() for part in found]).to(vector.dtype)


def product_hessian(learner, batch, temperature, vector):
    """N F v of one batch as the gradient of (gradient of N K) . v.  (W,) -> (W,)"""
    params = list(parameters(learner).values())
    logp_all = Logits(learner.module, temperature)(batch).log_softmax(-1)   # (N, V)
    kl = ops.kl_exact(logp_all.detach(), logp_all).sum()
    parts = torch.autograd.grad(kl, params, create_graph=True)
    slope = torch.cat([part.flatten() for part in parts])
    found = torch.autograd.grad(slope @ vector.to(slope.dtype), params)
    return torch.cat([part.flatten() for part in found]).to(vector.dtype)


def conjugate_gradient(product, b, iterations, tolerance=1e-10):
    """Solve A x = b for a symmetric positive A given by v -> A v (Hestenes & Stiefel 1952).

    Ends early when |b - A x|^2 <= tolerance |b|^2, or where rounding leaves the curvature along the
    next direction not positive (an underflow to 0, or no damping).  Returns x and the residual
    b - A x.
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, square, first = b.clone(), b @ b, b @ b
    for _ in range(iterations):
        if square <= tolerance * first:
            break
        image = product(direction)
        curvature = direction @ image
        if curvature <= 0:
            break
        length = square / curvature
        x = x + length * direction
        residual = residual - length * image
        square, previous = residual @ residual, square
        direction = residual + square / previous * direction
    return x, residual


def full_step(product, gradient, delta, iterations):
    """sqrt(2 delta / x.F x) x with x = F^-1 g, and |F x - g| / |g|.

    The step is zero where rounding leaves x.F x not positive, which can happen without damping.
    """
    x, residual = conjugate_gradient(product, gradient, iterations)
    curvature = float(x @ (gradient - residual))                            # x.F x
    length = math.sqrt(2 * delta / curvature) if curvature > 0 else 0.0
    return x * length, float(residual.norm() / gradient.norm())


def line_search(evaluate, old, step, delta, shrink, tries):
    """The first of old + step, old + shrink step, ... with K <= delta and a gain above zero.

    evaluate(weights) -> (gain over the old policy, K).  Returns (weights, tries made before, gain,
    K); when none qualifies, (old, tries, 0.0, 0.0).
    """
    for k in range(tries):
        weights = old + shrink**k * step
        gain, kl = evaluate(weights)
        if kl <= delta and gain > 0:  # NaN fails both
            return weights, k, gain, kl
    return old, tries, 0.0, 0.0


# ---- the method

def check(run, cfg):
    """MinipostError where a rank has not the whole vectors, or an optimiser is asked for."""
    if run.shard:
        raise MinipostError("trpo multiplies vectors of all weights, of which --shard leaves a "
                            "part in each rank; leave out --shard, or take grpo or ppo")
    if run.policy.allocator:
        raise MinipostError("trpo moves the weights by itself, and --lora-budget shares out ranks "
                            "in an optimiser's steps; leave it out, or take another method")
    if run.policy.muon:
        raise MinipostError("trpo moves the weights by itself, without an optimiser; leave out "
                            "--optimizer muon, or take another method")


def train(run, cfg):
    """prompts -> rollout -> rewards -> natural gradient -> line search.  Yields step metrics."""
    policy = run.policy
    while True:
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        adv = ops.group_centred(reward, cfg.group_size).flatten()
        run.keep(problems, rollout, reward, adv)
        count = int(rollout.mask.sum())
        batches = [(i, rollout[i])
                   for i in run.micro_batches(range(len(rollout)), rollout, whole=True)]

        meter, before = Meter("loss"), []
        for i, batch in batches:
            logp, logp_all = logprobs_and_distribution(policy.module, batch, cfg.temperature)
            run.compare(logp, batch)
            before.append((logp_all.detach(), logp.detach()))
            value, stats = loss(logp, before[-1][1], adv[i], batch.mask, count=count)
            value.backward()
            meter.add(**stats)
        norm = policy.collect()
        gradient = -policy.grad.to(policy.master.dtype)
        policy.grad.zero_()
        found = {"surrogate": 0.0, "predicted": 0.0, "kl": 0.0, "backtracks": 0, "accepted": 0.0,
                 "cg_residual": 0.0}
        if 0 < norm < math.inf:
            found = improve(run, cfg, rollout, batches, before, adv, gradient, count)
        yield {**meter.means(), **found, **describe(rollout, reward, cfg.group_size),
               "grad_norm": norm}


def improve(run, cfg, rollout, batches, before, adv, gradient, count):
    """Make one step of the policy along the natural gradient; returns the step's metrics."""
    policy = run.policy
    some = run.rng("fisher").sample(range(len(rollout)), min(cfg.fisher, len(rollout)))
    seen = int(rollout.mask[some].sum())
    parts = [rollout[i] for i in run.micro_batches(some, rollout, whole=True)]

    def product(vector):
        total = torch.zeros_like(vector)
        for part in parts:
            total += product_jacobian(policy, part, cfg.temperature, vector) / seen
        parallel.all_reduce(total)
        return total + cfg.damping * vector

    @torch.no_grad()
    def evaluate(weights):
        policy.assign(weights)
        meter = Meter("gain", "kl")
        for (i, batch), (logp_all_old, logp_old) in zip(batches, before):
            logp, logp_all = logprobs_and_distribution(policy.module, batch, cfg.temperature)
            new = loss(logp, logp_old, adv[i], batch.mask, count=count)[0]
            old = loss(logp_old, logp_old, adv[i], batch.mask, count=count)[0]
            meter.add(gain=old - new, kl=ops.kl_exact(logp_all_old, logp_all).sum() / count)
        return meter.means().values()

    old = policy.master.clone()
    step, residual = full_step(product, gradient, cfg.delta, cfg.iterations)
    weights, backtracks, gain, kl = line_search(evaluate, old, step, cfg.delta, cfg.shrink,
                                                cfg.tries)
    policy.assign(weights)
    accepted = weights is not old
    policy.updates += accepted
    predicted = float(gradient @ step) * cfg.shrink**backtracks if accepted else 0.0
    return {"surrogate": gain, "predicted": predicted, "kl": kl, "backtracks": backtracks,
            "accepted": float(accepted), "cg_residual": residual}
