"""What a check found, and the limits that the doctor and the report share."""

from dataclasses import dataclass

OK, NONE, WARNING, FAULT = "ok", "does not apply", "warning", "fault"
# Measured on checkpoints/base: two ways to compute log-probs differ by at most 2e-5 nats in float32
# and 0.5 in bfloat16.
NATS = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 1.0}


@dataclass(frozen=True)
class Finding:
    """What a check found.  A fault or a warning also says why it matters and what to do."""

    check: str
    status: str  # OK, NONE, WARNING or FAULT
    what: str
    why: str = ""
    todo: str = ""

    @property
    def sentence(self):
        whole = (self.what + (f", so {self.why}" if self.why else "")
                 + (f"; {self.todo}" if self.todo else ""))
        return " ".join(whole.splitlines()) + "."
