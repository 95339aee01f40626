"""Look at a set-up before training on it: model, problems, reward.  Reads and never writes.

    python -m minipost.doctor --task countdown                    checkpoints/base on a task of ours
    python -m minipost.doctor --model path/to/llama --data rows.jsonl --reward mine.py:reward
    python -m minipost.doctor --task wording --reward-model runs/reward-wording-0/model
    python -m minipost.doctor --data pairs.jsonl --json           the same as data
    python -m minipost.doctor --model DIR --data chats.jsonl      also what is learnt of a chat

It samples answers as a run would and checks the invariants of training on them.  It prints one line
per check, and for every finding what it is, why it matters and what to do.  A FAULT makes training
wrong, so the exit code is 1.  A warning makes training poor; with warnings alone the exit code is
0.  A reward function is asked about each sampled answer four times, and about up to four answers
that many problems have.  The doctor cannot see whether the reward says what is wanted.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass

from minipost.cli.options import SetUp, fail_in_one_sentence, parse
from minipost.tasks import TASKS

PROG = "python -m minipost.doctor"


@dataclass(frozen=True)
class Options(SetUp):
    """What to look at, beside the problems; names and defaults as in minipost.train."""

    prompts: int = 16           # problems to answer
    group_size: int = 8         # answers per problem (G)
    temperature: float = 1.0    # sampling temperature (tau)
    rows: int = 4000            # rows of --data whose texts are looked at, from the first on


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        return fail_in_one_sentence(usage)
    return fail_in_one_sentence(lambda: report(parse(argv, PROG, Options, description=__doc__,
                                                     data=True, json=True)))


def usage():
    print(f"usage: {PROG} [--task {{{','.join(TASKS)}}} | --data FILE] [options]\n\n"
          f"{__doc__}\n`{PROG} --task NAME --help` lists every option.")
    return 2


def report(settings):
    """Print the findings.  -> exit code"""
    from minipost import parallel
    from minipost.checks.examine import examine
    from minipost.checks.model import FAULT, WARNING
    from minipost.cli.console import Console
    from minipost.cli.session import pick_device

    options, task = settings.options, settings.task
    start, console = time.perf_counter(), Console(quiet=settings.json)
    knobs = ", ".join(f"{k} {v}" for k, v in asdict(task).items() if v != "")
    console.tell(f"{options.model} on {task.name} ({knobs}): {options.prompts} problems, "
                 f"{options.group_size} answers each of up to {options.max_new_tokens} tokens\n")
    found = parallel.launch(lambda: examine(options, task, pick_device(options.device)), 1)
    seconds = time.perf_counter() - start
    count = {status: sum(f.status == status for f in found) for status in (FAULT, WARNING)}
    if settings.json:
        print(json.dumps({
            "model": options.model, "task": task.name, "faults": count[FAULT],
            "warnings": count[WARNING], "seconds": round(seconds, 1),
            "checks": [{**asdict(f), "finding": f.sentence} for f in found]}, indent=2))
    else:
        console.findings(found, seconds)
    return int(count[FAULT] > 0)


if __name__ == "__main__":
    sys.exit(main())
