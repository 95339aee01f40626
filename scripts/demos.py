"""Run every method's demo, one after another, and print one table: `make demos`."""

import argparse
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from minipost import methods, test_time
from minipost.measure.stats import Score


def demo(name, args):
    """Run one demo, show the last lines of what it prints, and return its summary or None."""
    out = Path("runs") / f"demo-{name}"
    if name in test_time.names():
        command = [sys.executable, "-m", "minipost.evaluate", "--method", name, "--out", str(out)]
        command += ["--n", str(args.n)] if args.n else []
    else:
        command = [sys.executable, "-m", "minipost.train", "--algo", name, "--out", str(out),
                   "--overwrite"]
        command += cut(name, args.steps) if args.steps else []
    print(f"== {name}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = done.stdout.splitlines()
    print("\n".join(lines[-args.lines :] if args.lines else lines), flush=True)
    if done.returncode:
        return None
    return json.loads((out / "summary.json").read_text())


def cut(name, steps):
    """The flags that cut a method's demo to so many steps, in each of its stages."""
    stages = [f.name for f in fields(methods.load(name).Config)
              if f.name == "steps" or f.name.endswith("_steps") and f.name != "warmup_steps"]
    return [part for stage in stages for part in (f"--{stage.replace('_', '-')}", str(steps))]


def gained(summary):
    """The paired gain of a summary, marked where its interval holds 0; "" where it has none."""
    if "gain" not in summary:
        return ""
    gain = Score(**summary["gain"])
    return f"{gain:+}" + (" (no effect seen)" if gain.low <= 0 <= gain.high else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=0, help="show only the last so many lines")
    parser.add_argument("--steps", type=int, default=0,
                        help="cut each training demo to so many steps, in each stage")
    parser.add_argument("--n", type=int, default=0, help="problems of each test-time demo")
    args = parser.parse_args()
    found = {name: demo(name, args) for name in (*methods.names(), *test_time.names())}
    print("\n| method | task | metric | before [95%] | after [95%] | gain, paired [95%] | seconds |"
          "\n|---|---|---|---|---|---|---|")
    for name, s in found.items():
        if s is None:
            print(f"| {name} | failed | | | | | |")
            continue
        before, after = (f"{s[k]['value']:.3f} [{s[k]['low']:.3f}, {s[k]['high']:.3f}]"
                         for k in ("before", "after"))
        print(f"| {name} | {s['task']} | {s['metric']} | {before} | {after} | {gained(s)} | "
              f"{s['seconds']:.0f} |")
    print("\nA gain whose interval holds 0 is marked: it may be noise.")
    return 1 if None in found.values() else 0


if __name__ == "__main__":
    sys.exit(main())
