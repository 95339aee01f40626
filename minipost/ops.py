"""Pure tensor maths that two or more methods share: no model, no task, no state.

Axes    B sequences, T predicted tokens, V vocabulary, N chosen tokens of a batch (mask.sum()).
Align   tokens is (B, T+1); column t of a (B, T) tensor describes the token that it predicts.
Mask    True where the policy chose the token (EOS included), False on prompt and padding.
Sums    Losses are sums over chosen tokens divided by a `count` that the caller states, the number
        of chosen tokens in the whole gradient step.  However the step is cut into micro-batches
        or ranks, the pieces add up to the same gradient.

Every primitive with a derivative has its closed form beside it, named `..._grad`.
"""

import functools
import inspect
import math

import torch

from minipost.errors import MinipostError


def shapes(**wanted):
    """Check the shapes of a loss's tensors: @shapes(logp="B T", adv="B", mask="B T").

    A letter is one size wherever it stands.  Without this a (B, T) tensor in place of a (B,) one
    would broadcast and silently give a wrong number.  MinipostError names the argument.
    """
    def hold(loss):
        bind = inspect.signature(loss).bind

        @functools.wraps(loss)
        def held(*args, **options):
            given, sizes = bind(*args, **options).arguments, {}
            for name, letters in wanted.items():
                axes, found = letters.split(), tuple(given[name].shape)
                fits = len(axes) == len(found) and all(
                    sizes.setdefault(axis, size) == size for axis, size in zip(axes, found))
                if not fits:
                    known = ", ".join(f"{axis} = {sizes[axis]}" for axis in axes if axis in sizes)
                    raise MinipostError(
                        f"{loss.__module__}.{loss.__name__}: {name} has shape {found}; expected "
                        f"({', '.join(axes)}){' with ' + known if known else ''}")
            return loss(*args, **options)

        held.axes = wanted  # type: ignore[attr-defined]
        return held

    return hold


def masked_sum(x, mask):
    """Sum of x over chosen tokens; other entries, NaN included, are ignored.  -> ()"""
    return x.where(mask, 0.0).sum()


def pick(logp_all, ids):
    """Log-prob of each chosen id.  (N, V), (N,) -> (N,)"""
    return logp_all.gather(-1, ids[:, None])[:, 0]


def pick_grad(logp_all, ids):
    """d pick / d logits = onehot(id) - p, where logp_all = log_softmax(logits).  -> (N, V)"""
    return torch.nn.functional.one_hot(ids, logp_all.shape[-1]).to(logp_all) - logp_all.exp()


def spread(x, mask):
    """Put one value per chosen token into its place, zero elsewhere.  (N,), (B, T) -> (B, T)"""
    return torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_scatter(mask, x)


def row_sums(x, mask):
    """Sum over each row's chosen tokens.  (B, T) -> (B,)"""
    return x.where(mask, 0.0).sum(1)


def row_means(x, mask):
    """Mean over each row's chosen tokens.  (B, T) -> (B,)"""
    return row_sums(x, mask) / mask.sum(1)


def group_centred(reward, group_size):
    """Reward less the mean of its group; exactly 0 when all siblings tie.  (P*G,) -> (P, G)

    NaN is no reward: its row has 0, and the mean is that of its siblings.
    """
    r = reward.view(-1, group_size)
    none = r.isnan()
    gap = r - (r.nanmean(1, keepdim=True) if none.any() else r.mean(1, keepdim=True))
    low = r.where(~none, math.inf).amin(1, keepdim=True)
    high = r.where(~none, -math.inf).amax(1, keepdim=True)
    return gap.where(~none & (low < high), 0.0)  # the mean of equals may round off


def leave_one_out(reward, group_size):
    """Reward less the mean of its siblings; exactly 0 when all tie (RLOO).  (P*G,) -> (P*G,)

    NaN is no reward: its row has 0, and no sibling counts it.
    """
    n = (~reward.view(-1, group_size).isnan()).sum(1, keepdim=True).to(reward)   # (P, 1)
    gap = group_centred(reward, group_size) * (n / (n - 1).clamp(min=1))
    return gap.flatten()


def group_normalised(reward, group_size):
    """`group_centred` over the group's standard deviation (GRPO, sec. 4.1.2).  (P*G,) -> (P*G,)"""
    gap = group_centred(reward, group_size)                                      # (P, G)
    others = (~reward.view(-1, group_size).isnan()).sum(1, keepdim=True) - 1     # (P, 1)
    deviation = (gap.square().sum(1, keepdim=True) / others.clamp(min=1)).sqrt()  # (P, 1)
    return (gap / (deviation + 1e-4)).flatten()


def entropy(logp_all):
    """Entropy of each distribution, in nats.  (N, V) -> (N,)"""
    return -(logp_all.exp() * logp_all).sum(-1)


def kl_exact(logp_all, logq_all):
    """KL(p || q) of each pair of distributions, over the whole vocabulary.  (N, V) twice -> (N,)"""
    return (logp_all.exp() * (logp_all - logq_all)).sum(-1)


def kl_exact_grad(logp_all, logq_all):
    """d KL(p || q) / d logits of p = p (log p/q - KL).  -> (N, V)"""
    gap = logp_all - logq_all
    p = logp_all.exp()
    return p * (gap - (p * gap).sum(-1, keepdim=True))


def kl_k3(logp, logp_ref):
    """Estimate of KL(pi || ref) per token, for tokens drawn from pi (joschu.net/blog/kl-approx).

        l = log pi/ref,   k3 = e^-l - 1 + l >= 0,   E_pi[k3] = KL(pi || ref)

    As a loss it does not descend that KL: on tokens drawn from pi the mean of its gradient is
    the gradient of KL(ref || pi).
    """
    gap = logp - logp_ref
    return torch.expm1(-gap) + gap


def kl_k3_grad(logp, logp_ref):
    """d k3 / d logp = 1 - ref/pi."""
    return -torch.expm1(logp_ref - logp)


@shapes(logp="B T", adv="B", mask="B T")
def policy_gradient(logp, adv, mask, *, count):
    """REINFORCE's -(1/N) sum_i sum_t A_i logp_t; count = N  ->  scalar loss, metrics that add up"""
    value = -masked_sum(adv[:, None] * logp, mask) / count
    return value, {"loss": value.detach()}


def policy_gradient_grad(logp, adv, mask, *, count):
    """The derivative of `policy_gradient`: {"logp": (B, T)}, -A_i / N on chosen tokens."""
    return {"logp": -adv[:, None] * mask / count}


def clipped_surrogate(logp, logp_old, adv, low, high):
    """PPO's pessimistic gain per token, to be maximised (arxiv.org/abs/1707.06347, eq. 7).

        rho = pi/old,   S = min(rho A, clip(rho, 1 - low, 1 + high) A)
    """
    ratio = (logp - logp_old).exp()
    return torch.minimum(ratio * adv, ratio.clamp(1 - low, 1 + high) * adv)


def is_clipped(logp, logp_old, adv, low, high):
    """Where the clip is active: (A > 0 and rho > 1 + high) or (A < 0 and rho < 1 - low).  Bool."""
    ratio = (logp - logp_old).exp()
    return ((adv > 0) & (ratio > 1 + high)) | ((adv < 0) & (ratio < 1 - low))


def clipped_surrogate_grad(logp, logp_old, adv, low, high):
    """dS / d logp = rho A where the clip is not active, 0 where it is."""
    gain = (logp - logp_old).exp() * adv
    return gain.where(~is_clipped(logp, logp_old, adv, low, high), 0.0)


def truncated_surrogate(logp, logp_old, adv, cap):
    """A gain per token, to be maximised, whose slope is weighted by min(rho, C): no ratio over C.

        S = rho A up to rho = C,   C (1 + log rho/C) A beyond

    The weight is that of truncated importance sampling (IMPALA, arxiv.org/abs/1802.01561, sec. 4).
    """
    gap, most = logp - logp_old, math.log(cap)
    return (gap.clamp(max=most).exp() + cap * (gap - most).clamp(min=0.0)) * adv


def truncated_surrogate_grad(logp, logp_old, adv, cap):
    """dS / d logp = min(rho, C) A."""
    return (logp - logp_old).clamp(max=math.log(cap)).exp() * adv


def masked_surrogate(logp, logp_old, adv, cap):
    """A gain, to be maximised, whose slope is weighted by rho within 1/C .. C and is 0 elsewhere.

        S = clip(rho, 1/C, C) A

    The weight is that of masked importance sampling (IcePop, arxiv.org/abs/2510.18855, sec. 2.3).
    Unlike PPO's clip it drops a token on both sides, whatever the sign of A.
    """
    return (logp - logp_old).clamp(-math.log(cap), math.log(cap)).exp() * adv


def masked_surrogate_grad(logp, logp_old, adv, cap):
    """dS / d logp = rho A within the bounds, 0 elsewhere."""
    gap = logp - logp_old
    return gap.exp().where(gap.abs() <= math.log(cap), 0.0) * adv


def at_last(x, mask):
    """Put one value per row on the row's last chosen token, zero elsewhere.  (B,), (B, T) -> (B, T)

    The last chosen token is the EOS of a finished response, whatever padding follows it.
    """
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return x[:, None].where(last, 0.0)


def gae(reward, value, mask, gamma, lam):
    """Generalised advantage estimation (arxiv.org/abs/1506.02438, eq. 16), along each response.

        delta_t = r_t + gamma V_(t+1) - V_t,    A_t = delta_t + gamma lam A_(t+1)

    V_t is the value of the state in which token t is chosen; after the last chosen token V and A
    are 0.  lam = 1 gives return less value, lam = 0 the one-step error.  (B, T) four times.  Of
    tokens that the policy did not choose, such as a tool's, t and t+1 go past.
    """
    adv = torch.zeros_like(value)
    next_adv = next_value = value.new_zeros(len(value))
    for t in reversed(range(value.shape[1])):
        chosen = mask[:, t]
        delta = reward[:, t] + gamma * next_value - value[:, t]
        next_adv = (delta + gamma * lam * next_adv).where(chosen, next_adv)
        next_value = value[:, t].where(chosen, next_value)
        adv[:, t] = next_adv.where(chosen, 0.0)
    return adv


def whiten(x, mask):
    """Shift and scale x to mean 0 and variance 1 over chosen tokens; zero elsewhere.  (B, T)

    It is exactly zero everywhere when all are equal, although their mean may round off.
    """
    count, some = mask.sum(), x[mask]
    gap = (x - masked_sum(x, mask) / count).where(mask & (some != some[:1]).any(), 0.0)
    return gap / (masked_sum(gap.square(), mask) / count + 1e-8).sqrt()


def explained_variance(value, ret, mask):
    """1 - Var(R - V) / Var(R) over chosen tokens; 0 where the returns do not vary.  -> float"""
    value, ret = value[mask], ret[mask]
    whole = ret.var(correction=0)
    return float(1 - (ret - value).var(correction=0) / whole) if whole > 1e-8 else 0.0
