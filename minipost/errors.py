"""The one exception that a user reads, text made safe to print, settings with bounds, and those
that every method with a gradient step has."""

import json
import math
import operator
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

LONGEST = 300  # characters of a message


def visible(text):
    """The text with every character that could steer a terminal spelled out, as in \\x1b.

    What a user's file, a model or another library says may hold such characters: control
    characters, bidi marks, halves of surrogate pairs.  Spaces of every kind and line ends stay.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c == "\n" or c.isprintable() or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode() for c in text)


def visible_json(text):
    """JSON with such characters as \\u escapes, so that it is still the same JSON."""
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


class MinipostError(Exception):
    """A problem the user can mend, in one sentence; the command lines print it and exit 1.

    The sentence is made printable.  One that is too long loses the beginnings of long paths, then
    its middle.
    """

    def __init__(self, sentence):
        sentence = visible(" ".join(str(sentence).splitlines()))
        if len(sentence) > LONGEST:
            sentence = re.sub(r"/\S*(?=/\S{40})", "...", sentence)
        if len(sentence) > LONGEST:
            end = LONGEST // 3
            sentence = f"{sentence[: LONGEST - end - 5]} ... {sentence[-end:]}"
        super().__init__(sentence)


HOLDS = {">=": ("at least", operator.ge), ">": ("more than", operator.gt),
         "<=": ("at most", operator.le), "<": ("less than", operator.lt)}
USUAL = {"temperature": "> 0", "max_grad_norm": "> 0", "warmup_steps": ">= 0",
         "seed": ">= 0, <= 9223372036854775807", "workers": ">= 0, <= 64"}
LARGEST, SMALLEST = 1e9, 1e-18  # beyond these, float32 overflows or rounds to 0 where it squares
MOST = {  # of whole numbers: what comes one after another, and what is multiplied by others
    **dict.fromkeys(("steps", "sft_steps", "reward_steps", "warmup_steps", "save_every",
                     "eval_every", "budget", "horizon"), 10**9),
    **dict.fromkeys(("group_size", "branching", "width", "depth", "votes", "shots", "attempts",
                     "simulations", "expansions", "length", "lives", "size"), 10**4)}


hints = cache(get_type_hints)


def expected(value, kind):
    """What a setting of this type has to be, in words; "" where the value is of it.

    A whole number passes for any number, a list for a tuple.  True and False are no numbers.
    """
    if get_origin(kind) is Literal:
        return "" if isinstance(value, str) and value in get_args(kind) else \
            f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if isinstance(value, list | tuple) and not any(expected(each, inner) for each in value):
            return ""
        return "a list of texts" if inner is str else f"some of {', '.join(get_args(inner))}"
    if kind in (int, float):
        right = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return "" if right else "a whole number" if kind is int else "a number"
    return "" if isinstance(value, kind) else {bool: "True or False", str: "a text"}.get(
        kind, f"a {kind.__name__}")


def check_type(cls, name, value):
    """MinipostError unless a value has the type of this field of a dataclass."""
    if words := expected(value, hints(cls)[name]):
        raise MinipostError(f"{name} is {value!r:.40}; expected {words}")


def check_frozen(cls, file):
    """MinipostError, which names the file, unless a class of settings is a frozen dataclass."""
    made = vars(cls).get("__dataclass_params__")
    if made is None or not made.frozen:
        raise MinipostError(f"{file}: {cls.__name__} is no frozen dataclass; write "
                            "@dataclass(frozen=True) above it")


class Bounded:
    """The base of every Config and Options: values must have the types of their fields.

    Numbers must be finite and within bounds.
    A whole number is at least 1 and any other at least 0.  USUAL and LIMITS set other bounds, such
    as {"group_size": ">= 2", "gamma": ">= 0, <= 1"}; "" is no bound.  Without an upper bound of its
    own a whole number is at most what MOST says or 1e6, any other at most 1e9.  One that is not 0
    is at least 1e-18.  MinipostError names the field, its value and what was expected.
    """

    LIMITS: ClassVar[Mapping[str, str]] = {}

    def idle(self):
        """The names of settings that nothing heeds, as others are: they keep their defaults."""
        return ()

    def __post_init__(self):
        limits = dict(USUAL)
        for base in reversed(type(self).__mro__):
            limits |= vars(base).get("LIMITS", {})
        for field in fields(self):  # type: ignore[arg-type]  # of a dataclass
            value = getattr(self, field.name)
            if value is not field.default:  # an outline (contract.py) may not know all types
                check_type(type(self), field.name, value)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            whole = field.type in (int, "int")
            bounds = limits.get(field.name, ">= 1" if whole else ">= 0")
            if "<" not in bounds:
                bounds += f", <= {MOST.get(field.name, 10**6) if whole else LARGEST:.0f}"
            if not whole and value and abs(value) < 1:
                bounds += f", {'>=' if value > 0 else '<='} {math.copysign(SMALLEST, value)}"
            for limit in filter(None, bounds.split(", ")):
                sign, bound = limit.split()
                words, within = HOLDS[sign]
                if not within(value, int(bound) if whole else float(bound)):
                    raise MinipostError(f"{field.name} is {value}; expected {words} {bound}")
            if not math.isfinite(value):
                raise MinipostError(f"{field.name} is {value}; expected a finite number")


Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Descent(Bounded):
    """The settings of every method that descends a gradient: how long, and at what rate.

    A method's Config derives from it and sets defaults of its own.  Decay is decoupled from the
    gradient (optim.py) and acts on matrices alone, as is usual: a norm's weights stand near 1.
    """

    steps: int = 1               # gradient steps
    schedule: Schedule = "constant"  # of the learning rate after the warm-up
    warmup_steps: int = 0        # steps over which the learning rate climbs to its peak
    weight_decay: float = 0.0    # weight decay of matrices (lambda)

    def rate(self, peak, step, steps=None, warmup_steps=None):
        """The learning rate of a step, from 0 on: a linear climb to `peak`, then the schedule.

        linear and cosine end at zero.  steps, warmup_steps: those of a part of the run, where it
        has several; the Config's own if None.  Every learner's rate comes from here.
        """
        steps = self.steps if steps is None else steps
        warmup = self.warmup_steps if warmup_steps is None else warmup_steps
        if step < warmup:
            return peak * (step + 1) / warmup
        gone = min(1.0, (step - warmup) / max(1, steps - warmup))
        if self.schedule == "linear":
            return peak * (1 - gone)
        return peak if self.schedule == "constant" else peak * (1 + math.cos(math.pi * gone)) / 2

    def slow_start(self):
        """A line that says so where the warm-up takes more than half of the steps; else ""."""
        if 2 * self.warmup_steps <= self.steps:
            return ""
        return (f"--warmup-steps {self.warmup_steps}: the learning rate climbs in "
                f"{min(self.steps, self.warmup_steps)} of the {self.steps} steps" + (
                    f" and ends at {self.rate(1, self.steps - 1):.0%} of its peak; a lower number "
                    "lets it get there" if self.warmup_steps > self.steps else ""))
