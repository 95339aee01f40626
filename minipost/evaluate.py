"""Accuracy of a model directory on held-out problems, with 95% intervals.

    python -m minipost.evaluate --model checkpoints/base                 the model card's table
    python -m minipost.evaluate --model runs/x/model --task arithmetic --terms 8 --n 500
    python -m minipost.evaluate --model runs/oreo/model --value runs/oreo/critic --task countdown
    python -m minipost.evaluate --method tot --help                      a test-time method

Without --task every task that the base model was made for is measured, greedy and sampled.  With
--value, what OREO saves beside its policy, or any reward model, a beam search over steps too.
"""

import argparse
import json
import sys
from dataclasses import asdict

from minipost import inference
from minipost.errors import MinipostError
from minipost.stats import Score, interval

PROG = "python -m minipost.evaluate"


def splits(task, n):
    """What to measure of a task: {name: problems}, the headline first."""
    if hasattr(task, "splits"):
        found = {name: rows for name, rows in task.splits(n).items() if rows}
    else:
        found = {"held-out": task.heldout(n)}
    return found


def standard_tasks():
    """The tasks of the base model's card, by name."""
    from minipost.tasks import Arithmetic, Countdown, Facts, Wording

    return {
        "arithmetic, 6 terms, worked": Arithmetic(),
        "arithmetic, 6 terms, direct": Arithmetic(direct=True),
        "arithmetic, 8 terms, worked": Arithmetic(terms=8),
        "arithmetic, 3 terms, direct": Arithmetic(terms=3, direct=True),
        "countdown, 3 numbers": Countdown(),
        "countdown, 4 numbers": Countdown(numbers=4),
        "Game of 24": Countdown(numbers=4, target=24),
        "facts": Facts(),
        "wording, gold reward": Wording(),
    }


def main(argv=None):
    from minipost.train import fail_in_one_sentence

    argv = sys.argv[1:] if argv is None else argv
    if any(argument.partition("=")[0] == "--method" for argument in argv):
        return fail_in_one_sentence(lambda: inference.evaluate(argv, PROG))
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="checkpoints/base", help="model directory")
    parser.add_argument("--value", help="directory of a value or reward model to guide a beam search")
    parser.add_argument("--width", type=int, default=4, help="beams of that search")
    parser.add_argument("--tries", type=int, default=4, help="samples to go on with each beam")
    parser.add_argument("--task", help="one task; its knobs are flags, as in minipost.train")
    parser.add_argument("--n", type=int, default=400, help="problems per split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--room", type=int, default=64, help="longest answer, in tokens")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core, to 4")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args, rest = parser.parse_known_args(argv)
    return fail_in_one_sentence(lambda: table(args, rest))


def table(args, rest):
    """Measure and print; `rest` are the knobs of --task."""
    from minipost import parallel
    from minipost.tasks import TASKS

    for name in ("n", "room", "width", "tries"):
        if getattr(args, name) < 1:
            raise MinipostError(f"--{name} is {getattr(args, name)}; expected at least 1")
    if args.task is None:
        if rest:
            raise MinipostError(f"unknown option {rest[0]} (the knobs of a task need --task)")
        tasks = standard_tasks()
    else:
        if args.task not in TASKS:
            raise MinipostError(f"no task {args.task!r}; there are {', '.join(TASKS)}")
        import tyro

        task = tyro.cli(TASKS[args.task], args=rest, prog=PROG,
                        config=(tyro.conf.FlagConversionOff,))
        tasks = {args.task: task}
    workers = args.workers or parallel.default_workers("cpu")
    found = parallel.launch(lambda: rows(args, tasks), workers)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    metrics = [name for name in found[0] if name not in ("task", "split")]
    print("".join(f"| {name} " for name in ("task", "split", "n", *(f"{m} [95%]" for m in metrics)))
          + "|\n" + "|---" * (3 + len(metrics)) + "|")
    for row in found:
        scores = [Score(**row[name]) for name in metrics]
        print(f"| {row['task']} | {row['split']} | {scores[0].n} | {' | '.join(map(str, scores))} |")


def rows(args, tasks):
    """One row per task and split, as plain data."""
    from minipost import checkpoint
    from minipost.run import Learner, Run
    from minipost.texts import searched

    model, vocabulary = checkpoint.load(args.model)
    policy, found = Learner(model), []
    value = checkpoint.load_reward_model(args.value, vocabulary) if args.value else None
    for title, task in tasks.items():
        run = Run(policy, vocabulary, task, task.reward, seed=args.seed, room=args.room)
        parts = splits(task, args.n)
        for split, metrics in run.results(parts).items():
            row = {name: result["score"] for name, result in metrics.items()}
            if value is not None:
                rewards, _ = searched(run, parts[split], value, args.width, args.tries)
                row["beam"] = asdict(interval(rewards))
            found.append({"task": title, "split": split, **row})
    return found


if __name__ == "__main__":
    sys.exit(main())
