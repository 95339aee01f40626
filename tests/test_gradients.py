"""Every loss three ways: the gradient derived by hand, autograd, and differences in float64.

The losses are found, not listed: a file in minipost/methods/ needs a `loss` and beside it a
`loss_grad` with the same arguments, or has to be named here as made of other methods.  Arguments
are drawn by their names, which mean the same everywhere; a new name is refused with a sentence.

Where a loss has a kink it has no derivative, and a difference across it means nothing.  So no draw
comes nearer than `CLEAR` to one of these, the only ones there are:

    a ratio at an edge of its clip, or at its cap  grpo, dr_grpo, dapo, cispo, entropy,
                                                   vineppo, reinforce_pp, ppo, process_grpo
    the ratio of an answer there                   gspo, grpo
    a value at an edge of its clip, or where the held value is as far from the return    ppo
    a mean log-prob at which an answer counts as certain (-1e-6)                         orpo
"""

import importlib
import inspect
import math
import pkgutil
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from minipost import methods
from minipost.methods import grpo
from minipost.ops import entropy, kl_exact, pick, row_means, row_sums, spread
from minipost.rollout import Sequences, distribution

CLEAR = 0.01    # distance that is kept from every kink
STEP = 1e-4     # of the differences, whose error is of the order STEP^4
RELATIVE = 1e-8
ROUNDING = 4 * torch.finfo(torch.float64).eps / STEP  # of a difference of terms of size one

PIPELINES = {  # have no loss of their own: whose they use
    "rlaif": ("sft", "reward", "ppo", "dpo"), "r1_zero": ("grpo",), "tool_use": ("sft", "grpo"),
    "r1": ("sft", "grpo", "reward"), "iterative_grpo": ("sft", "reward", "grpo"),
    "math_shepherd": ("prm",), "gdpo": ("grpo",), "iterated_rlhf": ("sft", "reward", "ppo"),
    "direct_rlaif": ("sft", "grpo"), "satori": ("sft", "grpo"), "sdpo": ("distill",),
    "ttrl": ("grpo",), "intuitor": ("grpo",), "es": ()}  # the last has none
LEARNT = ("logp", "logp_w", "logp_l", "kl", "entropy", "value", "score", "score_w", "score_l",
          "scores", "logits")
SIDES = ("w", "l")   # of a pair: the chosen answer, the rejected one
MODULES = {m.name: importlib.import_module(f"minipost.methods.{m.name}")
           for m in pkgutil.iter_modules(methods.__path__)}
LOSSES = {name: module for name, module in MODULES.items() if name not in PIPELINES}

positive = st.floats(0.1, 2.0)
OPTIONS = {
    "labels": st.integers(1, 9), "rationales": st.integers(1, 9),
    "count": st.integers(1, 9), "rows": st.integers(1, 9), "longest": st.integers(1, 9),
    "clip": st.floats(0.1, 0.4), "clip_low": st.floats(0.1, 0.4), "clip_high": st.floats(0.1, 0.4),
    "value_clip": positive, "value_weight": positive, "entropy_weight": positive,
    "beta": positive, "alpha": positive, "tau": positive, "tau_pos": positive, "tau_neg": positive,
    "gamma": positive, "lam": positive,
    "margin": positive, "center": positive, "good_weight": positive, "bad_weight": positive,
    "z0": st.floats(0.0, 2.0), "label_smoothing": st.floats(0.0, 0.4), "robust": st.booleans(),
    "group_size": st.integers(1, 3), "mix": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    "mean": st.sampled_from(["tokens", "answers"]), "cap": st.floats(1.1, 2.5),
    "correct": st.sampled_from(get_args(grpo.Correct)), "eta": positive,
}


def axes_of(name):
    """{argument: axes} that a method's loss is held to."""
    return LOSSES[name].loss.axes


def drawn(times):
    """Run a test with `data` to draw from, so many times, however often a draw is given up."""
    calm = settings(max_examples=times, deadline=None, suppress_health_check=[
        HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large])
    return lambda test: calm(given(data=st.data())(test))


# ---- drawing arguments by their names

def numbers(draw, shape, low, high):
    """A float64 tensor of this shape whose entries hypothesis chose."""
    size = math.prod(shape)
    values = draw(st.lists(st.floats(low, high), min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float64).view(shape)


def stretch(draw, rows, width):
    """A mask with one stretch of 1 to `width` tokens in every row.  (rows, width)"""
    column, mask = torch.arange(width), torch.zeros(rows, width, dtype=torch.bool)
    for row in range(rows):
        start = draw(st.integers(0, width - 1))
        mask[row] = (column >= start) & (column < start + draw(st.integers(1, width - start)))
    return mask


def clear_of(x, *kinks):
    """x, where no entry is near a kink; other draws are given up."""
    for kink in kinks:
        assume(bool(((x - kink).abs() > CLEAR).all()))
    return x


@st.composite
def arguments(draw, name):
    """(tensors, options) for the loss of a method."""
    tensors, options = {}, {}
    for p in inspect.signature(LOSSES[name].loss).parameters.values():
        assert p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL, f"{name}: {p}"
        if p.kind is p.KEYWORD_ONLY:
            assert p.name in OPTIONS, f"{name}: say in OPTIONS how to draw {p.name}"
            options[p.name] = draw(OPTIONS[p.name])
        else:
            tensors[p.name] = None
    rows, width = draw(st.integers(1, 3)) * 2 * options.get("group_size",
                                                            1), draw(st.integers(1, 4))
    masked = "mask" in tensors
    shape = (rows, width) if masked else (rows,)            # of what a method may have either way
    wide = {side: (rows, draw(st.integers(1, 4))) for side in SIDES}
    mask = stretch(draw, rows, width)
    for key in tensors:
        what, _, side = key.partition("_")
        if key == "mask":
            x = mask
        elif key in ("mask_w", "mask_l"):
            x = stretch(draw, *wide[side])
        # the first token of a row, and some others
        elif key == "starts":
            x = mask & ((mask.cumsum(1) == 1) | (numbers(draw, shape, 0, 1) < 0.5))
        elif key == "kept":
            x = mask & (numbers(draw, shape, 0, 1) < 0.7)
        elif key == "good":
            x = numbers(draw, (rows,), 0, 1) < 0.5
        elif key == "told":
            x = numbers(draw, (rows,), 0, 1) < 0.5
        elif key == "given":
            x = mask & (numbers(draw, shape, 0, 1) < 0.5)
        elif key == "first":                                # of each group at least one
            x = numbers(draw, (rows,), 0, 1) < 0.5
            x[:: options["group_size"]] = True
        elif key in ("logp_ref", "logp_held", "logp_old"):
            x = numbers(draw, shape, -6, -0.05)
        elif side in SIDES and what in ("logp", "ref"):     # log-probs of a pair
            x = numbers(draw, wide[side], -6, -0.05)
        elif key == "logp":
            x = numbers(draw, shape, -6, -0.05)
            if "logp_old" in tensors:                       # a ratio on either side of the clip
                x = numbers(draw, shape, -1, 1)
        elif key in ("kl", "entropy"):
            x = numbers(draw, shape, 0, 3)
        elif key in ("value", "value_old", "value_held", "ret"):
            x = numbers(draw, shape, -2, 2)
        elif key == "adv":
            x = numbers(draw, shape if axes_of(name)["adv"] == "B T" else (rows,), -2, 2)
        elif key in ("reward", "weight"):
            x = numbers(draw, (rows,), 0, 1)
        elif key in ("score", "score_w", "score_l"):
            x = numbers(draw, shape, -4, 4)
        elif key == "right":
            x = numbers(draw, shape, 0, 1)
        elif key == "gap":
            x = numbers(draw, (rows,), -3, 3)
        elif key == "weights":
            x = numbers(draw, tensors["scores"].shape, 0, 4)
        elif key in ("scores", "logits"):
            x = numbers(draw, (rows, draw(st.integers(2, 4))), -3, 3)
        elif key == "logq_all":
            x = numbers(draw, tensors["logits"].shape, -3, 3).log_softmax(-1)
            if options["mix"] < 1 and draw(st.booleans()):  # a teacher that is certain
                x = torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1]).to(x).log()
        else:
            raise AssertionError(f"{name}: say in `arguments` how to draw {key}")
        tensors[key] = x
    keep_clear(tensors, options)
    return tensors, options


def keep_clear(tensors, options):
    """Make a drawn log-ratio into log-probs, and give up what is near a kink."""
    if "logp_old" in tensors:
        edges = [1 - options[k] for k in ("clip", "clip_low") if k in options] + \
            [1 + options[k] for k in ("clip", "clip_high") if k in options] + \
            [x for k in ("cap",) if k in options for x in (options[k], 1 / options[k])]
        clear_of(tensors["logp"].exp(), *edges)
        for whole in (row_means, row_sums):
            clear_of(whole(tensors["logp"], tensors["mask"]).exp(), *edges)
        tensors["logp"] = tensors["logp_old"] + tensors["logp"]
    if "value_clip" in options:
        moved, clip = tensors["value"] - tensors["value_old"], options["value_clip"]
        clear_of(moved, clip, -clip)
        held = tensors["value_old"] + moved.clamp(-clip, clip)
        outside = moved.abs() > clip
        clear_of((tensors["value"] + held - 2 * tensors["ret"])[outside], 0.0)


# ---- the three ways

def differences(f, x):
    """The derivative of a scalar function by five-point central differences."""
    found = torch.zeros_like(x)
    for k in range(x.numel()):
        step = torch.zeros_like(x).view(-1)
        step[k] = STEP
        step = step.view_as(x)
        near, far = f(x + step) - f(x - step), f(x + 2 * step) - f(x - 2 * step)
        found.view(-1)[k] = (8 * near - far) / (12 * STEP)
    return found


def mask_of(key, tensors):
    """The mask of an argument, all true where it has none."""
    return tensors.get(f"mask_{key.rpartition('_')[2]}", tensors.get(
        "mask", torch.ones_like(tensors[key]).bool()))


def hold(module, tensors, options):
    """The hand gradient against the other two; (loss, gradient)."""
    hand, value = module.loss_grad(**tensors, **options), module.loss(**tensors, **options)[0]
    assert sorted(hand) == sorted(key for key in tensors if key in LEARNT)
    scale = max(float(g.abs().max()) for g in hand.values())
    for key, g in hand.items():
        def loss_of(x):
            return module.loss(**{**tensors, key: x}, **options)[0]

        leaf = tensors[key].clone().requires_grad_()
        auto, = torch.autograd.grad(loss_of(leaf), leaf)
        slack = ROUNDING * (1 + float(value.abs()))         # what float64 can tell of such a loss
        assert (g - auto).abs().max() <= 1e-12 * scale + 1e-15, f"{key}: by hand and by autograd"
        assert (g - differences(loss_of, tensors[key])).abs().max() <= RELATIVE * scale + slack, \
            f"{key}: by hand and by differences"
        assert not g[~mask_of(key, tensors)].any(), f"{key}: zero off the mask"
    return value, hand


@pytest.mark.parametrize("name", LOSSES)
@drawn(20)
def test_three_ways(name, data):
    hold(LOSSES[name], *data.draw(arguments(name)))


@pytest.mark.parametrize("name", LOSSES)
@drawn(5)
def test_what_stands_off_the_mask_has_no_part(name, data):
    """Whatever stands there, NaN included, neither loss nor gradient knows of it."""
    module = LOSSES[name]
    tensors, options = data.draw(arguments(name))
    value, hand = module.loss(**tensors, **options)[0], module.loss_grad(**tensors, **options)
    for key, x in tensors.items():
        mask = mask_of(key, tensors)
        if x.dtype == torch.float64 and x.shape == mask.shape:
            spoilt = {**tensors, key: x.where(mask, float("nan"))}
            assert torch.equal(module.loss(**spoilt, **options)[0], value), key
            again = module.loss_grad(**{**tensors, key: x.where(mask, 9.0)}, **options)
            assert all(torch.equal(again[k], hand[k]) for k in hand), key


# ---- what all losses have in common

def padded(tensors, left, right, value=9.0):
    """The tensors with columns off the mask on either side; those that have no mask as they are."""
    masked = any(key.startswith("mask") for key in tensors)
    return {key: torch.nn.functional.pad(x, (left, right),
                                         value=0 if x.dtype == torch.bool else value)
            if masked and x.dim() == 2 else x for key, x in tensors.items()}


@pytest.mark.parametrize("name", LOSSES)
@drawn(10)
def test_padding_order_and_cuts_change_nothing(name, data):
    """Of loss and gradient: columns of padding, another order of the rows, a step row by row."""
    module = LOSSES[name]
    tensors, options = data.draw(arguments(name))
    (value, stats), hand = module.loss(**tensors, **options), module.loss_grad(**tensors, **options)

    def same(found, wanted, rtol=1e-10):
        assert torch.allclose(found, wanted.to(found), rtol=rtol, atol=1e-12)

    left, right = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    wide = padded(tensors, left, right)
    same(module.loss(**wide, **options)[0], value)
    masks = {key: x for key, x in tensors.items() if key.startswith("mask")}
    expected = padded({**masks, **hand}, left, right, 0.0)
    for key, g in module.loss_grad(**wide, **options).items():
        same(g, expected[key])

    # rows of one comparison
    together = 2 * options["group_size"] if "group_size" in options else 1
    rows = len(next(iter(tensors.values())))
    order = data.draw(st.permutations(range(rows // together)))
    order = torch.arange(rows).view(-1, together)[list(order)]
    for pieces in ([order.flatten()], order):               # all at once, and each by itself
        found = []
        for part in pieces:
            some = {key: x[part] for key, x in tensors.items()}
            found.append(module.loss(**some, **options))
            for key, g in module.loss_grad(**some, **options).items():
                same(g, hand[key][part])
        same(sum(each for each, _ in found), value)
        for key in stats:
            same(sum(more[key] for _, more in found), stats[key], 1e-5)     # shares are float32


# Losses of log-probs; the others are about the numbers that a head says.
OF_LOGITS = [name for name, module in LOSSES.items()
             if {"logp", "logits", "logp_w"} & set(inspect.signature(module.loss).parameters)]


class Table:
    """In place of a model: logits that are given.  (B, T, V)"""

    def __init__(self, logits):
        self.logits = logits

    def hidden_at(self, inputs, where):
        return self.logits[where]

    def head(self, hidden):
        return hidden


def logits_of(tensors, draw, words=4):
    """{argument: logits from which it is to follow}, and a token at each place."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    shapes = {key: (*x.shape, words) for key, x in tensors.items()
              if key in ("logp", "logp_w", "logp_l")}
    shapes |= {key: x.shape for key, x in tensors.items() if key == "logits"}
    found = {key: torch.randn(shape, generator=generator, dtype=torch.float64)
             for key, shape in shapes.items()}
    return found, {key: torch.randint(words, (shape[0], shape[1] + 1), generator=generator)
                   for key, shape in shapes.items()}


def follow(tensors, logits, tokens):
    """The tensors, with what the policy says worked out from logits as a training step does it."""
    found = dict(tensors)
    for key, z in logits.items():
        if key == "logits":
            found[key] = z
            continue
        mask = mask_of(key, tensors)
        seqs = Sequences(tokens[key], mask)
        logp_all = distribution(Table(z), seqs, 0.7)
        found[key] = spread(pick(logp_all, seqs.targets[mask]), mask)
        if "kl" in found:
            other = torch.linspace(-1, 1, z.shape[-1]).to(z).log_softmax(0).expand_as(logp_all)
            found["kl"] = spread(kl_exact(logp_all, other), mask)
        if "entropy" in found:
            found["entropy"] = spread(entropy(logp_all), mask)
    return found


@pytest.mark.parametrize("name", OF_LOGITS)
@drawn(10)
def test_logits_count_up_to_a_constant_and_on_the_mask_alone(name, data):
    """So the gradient by them adds up to 0 over the vocabulary, and is exactly 0 off the mask."""
    module = LOSSES[name]
    tensors, options = data.draw(arguments(name))
    logits, tokens = logits_of(tensors, data.draw)

    def value(z):
        return module.loss(**follow(tensors, z, tokens), **options)[0]

    leaves = {key: z.requires_grad_() for key, z in logits.items()}
    before = value(leaves)
    for (key, z), g in zip(leaves.items(), torch.autograd.grad(before, list(leaves.values()))):
        assert g.sum(-1).abs().max() <= 1e-12 * (1 + g.abs().max())
        if key != "logits":
            assert not g[~mask_of(key, tensors)].any()
    moved = {key: z + 9 * torch.sin(torch.arange(z[..., :1].numel())).view_as(z[..., :1])
             for key, z in leaves.items()}
    assert torch.allclose(value(moved), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("gap", [-50.0, 50.0])
@drawn(5)
def test_logits_of_ten_thousand_and_ratios_of_e_to_the_fifty_stay_finite(name, gap, data):
    """In float32.  Nothing is cut off but by the clips, and for ORPO where an answer is certain."""
    module = LOSSES[name]
    tensors, options = data.draw(arguments(name))
    logits, tokens = logits_of(tensors, data.draw)
    tensors = {key: x.float() if x.is_floating_point() else x for key, x in tensors.items()}
    leaves = {key: (1e4 * z.sign() + z).float().requires_grad_() for key, z in logits.items()}
    found = follow(tensors, leaves, tokens)
    for key in tensors:
        if key in ("logp_old", "logp_ref", "logp_held", "ref_w", "ref_l"):
            sign = -1 if key == "ref_l" else 1
            said = f"logp_{key[-1]}" if key in ("ref_w", "ref_l") else "logp"
            found[key] = found[said].detach() + sign * gap
    value = module.loss(**found, **options)[0]
    assert value.isfinite()
    for g in (*torch.autograd.grad(value, list(leaves.values())),
              *module.loss_grad(**{k: x.detach() for k, x in found.items()}, **options).values()):
        assert g.isfinite().all()


def test_every_method_has_a_loss_with_a_gradient_by_hand():
    """Its own or one of ops, or it is made of methods that have one; no other function is a
    loss."""
    for name, module in MODULES.items():
        mine = [key for key, f in vars(module).items() if "loss" in key
                and getattr(f, "__module__", None) in (module.__name__, "minipost.ops")]
        if name in PIPELINES:
            assert not mine and set(PIPELINES[name]) <= set(LOSSES), name
        else:
            assert sorted(mine) == ["loss", "loss_grad"], f"{name}: a loss needs its loss_grad"
            same = [inspect.signature(f).parameters.keys() for f in (module.loss, module.loss_grad)]
            assert same[0] == same[1], f"{name}: loss and loss_grad take the same arguments"


class Wrong:
    """A loss whose hand gradient has the wrong sign, or which has none."""

    @staticmethod
    def loss(logp, mask, *, count):
        return -logp.where(mask, 0.0).sum() / count, {}

    @staticmethod
    def loss_grad(logp, mask, *, count):
        return {"logp": mask.to(logp) / count}


def test_a_wrong_gradient_and_a_missing_one_are_seen():
    """The control: both would fail the tests above."""
    tensors = {"logp": -torch.ones(2, 3, dtype=torch.float64),
               "mask": torch.ones(2, 3, dtype=torch.bool)}
    with pytest.raises(AssertionError, match="by autograd"):
        hold(Wrong, tensors, {"count": 3})
    with pytest.raises(AssertionError):
        hold(type("Partial", (Wrong,), {"loss_grad": staticmethod(lambda **_: {})}), tensors,
             {"count": 3})
