"""Accuracy against tokens, test-time methods and the RL-trained model: `make compute-optimal`.

Not there are methods of other tasks: graph of thoughts, Self-Polish, universal self-consistency,
budget forcing, memory.  Each of the others answers the same held-out problems of two tasks with
checkpoints/thinker, at several settings.  The thinker after GRPO on that task answers them too.  It
pays its tokens before.  The result is a table in BENCHMARKS.md and a plot,
docs/pictures/compute-optimal.svg.

Results of the same command and model are kept in runs/compute-optimal and not made again.  The
command does not notice a change to the code or to checkpoints/verifier.  Remove the folder after
such a change.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from minipost.measure.stats import Score
from scripts import looks
from scripts.compare import fingerprint
from scripts.pages import machine, table, write

ROOT = Path(__file__).resolve().parents[1]
SUMS = "--task arithmetic --terms 6 --hurried True"
GAME = "--task countdown --numbers 4 --target 24"
GRPO = {SUMS: "--steps 60", GAME: "--steps 100 --lr 3e-4"}  # settings of the RL-trained models
LEARNT = "after GRPO"
CURVES = {  # panel: (task, {curve: [(command, arm)]})
    "Six-term sums, taught to count short": (SUMS, {
        "at once": [(f"cot {SUMS}", "direct")],
        "worked, greedy": [(f"beam {SUMS}", "greedy")],
        "self-consistency": [(f"self-consistency {SUMS}", f"n={n}") for n in (1, 3, 5, 9, 17, 33)],
        "best of n, PRM": [(f"best-of-n {SUMS} --group-size {n}", "verifier")
                           for n in (2, 4, 8, 16, 32)],
        "best of n, own verdicts": [(f"best-of-n {SUMS} --group-size {n}", "own verdicts")
                                    for n in (2, 4, 8, 16, 32)],
        "adaptive consistency": [(f"adaptive-consistency {SUMS} --threshold {t}", "safe lead")
                                 for t in (0.8, 0.95)],
        "particles, PRM": [(f"particles {SUMS} --particles {n}", "particles")
                           for n in (4, 8, 16, 32)],
        "beam, PRM": [(f"beam {SUMS} --width {b} --branching {b}", "beam") for b in (2, 4, 6)],
        "retry": [(f"self-feedback {SUMS} --attempts {k}", "retry") for k in (2, 4)],
        "self-feedback": [(f"self-feedback {SUMS} --attempts {k}", "self-feedback")
                          for k in (2, 3, 4, 6)],
        "by difficulty": [(f"by-difficulty {SUMS} --budget {k}", "by difficulty")
                          for k in (4, 8, 16)],
        "with a calculator": [(f"react {SUMS}", "tool")],
        LEARNT: [(f"self-consistency {SUMS}", "n=1")],
    }),
    "Game of 24": (GAME, {
        "at once": [(f"self-consistency {GAME} --direct True", f"n={n}") for n in (1, 5, 17, 33)],
        "self-consistency": [(f"self-consistency {GAME}", f"n={n}") for n in (1, 5, 17, 33)],
        "best of n, own verdicts": [(f"tot --branching {k}", f"best of n, tokens of b={b}")
                                    for k in (2, 4, 8, 16) for b in (1, 5)],
        "best of n until sure": [(f"tot --branching {k}", "best of n until sure, tokens of b=5")
                                 for k in (2, 4, 8, 16)],
        "tree of thoughts, b=1": [(f"tot --branching {k}", "breadth-first, b=1")
                                  for k in (2, 4, 8, 16)],
        "tree of thoughts, b=5": [(f"tot --branching {k}", "breadth-first, b=5")
                                  for k in (2, 4, 8, 16)],
        "tree, depth-first": [(f"tot --branching {k}", "depth-first") for k in (4, 16)],
        "tree, best-first": [(f"tot --branching {k}", "best-first") for k in (4, 16)],
        "speculative rejection": [(f"speculative-rejection --group-size {n} --memory {n}",
                                   "speculative rejection") for n in (16, 32, 64)],
        "tree, A*": [(f"tot --branching {k}", "a-star") for k in (4, 16)],
        "UCT": [(f"uct --simulations {n}", "uct") for n in (8, 32, 64)],
        "MCTS": [(f"mcts --simulations {n}", "mcts") for n in (4, 12, 24)],
        LEARNT: [(f"self-consistency {GAME}", "n=1")],
    }),
}


def trained(task, args):
    """The directory of the model after GRPO on the task.  It is trained if it does not exist."""
    made_of = " ".join([task, GRPO[task], fingerprint(args.model)])
    out = args.runs / f"grpo-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    if not (out / "summary.json").is_file():
        run(["-m", "minipost.train", "--algo", "grpo", "--model", str(args.model), *task.split(),
             *GRPO[task].split(), "--max-new-tokens", "64", "--out", str(out), "--overwrite"])
    return out


def run(command):
    print("  python", " ".join(command), flush=True)
    return subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True,
                          check=True).stdout


def measured(command, model, args):
    """The output of `evaluate --method COMMAND --json`, made once."""
    full = ["-m", "minipost.evaluate", "--method", *command.split(), "--n", str(args.n), "--json",
            "--model", str(model)]
    name = hashlib.sha256(" ".join([*full, fingerprint(model)]).encode()).hexdigest()[:16]
    path = args.runs / f"{name}.json"
    if not path.is_file():
        path.write_text(run(full))
    return json.loads(path.read_text())


def points(task, curves, args):
    """{curve: [(tokens per problem, Score)]}"""
    found = {}
    for curve, wanted in curves.items():
        found[curve] = []
        for command, arm in wanted:
            model = trained(task, args) / "model" if curve == LEARNT else args.model
            row = measured(command, model, args)["all"][arm]
            found[curve].append((row["tokens per problem"], Score(**row["score"])))
            print(f"{curve}: {row['tokens per problem']:.0f} tokens, {found[curve][-1][1]}",
                  flush=True)
        found[curve].sort(key=lambda point: point[0])
    return found


def draw(panels, path):
    """Draw both panels on one page, with the same bytes for the same points and matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "minipost", "font.size": 9}):
        figure = Figure(figsize=(11, 9), layout="constrained")
        for axes, (title, curves) in zip(figure.subplots(2, 1), panels.items()):
            ends = []
            for name, found in curves.items():
                x = [tokens for tokens, _ in found]
                y = [score.value for _, score in found]
                bars = [[s.value - s.low for _, s in found], [s.high - s.value for _, s in found]]
                axes.errorbar(x, y, bars, **looks.line(name), linewidth=1.4, elinewidth=0.6,
                              markersize=9 if name == LEARNT else 5)
                ends.append((x[-1], y[-1], name, looks.colour(name)))
            axes.set_xscale("log")
            axes.set_title(title, loc="left", fontsize=10)
            axes.set(xlabel="tokens sampled per problem (log scale)", ylabel="held-out accuracy",
                     ylim=(0, 1.02))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            looks.label_ends(axes, ends)
        path.parent.mkdir(parents=True, exist_ok=True)
        svg = path.suffix == ".svg"
        figure.savefig(path, dpi=110, metadata={"Date": None} if svg else None)


def needed(row, accuracy):
    """The tokens at which a curve first has this accuracy; None where it never does.

    row: [(tokens, Score)] by tokens.  Between two points it is a line over the logarithm of tokens.
    """
    (last, before), *rest = row
    if before.value >= accuracy:
        return last
    for tokens, score in rest:
        if score.value >= accuracy:
            share = (accuracy - before.value) / (score.value - before.value)
            return last * (tokens / last) ** share
        last, before = tokens, score
    return None


def saved(row, other):
    """A sentence on each point of a curve: how many tokens another one takes to be as accurate."""
    each = []
    for tokens, score in row:
        takes = needed(other, score.value)
        each.append(f"{score.value:.3f} with {tokens:,.0f} tokens, where best of n takes " + (
            f"{takes:,.0f}" if takes else "more than its last point"))
    return "; ".join(each)


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/thinker")
    parser.add_argument("--n", type=int, default=100, help="held-out problems of either task")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "compute-optimal")
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md", help="report to write")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/pictures/compute-optimal.svg")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    panels, lines = {}, []
    for title, (task, curves) in CURVES.items():
        panels[title] = found = points(task, curves, args)
        rows = [[curve, "; ".join(f"{tokens:,.0f}: {score.value:.3f}" for tokens, score in row),
                 str(row[-1][1])] for curve, row in found.items()]
        lines += [f"{title}, n {next(iter(found.values()))[0][1].n}:", "",
                  *table(["method", "tokens per problem: accuracy", "the last [95%]"], rows), ""]
    game = panels["Game of 24"]
    lines += ["Speculative rejection has an accuracy of "
              + saved(game["speculative rejection"], game["best of n, own verdicts"])
              + " by the lines between its points; with one seed neither is sure to 0.05.", ""]
    draw(panels, args.plot)
    write(args.out, "compute-optimal", [
        "## Accuracy against tokens", "", machine("matplotlib"), "",
        "`make compute-optimal`, seed 0, checkpoints/thinker; \"after GRPO\" is one sample of it "
        "after GRPO on the task, whose training is not among the tokens.  The plot is "
        "[docs/pictures/compute-optimal.svg](docs/pictures/compute-optimal.svg).", "", *lines[:-1]],
        command="make")


if __name__ == "__main__":
    main()
