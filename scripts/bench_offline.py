"""The part of BENCHMARKS.md on methods that learn from a fixed set of answers or from a teacher.

`python -m scripts.bench offline`.  Each runs with its demo's settings and with some of its
switches; `make ablations` has others, over three seeds.
"""

from scripts.bench_alignment import ONE, THREE, show, trained
from scripts.pages import machine, table, write

STUDENT = ("--model", "checkpoints/student", "--task", "arithmetic", "--direct", "True")
OFFLINE = {  # what: ({options: seeds}, metrics to show)
    "oreo": ({
        "oreo": THREE, "oreo --level token --alpha 0.01": ONE,
        "oreo --level response --alpha 0.3": ONE,
    }, ("sampled", "greedy", "value-guided beam")),
    "distill": ({
        "distill --steps 400": THREE, "distill --steps 400 --mix 0.5": ONE,
        "distill --steps 400 --on-policy 0": ONE, "distill --steps 400 --on-policy 1": ONE,
        " ".join(("sft", *STUDENT, "--steps 400 --batch-size 128")): ONE,
    }, ("greedy", "sampled", "teacher greedy", "teacher sampled")),
}
WANTED = {
    "oreo": "Wanted: value-guided beam above greedy, beyond the interval.",
    "distill": "Wanted: at least half of the gap between student and teacher closed.  The last row "
               "is no distillation: the student learns the exact answers.",
}


def closed(rows):
    """The closed share of the gap between student and teacher, greedy and sampled."""
    found = []
    for metric in ("greedy", "sampled"):
        before, after = (rows[metric][when]["value"] for when in ("before", "after"))
        teacher = rows[f"teacher {metric}"]["after"]["value"]
        found.append(f"{metric} {(after - before) / (teacher - before):.2f}"
                     if teacher != before else f"{metric}: there is none")
    return ", ".join(found)


def offline(args):
    """Make all runs.  After each part, write the results so far to BENCHMARKS.md."""
    lines, gaps = [], []
    for part, (runs, metrics) in OFFLINE.items():
        rows = []
        for run, seeds in runs.items():
            for seed in seeds[:1] if args.quick else seeds:
                found = trained(args, run, (), seed)
                if isinstance(found, str):
                    rows.append([f"`{run}`", str(seed), f"failed: {found}",
                                 *[""] * len(metrics)])
                    continue
                summary = found[0]
                scores = {key.partition(",")[0]: row for key, row in summary["all"].items()}
                cells = [f"{scores[m]['before']['value']:.3f} -> {show(scores[m]['after'])}"
                         if m in scores else "" for m in metrics]
                rows.append([f"`{run}`", str(seed), *cells, f"{summary['seconds']:.0f}"])
                print(" | ".join(rows[-1]), flush=True)
                if part == "distill" and "teacher greedy" in scores:
                    gaps.append(f"`{run}`, seed {seed}: {closed(scores)}")
        lines += [*table(["run", "seed", *metrics, "training s"], rows), ""]
        if part == "distill" and gaps:
            lines += ["Share of the gap closed: " + "; ".join(gaps) + ".", ""]
        lines += [WANTED[part], ""]
        write(args.out, "offline", [
            "## Fixed sets of answers, and teachers", "", machine(), "",
            "`python -m scripts.bench offline`; each row is `python -m minipost.train --algo RUN "
            "--seed SEED`.  Held out, before and after, 95% intervals of the evaluation.", "",
            *lines[:-1],
        ])
