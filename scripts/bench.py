"""Measure minipost and write BENCHMARKS.md: `make bench`, or one part by name.

    python -m scripts.bench learning     held-out accuracy before and after, three seeds a method
    python -m scripts.bench alignment    reward models, RLHF and RLAIF, with and without a KL price
    python -m scripts.bench offline      fixed sets of answers and teachers: OREO, distillation
    python -m scripts.bench test-time    every way to answer, held out, with tokens per problem
    python -m scripts.bench game24       the Game of 24, beside the paper's table
    python -m scripts.bench search       seconds per problem of searches, by transformers too
    python -m scripts.bench proof        the proofs of each method, in worlds that can be listed
    python -m scripts.bench sampler      sampler against trainer, in float32 and bfloat16
    python -m scripts.bench fisher       TRPO's Fisher-vector product in its two forms
    python -m scripts.bench speed        side by side with TRL and transformers (extra `bench`)
    python -m scripts.bench gpu          the same on a GPU, where there is one
    python -m scripts.bench peers        a step of every other method that TRL has
    python -m scripts.bench profile      where a GRPO step spends its time
    python -m scripts.bench scale        a GRPO step by size of model, prompt, answer and group
    python -m scripts.bench memory       what a parameter and a token take, and what fits 80 GB
    python -m scripts.bench bits         fixed weights in 8 and 4 bits: perplexity and accuracy

Each part has its own markers in the file, so one part can be made again without the others.  The
machine should have nothing else to do.  Speed is measured in fresh processes that alternate between
minipost and peer.  A round is discarded if something else took more than 5% of the CPUs.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

from scripts import (
    bench_alignment,
    bench_bits,
    bench_gpu,
    bench_memory,
    bench_offline,
    bench_profile,
    bench_proof,
    bench_sampler,
    bench_scale,
    bench_search,
    bench_speed,
    bench_test_time,
)
from scripts.alternate import ROOT, last_line, yes
from scripts.pages import machine, table, write

SEEDS = (0, 1, 2)


# ---- learning

DEMOS = {  # make demo-NAME: its arguments
    "grpo": ["--algo", "grpo"],
    "grpo-long": ["--algo", "grpo", "--task", "arithmetic", "--hurried", "True", "--terms", "12",
                  "--model", "checkpoints/thinker", "--max-new-tokens", "128", "--steps", "200",
                  "--ask", "33"],
    "sft": ["--algo", "sft"],
}


def learning(args):
    """Run some demos, once per seed, and tabulate the summaries."""
    rows = []
    for name in DEMOS:
        for seed in SEEDS[:1] if args.quick else SEEDS:
            found = [[name, str(seed), *cells] for cells in learnt(args, name, seed)]
            print("\n".join(" | ".join(cells) for cells in found), flush=True)
            rows += found
    write(args.out, "learning", [
        "## Learning", "", machine(), "",
        "`python -m scripts.bench learning`; each row is `make demo-NAME` with another seed.  "
        "Held-out accuracy with 95% intervals.", "",
        *table(["demo", "seed", "problems", "greedy before", "greedy after", "sampled before",
                "sampled after", "vote of 33 before", "surest of 33 before", "any of 33 right "
                "before", "training s", "tokens", "reached"], rows), "",
        "Wanted of grpo: greedy from at most 0.50 to at least 0.95 in at most 60 s; of grpo-long: "
        "0.40 more in at most 10 minutes.  Of sft on facts: greedy from at most 0.10 to at least "
        "0.95.  The vote and the choices are of the model before training, each among 33 samples: "
        "the surest is the one with the highest mean log-prob, and an exact checker would find a "
        "right one as often as any is right.",
    ])


def learnt(args, name, seed):
    """One run's rows of the table, one row for each split of its task."""
    out = ROOT / "runs" / f"bench-{name}-{seed}"
    command = [sys.executable, "-m", "minipost.train", *DEMOS[name], "--seed", str(seed),
               "--out", str(out), "--overwrite"]
    command += ["--steps", "2", "--eval-n", "10"] if args.quick else []
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE)
    if done.returncode:
        return [[f"failed: {last_line(done.stderr)}", *[""] * 10]]
    summary = json.loads((out / "summary.json").read_text())
    found = []
    for split in dict.fromkeys(name.partition(", ")[2] for name in summary["all"]):
        results = {metric: summary["all"][f"{metric}, {split}"] for metric in ("greedy", "sampled")}
        scores = [results[metric][when] for metric in results for when in ("before", "after")]
        asked = [score(s) for way, s in summary["asked"].items() if way.endswith(f", {split}")]
        found.append([split, *map(score, scores), *(asked or [""] * 3), f"{summary['seconds']:.0f}",
                      f"{summary['tokens']:,}", reached(name, split, scores, summary["seconds"])])
    return found


def reached(name, split, scores, seconds):
    """Whether a run reached the targets of its demo.  Empty if there are none."""
    before, after = (s["value"] for s in scores[:2])
    if name == "grpo":
        return yes(before <= 0.50 and after >= 0.95 and seconds <= 60)
    if name == "grpo-long":
        return yes(after - before >= 0.40 and seconds <= 600)
    if name == "sft" and split == "facts":
        return yes(before <= 0.10 and after >= 0.95)
    return ""


def score(s):
    return f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"


PARTS = {"learning": learning, "alignment": bench_alignment.alignment,
         "offline": bench_offline.offline, "fisher": bench_alignment.fisher,
         "test-time": bench_test_time.test_time, "game24": bench_test_time.game24,
         "search": bench_search.search, "proof": bench_proof.proof,
         "sampler": bench_sampler.sampler, "speed": bench_speed.speed,
         "peers": bench_speed.peers, "profile": bench_profile.profile,
         "scale": bench_scale.scale, "memory": bench_memory.memory,
         "bits": bench_bits.bits,
         "gpu": bench_gpu.gpu}


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part",
                        help=f"{', '.join(PARTS)}; all if none")
    parser.add_argument("--model", default="checkpoints/base", help="base model to start from")
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md", help="file to write")
    parser.add_argument("--rest", action="store_true",
                        help="scale: measure what the last call left out, and keep its figures")
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
