"""The one exception that a user is meant to read, and the check that most often raises it."""

import math


class MinipostError(ValueError):
    """Something the user can mend, said in one sentence; the command lines print it and exit 1."""


def require(settings, *, at_least=None, above=None, at_most=None):
    """Hold named fields of a dataclass to their bounds; inf and nan fail those of every kind.

    MinipostError names the field, its value and what was expected.
    """
    holds = {
        "at least": (at_least, lambda value, bound: value >= bound),
        "more than": (above, lambda value, bound: value > bound),
        "at most": (at_most, lambda value, bound: value <= bound),
    }
    for words, (bounds, within) in holds.items():
        for name, bound in (bounds or {}).items():
            value = getattr(settings, name)
            if not (math.isfinite(value) and within(value, bound)):
                raise MinipostError(f"{name} is {value}; expected {words} {bound}")
