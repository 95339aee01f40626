"""Run every method's demo, one after another, and print one table: `make demos`.

    python -m scripts.demos grpo tot                      these two alone
    python -m scripts.demos --seeds 3 --report METHODS.md      and fill in the effects there
    python -m scripts.demos --seeds 3 --keep              what lies in runs is not run again
    python -m scripts.demos --made --report METHODS.md    run none, read what lies in runs

What lies in runs counts where it was made with the same settings, defaults included, and the same
checkpoints.  A change to the code is not noticed.

Over several seeds a figure is the mean.  Its interval is Student's over the seeds, but at neither
end nearer than the mean of the seeds' own ends: all seeds answer the same held-out problems, so
that their chance does not average out.
"""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import fmean, median

from minipost import methods, test_time, train
from minipost.cli import inference
from minipost.measure.stats import Score, t_interval
from scripts.compare import fingerprint

# Demos that are no file's, by their name: a method, and flags.
OTHERS = {
    "dialogue": ("sft", "--task dialogue --turns 4 --max-new-tokens 8 --steps 300"),
    "lora": ("grpo", "--lora 16"),
    "tiny-lora": ("grpo", "--lora 2 --lora-numbers 13"),
    "adalora": ("grpo", "--lora 16 --lora-budget 4"),
    "prefix": ("grpo", "--prefix 8"),
    "bottleneck": ("grpo", "--bottleneck 8"),
    "qlora": ("grpo", "--lora 16 --base-bits 4"),
}


def place(name, seed):
    return Path("runs") / (f"demo-{name}-seed{seed}" if seed else f"demo-{name}")


def flags(name, seed, args):
    """The command line of a demo, behind `minipost.evaluate` or `minipost.train`."""
    out = ["--out", str(place(name, seed)), *(["--seed", str(seed)] if seed else [])]
    if name in test_time.names():
        return ["--method", name, *out, *(["--n", str(args.n)] if args.n else [])]
    algo, more = OTHERS.get(name, (name, ""))
    return ["--algo", algo, *out, *more.split(), *(cut(algo, args.steps) if args.steps else [])]


@cache
def checkpoints():
    """The digests of all models that demos read."""
    return {path.name: fingerprint(path) for path in sorted(Path("checkpoints").iterdir())}


def made_from(name, seed, args):
    """What a demo is made from, as text: its settings and the checkpoints; and what came of it.

    A run of another command in the same folder has another summary.
    """
    line = flags(name, seed, args)
    settings = (inference.settings_of(line, "", inference.Measured) if name in test_time.names()
                else train.settings_of(line))
    found = sha256((place(name, seed) / "summary.json").read_bytes()).hexdigest()
    parts = settings.options, settings.task, settings.config, checkpoints(), found
    return "\n".join(map(repr, parts)) + "\n"


def demo(name, seed, args):
    """Run one demo, show what it prints or its last lines, and return its summary or None."""
    module, more = (("minipost.evaluate", ()) if name in test_time.names()
                    else ("minipost.train", ("--overwrite",)))
    print(f"== {name}" + (f", seed {seed}" if args.seeds > 1 else ""), flush=True)
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if args.lines else {}
    done = subprocess.run([sys.executable, "-m", module, *flags(name, seed, args), *more],
                          text=True, **kept)
    if args.lines:
        print("\n".join(done.stdout.splitlines()[-args.lines :]), flush=True)
    if done.returncode:
        return None
    (place(name, seed) / "made-from.txt").write_text(made_from(name, seed, args), encoding="utf-8")
    return made(name, seed, args)


def made(name, seed, args):
    """The summary of a demo that was run before from the same, or None."""
    known, path = (place(name, seed) / file for file in ("made-from.txt", "summary.json"))
    if not (known.is_file() and path.is_file()):
        return None
    same = known.read_text(encoding="utf-8") == made_from(name, seed, args)
    return json.loads(path.read_text(encoding="utf-8")) if same else None


def ended(name, args):
    """The summary of a demo over its seeds, or None where one of them failed or was not made."""
    seen = []
    for seed in range(args.seeds):
        old = made(name, seed, args) if args.made or args.keep else None
        seen.append(old if old or args.made else demo(name, seed, args))
    return pooled(seen) if all(seen) else None


def pooled(seen):
    """One summary of several seeds': means, and intervals as the head of this file has them."""
    if len(seen) == 1:
        return {**seen[0], "seeds": 1}
    whole = {**seen[0], "seeds": len(seen), "seconds": median(s["seconds"] for s in seen)}
    share = all(s[part]["low"] >= 0 and s[part]["high"] <= 1  # whose intervals end at 0 and 1
                for s in seen for part in ("before", "after"))
    for part in ("before", "after", "gain"):
        if part in seen[0]:
            each = [s[part] for s in seen]
            over = t_interval([s["value"] for s in each])
            low = min(over.low, fmean(s["low"] for s in each))
            high = max(over.high, fmean(s["high"] for s in each))
            if share:
                low, high = max(low, -1.0 if part == "gain" else 0.0), min(high, 1.0)
            whole[part] = {"value": over.value, "n": each[0]["n"], "low": low, "high": high}
    return whole


def cut(name, steps):
    """The flags that cut a method's demo to so many steps, in each of its stages."""
    stages = [f.name for f in fields(methods.load(name).Config)
              if f.name == "steps" or f.name.endswith("_steps") and f.name != "warmup_steps"]
    return [part for stage in stages for part in (f"--{stage.replace('_', '-')}", str(steps))]


def gained(summary):
    """The paired gain of a summary, marked where its interval holds 0; "" where it has none."""
    if "gain" not in summary:
        return ""
    return Score(**summary["gain"]).effect()


def filled(page, found):
    """The page, in which rows with `make demo-NAME` end with before, after, gain, n, seeds."""
    lines = page.splitlines(keepends=True)
    for k, line in enumerate(lines):
        shown = re.search(r"`make demo-([a-z0-9-]+)`", line)
        if shown and line.startswith("|") and found.get(shown[1]):
            s = found[shown[1]]
            effect = (f"{s['before']['value']:.3f} | {s['after']['value']:.3f} | {gained(s)} | "
                      f"{s['after']['n']}, {s['seeds']}")
            lines[k] = f"{'|'.join(line.split('|')[:-5])}| {effect} |\n"
    return "".join(lines)


def main():
    every = (*methods.names(), *OTHERS, *test_time.names())
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a demo; all if none is given")
    parser.add_argument("--lines", type=int, default=0, help="show only the last so many lines")
    parser.add_argument("--steps", type=int, default=0,
                        help="cut each training demo to so many steps, in each stage")
    parser.add_argument("--n", type=int, default=0, help="problems of each test-time demo")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    parser.add_argument("--keep", action="store_true", help="run only those that runs lacks")
    parser.add_argument("--made", action="store_true", help="run none, read those in runs")
    parser.add_argument("--report", type=Path, help="page whose table of methods gets the effects")
    args = parser.parse_args()
    for name in set(args.names) - {*every}:
        parser.error(f"there is no demo {name}; there are {', '.join(every)}")
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: expected at least 1")
    found = {name: ended(name, args) for name in args.names or every}
    print("\n| method | task | metric | before [95%] | after [95%] | gain, paired [95%] | seconds |"
          "\n|---|---|---|---|---|---|---|")
    for name, s in found.items():
        if s is None:
            said = "not made with these settings" if args.made else "failed"
            print(f"| {name} | {said} | | | | | |")
            continue
        before, after = (f"{s[k]['value']:.3f} [{s[k]['low']:.3f}, {s[k]['high']:.3f}]"
                         for k in ("before", "after"))
        print(f"| {name} | {s['task']} | {s['metric']} | {before} | {after} | {gained(s)} | "
              f"{s['seconds']:.0f} |")
    if args.report:
        page = args.report.read_text(encoding="utf-8")
        args.report.write_text(filled(page, found), encoding="utf-8")
    print("\nA gain whose interval holds 0 is marked: it may be noise.")
    return 1 if None in found.values() else 0


if __name__ == "__main__":
    sys.exit(main())
