"""The one exception that a user is meant to read."""


class MinipostError(ValueError):
    """Something the user can mend, said in one sentence; the command lines print it and exit 1."""
