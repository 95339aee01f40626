"""Measure minipost and write BENCHMARKS.md: `make bench`, or one part by name.

    python -m scripts.bench learning     held-out accuracy before and after, three seeds a method
    python -m scripts.bench alignment    reward models, RLHF and RLAIF, with and without a KL price
    python -m scripts.bench offline      fixed sets of answers and teachers: OREO, RFT, distillation
    python -m scripts.bench preferences  DPO, with wrong labels and without
    python -m scripts.bench test-time    every way to answer, held out, with tokens per problem
    python -m scripts.bench game24       the Game of 24, beside the paper's table
    python -m scripts.bench proof        the proofs of each method, in worlds that can be listed
    python -m scripts.bench sampler      sampler against trainer, in float32 and bfloat16
    python -m scripts.bench fisher       TRPO's Fisher-vector product in its two forms
    python -m scripts.bench speed        side by side with TRL and transformers (extra `bench`)
    python -m scripts.bench scale        the same by size of model, prompt, answer and group

Each part has its own markers in the file, so one part can be made again without the others.  The
machine should have nothing else to do.  Speed is measured in fresh processes that alternate between
minipost and peer.  A round is discarded if something else took more than 5% of the CPUs.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from scripts import (
    bench_alignment,
    bench_offline,
    bench_proof,
    bench_sampler,
    bench_scale,
    bench_test_time,
)
from scripts.bench_peer import CORES, EVERY, GROUP, HELD_OUT, PROMPTS, ROOM, TARGET

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)
NOISE = 0.05    # share of the CPUs that others may take during a measurement
WARM = 3        # first steps of a process, left out of all medians
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Failed(Exception):
    """A measured command ended with an error.  The message holds its last line."""


# ---- the report

def write(report, part, lines, command="python -m scripts.bench"):
    """Put the lines between the part's markers in the report, or at its end if it has none."""
    first, last = f"<!-- {part}: {command} {part} -->", f"<!-- end of {part} -->"
    text = report.read_text(encoding="utf-8") if report.exists() else "# Benchmarks\n"
    block = "\n".join([first, *lines, last])
    if first in text and last in text:
        text = text[: text.index(first)] + block + text[text.index(last) + len(last) :]
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    report.write_text(text, encoding="utf-8")
    print("\n".join(lines))


def machine(*packages):
    """The machine and versions behind the figures, in one line."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in cpu if line.startswith("model name")]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", *packages)]
    return (f"Machine: {names[0] if names else platform.processor()}, {CORES} cores, "
            f"Python {platform.python_version()}, {', '.join(versions)}; "
            f"{datetime.date.today():%Y-%m-%d}.")


def table(columns, rows):
    return ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]


# ---- learning

METHODS = ("grpo", "sft")


def learning(args):
    """Train every method with its default settings, once per seed, and tabulate the summaries."""
    rows = []
    for algo in METHODS:
        for seed in SEEDS[:1] if args.quick else SEEDS:
            found = [[algo, str(seed), *cells] for cells in learnt(args, algo, seed)]
            print("\n".join(" | ".join(cells) for cells in found), flush=True)
            rows += found
    write(args.out, "learning", [
        "## Learning", "", machine(), "",
        "`python -m scripts.bench learning`; each row is `python -m minipost.train --algo METHOD "
        "--seed SEED` with default settings.  Held-out accuracy with 95% intervals.", "",
        *table(["method", "seed", "problems", "sampled before", "sampled after", "greedy before",
                "greedy after", "training s", "tokens", "reached"], rows), "",
        "Wanted of grpo: sampled from at most 0.60 to at least 0.95, greedy at least 0.97, in at "
        "most 60 s.  Wanted of sft on facts: greedy from at most 0.10 to at least 0.95.",
    ])


def learnt(args, algo, seed):
    """One run's rows of the table, one row for each split of its task."""
    out = ROOT / "runs" / f"bench-{algo}-{seed}"
    command = [sys.executable, "-m", "minipost.train", "--algo", algo, "--seed", str(seed),
               "--model", args.model, "--out", str(out), "--overwrite"]
    command += ["--steps", "2", "--eval-n", "10"] if args.quick else []
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE)
    if done.returncode:
        return [[f"failed: {last_line(done.stderr)}", *[""] * 7]]
    summary = json.loads((out / "summary.json").read_text())
    found = []
    for split in dict.fromkeys(name.partition(", ")[2] for name in summary["all"]):
        results = {metric: summary["all"][f"{metric}, {split}"] for metric in ("sampled", "greedy")}
        scores = [results[metric][when] for metric in results for when in ("before", "after")]
        found.append([split, *map(score, scores), f"{summary['seconds']:.0f}",
                      f"{summary['tokens']:,}", reached(algo, split, scores, summary["seconds"])])
    return found


def reached(algo, split, scores, seconds):
    """Whether a run reached the targets of its method.  Empty if there are none."""
    first, sampled, greedy_first, greedy = (s["value"] for s in scores)
    if algo == "grpo":
        return yes(first <= 0.60 and sampled >= 0.95 and greedy >= 0.97 and seconds <= 60)
    if algo == "sft" and split == "facts":
        return yes(greedy_first <= 0.10 and greedy >= 0.95)
    return ""


def yes(condition):
    return "yes" if condition else "no"


def score(s):
    return f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"


def last_line(text):
    return (text.strip().splitlines() or ["no message"])[-1]


# ---- measuring a process

def measure(command, watch=False, **environment):
    """Run a command and wait for its end.  -> seconds, and the share of the CPUs that others took

    `watch` also samples the memory of the command and its descendants ten times a second.
    Raises Failed if the command ends with an error.
    """
    with tempfile.TemporaryFile("w+") as log:
        busy, start = busy_seconds(), time.monotonic()
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                                 env={**os.environ, **OFFLINE, **environment})
        try:
            status, usage, peak = wait(child.pid, watch)
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            raise
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


# ---- speed

@dataclass
class Bench:
    """The folder of the jobs' model and prompts, and the number of repetitions."""

    folder: Path
    base: str
    quick: bool
    discarded: int = 0
    worst: float = 0.0

    def job(self, side, job, steps, *, model=None, seed=0, watch=False, launcher=(), **environment):
        """One job in a fresh process: its own result together with that of `measure`."""
        out = self.folder / "result.json"
        out.unlink(missing_ok=True)
        command = [sys.executable, *launcher, "-m", "scripts.bench_peer", side, job, "--model",
                   str(model or self.folder / "model"), "--steps", str(steps), "--seed", str(seed),
                   "--out", str(out)]
        return {**measure(command, watch, **environment), **json.loads(out.read_text())}

    def rounds(self, reps, **jobs):
        """Do the jobs in turn, `reps` times: {name: [result, ...]}.

        A round that something else disturbed is repeated.  After `reps` repeats, it is kept.
        """
        reps = 1 if self.quick else reps
        spare, kept = 0 if self.quick else reps, {name: [] for name in jobs}
        while reps:
            found = {name: job(len(kept[name])) for name, job in jobs.items()}
            others = max(result["others"] for result in found.values())
            print("  " + ", ".join(f"{name} {result['seconds']:.1f} s"
                                   for name, result in found.items()), flush=True)
            if others > NOISE and spare:
                spare, self.discarded = spare - 1, self.discarded + 1
                continue
            self.worst, reps = max(self.worst, others), reps - 1
            for name, result in found.items():
                kept[name].append(result)
        return kept


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


def grpo_rows(bench):
    """A GRPO step, the start and the whole process, measured in the same processes."""
    steps, few = (6, 6) if bench.quick else (50, 15)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={CORES}"]
    found = bench.rounds(
        5,
        own=lambda _: bench.job("own", "grpo", steps),
        peer=lambda _: bench.job("peer", "grpo", steps),
        ranks=lambda _: bench.job("peer", "grpo", few, launcher=launcher, OMP_NUM_THREADS="1"),
        cli=lambda _: measure(command_line(bench.folder, steps)),
    )
    own, peer = found["own"], found["peer"]
    first, whole = (lambda r: r["ends"][0] - r["start"]), (lambda r: r["seconds"])
    mine = column(step_time, own)
    lengths = [median(r["length"] for r in results) for results in (own, peer)]
    note = (f"Mean completion length in the GRPO steps: {lengths[0]:.1f} tokens for minipost, "
            f"{lengths[1]:.1f} for TRL.")
    return [
        row("one GRPO step; TRL", mine, column(step_time, peer), ms, (">=", 2.0)),
        row(f"one GRPO step; TRL as {CORES} processes of 1 thread (torchrun, gloo)", mine,
            column(step_time, found["ranks"]), ms),
        row("start to first finished GRPO step; TRL", column(first, own), column(first, peer), sec,
            (">=", 2.8)),
        row(f"whole process of {steps} GRPO steps; TRL", column(whole, own), column(whole, peer),
            sec, (">=", 2.2)),
        row("the same as `python -m minipost.train`, which also evaluates, logs and saves; TRL "
            "does not", column(whole, found["cli"]), column(whole, peer), sec),
    ], note


def command_line(folder, steps):
    """The GRPO job as a user would start it, with as little evaluation as possible."""
    options = {
        "algo": "grpo", "data": folder / "prompts.jsonl", "model": folder / "model",
        "reward": ROOT / "scripts" / "bench_peer.py:letter_share", "steps": steps,
        "prompts": PROMPTS, "group-size": GROUP, "minibatch-size": PROMPTS * GROUP,
        "max-new-tokens": ROOM, "beta": 0, "lr": 1e-5, "eval-n": 1, "show": 0, "save-every": 0,
        "out": folder / "run",
    }
    return [sys.executable, "-m", "minipost.train", "--overwrite",
            *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def memory_rows(bench):
    steps = 3 if bench.quick else 12
    found = bench.rounds(5, own=lambda _: bench.job("own", "grpo", steps, watch=True),
                         peer=lambda _: bench.job("peer", "grpo", steps, watch=True))
    own, peer = ([result["peak"] for result in found[side]] for side in ("own", "peer"))
    return [row(f"peak memory of the process tree in {steps} GRPO steps (PSS); TRL; ratio "
                "minipost/peer", own, peer, lambda b: f"{b / 2**20:.0f} MiB", ("<=", 0.55), True)]


def sample_rows(bench):
    steps = 4 if bench.quick else 20
    found = bench.rounds(5, own=lambda _: bench.job("own", "sample", steps),
                         peer=lambda _: bench.job("peer", "sample", steps))
    if found["own"][0]["prompts"] != found["peer"][0]["prompts"]:
        raise Failed("the two sides encoded the prompts differently")
    own, peer = ([r["tokens"] / median(r["calls"][WARM:]) for r in found[side]]
                 for side in ("own", "peer"))
    size = len(found["own"][0]["prompts"][0])
    return [row(f"sampling, tokens/s: {PROMPTS} prompts of {size} tokens x {GROUP}, {ROOM} new "
                "tokens, no EOS; transformers' generate; ratio minipost/peer", own, peer,
                lambda rate: f"{rate:,.0f}", (">=", 2.5), True)]


def sft_rows(bench):
    steps = 6 if bench.quick else 30
    found = bench.rounds(5, own=lambda _: bench.job("own", "sft", steps),
                         peer=lambda _: bench.job("peer", "sft", steps))
    shapes = {len(result["row"]) for side in found.values() for result in side}
    if len(shapes) > 1:
        raise Failed(f"the two sides trained on rows of {shapes} tokens")
    return [row(f"one SFT step, 64 rows of {shapes.pop()} tokens, loss on all but BOS; TRL",
                column(step_time, found["own"]), column(step_time, found["peer"]), ms,
                (">=", 1.4))]


def import_rows(bench):
    def python(*command):
        return lambda _: measure([sys.executable, *command])

    found = bench.rounds(
        5, help=python("-m", "minipost.train", "--help"),
        knobs=python("-m", "minipost.train", "--algo", "grpo", "--help"),
        method=python("-c", "import minipost.methods.grpo"), torch=python("-c", "import torch"),
        trl=python("-c", "from trl import GRPOTrainer"),
    )
    seconds = {name: [result["seconds"] for result in results] for name, results in found.items()}
    return [
        row("`python -m minipost.train --help`; `import torch`; ratio minipost/peer",
            seconds["help"], seconds["torch"], sec, ("<=", 2.0), True),
        row("`python -m minipost.train --algo grpo --help`; `import torch`; ratio minipost/peer",
            seconds["knobs"], seconds["torch"], sec, ("<=", 2.0), True),
        row("`import minipost.methods.grpo`; `from trl import GRPOTrainer`",
            seconds["method"], seconds["trl"], sec),
    ]


def reach_rows(bench):
    """Training seconds to a held-out accuracy, from the shipped base model."""
    what = f"training to {TARGET:.0%} sampled held-out accuracy on arithmetic; TRL"
    if not (ROOT / bench.base / "model.safetensors").is_file():
        return [[what, f"skipped: {bench.base} holds no model.safetensors", "", "", ">= 3.0", ""]]
    steps = EVERY if bench.quick else 200
    found = bench.rounds(3, **{
        side: lambda seed, side=side: bench.job(side, "reach", steps, model=bench.base, seed=seed)
        for side in ("own", "peer")})
    for side, results in found.items():
        print(f"  {side}: " + "; ".join(" ".join(f"{x:.3f}" for x in r["scores"]) for r in results))
    own, peer = ([r["reached"] for r in found[side]] for side in ("own", "peer"))
    return [row(what, own, peer, sec, (">=", 3.0))]


NOTES = f"""\
minipost runs in its default number of processes ({min(4, CORES)} here, of one thread each), as a
user's run does.  The peer runs in one process with {CORES} threads where its row does not say
otherwise, in its fastest settings: float32 (`bf16=False`), no gradient checkpointing,
`optim="adamw_torch_fused"`, no logging, evaluation or saving, no loader workers, dynamic cache.

Both: AdamW, the same learning rate, no weight decay, gradients clipped to norm 1, no KL (beta 0),
temperature 1, and one update per rollout of {PROMPTS} prompts x {GROUP} completions of up to
{ROOM} tokens.  The model has random weights: 4 layers, width 128, 4 heads, FFN 344, 512 tokens,
{{parameters:,}} parameters.  The time to an accuracy starts from the base model instead, with
minipost's default GRPO settings but beta 0 on both sides and the same prompts at each step; every
{EVERY} steps, outside the clock, {HELD_OUT} held-out problems are sampled.

Medians over alternated fresh processes, 5 rounds (3 for the time to an accuracy); a step is the
median of its process after {WARM} warm-up steps.  The ratio is peer/minipost where the row does not
say otherwise; in brackets the lowest and highest of the pairs."""


def speed(args):
    """Every comparison with the public libraries.  Skipped if they are not installed."""
    missing = [name for name in ("trl", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"speed: skipped, {' and '.join(missing)} cannot be imported here "
              "(pip install -e '.[bench]')")
        return
    with tempfile.TemporaryDirectory(prefix="minipost-bench-") as folder:
        bench = Bench(Path(folder), args.model, args.quick)
        try:
            size = bench.job("prepare", "files", 0, model=folder)["parameters"]
            for side in ("own", "peer"):
                bench.job(side, "grpo", 1)  # writes bytecode and fills the file cache
        except Failed as failure:
            print(f"speed: skipped, {failure}")
            return
        rows, notes = [], []
        for part in (grpo_rows, memory_rows, sample_rows, sft_rows, import_rows, reach_rows):
            print(part.__name__, flush=True)
            try:
                found = part(bench)
            except Failed as failure:
                found = [[f"failed: {failure}", *[""] * 4, "no"]]
            found, note = found if isinstance(found, tuple) else (found, "")
            rows, notes = rows + found, [*notes, *([note] if note else [])]
    write(args.out, "speed", [
        "## Speed, side by side", "", machine("transformers", "trl"), "",
        "`python -m scripts.bench speed`", "",
        *table(["what; peer", "minipost", "peer", "ratio [min, max over pairs]", "wanted",
                "reached"], rows), "",
        NOTES.format(parameters=size), "", *notes,
        f"Rounds done again because something else took over {NOISE:.0%} of the CPUs: "
        f"{bench.discarded}; most that it took in a round that counts: {bench.worst:.0%}.",
    ])


def other(part):
    """A part that is in its own file."""
    return lambda args: part(args, machine, table, write)


PARTS = {"learning": learning, "alignment": other(bench_alignment.alignment),
         "offline": other(bench_offline.offline),
         "preferences": other(bench_offline.preferences), "fisher": other(bench_alignment.fisher),
         "test-time": other(bench_test_time.test_time), "game24": other(bench_test_time.game24),
         "proof": other(bench_proof.proof), "sampler": other(bench_sampler.sampler), "speed": speed,
         "scale": other(bench_scale.scale)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part",
                        help=f"{', '.join(PARTS)}; all if none")
    parser.add_argument("--model", default="checkpoints/base", help="base model to start from")
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md", help="file to write")
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in args.parts:
        if name not in PARTS:
            parser.error(f"no part {name!r}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `measure` ends its child
    for name, part in PARTS.items():
        if name in args.parts or not args.parts:
            part(args)


if __name__ == "__main__":
    main()
