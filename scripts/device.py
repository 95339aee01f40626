"""Check minipost on a GPU, in at most eight minutes, without a network and without weights.

    python -m scripts.device                            on the GPU of this machine
    python -m scripts.device --report BENCHMARKS.md     and put the table into this file
    python -m scripts.device --out RESULT.json          or keep what was found as JSON
    python -m scripts.device --device cpu --quick       the same program at a tiny size, on a CPU

    forward     logits and a gradient in float32, held to the CPU's
    bfloat16    a GRPO step with weights in bfloat16
    graphs      answers decoded by CUDA graphs, held to the plain decoder and to training's pass
    shard       a run with --shard, on this one device
    lora        a run with --lora
    methods     a step of every demo, held to the CPU's, and of some in bfloat16 with --lora
    memory      what GRPO steps take at most, beside what scripts/bench_memory.py computes
    fits        the same for 0.5B to 7B, with the flags of its table and 64 rows in one pass

Exit code 0 if all that was checked is right, 1 if something is not, 2 where there is no GPU.
"""

import argparse
import copy
import datetime
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from minipost import methods, train
from minipost.engine import decode_cuda
from minipost.engine.block import recompute
from minipost.errors import MinipostError
from minipost.gpt import GPTConfig
from minipost.methods import grpo
from minipost.rollout import Sequences, logprobs
from scripts import bench_gpu, bench_memory, demos
from scripts.alternate import ROOT
from scripts.bench_gpu import SHAPES, Job
from scripts.bench_memory import Way, held, noted_passes, of_a_pass
from scripts.pages import table, write

LAST_BEGIN, END = 380, 460  # seconds after which no check begins, and at which the last is ended
NO_GPU = ("no GPU was found (torch.cuda.is_available() is false), so nothing was checked; "
          "--device cpu --quick tries the program itself")
COLUMNS = ["check", "result", "what was found", "s of the check"]
OK, WRONG, SKIPPED = "ok", "WRONG", "skipped"
CLOSE = 1e-3          # largest difference of float32 log-probs on two devices
ALIKE = 2e-4          # the same of two ways to compute them on one device
ROUGH = 0.2           # mean difference of log-probs between bfloat16's decoder and its pass
MEMORY = 1.5          # most that a step may take, of what is computed
NEAR = 1e-2           # largest relative difference of a metric of a first step on two devices
HALF = ("sft", "reward", "dpo", "grpo", "ppo", "trpo")  # tried in bfloat16 with --lora too
LOOSE = ("second", "difference", "accuracies", "residual")  # of time, of rounding, or of ties
PROCESSES = min(10, os.cpu_count() or 1)
TINY = GPTConfig(67, 16, 24, 2, 4, 2, 4, 64)


@dataclass(frozen=True)
class Setting:
    """What is checked, and at which size."""

    device: str
    shapes: dict            # {name: GPTConfig} of the memory
    job: Job                # of the other checks
    sizes: dict             # {name: GPTConfig} of what has to fit
    methods: tuple          # names of the methods that are tried
    begun: float


def setting(args):
    if args.quick:
        small = Job(TINY, device=args.device, prompts=2, group_size=4, prompt=4, new=6, mixed=3,
                    checked=12)
        return Setting(args.device, {"tiny": TINY}, small, {"tiny": TINY}, ("dpo",),
                       time.monotonic())
    return Setting(args.device, SHAPES, Job(SHAPES["SmolLM2-135M"], device=args.device, mixed=16),
                   bench_memory.SHAPES, tuple(methods.names()), time.monotonic())


# ---- the checks: each gives (OK, WRONG or SKIPPED, a sentence), one or several

def forward(on):
    """Log-probs and their gradient on the device and on the CPU, in float32."""
    job = replace(on.job, dtype=torch.float32, device="cpu")
    here = bench_gpu.model(job)
    there = copy.deepcopy(here).to(on.device)
    tokens = torch.randint(3, job.config.vocab_size, (4, min(48, job.config.vocab_size // 2)),
                           generator=torch.Generator().manual_seed(0))
    seqs, found = Sequences(tokens, torch.ones(4, tokens.shape[1] - 1, dtype=torch.bool)), []
    for model in (here, there):
        logp = logprobs(model, seqs.to(model.device))
        logp.mean().backward()
        found.append((logp.detach().cpu(), model.layers[0].mlp.gate_up_proj.weight.grad.cpu()))
    (a, slope), (b, other) = found
    gap = float((a - b).abs().max())
    bend = float((slope - other).norm() / slope.norm())
    return (OK if max(gap, bend) < CLOSE else WRONG,
            f"log-probs differ from the CPU's by at most {gap:.1e}, the gradient by {bend:.1e} "
            "of its norm")


def bfloat16(on):
    """A GRPO step in bfloat16, with a KL."""
    run = bench_gpu.make_run(replace(on.job, dtype=torch.bfloat16))
    run.recompute = True
    before = run.policy.flat.clone()
    cfg = grpo.Config(steps=1, prompts=on.job.prompts, group_size=on.job.group_size,
                      minibatch_size=on.job.rows, lr=1e-4)
    metrics = {**next(grpo.train(run, cfg)), **run.differences()}
    moved = float((run.policy.flat != before).float().mean())
    fine = metrics["grad_norm"] == metrics["grad_norm"] and moved > 0
    return (OK if fine else WRONG,
            f"a GRPO step moves {moved:.0%} of the weights; the sampler's log-probs are off by at "
            f"most {metrics['sampling_logp_difference/max']:.2f}")


def graphs(on):
    """The step that CUDA graphs record, against decode.py and the whole pass."""
    notes = {}
    bench_gpu.check(on.job, lambda **found: notes.update(found))
    fine = max(notes["whole"], notes["eager"]) < ALIKE and notes["bfloat16"] < ROUGH
    return (OK if fine else WRONG,
            f"{notes['tokens']:,} tokens: log-probs differ from the plain decoder's by at most "
            f"{notes['eager']:.1e}, from training's by {notes['whole']:.1e}; {notes['equal']:.2%} "
            f"of the tokens are equal; in bfloat16 {notes['bfloat16']:.1e} on average")


def memory(on):
    """The most that GRPO steps take, by size, type and whether there is a KL."""
    return [memory_of(on, name, config, way) for name, config in on.shapes.items()
            for way in (Way(), Way("bfloat16", reference=False))]


def fits(on):
    """The sizes of the memory table, each with the first flags that it says are enough."""
    return [memory_of(on, name, config, bench_memory.fitting(config)[0], one_pass=True)
            for name, config in on.sizes.items()]


def memory_of(on, name, config, way, one_pass=False):
    """One line of what is computed and what two steps take.

    one_pass: with --gradient-checkpointing and all rows in one pass, in passes of 16 rows if not.
    """
    if time.monotonic() - on.begun > LAST_BEGIN:
        return SKIPPED, f"{name}: no time was left"
    cuda, job = on.device == "cuda", replace(on.job, config=config, lora=way.lora,
                                             dtype=getattr(torch, way.dtype))
    bench_gpu.forget()
    before = torch.cuda.memory_allocated() if cuda else 0
    run = bench_gpu.make_run(job, job.rows if one_pass else 16)
    model = recompute(run.policy.module) if one_pass else run.policy.module
    if cuda:  # random weights are drawn in float32, which no user's run does
        torch.cuda.reset_peak_memory_stats()
    most = noted_passes(run)
    cfg = grpo.Config(steps=2, prompts=job.prompts, group_size=job.group_size,
                      minibatch_size=job.rows, beta=0.01 if way.reference else 0.0, lr=1e-5)
    learn = grpo.train(run, cfg)
    try:
        for run.step in range(2):
            next(learn)
    except torch.OutOfMemoryError as error:
        return WRONG, f"{name}, {way.flags()}: {error!s:.200}"
    caches = bench_memory.cached(model) * job.rows * (job.prompt + job.new)
    computed = held(model, way) + max(of_a_pass(model, max(most)), caches)
    said = (f"{name}, {way.flags()}, {max(most):,} tokens in a pass: computed "
            f"{computed / 1e9:.2f} GB, of which {held(model, way) / 1e9:.2f} are held")
    if not cuda:
        return SKIPPED, f"{said}; only a GPU says what was taken"
    taken = torch.cuda.max_memory_allocated() - before
    return (OK if taken < MEMORY * computed else WRONG,
            f"{said}; taken {taken / 1e9:.2f} GB, {taken / computed:.2f} of it")


def shard(on):
    return trained(on, "shard", ["--shard"], ["-m", "torch.distributed.run", "--standalone",
                                              "--nproc-per-node", "1"])


def lora(on):
    return trained(on, "lora", ["--lora", "4"])


def trained(on, name, flags, launcher=()):
    """Two steps of GRPO on a random model by the command line, with these flags."""
    if name not in {field.name for field in fields(train.Options)}:
        return SKIPPED, f"this version has no --{name}"
    with tempfile.TemporaryDirectory() as folder:
        bench_memory.create(f"{folder}/model", bench_memory.TRIAL["tiny"])
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "minipost.train", "--algo", "grpo", "--task",
             "arithmetic", "--model", f"{folder}/model", "--out", f"{folder}/run", "--device",
             on.device, "--steps", "2", "--prompts", "4", "--group-size", "4", "--eval-n", "4",
             "--max-new-tokens", "8", *([] if launcher else ["--workers", "1"]), *flags],
            cwd=ROOT, text=True, capture_output=True,
            timeout=max(1.0, END - (time.monotonic() - on.begun)))
        if done.returncode:
            return WRONG, f"the run ended with {done.returncode}: {complaint(done.stderr)[:200]}"
        steps = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        return OK, f"{len(steps)} steps, the last loss {json.loads(steps[-1])['loss']:.3g}"


def methods_of(on):
    """The first row of metrics of every method's demo on the device and on the CPU."""
    half = ("--dtype", "bfloat16", "--lora", "4")
    runs = [(name, device, ()) for name in on.methods for device in {on.device, "cpu"}]
    runs += [(name, on.device, half) for name in HALF if name in on.methods]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(PROCESSES) as pool:
        found = dict(zip(runs, pool.map(
            lambda k: first_row(on, *runs[k], Path(folder) / str(k)), range(len(runs)))))
    wrong = [f"{name} {' '.join((device, *flags))}: {row}" for (name, device, flags), row
             in found.items() if isinstance(row, str)]
    gaps = [(*largest_gap(found[name, on.device, ()], found[name, "cpu", ()]), name)
            for name in on.methods
            if not isinstance(found[name, on.device, ()], str)
            and not isinstance(found[name, "cpu", ()], str)]
    gap, key, name = max(gaps, default=(0.0, "nothing", "none"))
    wrong += [f"{name}: {key} differs by {gap:.1e} of it" for gap, key, name in gaps
              if not gap < NEAR]
    return (WRONG if wrong else OK,
            "; ".join(wrong) or f"{len(runs)} runs end; the largest difference of a metric is "
            f"{gap:.1e} of it ({key} of {name})")


def first_row(on, name, device, flags, out):
    """The metrics of a demo's first step, or a sentence where there are none."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "minipost.train", "--algo", name, "--out", str(out), "--device",
             device, "--eval-n", "4", "--workers", "1",
             *demos.cut(name, 1), *flags],
            cwd=ROOT, text=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=max(1.0, END - (time.monotonic() - on.begun)))
    except subprocess.TimeoutExpired:
        return "not done in time"
    if done.returncode:
        return complaint(done.stderr)[:200]
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[0])


def largest_gap(one, two):
    """(the largest relative difference of two rows' numbers, its name); inf where one is NaN"""
    gaps = [(abs(one.get(key, math.nan) - two[key]) / max(1e-2, abs(two[key])), key) for key in two
            if isinstance(two[key], float) and not any(part in key for part in LOOSE)]
    return max(((math.inf if math.isnan(gap) else gap, key) for gap, key in gaps),
               default=(0.0, "nothing"))


def complaint(errors):
    """The line that says why: the last that states an error, for a launcher adds its own below."""
    lines = errors.strip().splitlines() or ["nothing was said"]
    stated = [x for x in lines if re.match(r"(\[\w+\]: *)?([\w.]*Error|error): *\S", x)]
    return (stated or lines)[-1]


CHECKS = {"forward": forward, "bfloat16": bfloat16, "graphs": graphs, "shard": shard,
          "lora": lora, "methods": methods_of, "memory": memory, "fits": fits}


# ---- the whole

@contextmanager
def decoding_as_a_gpu_does(device):
    """Inside the block the recorded step runs on a CPU too, where it is only not recorded."""
    before = decode_cuda.DEVICES
    decode_cuda.DEVICES = (*before, device) if device not in before else before
    try:
        yield
    finally:
        decode_cuda.DEVICES = before


def card(device):
    if device != "cuda":
        return "a CPU"
    known = torch.cuda.get_device_properties(0)
    return f"{known.name}, {known.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"


def found_by(check, on):
    """[(state, sentence), ...] of one check.  What it raises is wrong with it."""
    if time.monotonic() - on.begun > LAST_BEGIN:
        return [(SKIPPED, "no time was left")]
    try:
        found = check(on)
    except subprocess.TimeoutExpired:
        found = WRONG, "not done in time"
    except (MinipostError, RuntimeError, AssertionError) as error:  # OutOfMemoryError is one
        found = WRONG, f"{type(error).__name__}: {error!s:.200}"
    return found if isinstance(found, list) else [found]


def write_report(path, said, cells):
    """Put the table into a page, and print it."""
    write(path, "scripts.device", [
        "## On a GPU: is it right, and does it fit", "",
        f"`python -m scripts.device`; {said}.  Weights are random.  `methods` runs the first step "
        "of every method's demo on the GPU and on the CPU and compares each number that it writes; "
        "`memory` and `fits` hold the most that two GRPO steps take (64 answers of 256 tokens) to "
        "what the table of memory computes, `fits` with its flags, `--gradient-checkpointing` and "
        "all answers in one pass.  GB are 1e9 bytes.", "", *table(COLUMNS, cells), ""],
          "python -m")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="at a tiny size")
    parser.add_argument("--out", type=Path, help="JSON file for what was found")
    parser.add_argument("--report", type=Path, help="Markdown file for the table")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    on, cells = setting(args), []
    said = f"{card(on.device)}; torch {torch.__version__}; {datetime.date.today():%Y-%m-%d}"
    print(f"{said}\n", flush=True)
    with decoding_as_a_gpu_does(on.device):
        for name, check in CHECKS.items():
            start, found = time.monotonic(), found_by(check, on)
            for state, sentence in found:
                taken = "" if cells and cells[-1][0] == name else f"{time.monotonic() - start:.1f}"
                cells.append([name, state, sentence, taken])
                print(f"{name}: {state}: {sentence}", file=sys.stderr, flush=True)
    if args.out:
        args.out.write_text(json.dumps({"card": said, "found": cells}, indent=1) + "\n")
    if args.report:
        write_report(args.report, said, cells)
    else:
        print("\n".join(table(COLUMNS, cells)))
    return int(any(state == WRONG for _, state, *_ in cells))


if __name__ == "__main__":
    sys.exit(main())
