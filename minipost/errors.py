"""The one exception that a user reads, and settings with bounds."""

import math
import operator
from collections.abc import Mapping
from dataclasses import fields
from typing import ClassVar


class MinipostError(ValueError):
    """A problem the user can mend, in one sentence; the command lines print it and exit 1."""


HOLDS = {">=": ("at least", operator.ge), ">": ("more than", operator.gt),
         "<=": ("at most", operator.le), "<": ("less than", operator.lt)}
USUAL = {"temperature": "> 0", "max_grad_norm": "> 0", "warmup_steps": ">= 0", "seed": ">= 0"}


class Bounded:
    """The base of every Config and Options: numbers must be finite and within bounds.

    A whole number is at least 1 and any other at least 0.  USUAL and LIMITS set other bounds, such
    as {"group_size": ">= 2", "gamma": ">= 0, <= 1"}; "" is no bound.  MinipostError names the
    field, its value and what was expected.
    """

    LIMITS: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self):
        limits = dict(USUAL)
        for base in reversed(type(self).__mro__):
            limits |= vars(base).get("LIMITS", {})
        for field in fields(self):  # type: ignore[arg-type]  # of a dataclass
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            usual = ">= 1" if field.type in (int, "int") else ">= 0"
            for limit in filter(None, limits.get(field.name, usual).split(", ")):
                sign, bound = limit.split()
                words, within = HOLDS[sign]
                if not within(value, float(bound)) or not math.isfinite(value):
                    raise MinipostError(f"{field.name} is {value}; expected {words} {bound}")
            if not math.isfinite(value):
                raise MinipostError(f"{field.name} is {value}; expected a finite number")
