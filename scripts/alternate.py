"""Measure commands in fresh processes, in turn, and compare them in the rows of a table.

A round is done again if something else took more than 5% of the CPUs meanwhile.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0))
NOISE = 0.05    # share of the CPUs that others may take during a measurement
WARM = 3        # first steps of a process, left out of all medians
LIMIT = 300     # seconds after which a command counts as failed
PATIENCE = 1200  # seconds after which a Bench does no round again
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Failed(Exception):
    """A measured command ended with an error.  The message holds its last line."""


# ---- measuring a process

def measure(command, watch=False, **environment):
    """Run a command and wait for its end.  -> seconds, and the share of the CPUs that others took

    `watch` also samples the memory of the command and its descendants ten times a second.
    Raises Failed if the command ends with an error, or is not done after LIMIT seconds.
    """
    def late(*_):
        raise Failed(f"{' '.join(command[1:])}: not done after {LIMIT} s")

    signal.signal(signal.SIGALRM, late)
    with tempfile.TemporaryFile("w+") as log:
        busy, start = busy_seconds(), time.monotonic()
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                                 env={**os.environ, **OFFLINE, **environment})
        signal.alarm(LIMIT)
        try:
            status, usage, peak = wait(child.pid, watch)
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            raise
        finally:
            signal.alarm(0)
        seconds = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            raise Failed(f"{' '.join(command[1:])}: {last_line(log.read())}")
    others = busy_seconds() - busy - usage.ru_utime - usage.ru_stime
    # The kernel counts in ticks, so a tenth of a second means nothing in a short command.
    return {"start": start, "seconds": seconds, "peak": peak,
            "others": max(0.0, others - 0.1) / (seconds * os.cpu_count())}


def wait(pid, watch):
    """A process's exit status, its resource usage, and its tree's peak memory in bytes."""
    peak = 0
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG if watch else 0)
        if ended:
            return status, usage, peak
        peak = max(peak, tree_memory(pid))
        time.sleep(0.1)


def busy_seconds():
    """CPU seconds that this machine has spent, including time stolen by its host."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def tree_memory(session):
    """Proportional set size of all processes of a session.  It counts shared pages once."""
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                lines = (entry / "smaps_rollup").read_text().splitlines()
                total += sum(int(s.split()[1]) for s in lines if s.startswith("Pss:")) * 1024
        except OSError:
            pass  # the process ended meanwhile
    return total


# ---- jobs in turn

@dataclass
class Bench:
    """The folder of the jobs' model and prompts, and the number of repetitions."""

    folder: Path
    base: str
    quick: bool
    discarded: int = 0
    worst: float = 0.0
    size: int = 0           # parameters of the model
    notes: list = field(default_factory=list)
    floor: list = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def job(self, side, job, steps, *, model=None, seed=0, watch=False, launcher=(),
            module="scripts.bench_peer", **environment):
        """One job in a fresh process: its own result together with that of `measure`."""
        out = self.folder / "result.json"
        out.unlink(missing_ok=True)
        command = [sys.executable, *launcher, "-m", module, side, job, "--model",
                   str(model or self.folder / "model"), "--steps", str(steps), "--seed", str(seed),
                   "--out", str(out)]
        return {**measure(command, watch, **environment), **json.loads(out.read_text())}

    def rounds(self, reps, **jobs):
        """Do the jobs in turn, `reps` times: {name: [result, ...]}.

        A round that something else disturbed is repeated.  After `reps` repeats, or once the Bench
        has lost its patience, it is kept.
        """
        reps = 1 if self.quick else reps
        spare, kept = 0 if self.quick else reps, {name: [] for name in jobs}
        while reps:
            found = {name: job(len(kept[name])) for name, job in jobs.items()}
            others = max(result["others"] for result in found.values())
            print("  " + ", ".join(f"{name} {result['seconds']:.1f} s"
                                   for name, result in found.items()), flush=True)
            if others > NOISE and spare and time.monotonic() < self.begun + PATIENCE:
                spare, self.discarded = spare - 1, self.discarded + 1
                continue
            self.worst, reps = max(self.worst, others), reps - 1
            for name, result in found.items():
                kept[name].append(result)
        return kept


# ---- rows of a table

def yes(condition):
    return "yes" if condition else "no"


def last_line(text):
    return (text.strip().splitlines() or ["no message"])[-1]


def row(what, own, peer, show, wanted=None, inverse=False):
    """A line of the table.  The ratio is peer/minipost, or minipost/peer if `inverse`.

    wanted: (">=" or "<=", ratio).  The ratio is that of the medians, and its range is over the
    pairs.  A value of None is a target that was not reached.
    """
    if None in [*own, *peer]:
        return [what, *(show(median(v)) if None not in v else "not reached" for v in (own, peer)),
                "", "" if wanted is None else f"{wanted[0]} {wanted[1]}", "no"]
    over = (lambda a, b: a / b) if inverse else (lambda a, b: b / a)
    ratio, pairs = over(median(own), median(peer)), [over(a, b) for a, b in zip(own, peer)]
    cells = [what, show(median(own)), show(median(peer)),
             f"{ratio:.2f} [{min(pairs):.2f}, {max(pairs):.2f}]"]
    if wanted is None:
        return [*cells, "", ""]
    sign, bound = wanted
    return [*cells, f"{sign} {bound}", yes(ratio >= bound if sign == ">=" else ratio <= bound)]


def ms(seconds):
    return f"{1000 * seconds:.0f} ms"


def sec(seconds):
    return f"{seconds:.2f} s"


def step_time(result):
    """Median seconds from the end of one step to the end of the next."""
    ends = result["ends"]
    return median(b - a for a, b in list(zip(ends, ends[1:]))[WARM - 1 :])


def column(read, results):
    return [read(result) for result in results]
