"""What a run survives: kills, damage, full disks, signals, hostile files.  A table of all of it.

    python -m scripts.faults                 about 13 minutes on 2 cores
    python -m scripts.faults --quick         two minutes; the small form that CI runs
    python -m scripts.faults --write         the table goes into BENCHMARKS.md
    python -m scripts.faults --only kills    one section: kills, operations, damage, disks, signals,
                                             settings, printing, readers

Every trial is a whole run of a tiny model in a process of its own.  A trial is `exact` if what it
ends with, resumed where it was stopped, has the bytes of a run that nothing happened to; `said` if
one sentence says what is wrong and an older state or nothing was lost; else `WRONG`, which is
printed with all that is needed to see it again and makes the exit code 1.
"""

import argparse
import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch

from minipost import checkpoint, methods, parallel, train
from minipost.gpt import GPT, GPTConfig
from minipost.layout import tensor_file
from minipost.tokenizer import Tokenizer
from scripts.alternate import ROOT
from scripts.fuzz import FUZZERS
from scripts.pages import machine, table, write

TEXTS = ["7+5=? Answer: 12", "What is the capital of France?\nParis", "Praise the soup: fresh"]
SHORT = {"steps": 3, "prompts": 3, "group_size": 2, "batch_size": 4, "pairs": 4, "sft_steps": 1,
         "reward_steps": 1, "minibatch_size": 4, "fisher": 4, "iterations": 1, "warmup_steps": 1,
         "cold_start": 4, "cold_steps": 1, "rejection_prompts": 8, "rejection_steps": 1,
         "align_steps": 1, "format": 0.0}
REWARD = """def share(completions, **columns):
    return [len(text) / 9 for text in completions]


def even(completions, **columns):
    return [float(len(text) % 2 == 0) for text in completions]
"""
REWARDS = {"orm": "share", "r1": "even"}  # r1 keeps only answers that keep every rule


class Trials:
    """Trials of one kind and what came out of them."""

    def __init__(self, name):
        self.name, self.found, self.wrong, self.start = name, Counter(), [], time.perf_counter()
        self.end = self.start

    def add(self, outcome, what=""):
        self.found[outcome] += 1
        self.end = time.perf_counter()
        if outcome == "WRONG":
            self.wrong.append(what)
            print(f"  WRONG: {self.name}: {what}", flush=True)

    def row(self):
        counts = (sum(self.found.values()), *(self.found[o] for o in ("exact", "said", "WRONG")))
        return [self.name, *map(str, counts), f"{self.end - self.start:.0f} s"]


class Place:
    """A folder with a tiny model, some rows and a reward function, and the runs made in it."""

    def __init__(self, folder):
        self.folder, self.whole = Path(folder), {}
        words = Tokenizer.train(TEXTS, 280)
        model = GPT(GPTConfig(280, 16, 24, 2, 2, 1, 12, 256)).initialise(0)
        checkpoint.create(self.folder / "tiny", model, words)
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(
            {"prompt": f"{n}+5=?", "completion": f" {n + 5}"}) + "\n" for n in range(40)))
        (self.folder / "rated.jsonl").write_text("".join(json.dumps(
            {"prompt": f"{n}+5=?", "completion": f" {n + 5}", "reward": n % 3 / 2}) + "\n"
            for n in range(40)))
        (self.folder / "reward.py").write_text(REWARD)

    def arguments(self, algo, out, *flags, workers=1):
        """The command line of a short run of a method."""
        known = {f.name for f in fields(methods.load(algo).Config)}
        knobs = [part for name, value in SHORT.items() if name in known
                 for part in (f"--{name.replace('_', '-')}", str(value))]
        knobs += ["--teacher", str(self.folder / "tiny")] if "teacher" in known else []
        # These learn from answers of unlike rewards, and a model of chance solves no problem.
        if algo == "orm":
            knobs += ["--data", str(self.folder / "rows.jsonl")]
        if algo == "rft":
            knobs += ["--data", str(self.folder / "rated.jsonl")]
        model = ROOT / "checkpoints/base" if algo == "prm" else self.folder / "tiny"
        room = "48" if algo == "prm" else "4"
        return ["--algo", algo, "--model", str(model), "--out", str(out), "--workers", str(workers),
                "--max-new-tokens", room, "--eval-n", "2", "--show", "0", "--save-every", "1",
                *knobs, *self.reward(algo), *flags]

    def reward(self, algo):
        """What names a reward function, if the method's runs have one; a resume needs it too."""
        name = REWARDS.get(algo)
        return ["--reward", f"{self.folder / 'reward.py'}:{name}"] if name else []

    def outcome(self, out):
        """All bytes that a finished run leaves, without its seconds."""
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("seconds")
        tensors, facts = tensor_file.load_state(out / "state/state.safetensors")
        models = {str(path.relative_to(out)): path.read_bytes()
                  for path in sorted(out.glob("*/model.safetensors"))}
        return lines, tensor_file.state_digest(tensors), facts["step"], models

    def reference(self, algo, *flags, workers=1):
        """(outcome, seconds) of the run that nothing happens to."""
        key = (algo, *flags, workers)
        if key not in self.whole:
            out, start = self.folder / "whole", time.perf_counter()
            code, said = run([*self.arguments(algo, out, *flags, workers=workers), "--overwrite"])
            if code:
                raise SystemExit(f"{algo} does not run at all: {said[-300:]}")
            self.whole[key] = self.outcome(out), time.perf_counter() - start
        return self.whole[key]

    def mend(self, algo, out, *flags, workers=1):
        """Go on with a run, or begin it again where it has saved nothing.  -> (code, text)"""
        if any((out / "state").glob("*.safetensors")):
            return run(["--resume", str(out), *self.reward(algo)])
        return run([*self.arguments(algo, out, *flags, workers=workers), "--overwrite"])

    def judge(self, trials, algo, out, what, *flags, workers=1, older=()):
        """Add the outcome of a run that was stopped somehow and is now to end as if it had not.

        older: flags of a run that may still be there, whole.
        """
        config = out / "config.json"
        if older and config.exists() and '"lr": 0.5' in config.read_text():
            flags = older
        code, said = self.mend(algo, out, *flags, workers=workers)
        left = [str(path) for path in out.rglob(".*.*")]
        same = code == 0 and self.outcome(out) == self.reference(algo, *flags, workers=workers)[0]
        trials.add("exact" if same and not left else "WRONG",
                   f"{what}: code {code}, same {same}, left {left}: {said[-200:]}")


def start(work, output):
    """Fork a process that does the work and exits with its code.  -> its number"""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 99
    try:
        os.setsid()
        number = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(number, 1)
        os.dup2(number, 2)
        sys.stdout, sys.stderr = opened(1), opened(2)
        torch.set_num_threads(1)
        code = work() or 0
        sys.stdout.flush()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 98
    except BaseException:
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def opened(number, encoding="utf-8"):
    """A text stream to a descriptor, which stays open."""
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding, line_buffering=True)


def wait(pid, seconds=120):
    """The exit code of a process, negative for a signal; one that does not end is killed."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 97


def run(arguments, patch=None):
    """minipost.train in a process of its own: (code, all that it printed)."""
    with tempfile.NamedTemporaryFile() as output:
        def work():
            if patch:
                patch()
            return train.main(arguments)
        code = wait(start(work, output.name))
        return code, Path(output.name).read_text(encoding="utf-8", errors="replace")


# ---- kills

def kills(place, quick):
    """SIGKILL at random moments, over all methods; each killed twice and then resumed."""
    rng, trials = random.Random(0), Trials("SIGKILL at a random moment")
    names = ["sft", "grpo", "ppo", "oreo"] if quick else methods.names()
    for algo in names:
        _, seconds = place.reference(algo)
        for k in range(1 if quick else 8):
            out = place.folder / "killed"
            shutil.rmtree(out, ignore_errors=True)
            with tempfile.NamedTemporaryFile() as output:
                first = place.arguments(algo, out)
                for arguments in (first, None):
                    if arguments is None:
                        saved = any((out / "state").glob("*.safetensors"))
                        arguments = [*first, "--overwrite"] if not saved else [
                            "--resume", str(out), *place.reward(algo)]
                    pid = start(lambda a=arguments: train.main(a), output.name)
                    time.sleep(rng.random() * seconds)
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            place.judge(trials, algo, out, f"{algo}, trial {k}")
    return [trials]


OPERATIONS = ("replace", "fsync", "chmod", "unlink", "open", "mkdir")


def killing(k, after):
    """Patch the file operations: the k-th ends the process, before or after it is done."""
    count = [0]

    def counted(real, *arguments, **options):
        count[0] += 1
        if count[0] == k and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*arguments, **options)
        if count[0] == k and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    def patch():
        for name in OPERATIONS:
            setattr(os, name, partial(counted, getattr(os, name)))
    return patch


def operations(place, quick):
    """SIGKILL before and after each file operation, of a fresh run and of one over an older."""
    found = []
    for title, older in (("SIGKILL at each file operation", False),
                         ("the same, over a finished run", True)):
        trials, out, kept = Trials(title), place.folder / "op", place.folder / "kept"
        k, step = 1, 7 if quick else 1
        if older:
            run(place.arguments("sft", out, "--lr", "0.5"))
            out.rename(kept)
        while True:
            ended = []
            for after in (False, True):
                if older:
                    shutil.copytree(kept, out)
                arguments = [*place.arguments("sft", out), *(["--overwrite"] if older else [])]
                code, _ = run(arguments, killing(k, after))
                ended.append(code)
                place.judge(trials, "sft", out, f"operation {k}, after {after}, code {code}",
                            older=("--lr", "0.5") if older else ())
                shutil.rmtree(out, ignore_errors=True)
            if ended == [0, 0]:
                break
            k += step
        found.append(trials)
    return found


# ---- damage

def damaged(path, rng):
    """Damage a file in one of four ways; says how."""
    content = bytearray(path.read_bytes())
    how = rng.choice(("bit", "cut", "block", "zeros"))
    at = rng.randrange(max(1, len(content)))
    if how == "bit":
        content[at] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[at:]
    else:
        piece = bytes(64) if how == "zeros" else rng.randbytes(64)
        content[at : at + 64] = piece[: len(content[at : at + 64])]
    same = bytes(content) == path.read_bytes()
    path.write_bytes(content)
    return f"{how} at {at}", same


def damage(place, quick):
    """Bits, cuts and blocks of a saved state, a model and a log."""
    rng, out = random.Random(1), place.folder / "damaged"
    shutil.rmtree(out, ignore_errors=True)
    run(place.arguments("sft", out))
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    whole, found = place.outcome(out), []

    def put_back():
        for path, content in kept.items():
            path.write_bytes(content)

    trials = Trials("damage to a state, one before it whole")
    for _ in range(6 if quick else 150):
        put_back()
        how, same = damaged(out / "state/state.safetensors", rng)
        code, said = run(["--resume", str(out)])
        good = code == 0 and place.outcome(out) == whole
        trials.add("exact" if good and (same or "state before" in said) else "WRONG",
                   f"{how}: code {code}: {said[-200:]}")
    found.append(trials)

    trials = Trials("damage to both states")
    for _ in range(3 if quick else 50):
        put_back()
        hows = [damaged(out / "state" / f"{name}.safetensors", rng)
                for name in ("state", "previous")]
        code, said = run(["--resume", str(out)])
        good = one_sentence(code, said) or any(same for _, same in hows)
        trials.add("said" if good else "WRONG", f"{hows}: code {code}: {said[-200:]}")
    found.append(trials)

    trials = Trials("damage to a model's weights")
    weights, first = out / "model/model.safetensors", None
    put_back()
    first = checkpoint.load(out / "model")[0].state_dict()
    for _ in range(10 if quick else 300):
        put_back()
        how, same = damaged(weights, rng)
        try:
            again = checkpoint.load(out / "model")[0].state_dict()
            equal = all(torch.equal(again[name], first[name]) for name in first)
            trials.add("exact" if equal else "WRONG", f"{how}: read in silence")
        except checkpoint.MinipostError:
            trials.add("said")
    found.append(trials)

    trials = Trials("damage to metrics.jsonl of a stopped run")
    shutil.rmtree(out)
    stopped = place.folder / "stopped"
    shutil.rmtree(stopped, ignore_errors=True)
    run([*place.arguments("sft", stopped), "--budget", "1"])
    kept = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    for _ in range(4 if quick else 100):
        put_back()
        how, same = damaged(stopped / "metrics.jsonl", rng)
        code, said = run(["--resume", str(stopped)])
        good = code == 0 and "Traceback" not in said and (same or "damaged" in said)
        trials.add("said" if good else "WRONG", f"{how}: code {code}: {said[-200:]}")
    return [*found, trials]


def one_sentence(code, said):
    """Whether a run ended as it should on bad input."""
    last = said.strip().splitlines()[-1:]
    return code == 1 and "Traceback" not in said and bool(last) and last[0].startswith("error: ")


# ---- disks

def filling(k):
    """Patch the file operations: from the k-th on the disk is full."""
    count = [0]

    def limited(real, *arguments, **options):
        count[0] += 1
        if count[0] >= k:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    def patch():
        for name in ("fsync", "replace"):
            setattr(os, name, partial(limited, getattr(os, name)))
    return patch


def disks(place, quick):
    """A disk that is full from some operation on: one sentence, and the last state goes on."""
    trials, k = Trials("a disk that fills"), 1
    while True:
        out = place.folder / "full"
        shutil.rmtree(out, ignore_errors=True)
        code, said = run(place.arguments("sft", out), filling(k))
        if code == 0:
            return [trials]
        if not one_sentence(code, said) or "No space left" not in said:
            trials.add("WRONG", f"operation {k}: code {code}: {said[-200:]}")
        else:
            place.judge(trials, "sft", out, f"operation {k}")
        k += 5 if quick else 1


# ---- signals

def other_ranks(pid):
    """The children of a process that are alive."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def until(condition, seconds):
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return condition()


def logged(out):
    """Whether a run has made a step."""
    log = out / "metrics.jsonl"
    return log.exists() and log.stat().st_size > 0


def gone(pid):
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def signals(place, quick):
    """TERM and INT to the group; a killed first rank; a stopped second one.  Two ranks each."""
    rng, n = random.Random(2), 2 if quick else 12
    flags = ("--steps", "12")
    _, seconds = place.reference("grpo", *flags, workers=2)
    found = []

    def begin(output):
        out = place.folder / "signalled"
        shutil.rmtree(out, ignore_errors=True)
        arguments = place.arguments("grpo", out, *flags, workers=2)
        return out, start(lambda: train.main(arguments), output)

    trials = Trials("TERM or INT to both ranks")
    for k in range(n):
        with tempfile.NamedTemporaryFile() as output:
            out, pid = begin(output.name)
            until(partial(logged, out), 60)
            time.sleep(rng.random() * seconds / 3)
            os.killpg(pid, (signal.SIGTERM, signal.SIGINT)[k % 2])
            code = wait(pid)
            said = Path(output.name).read_text()
            lines = len((out / "metrics.jsonl").read_text().splitlines())
            step = tensor_file.load_state(out / "state/state.safetensors")[1]["step"]
            if code not in (0, 130) or step != lines:
                trials.add("WRONG", f"trial {k}: code {code}, {lines} steps, state of {step}: "
                           f"{said[-200:]}")
            else:
                place.judge(trials, "grpo", out, f"trial {k}", *flags, workers=2)
    found.append(trials)

    trials = Trials("the first rank is killed")
    for k in range(n):
        with tempfile.NamedTemporaryFile() as output:
            out, pid = begin(output.name)
            until(partial(other_ranks, pid), 60)
            ranks = other_ranks(pid)
            time.sleep(rng.random() * seconds if k % 2 else 0.02 * k)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            late = [rank for rank in ranks if not until(partial(gone, rank), 5)]
            trials.add("WRONG" if late else "exact", f"trial {k}: ranks live on after 5 s")
            parallel.sweep()
            left = list(Path(tempfile.gettempdir()).glob(f"{parallel.PREFIX}{pid}-*"))
            trials.add("WRONG" if left else "exact", f"trial {k}: folders are left: {left}")
    found.append(trials)

    trials = Trials("the second rank is stopped, then INT twice")
    for k in range(1 if quick else 4):
        with tempfile.NamedTemporaryFile() as output:
            out, pid = begin(output.name)
            until(partial(logged, out), 60)
            ranks = other_ranks(pid)
            for rank in ranks:
                os.kill(rank, signal.SIGSTOP)
            time.sleep(0.5)
            for _ in range(2):
                os.kill(pid, signal.SIGINT)
                time.sleep(0.7)
            code = wait(pid, 20)
            if code != 130 or not all(map(gone, ranks)):
                said = Path(output.name).read_text()
                trials.add("WRONG", f"trial {k}: code {code}: {said[-200:]}")
            else:
                place.judge(trials, "grpo", out, f"trial {k}", *flags, workers=2)
    return [*found, trials]


# ---- settings

def settings(place, quick):
    """Everything that a run was made from, changed before its resume."""
    trials = Trials("changed before a resume")
    data = ("--data", str(place.folder / "rows.jsonl"), "--reward",
            f"{place.folder / 'reward.py'}:share")
    out = place.folder / "edited"
    named = ["--reward", data[3]]

    def config(change):
        def edit():
            value = json.loads((out / "config.json").read_text())
            change(value)
            (out / "config.json").write_text(json.dumps(value))
        return edit

    def append(name):
        def edit():
            with open(place.folder / name, "a") as file:
                file.write("\n")
        return edit

    edits = {
        "lr": config(lambda v: v["method"].update(lr=0.5)),
        "seed": config(lambda v: v["options"].update(seed=9)),
        "algo": config(lambda v: v.update(algo="dr-grpo")),
        "workers": config(lambda v: v["options"].update(workers=2)),
        "data": append("rows.jsonl"), "reward": append("reward.py"),
        "tokenizer": append("tiny/tokenizer_config.json"),
    }
    kept = {path: path.read_bytes() for path in place.folder.glob("tiny/*")}
    kept |= {path: path.read_bytes() for path in place.folder.glob("*.*") if path.is_file()}
    for name, edit in edits.items():
        shutil.rmtree(out, ignore_errors=True)
        run([*place.arguments("grpo", out, *data), "--budget", "1"])
        edit()
        code, said = run(["--resume", str(out), *named])
        trials.add("said" if one_sentence(code, said) else "WRONG",
                   f"{name}: code {code}: {said[-200:]}")
        for path, content in kept.items():
            path.write_bytes(content)
    return [trials]


# ---- printing

def printing(place, quick):
    """A reader that goes away, a device that is full, a terminal without Unicode."""
    trials = Trials("what cannot be printed")
    whole, _ = place.reference("sft")
    out = place.folder / "printed"

    def into(path):
        def patch():
            os.dup2(os.open(path, os.O_WRONLY), 1)
        return patch

    def closed():
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        sys.stdout = opened(1)

    def ascii_only():
        sys.stdout = opened(1, "ascii")

    for name, patch in (("/dev/full", into("/dev/full")), ("closed pipe", closed),
                        ("ASCII", ascii_only)):
        shutil.rmtree(out, ignore_errors=True)
        code, said = run(place.arguments("sft", out), patch)
        good = code == 0 and "Traceback" not in said and place.outcome(out) == whole
        trials.add("exact" if good else "WRONG", f"{name}: code {code}: {said[-200:]}")
    return [trials]


# ---- readers

def readers(place, quick):
    """Hostile files and texts; `python -m scripts.fuzz` tries as many as one likes."""
    found, n = [], 150 if quick else 4000
    for name, fuzz in FUZZERS.items():
        trials = Trials(f"hostile input: {name}")
        record = fuzz(n // 3 if name == "rows" else n, 0)  # each of rows is two files
        trials.found["said"] += record.inputs - len(record.crashes) - record.opened
        trials.found["exact"] += record.opened
        for number, said, data in record.crashes:
            trials.add("WRONG", f"input {number}: {said}: {data[:80]!r}")
        if record.longest > 1 or record.memory > 512 or record.sentence > 300:
            trials.add("WRONG", str(record))
        trials.end = time.perf_counter()
        found.append(trials)
    return found


SECTIONS = {"kills": kills, "operations": operations, "damage": damage, "disks": disks,
            "signals": signals, "settings": settings, "printing": printing, "readers": readers}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few trials of each kind")
    parser.add_argument("--only", choices=list(SECTIONS), help="one section")
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        place = Place(folder)
        for name, section in SECTIONS.items():
            if args.only in (None, name):
                print(f"{name} ...", flush=True)
                for trials in section(place, args.quick):
                    rows.append(trials.row())
                    wrong += len(trials.wrong)
    names = ["what happens", "trials", "exact", "said", "WRONG", "time"]
    lines = table(names, rows)
    if args.write:
        write(ROOT / "BENCHMARKS.md", "scripts.faults", [
            "## Faults survived", "", machine(), "", "`python -m scripts.faults`.  A trial is a "
            "whole run of a tiny model.  `exact`: resumed, it ends with the bytes of a run that "
            "nothing happened to (a hostile input: it was opened).  `said`: one sentence says what "
            "is wrong, and nothing saved is lost.  Everything else is `WRONG`.", "", *lines],
            command="python -m")
    else:
        print("\n".join(["", *lines]))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
