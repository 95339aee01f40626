"""Check minipost on a GPU, in at most eight minutes, without a network and without weights.

    python -m scripts.device                            on the GPU of this machine
    python -m scripts.device --out RESULT.json          and keep what was found
    python -m scripts.device --device cpu --quick       the same program at a tiny size, on a CPU

    forward     logits and a gradient in float32, held to the CPU's
    bfloat16    a GRPO step with weights in bfloat16
    graphs      answers decoded by CUDA graphs, held to the plain decoder and to training's pass
    memory      what GRPO steps take at most, beside what scripts/bench_memory.py computes
    shard       a run with --shard, on this one device
    lora        a run with --lora

Exit code 0 if all that was checked is right, 1 if something is not, 2 where there is no GPU.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from minipost import train
from minipost.engine import decode_cuda
from minipost.errors import MinipostError
from minipost.gpt import GPTConfig
from minipost.methods import grpo
from minipost.rollout import Sequences, logprobs
from scripts import bench_gpu, bench_memory
from scripts.alternate import ROOT
from scripts.bench import table
from scripts.bench_gpu import SHAPES, Job
from scripts.bench_memory import Way, held, noted_passes, of_a_pass

LAST_BEGIN, END = 380, 460  # seconds after which no check begins, and at which the last is ended
NO_GPU = ("no GPU was found (torch.cuda.is_available() is false), so nothing was checked; "
          "--device cpu --quick tries the program itself")
OK, WRONG, SKIPPED = "ok", "WRONG", "skipped"
CLOSE = 1e-3          # largest difference of float32 log-probs on two devices
ALIKE = 2e-4          # the same of two ways to compute them on one device
ROUGH = 0.2           # mean difference of log-probs between bfloat16's decoder and its pass
MEMORY = 1.5          # most that a step may take, of what is computed
TINY = GPTConfig(67, 16, 24, 2, 4, 2, 4, 64)


@dataclass(frozen=True)
class Setting:
    """What is checked, and at which size."""

    device: str
    shapes: dict            # {name: GPTConfig} of the memory
    job: Job                # of the other checks
    begun: float


def setting(args):
    if args.quick:
        small = Job(TINY, device=args.device, prompts=2, group_size=4, prompt=4, new=6, mixed=3,
                    checked=12)
        return Setting(args.device, {"tiny": TINY}, small, time.monotonic())
    return Setting(args.device, SHAPES, Job(SHAPES["SmolLM2-135M"], device=args.device, mixed=16),
                   time.monotonic())


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
    found = []
    for name, config in on.shapes.items():
        for way in (Way(), Way("bfloat16", reference=False)):
            if time.monotonic() - on.begun > LAST_BEGIN:
                found.append((SKIPPED, f"{name}: no time was left"))
                continue
            found.append(memory_of(on, name, config, way))
    return found


def memory_of(on, name, config, way):
    cuda = on.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else 0
    run = bench_gpu.make_run(replace(on.job, config=config, dtype=getattr(torch, way.dtype)))
    run.recompute = way.dtype != "float32"
    most = noted_passes(run)
    cfg = grpo.Config(steps=2, prompts=on.job.prompts, group_size=on.job.group_size,
                      minibatch_size=on.job.rows, beta=0.01 if way.reference else 0.0, lr=1e-5)
    learn = grpo.train(run, cfg)
    for run.step in range(2):
        next(learn)
    model = run.policy.module
    caches = bench_memory.cached(model) * on.job.rows * (on.job.prompt + on.job.new)
    computed = held(model, way) + max(of_a_pass(model, max(most)), caches)
    said = (f"{name}, {way.dtype}, {'with' if way.reference else 'no'} KL: computed "
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
            last = (done.stderr.strip() or "nothing was said").splitlines()[-1]
            return WRONG, f"the run ended with {done.returncode}: {last[:200]}"
        steps = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        return OK, f"{len(steps)} steps, the last loss {json.loads(steps[-1])['loss']:.3g}"


CHECKS = {"forward": forward, "bfloat16": bfloat16, "graphs": graphs, "memory": memory,
          "shard": shard, "lora": lora}


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


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="at a tiny size")
    parser.add_argument("--out", type=Path, help="JSON file for what was found")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    on, cells = setting(args), []
    print(f"{card(on.device)}; torch {torch.__version__}\n", flush=True)
    with decoding_as_a_gpu_does(on.device):
        for name, check in CHECKS.items():
            start = time.monotonic()
            for state, sentence in found_by(check, on):
                cells.append([name, state, sentence, f"{time.monotonic() - start:.1f}"])
                print(f"{name}: {state}: {sentence}", file=sys.stderr, flush=True)
    print("\n".join(table(["check", "result", "what was found", "s"], cells)))
    if args.out:
        args.out.write_text(json.dumps({"card": card(on.device), "torch": torch.__version__,
                                        "found": cells}, indent=1) + "\n")
    return int(any(state == WRONG for _, state, *_ in cells))


if __name__ == "__main__":
    sys.exit(main())
