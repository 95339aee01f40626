"""Whether a change leaves every number as it was, to the bit.

    python -m scripts.same record        before the change: about eight minutes on two cores
    python -m scripts.same check         after it: run again and print what differs; exit code 1 if
                                         anything does

Every method makes three steps in one process and in two processes.  Every test-time method answers
20 problems.  The record holds the hashes of the weights that a run saves, its metrics without
seconds, and its summary.  For test-time methods it holds the answers and rewards of every arm.  A
record is valid on one machine only, since other processors round differently.  So it is in runs/
and is not committed.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minipost import methods, test_time

FOLDER = Path("runs/same")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # two runs in parallel, one core each
SHORT = {"ppo": "--sft-steps 2 --reward-steps 2", "rlaif": "--sft-steps 2 --reward-steps 2",
         "iterative-grpo": "--sft-steps 2 --reward-steps 4 --iterations 2",
         "iterated-rlhf": "--sft-steps 2 --reward-steps 2 --rounds 2",
         "direct-rlaif": "--sft-steps 2", "rpo": "--reward-steps 2",
         "r1": "--cold-steps 2 --rejection-prompts 64 --rejection-steps 2 --reward-steps 2 "
               "--align-steps 2",
         "tool-use": "--cold-steps 2", "satori": "--cold-steps 2"}
ROWS = {  # files to learn from, by what their rows hold beside a prompt
    "pairs": [{"chosen": f" {n + 1}", "rejected": f" {n}"} for n in range(40)],
    "answers": [{"completion": f" {n}", "reward": n % 3 / 2} for n in range(40)],
    "labels": [{"completion": f" {n}", "label": n % 2 == 0} for n in range(40)],
}


def variants():
    """{name: flags} of further runs, besides every method with its default settings."""
    data = {name: f"--data {FOLDER}/{name}.jsonl" for name in ROWS}
    found = {f"{algo}, pairs": f"--algo {algo} {data['pairs']}"
             for algo in ("dpo", "ipo", "simpo", "orpo", "kto", "reward", "plackett-luce")}
    found |= {f"{algo}, answers": f"--algo {algo} {data['answers']}"
              for algo in ("oreo", "rft", "sft")}
    return {
        **found,
        "kto, labels": f"--algo kto {data['labels']}",
        "grpo, k3": "--algo grpo --kl k3 --epochs 2 --minibatch-size 64",
        "ppo, adaptive": "--algo ppo --task arithmetic --control adaptive",
        "rlaif, dpo": "--algo rlaif --learner dpo --sft-steps 1",
        "dpo, likeliest": f"--algo dpo --likeliest 0.8 {data['pairs']}",
        "dpo, likeliest, sampled": "--algo dpo --likeliest 0.8 --label-smoothing 0.1",
        "rft, STaR": "--algo rft --iterations 2 --restart True --hint True",
        "oreo, token": "--algo oreo --level token --iterations 2",
        "distill, mixed": "--algo distill --mix 0.5",
        "prm, last": "--algo prm --last-only True",
        "sft, bfloat16": "--algo sft --dtype bfloat16",
    }


def jobs():
    """{name: command line} of every job, the slower ones first."""
    found = {}
    for algo in methods.names():
        for workers in (2, 1):
            found[f"{algo}, {workers}"] = f"--algo {algo} {SHORT.get(algo, '')} --workers {workers}"
    found |= {name: f"{flags} --workers 1" for name, flags in variants().items()}
    trains = {name: f"minipost.train {flags} --steps 3 --eval-n 20 --show 0"
              for name, flags in found.items()}
    tests = {f"test-time {name}": f"minipost.evaluate --method {name} --n 20 --workers 1 --json"
             for name in test_time.names()}
    tests["solve"] = "minipost.solve --method tot --json"
    tests["evaluate"] = ("minipost.evaluate --task countdown --n 40 --workers 1 "
                         "--max-new-tokens 48 --json")
    return tests | trains


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def without_time(value):
    """The same data without seconds."""
    if isinstance(value, dict):
        return {k: without_time(v) for k, v in value.items() if k != "seconds"}
    return [without_time(v) for v in value] if isinstance(value, list) else value


def run(name, line):
    """The results of one job, as plain data."""
    module, *flags = line.split()
    out = FOLDER / name.replace(", ", "-").replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", module, *flags]
    if module == "minipost.train":
        command += ["--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD)
    if done.returncode:
        return {"failed": done.stderr.strip()[-300:]}
    if module != "minipost.train":
        return without_time(json.loads(done.stdout))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": {str(path.parent.name): digest(path)
                    for path in sorted(out.glob("*/model.safetensors"))},
        "metrics": without_time(lines),
        "summary": without_time(json.loads((out / "summary.json").read_text())),
    }


def measured(only):
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, rows in ROWS.items():
        text = "".join(json.dumps({"prompt": f"{n}+1=? Answer:", **row}) + "\n"
                       for n, row in enumerate(rows))
        (FOLDER / f"{name}.jsonl").write_text(text)
    todo = {name: line for name, line in jobs().items() if only in name}
    pairs = {name: line for name, line in todo.items() if "--workers 2" in line}
    alone = {name: line for name, line in todo.items() if name not in pairs}
    found = {name: run(name, line) for name, line in pairs.items()}
    with ThreadPoolExecutor(2) as pool:
        return found | dict(zip(alone, pool.map(run, alone, alone.values())))


def differences(before, after, place=""):
    """Sentences on where two pieces of plain data differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before | after:
            if key not in before or key not in after:
                yield f"{place}: {key!r} is only {'after' if key in after else 'before'}"
            else:
                yield from differences(before[key], after[key], f"{place} {key}".strip())
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for k, (old, new) in enumerate(zip(before, after)):
            yield from differences(old, new, f"{place} [{k}]")
    elif before != after:
        yield f"{place}: {before!r:.80} -> {after!r:.80}"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "check"))
    parser.add_argument("--only", default="", help="only jobs whose name holds this")
    args = parser.parse_args()
    record, found = Path("runs/same.json"), measured(args.only)
    broken = {name: f"{name}: {left['failed']}" for name, left in found.items() if "failed" in left}
    if args.what == "record":
        old = json.loads(record.read_text()) if args.only and record.exists() else {}
        record.write_text(json.dumps(old | found, indent=1))
        print(f"{len(found)} runs recorded in {record}", *broken.values(), sep="\n")
        return int(bool(broken))
    before = json.loads(record.read_text())
    said = [*broken.values()] + [line for name in found for line in differences(
        {name: before.get(name)}, {name: found[name]}) if name not in broken]
    print(*said, f"{len(found)} runs, {len(said)} differences", sep="\n")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
