"""Accuracy of a model directory on held-out problems, with 95% intervals.

    python -m minipost.evaluate --model checkpoints/base                 the model card's table
    python -m minipost.evaluate --model runs/x/model --task arithmetic --terms 8 --n 500
    python -m minipost.evaluate --model runs/oreo/model --value runs/oreo/critic --task countdown
    python -m minipost.evaluate --model runs/x/model --task countdown --pass-at 1,8,1000000
    python -m minipost.evaluate --data test.jsonl --reward mine.py:f --model runs/x/model
    python -m minipost.evaluate --method tot --help                      a test-time method

Without --task it measures every task that the base model was made for, greedy and sampled.  With
--value it also measures a beam search over steps.  The value is what OREO saves beside its policy,
or any reward model.  With --data it measures the rows of a file, --n of them, by --reward or by
their completions.  --pass-at gives the chance of a right answer among k: exact for any k where a
task can list its right answers (countdown, sums at once, facts), from samples elsewhere and by
--reward.
"""

import json
import re
import sys
from dataclasses import asdict, dataclass, replace
from typing import Literal

from minipost import Door
from minipost.cli import inference
from minipost.cli.options import Options, fail_in_one_sentence, parse
from minipost.datasets.rows import Whole
from minipost.errors import MinipostError, visible

PROG = "python -m minipost.evaluate"
CARD_NEW_TOKENS = 64  # tokens that the longest answers of the card's tasks take


@dataclass(frozen=True)
class Measured(Options):
    """What to measure, and how."""

    reward: tuple[str, ...] = ()  # as in minipost.train; none: the task's own
    reward_timeout: float = 0.0  # seconds that one call of a function may take; 0: no limit
    control_tokens: Literal["stop", "tokens", "plain"] = "stop"  # what those in --data stand for
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to run; auto: the best available
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights
    value: str = ""             # directory of a value or reward model to guide a beam search
    width: int = 4              # beams of that search
    branching: int = 4          # samples that continue each beam
    n: int = 400                # held-out problems per split
    pass_at: str = ""           # also pass@k, for these k: 1,8,64
    chat: bool = False          # make each prompt that is a string the message of a user
    chat_template: str = ""     # file of a chat template (jinja) in place of the model's
    samples: int = 0            # for --pass-at, draw so many; 0: exact, or the largest k where not
    workers: int = 0            # processes; 0: one per core, at most 4

    LIMITS = dict.fromkeys(("samples",), ">= 0")

    def __post_init__(self):
        super().__post_init__()
        numbers = self.pass_at.split(",") if self.pass_at else []
        if not all(re.fullmatch("[1-9][0-9]{0,8}", k) for k in numbers):
            raise MinipostError(f"--pass-at is {self.pass_at!r:.40}; expected whole numbers from 1 "
                                "on with commas between them, such as 1,8,64")
        for name, other in (("width", "value"), ("branching", "value"), ("samples", "pass_at")):
            if getattr(self, name) != getattr(Measured, name) and not getattr(self, other):
                raise MinipostError(f"--{name} goes with --{other.replace('_', '-')}; alone it "
                                    "does nothing")

    @property
    def ks(self):
        return [int(k) for k in self.pass_at.split(",") if k]


def standard_tasks():
    """The tasks of the base model's card, by name."""
    from minipost.tasks.arithmetic import Arithmetic
    from minipost.tasks.countdown import Countdown
    from minipost.tasks.facts import Facts
    from minipost.tasks.wording import Wording

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
    argv = sys.argv[1:] if argv is None else argv
    if any(argument.partition("=")[0] == "--method" for argument in argv):
        return fail_in_one_sentence(lambda: inference.evaluate(argv, PROG))
    return fail_in_one_sentence(lambda: table(argv))


def table(argv):
    """Measure and print."""
    if any(argument.partition("=")[0] == "--out" for argument in argv):
        raise MinipostError("--out goes with --method, whose results it keeps; without it the "
                            "table is printed, or data by --json")
    settings = parse(argv, PROG, Measured, description=__doc__, task=False, data=True, json=True,
                     kind=Whole)
    from minipost import parallel
    from minipost.cli.console import Console
    from minipost.cli.session import pick_device

    options, tasks = settings.options, {}
    if settings.task and getattr(settings.task, "eval_data", ""):
        raise MinipostError("--eval-data: all rows of --data are measured; name one file")
    if options.reward and not settings.task:
        raise MinipostError("--reward goes with --data or --task: the problems to answer")
    device = pick_device(options.device)
    if settings.task:
        tasks[settings.task.name] = settings.task
    else:
        tasks = standard_tasks()
        options = replace(options, max_new_tokens=max(options.max_new_tokens, CARD_NEW_TOKENS))
    found, notes = parallel.launch(lambda: rows(options, tasks, device),
                                   options.workers or parallel.default_workers(device))
    for note in notes:
        print(visible(note), file=sys.stderr)
    if settings.json:
        print(json.dumps([{"task": task, "split": split,
                           **{m: asdict(s) for m, s in scores.items()}}
                          for task, split, scores in found], indent=2))
        return
    metrics = list(found[0][2])
    names = ("task", "split", "n", *(f"{m} [95%]" for m in metrics))
    lines = [(task, split, str(scores[metrics[0]].n), *(str(scores[m]) for m in metrics))
             for task, split, scores in found]
    if sys.stdout.isatty():
        Console().table(names, lines, texts=(0, 1))
        return
    head, *rest = (visible(f"| {' | '.join(line)} |") for line in (names, *lines))
    print("\n".join((head, "|---" * len(names) + "|", *rest)))  # a table of markdown


def rows(options, tasks, device="cpu"):
    """([(name, split, {metric: Score})] of some tasks, {name: task}; sentences on their rows)."""
    from minipost import checkpoint
    from minipost.datasets.fitting import fitted
    from minipost.datasets.named import load_reward
    from minipost.measure import passes
    from minipost.measure.results import results, splits
    from minipost.measure.texts import Texts
    from minipost.opening import as_asked
    from minipost.optim import Learner
    from minipost.run import Run
    from minipost.test_time import beam

    model, vocabulary = checkpoint.load(options.model, device, options.dtype,
                                        options.chat_template)
    policy, found, notes = Learner(model), [], []
    value = checkpoint.load_reward_model(options.value, vocabulary, device, options.dtype) \
        if options.value else None
    for title, task in tasks.items():
        task = as_asked(task, vocabulary, options.chat)
        task = fitted(task, model, vocabulary, options.max_new_tokens, (), (),
                      options.control_tokens, paid=not options.reward)
        run = Run(policy, vocabulary, task, load_reward(options.reward, task), seed=options.seed,
                  reward_timeout=options.reward_timeout, max_new_tokens=options.max_new_tokens,
                  control_tokens=options.control_tokens)
        notes += task.skipped()
        if isinstance(task, Whole) and len(task.rows) > options.n:
            notes.append(f"{options.n} of {len(task.rows)} rows are measured; --n "
                         f"{len(task.rows)} measures all")
        parts = splits(task, options.n)
        tools = {split: Texts(run, verifier=value, stream="search")
                 for split in parts if value is not None}
        for split, metrics in results(run, parts).items():
            if split in tools:
                metrics["beam"] = beam.measure(parts[split], tools[split], options.width,
                                               options.branching)
            scores = {name: result.score for name, result in metrics.items()}
            if options.ks:
                with run.aside():
                    scores |= passes.measure(run, parts[split], options.ks, options.samples)
            found.append((title, split, scores))
    return found, notes


sys.modules[__name__].__class__ = Door  # `minipost.evaluate(run, ...)` is a function too

if __name__ == "__main__":
    sys.exit(main())
