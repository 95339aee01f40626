"""Proofs, measured: `python -m minipost.prove`, or `--algo NAME` for one method.

In a world of a few words every answer is listed, and every expectation is a sum (proof/oracle.py).
There, this command compares

    proof/identities.py  the oracle with itself
    proof/estimates.py   the mean of each method's own training step, over every rollout of the
                         smallest kind, with the exact gradient of what it should descend; then
                         steps on sampled rollouts
    proof/optima.py      the policies that pay for KL with the best policy there is
    proof/corrections.py what methods make of answers that another policy sampled
    proof/values.py      values from branches, and a critic's, beside the exact ones

The exit code is 1 if a proved statement fails.  If a method aims elsewhere, the tables show by how
much, and nothing is forced to agree; a mean step that points against its aim fails all the same.
"""

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minipost import methods
from minipost.cli.options import fail_in_one_sentence
from minipost.errors import MinipostError

PROG = "python -m minipost.prove"
MOST = 30_000  # rollouts of a method's step at most; larger worlds test only the oracle


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--algo", default="all", help="one method, or all")
    parser.add_argument("--vocab", type=int, default=4, help="ids of the world, 4 to 8")
    parser.add_argument("--horizon", type=int, default=3, help="longest answer in tokens, 1 to 5")
    parser.add_argument("--seed", type=int, default=0, help="of the models and the rewards")
    parser.add_argument("--samples", type=int, default=300,
                        help="steps on sampled answers, each method")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core, to 4")
    parser.add_argument("--out", default="runs/prove.json", help="where all figures are written")
    parser.add_argument("--json", action="store_true", help="print them instead of the tables")
    return fail_in_one_sentence(lambda: prove(parser.parse_args(argv)))


def prove(args):
    """Do the work, print the results and write them.  -> the exit code"""
    from minipost import parallel
    from minipost.files import write_json

    check(args)
    started, todo = time.perf_counter(), jobs(args)
    workers = min(args.workers or parallel.default_workers("cpu"), len(todo) or 1)
    if workers == 1:
        found = list(map(work, todo))
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(work, todo))              # the longest first, to end together
    sections = {}
    for (section, *_), rows in zip(todo, found):
        sections.setdefault(section, []).extend(rows)
    facts = {"vocab": args.vocab, "horizon": args.horizon, "seed": args.seed,
             "seconds": round(time.perf_counter() - started, 1), **sections}
    try:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinipostError(f"{args.out}: could not be written ({error.strerror})") from None
    write_json(Path(args.out), facts)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        show(facts, args)
    return int(any(not row["holds"] for rows in sections.values() for row in rows
                   if "holds" in row))


def check(args):
    """MinipostError where the options make no sense."""
    if args.algo != "all" and args.algo not in methods.names():
        raise MinipostError(
            f"no method {args.algo!r}; there are {', '.join(methods.names())}, or all")
    for name, least, most in (("samples", 2, 10**6), ("workers", 0, 64), ("seed", 0, 2**63 - 1)):
        if not least <= getattr(args, name) <= most:
            raise MinipostError(f"{name} is {getattr(args, name)}; expected {least} to {most}")


def asked(args):
    """The methods that are asked for; no other's file is loaded."""
    return methods.names() if args.algo == "all" else [args.algo]


# ---- the work, in jobs for several processes

def jobs(args):
    """[(section, what, the world's size, samples)]"""
    from minipost.proof.estimates import CLIPS, all_stated, method_of, stated
    from minipost.proof.optima import AT_OPTIMUM, LEADS
    from minipost.proof.oracle import World

    count, size = World(args.vocab, args.horizon, args.seed).count, (
        args.vocab, args.horizon, args.seed)
    oracle = [("identities", None), ("sizes", None)]
    if count * (count + 1) > MOST:
        if args.algo != "all":
            raise MinipostError(f"vocab {args.vocab} and horizon {args.horizon} make {count:,} "
                                f"answers to a prompt and {count * (count + 1):,} rollouts of two; "
                                f"a method's step is made on at most {MOST:,}; choose a smaller "
                                "world")
        return [(section, what, size, args.samples) for section, what in oracle]

    if args.algo != "all":
        stated(args.algo)                                   # raises if a proof is missing

    def wanted(name):
        return args.algo in ("all", method_of(name))

    estimates = all_stated(asked(args))
    found: list[tuple[str, Any]] = []
    found += [("clipped", e) for e in estimates if e.name in CLIPS]
    found += [("optimum", k) for k, case in enumerate(AT_OPTIMUM) if wanted(case.name)]
    found += [("estimates", e) for e in estimates]
    found += [("leads", name) for name in LEADS if wanted(name)]
    found += [("values", None)] if wanted("vineppo") else []
    found += [("passes", None), ("corrections", None), *oracle] if args.algo == "all" else []
    return [(section, what, size, args.samples) for section, what in found]


def work(job):
    """The rows of one job, as plain data."""
    import torch

    from minipost.proof import corrections, estimates, exact, identities, optima, values
    from minipost.proof.oracle import World

    torch.set_num_threads(1)
    section, what, size, samples = job
    world = World(*size)
    if section == "identities":
        return identities.identities(world, exact.BETA)
    if section == "sizes":
        return estimates.by_size(world)
    if section == "passes":
        return corrections.passes(world)
    if section == "values":
        return values.value_errors(world)
    if section == "corrections":
        return corrections.corrections(world)
    if section == "estimates":
        return [estimates.measure(what, world, samples)]
    if section == "clipped":
        return [estimates.clipped(what, world)]
    if section == "optimum":
        return [optima.at_optimum(optima.AT_OPTIMUM[what], world)]
    return [optima.lead(what, world)]


# ---- what is printed

def show(facts, args):
    from minipost.proof.estimates import inherits

    console = Console(highlight=False, markup=False)
    say = console.print
    say(f"A world of {facts['vocab']} ids and answers of up to {facts['horizon']} tokens, two "
        "prompts, all answers through the nano-GPT in float64.\n"
        "J = E r, J_b = E r - beta KL(pi || ref), pi* = ref exp(r/beta) / Z, which is best for "
        "J_b.")
    for section, draw in (("identities", identities_shown), ("estimates", estimates_shown),
                          ("sizes", sizes_shown), ("clipped", clipped_shown),
                          ("corrections", corrections_shown), ("passes", passes_shown),
                          ("values", values_shown),
                          ("optimum", optimum_shown), ("leads", leads_shown)):
        if facts.get(section):
            say()
            for part in draw(facts[section]):
                say(part)
    if args.algo != "all" or facts.get("estimates"):
        for name, sentence in inherits(asked(args)).items():
            say(f"\n{name} {sentence}.")
    rows = [row for section in facts.values() if isinstance(section, list) for row in section]
    proved = [row for row in rows if is_statement(row)]
    failed = [row["name"] for row in proved if not row["holds"]]
    if not rows:
        return
    say(f"\n{len(proved) - len(failed)} of {len(proved)} statements hold"
        + (f"; these fail: {', '.join(failed)}" if failed else "")
        + f". {facts['seconds']:.0f} s; all figures are in {args.out}", soft_wrap=True)


def is_statement(row):
    """Whether a row makes a claim and does not only report a figure."""
    return any(row.get(name) not in (None, "") for name in ("error", "sampled", "zero", "own"))


def table(*names):
    made = Table(box=box.SIMPLE_HEAD)
    for k, name in enumerate(names):
        made.add_column(name, no_wrap=name != "statement",
                        justify="left" if k == 0 or name == "gradient of" else "right")
    return made


def heading(text):
    return Text(text, style="bold")


def row_of(made, *cells):
    made.add_row(*(Text(cell) for cell in cells))           # brackets are no markup in a Text


def reasons(rows):
    """Each reason once, after the methods that it applies to."""
    seen = {}
    for row in rows:
        seen.setdefault(row["why"], []).append(row["name"])
    return [f"  {', '.join(names)}: {why}" for why, names in seen.items() if why]


def identities_shown(rows):
    made = table("statement", "error", "")
    for row in rows:
        row_of(made, row["name"], f"{row['error']:.0e}", "holds" if row["holds"] else "FAILS")
    return [heading("The oracle against itself"), made]


def estimates_shown(rows):
    """Two tables: what the mean step is, and how sampled steps compare with it."""
    n = rows[0]["sampled"]["n"]
    exact = table("method", "gradient of", "proved, per answer", "rest", "as shipped", "noise")
    drawn = table("method", "size", "sampled [95%]", "standard errors")
    for row in rows:
        proved = "elsewhere" if row["factor"] is None else \
            f"{row['factor']:g} x ({row['error']:.0e})"
        row_of(exact, row["name"], row["aim"], proved if row["holds"] else "FAILS",
               f"{row['off_answer']:.3f}", f"{row['off']:.3f}", f"{row['noise']:.1f}")
        s = row["sampled"]
        row_of(drawn, row["name"], f"{row['size']:.3f}",
               f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]", f"{s['z']:.1f}")
    return [heading("The mean of a step over all rollouts of one or two answers, against the exact "
                    "gradient. The rest is the share of it that points elsewhere: where it is "
                    "divided by answers, and as it is shipped."), exact, *reasons(rows), "",
            heading(f"Its size along the gradient, exactly and from {n} steps on sampled answers"),
            drawn]


def sizes_shown(rows):
    shares = ", ".join(f"{row['off']:.4f} for {row['answers']}" for row in rows)
    return [f"Divided by its own tokens, REINFORCE's mean step has a rest of {shares} answers."]


def clipped_shown(rows):
    made = table("method", "KL of the move", "rest, clipped", "rest, no clip")
    for row in rows:
        row_of(made, row["name"], f"{row['kl']:.3f}", f"{row['off']:.3f}", f"{row['off_free']:.3f}")
    return [heading("After the policy has moved since it sampled"), made]


def corrections_shown(rows):
    """A line for each correction, two columns for each sampler."""
    kl = {row["sampler"]: row["kl"] for row in rows}
    found = {}
    for row in rows:
        found.setdefault(row["name"], []).extend([f"{row['bias']:.3f}", f"{row['noise']:.1f}"])
    made = table("weight", *(word for _ in kl for word in ("bias", "noise")))
    for name, cells in found.items():
        row_of(made, name, *cells)
    said = "; ".join(f"{name} (KL to the policy {x:.3f})" for name, x in kl.items())
    return [heading("Answers of another sampler: how far the mean of one answer's step is from the "
                    f"policy gradient. From left to right: {said}"), made]


def passes_shown(rows):
    from minipost.proof.corrections import STEPS

    made = table("weight", "J", "highest J", "KL to the start")
    for row in rows:
        row_of(made, row["name"], f"{row['reward']:.3f}", f"{row['most']:.3f}", f"{row['kl']:.2f}")
    return [heading(f"Following each mean step on the same answers, {STEPS} updates"), made]


def values_shown(rows):
    made = table("value of a state", "error")
    for row in rows:
        row_of(made, row["name"], f"{row['rms']:.4f}")
    return [heading("How far values are from the exact ones, root mean square over the states that "
                    "the policy passes"), made]


def optimum_shown(rows):
    made = table("method", "mean step", "typical step", "proved zero")
    for row in rows:
        row_of(made, row["name"], f"{row['mean']:.0e}", f"{row['rms']:.0e}",
               (row["zero"] or "-") if row["holds"] else "FAILS")
    return [heading("Steps at pi* = ref exp(r/beta) / Z, where nothing is left to learn"), made,
            *reasons(rows)]


def leads_shown(rows):
    made = table("method", "J", "KL to ref", "J_b", "left", "proved to reach")
    for row in rows:
        proved = "-" if row["own"] is None else "FAILS" if not row["holds"] else \
            "pi*" if row["own"] == row["left"] else "its own"
        row_of(made, row["name"], f"{row['reward']:.3f}", f"{row['kl_ref']:.3f}",
               f"{row['objective']:.4f}", f"{row['left']:.4f}", proved)
    return [heading(f"Where the mean step leads from the reference. At pi* J_b is "
                    f"{rows[0]['best']:.4f}; left is KL(pi || pi*), as a share of what it was at "
                    "the start"), made, *reasons(rows)]


if __name__ == "__main__":
    sys.exit(main())
