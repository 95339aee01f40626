"""What a function does otherwise than its oracle, in a sentence, by measuring.

Nothing here knows the answers.  A function and its oracle get the same drawn arguments.  Where
their results, or the gradients of their results, differ, these are tried in turn:

    factor    is the one a multiple of the other: a sign, a number, a ratio of two sizes?
    region    are they the same but in one part of the places, such as off the mask?
    change    is it what the oracle gives for other arguments: one at zero, two exchanged?
    rest      the place in which they differ most, and the arguments that are not used
"""

import inspect
import itertools
import math
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch

CLOSE = 1e-9    # up to this, relative to the largest entry, two float64 results are the same
FAR = 1e9       # in place of infinity


@dataclass(frozen=True)
class Case:
    """One call.

    given    the arguments by name
    regions  {where: bool tensor}, parts in which a result may be wrong by itself
    sizes    {what: a number, or one per row as (B, 1)}, what a result may be divided by
    """

    given: dict
    regions: dict = field(default_factory=dict)
    sizes: dict = field(default_factory=dict)


class Wrong(Exception):
    """A result that cannot be compared; the text is a whole sentence."""


def close(a, b):
    """Whether two tensors are the same but for rounding."""
    if a.shape != b.shape or not bool(b.isfinite().all()):
        return False
    scale = float(b.abs().max()) if b.numel() else 0.0
    return bool(((a - b).abs() <= CLOSE * (1 + scale)).all())


def read(f, given, returns, learnt):
    """{name: tensor} of what a function returns, and of its gradient by each name in `learnt`."""
    leaves = {name: x.clone().requires_grad_() if name in learnt else x
              for name, x in given.items()}
    found = f(**leaves)
    if found is None:
        raise Wrong("Your function returns None; expected " + " and ".join(returns) + ".")
    if isinstance(found, dict):
        missing = [name for name in returns if name not in found]
        if missing:
            raise Wrong(f"Your dict has no {missing[0]!r}; expected {', '.join(returns)}.")
        values = [found[name] for name in returns]
    elif len(returns) == 1:                 # a loss of ours comes with its metrics
        values = [found[0] if isinstance(found, tuple) else found]
    elif isinstance(found, tuple) and len(found) == len(returns):
        values = list(found)
    else:
        raise Wrong(f"Your function should return {len(returns)} values: {', '.join(returns)}.")
    named = {name: torch.as_tensor(x, dtype=torch.float64) for name, x in zip(returns, values)}
    if learnt:
        total = named[returns[0]].sum()
        if not total.requires_grad:
            raise Wrong(f"{returns[0].capitalize()} has no gradient: it does not depend on "
                        f"{' or '.join(f'`{name}`' for name in learnt)}, or was detached.")
        slopes = torch.autograd.grad(total, [leaves[name] for name in learnt], allow_unused=True)
        named |= {f"the gradient by `{name}`": torch.zeros_like(leaves[name]) if g is None else g
                  for name, g in zip(learnt, slopes)}
    return {name: x.detach() for name, x in named.items()}


def difference(theirs, oracle, cases, returns, learnt=()):
    """A sentence on how two functions differ, "" where they do not."""
    wanted = [read(oracle, case.given, returns, learnt) for case in cases]
    found = []
    for case, right in zip(cases, wanted):
        try:
            found.append(read(theirs, case.given, returns, learnt))
        except Wrong as error:
            return str(error)
        except NotImplementedError as error:
            return f"Nothing to check yet: {error}."
        except Exception as error:
            return stopped(error, theirs)
        for name, x in found[-1].items():
            if x.shape != right[name].shape:
                return (f"{name.capitalize()} has shape {tuple(x.shape)}; expected "
                        f"{tuple(right[name].shape)}.")
            if not x.isfinite().all():
                return f"{name.capitalize()} is not a finite number: {float(x.flatten()[0]):g}."
    wrong = [name for name in wanted[0]
             if not all(close(a[name], b[name]) for a, b in zip(found, wanted))]
    if not wrong:
        return ""
    slopes = [name for name in wrong if name not in returns]
    key = (slopes or wrong)[0]
    pairs = [(a[key], b[key]) for a, b in zip(found, wanted)]
    said = (factor(key, pairs, cases) or region(key, pairs, cases)
            or change(key, pairs, oracle, cases, returns, learnt) or rest(key, pairs))
    if learnt and not set(wrong) & set(returns):
        said += " The number itself is right, so some part of it was detached or has another slope."
    elif learnt and not slopes:
        said += " Its gradient is right, so this changes nothing that is learnt."
    right_ones = [name for name in wanted[0] if name not in wrong and name in (
        returns if not learnt else [n for n in wanted[0] if n not in returns])]
    if right_ones:
        said += f" {' and '.join(right_ones).capitalize()} is right."
    return said + unused(theirs, oracle, cases, returns)


def stopped(error, f):
    """A sentence on an error inside a function."""
    file = inspect.getsourcefile(f)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if file and frame.filename == file]
    where = f" in line {lines[-1]} of {Path(file).name}" if file and lines else ""
    return f"Your function stopped{where}: {type(error).__name__}: {error}."


def spoilt(theirs, cases, returns):
    """A sentence where a NaN off the mask reaches the result, else ""."""
    case = cases[0]
    mask = case.given.get("mask", case.given.get("mask_w"))
    if mask is None:
        return ""
    given = {name: x.where(mask, math.nan) if isinstance(x, torch.Tensor)
             and x.is_floating_point() and x.shape == mask.shape else x
             for name, x in case.given.items()}
    if all(x.isfinite().all() for x in read(theirs, given, returns, ()).values()):
        return ""
    return ("A remark: where padding holds a NaN your result is NaN, because NaN times 0 is NaN; "
            "the real one uses `where`, which looks at no place off the mask.")


# ---- the ways to differ

def factor(key, pairs, cases):
    """One is a multiple of the other, everywhere and in all cases."""
    number = next((float((a * b).sum() / (b * b).sum()) for a, b in pairs if b.any()), 0.0)
    if number == 0.0 and not any(a.any() for a, _ in pairs):
        return f"{key.capitalize()} is zero everywhere; the oracle's is not."
    if number and all(close(a, number * b) for a, b in pairs):
        if math.isclose(number, -1):
            return f"{key.capitalize()} has the wrong sign: it is -1 times the oracle's, in all " \
                   f"{len(pairs)} cases."
        return f"{key.capitalize()} is {number:.4g} times the oracle's, in all {len(pairs)} cases."
    sizes = [{"": 1.0, **case.sizes, **{f"{a} times {b}": x * y for (a, x), (b, y) in
                                        itertools.combinations(case.sizes.items(), 2)}}
             for case in cases]
    for above, below in itertools.permutations(sizes[0], 2):
        for sign in (1, -1):
            if all(close(a, sign * b * size[above] / size[below])
                   for (a, b), size in zip(pairs, sizes)):
                turned = ", and has the wrong sign" if sign < 0 else ""
                by = f"divides by {below}" if below else f"does not divide by {above}"
                instead = f" where the equation divides by {above}" if above and below else \
                    " and the equation does not" if below else " as the equation does"
                return f"{key.capitalize()} {by}{instead}{turned}: so measured in all " \
                       f"{len(pairs)} cases."
    return ""


def region(key, pairs, cases):
    """They are the same but in one part of the places."""
    found = []
    for name in cases[0].regions:
        inside = [case.regions[name] for case in cases]
        if any(where.shape != a.shape for where, (a, _) in zip(inside, pairs)):
            continue
        places, outside = sum(int(where.sum()) for where in inside), \
            sum(int((~where).sum()) for where in inside)
        if places and outside and all(close(a.where(~where, 0.0), b.where(~where, 0.0))
                                      for where, (a, b) in zip(inside, pairs)):
            found.append((places, name))
    if not found:
        return ""
    name = min(found)[1]
    gap, mine, right = max((float(d), float(x), float(y)) for case, (a, b) in zip(cases, pairs)
                           for d, x, y in zip((a - b).abs()[case.regions[name]],
                                              a[case.regions[name]], b[case.regions[name]]))
    return f"{key.capitalize()} is wrong only {name}: there it is {mine:.4g} where the oracle " \
           f"has {right:.4g}."


def changes(given):
    """Other arguments: (in words, a function of all arguments)."""
    real = [name for name, x in given.items()
            if isinstance(x, torch.Tensor) and x.is_floating_point()]
    masks = [name for name, x in given.items()
             if isinstance(x, torch.Tensor) and x.dtype == torch.bool]
    if any(name.endswith("_w") for name in given):
        yield "if the preferred answer and the other one changed places", exchanged
    if any(name.startswith("mask") for name in masks):
        yield "if every sum over an answer's tokens were a mean", averaged
    for name in masks:
        yield f"if `{name}` were true everywhere", put(name, torch.ones_like)
    for name, x in given.items():
        if isinstance(x, int | float):
            for value, word in ((0, "0"), (1, "1"), (FAR, "infinite")):
                yield f"if `{name}` were {word}", put(name, lambda _, value=value: value)
            yield f"if `{name}` had the other sign", put(name, lambda x: -x)
            if isinstance(x, int) and real:
                yield f"if `{name}` were the number of all rows", \
                    lambda g, name=name, first=real[0]: {**g, name: len(g[first])}
    for name in real:
        yield f"if `{name}` were 0", put(name, torch.zeros_like)
        yield f"if `{name}` had the other sign", put(name, torch.neg)
    for a, b in itertools.permutations(real, 2):
        if given[a].shape == given[b].shape:
            yield f"if `{a}` were `{b}`", lambda g, a=a, b=b: {**g, a: g[b]}
            yield f"if `{a}` and `{b}` changed places", \
                lambda g, a=a, b=b: {**g, a: g[b], b: g[a]}


def put(name, f):
    return lambda given: {**given, name: f(given[name])}


def exchanged(given):
    """Every argument of the preferred answer with its partner of the other one."""
    other = {"_w": "_l", "_l": "_w"}
    return {name: given.get(name[:-2] + other.get(name[-2:], ""), x) for name, x in given.items()}


def averaged(given):
    """Log-probs over the number of tokens of their answer, so that their sums are means."""
    def of(name, x):
        mask = given.get(f"mask_{name[-1]}", given.get("mask"))
        same = isinstance(x, torch.Tensor) and x.is_floating_point() and mask is not None and \
            x.shape == mask.shape
        return x / mask.sum(1, keepdim=True) if same else x
    return {name: of(name, x) for name, x in given.items()}


def change(key, pairs, oracle, cases, returns, learnt):
    """It is what the oracle gives for other arguments."""
    for words, changed in changes(cases[0].given):
        def other(changed=changed, **given):
            return oracle(**changed(given))
        for sign, minus in ((1, ""), (-1, "minus ")):
            try:
                same = all(close(a, sign * read(other, case.given, returns, learnt)[key])
                           for (a, _), case in zip(pairs, cases))
            except Exception:               # the oracle cannot be asked that
                break
            if same:
                return f"{key.capitalize()} is {minus}what the oracle gives {words}, in all " \
                       f"{len(cases)} cases."
    return ""


def rest(key, pairs):
    """Where they differ most."""
    a, b = max(pairs, key=lambda pair: float((pair[0] - pair[1]).abs().max()))
    place = int((a - b).abs().argmax())
    spot = [int(k) for k in torch.unravel_index(torch.tensor(place), a.shape)] if a.dim() else ""
    at = f" at {spot}" if a.dim() else ""
    return f"{key.capitalize()} differs from the oracle's, most{at}: yours is " \
           f"{float(a.flatten()[place]):.4g}, the oracle's {float(b.flatten()[place]):.4g}."


def unused(theirs, oracle, cases, returns):
    """The arguments that change the oracle's result and not theirs, as a sentence."""
    def moved(f, name):
        for case in cases:
            x = case.given[name]
            other = ~x if isinstance(x, torch.Tensor) and x.dtype == torch.bool else 1.3 * x + 0.1
            before, after = (read(f, given, returns, ()) for given in (
                case.given, {**case.given, name: other}))
            if any(not close(after[key], before[key]) for key in returns):
                return True
        return False

    names = [name for name, x in cases[0].given.items() if isinstance(x, torch.Tensor | float)]
    idle = []
    for name in names:
        try:
            if moved(oracle, name) and not moved(theirs, name):
                idle.append(f"`{name}`")
        except Exception:                   # what cannot be asked is not said
            continue
    return f" Your result does not change with {' and '.join(idle)}." if idle else ""
