"""Make a study, or all of them: `make study-NAME`, `make studies`.

    python -m scripts.studies pass-at-k          its runs, then its part of docs/studies.md and plot
    python -m scripts.studies                    all studies, and one table of their verdicts
    python -m scripts.studies --jobs 1           one run at a time; without it, one on each core

Ctrl-C stops after the step in progress, and the same command continues from there.  A run is not
made again if runs/studies holds it with the same settings and from the same weights, those of its
reward model and its teacher included.  The command does not notice a change to the code.  Remove
the study's folder after such a change.
"""

import argparse
import re
import signal
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from minipost import train
from minipost.cli.options import fail_in_one_sentence
from minipost.errors import MinipostError
from scripts import studies
from scripts.compare import (
    PARSING,
    Runner,
    check_jobs,
    complete,
    fingerprint,
    own_cores,
    side_by_side,
)
from scripts.pages import machine, table, write
from scripts.studies import ROOT, Made

PAGE = ROOT / "docs" / "studies.md"
HEAD = """# Findings of papers, tried at nano scale

Each part is made by the command that it names, by the code as it was then; the date says when.  A
verdict follows from a rule, which was written before the runs that are shown; the settings were
chosen on shorter tries.  Each part says what was changed after tries.  "Not reproduced" says that
the rule was not met.  Where an interval is wide, three seeds do not tell whether the finding holds.
An interval over seeds speaks of other seeds on the same problems, not of other problems.
"""


def make(study, made, runner, jobs=1):
    """All runs of a study, `jobs` at a time.  -> whether they are all there"""
    study.prepare(made)
    runs, done = study.runs(made.seeds), set()
    while runs:
        print(f"{study.name}: {len(runs)} runs", flush=True)
        for batch in batches(made, runs):
            for name, (there, said) in zip(batch, side_by_side(jobs, [
                    partial(one, made.place(name), list(map(str, given)), runner)
                    for name, given in batch.items()])):
                print(f"  {name}: {said}", flush=True)
                if not there:
                    return False
        done |= runs.keys()
        runs = {name: given for name, given in study.then(made, done).items() if name not in done}
    return True


def batches(made, runs):
    """The runs in parts, one after another: none starts from what a run of its own part makes."""
    depth = {}
    for name, given in runs.items():
        paths = [(ROOT / str(word)).resolve() for word in given]
        depth[name] = 1 + max((depth[other] for other in depth if any(
            path.is_relative_to(made.place(other)) for path in paths)), default=-1)
    return [{name: runs[name] for name in runs if depth[name] == k}
            for k in sorted({*depth.values()})]


def one(directory, given, runner):
    """A run.  -> whether it is there, a word on how it went"""
    if runner.stopped:
        return False, "stopped"
    with PARSING:
        settings = train.settings_of(given)
    start = time.perf_counter()
    origin = [fingerprint(ROOT / each) for each in (
        settings.options.model, settings.options.reward_model,
        getattr(settings.config, "teacher", ""), getattr(settings.config, "verifier", ""))
        if each]
    needs, failed = complete(runner, directory, given, "".join(origin))
    said = ("stopped" if runner.stopped else
            f"failed: {failed} (see {directory}/log.txt)" if failed else
            "made earlier" if needs == "nothing" else f"{time.perf_counter() - start:.0f} s")
    return not (runner.stopped or failed), said


def report(study, found, picture):
    """The study's part of the page, as lines."""
    first = study.module.__doc__.strip().partition("\n\n")[0].replace("\n", " ")
    return [
        f"## {first}", "", machine(), "", f"`make study-{study.name}`. {study.CLAIM} "
        f"([{study.PAPER}](https://{study.PAPER}))", "",
        f"**{found.verdict.capitalize()}.** {found.sentence}", "", ruled(study), "",
        *table(found.columns, found.rows), "", f"![{asked(study)}]({picture})", "",
        *(line for note in (*found.notes, study.TRIED) if note for line in (note, "")),
        study.LIMITS,
    ]


def asked(study):
    """The question of a study, for those who do not see its picture."""
    return study.module.__doc__.strip().partition("\n")[0].partition("  ")[0]


def ruled(study):
    """What decides the verdict, and the file that has it."""
    file = Path(study.module.__file__)
    said = " ".join(f"*{verdict.capitalize()}:* {when}"
                    for verdict, when in studies.rule(study.module.__doc__).items()
                    if when != "Anything else.")
    return f"The rule ([{file.name}](../scripts/studies/{file.name})). {said}"


def draw(study, found, path):
    """The study's plot as SVG, with the same bytes for the same runs."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "minipost", "font.size": 9}):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        study.draw(figure, found)
        for axes in figure.axes:
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


COLUMNS = ["study", "paper", "verdict", "what came out"]
FIRST, LAST = "<!-- verdicts:", "<!-- end of verdicts -->"


def start(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.studies", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(studies.names()))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=len(own_cores()), help="runs at a time, each "
                        "on its share of the cores (default: all %(default)s of this machine)")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in studies.names():
            parser.error(f"no study {name!r}; there are {', '.join(studies.names())}")
    if args.seeds < 2:
        parser.error(f"--seeds {args.seeds}: an interval over seeds takes at least 2")
    check_jobs(parser, args.jobs)
    if find_spec("matplotlib") is None:  # fail before the runs, not after them
        raise MinipostError("the plots need matplotlib (pip install -e '.[plot]')")
    runner, verdicts = Runner(), []
    before = {s: signal.signal(s, runner.handle)
              for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for name in args.names or studies.names():
            study = studies.load(name)
            made = Made(ROOT / "runs" / "studies" / name, range(args.seeds))
            if not make(study, made, runner, args.jobs):
                return 130 if runner.stopped else 1
            found = study.findings(made)
            picture = PAGE.parent / "pictures" / f"{name}.svg"
            shown = picture.relative_to(PAGE.parent).as_posix()
            draw(study, found, picture)
            if not PAGE.exists():
                PAGE.write_text(HEAD, encoding="utf-8")
            write(PAGE, f"study-{name}", report(study, found, shown), "make")
            verdicts.append([name, study.PAPER, found.verdict, found.sentence])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if len(verdicts) > 1:
        print("\n".join(["", *table(COLUMNS, verdicts)]))
    PAGE.write_text(with_verdicts(PAGE.read_text(encoding="utf-8"), verdicts), encoding="utf-8")
    return 0


def with_verdicts(page, verdicts):
    """The page with the table of verdicts at its head, a link to each study's part.

    verdicts: [(study, paper, verdict, sentence)] of those that were made; others stay.
    """
    table_of = re.search(f"{FIRST}.*?{LAST}", page, flags=re.DOTALL)
    rows = re.findall(r"^\| \[([\w-]+)\]\(.*?\) \| (.*) \|$", table_of[0] if table_of else "",
                      flags=re.MULTILINE)
    every = {name: rest.split(" | ", 2) for name, rest in rows}
    every |= {name: [f"[{paper.rpartition('/')[2]}](https://{paper})", *rest]
              for name, paper, *rest in verdicts}
    heads = dict(re.findall(r"<!-- study-([\w-]+): .*?-->\n## (.*)", page))
    place = {name: re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
             for name, head in heads.items()}
    linked = [[f"[{name}](#{place[name]})", *every[name]]
              for name in sorted(every) if name in place]
    lines = [f"{FIRST} make studies -->", *table(COLUMNS, linked), LAST]
    body = re.sub(f"{FIRST}.*?{LAST}\n\n", "", page, flags=re.DOTALL)
    at = body.index("<!-- study-")
    return body[:at] + "\n".join(lines) + "\n\n" + body[at:]


def main(argv=None):
    return fail_in_one_sentence(lambda: start(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
