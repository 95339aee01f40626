"""The one exception that a user is meant to read, and the check that most often raises it."""

import math


class MinipostError(ValueError):
    """Something the user can mend, said in one sentence; the command lines print it and exit 1."""


def require(settings, *, at_least=None, above=None):
    """Hold named fields of a dataclass to a least value, or to more than one; inf and nan fail.

    MinipostError names the field, its value and what was expected.
    """
    for bounds, words in ((at_least or {}, "at least"), (above or {}, "more than")):
        for name, bound in bounds.items():
            value = getattr(settings, name)
            enough = value >= bound if bounds is at_least else value > bound
            if not (enough and math.isfinite(value)):
                raise MinipostError(f"{name} is {value}; expected {words} {bound}")
