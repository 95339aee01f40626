"""The picture of README: what GRPO does to the likeliest answer, to a sampled one, and to a vote.

    python -m scripts.flagship        make demo-grpo-long, measured every ten steps, and its picture
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from minipost.measure.stats import Score
from scripts import looks
from scripts.bench import DEMOS

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [*DEMOS["grpo-long"], "--eval-every", "10"]
KINDS = {"greedy": looks.COLOURS["grpo"], "sampled": looks.ORANGE}  # curve: its colour
ASKED = {"vote of 33": looks.BLUE, "any of 33 right": looks.GREEN}  # measured before training only


def read(directory):
    """(curves {kind: [(step, accuracy)]}, {name: Score} of before) of a run."""
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    before, curves = {}, {}
    for name, found in summary["all"].items():
        before[name.partition(",")[0]] = Score(**found["before"])
    for name, found in summary["asked"].items():
        before[name.partition(",")[0]] = Score(**found)
    for kind in KINDS:
        after = Score(**summary["all"][f"{kind}, held-out"]["after"])
        key = f"eval/held-out/{kind}"
        inner = [(m["step"], m[key]) for m in metrics if key in m and m["step"] < len(metrics)]
        curves[kind] = [(0, before[kind].value), *inner, (len(metrics), after.value)]
    return curves, before


def draw(path, curves, before):
    """The SVG, with the same bytes for the same run and the same matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "minipost", "font.size": 10}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes, ends = figure.add_subplot(), []
        last = max(step for curve in curves.values() for step, _ in curve)
        for name, shade in ASKED.items():
            value = before[name].value
            axes.plot([0, last], [value, value], color=shade, linestyle=(0, (2, 3)), linewidth=1)
            axes.errorbar(0, value, [[value - before[name].low], [before[name].high - value]],
                          color=shade, marker="o", markersize=5, capsize=2)
            ends.append((last, value, f"{name}, untrained  {value:.2f}", shade))
        for kind, shade in KINDS.items():
            steps, values = zip(*curves[kind])
            axes.plot(steps, values, color=shade, linewidth=2.2, marker="o", markersize=3)
            ends.append((last, values[-1], f"{kind}  {values[0]:.2f} to {values[-1]:.2f}", shade))
        axes.set(xlabel="training step", ylabel="right, of 400 held-out sums", ylim=(0, 1.0),
                 xlim=(-0.5, last))
        axes.set_title("Sums of twelve terms: GRPO learns what no vote of 33 finds (seed 0)",
                       loc="left", fontsize=11)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        looks.label_ends(axes, ends, size=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs/flagship")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/pictures/grpo.svg")
    args = parser.parse_args(argv)
    if not (args.run / "summary.json").is_file():
        subprocess.run([sys.executable, "-m", "minipost.train", *COMMAND, "--out", str(args.run),
                        "--overwrite"], cwd=ROOT, check=True)
    draw(args.plot, *read(args.run))


if __name__ == "__main__":
    main()
