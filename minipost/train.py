"""Train a model with a method on a task: `python -m minipost.train --algo grpo --task arithmetic`.

One run writes one directory:

    config.json    every setting, resolved         metrics.jsonl  one line per step
    summary.json   held-out before and after       model/         the trained model
    state/         what --resume continues from    (all of it is replaced whole or not at all)

Ctrl-C stops after the step in progress with everything saved; --resume DIR goes on from there and
ends with the same bytes as a run that was never stopped (same machine and number of workers).
"""

import argparse
import importlib
import json
import math
import pkgutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields, make_dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from minipost import methods
from minipost.errors import MinipostError
from minipost.tasks import TASKS
from minipost.tasks.files import File

PROG = "python -m minipost.train"
PROBLEMS = f"""Problems: --task {{{','.join(sorted(TASKS))}}}, whose knobs are listed below, or
--data FILE.jsonl, with --eval-data FILE.jsonl to hold out those (else one prompt in ten)."""


@dataclass(frozen=True)
class Options:
    """What every run has, whatever the method."""

    model: str = "checkpoints/base"  # model directory to start from
    out: str = ""               # run directory; runs/ALGO-TASK-SEED if empty
    reward: tuple[str, ...] = ()  # functions to add up, FILE.py:FUNCTION; the task's own if none
    seed: int = 0               # everything random follows from it
    room: int = 48              # longest response, in tokens (L_max)
    micro: int = 16             # sequences in one forward and backward pass; changes no gradient
    workers: int = 0            # processes on a CPU; 0: one per core, at most 4
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to run; auto: the best there is
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights; bfloat16 is slow on CPUs
    eval_n: int = 400           # held-out problems measured before and after
    show: int = 4               # held-out problems shown before and after
    save_every: int = 50        # steps between saved states; 0: only at the end

    def __post_init__(self):
        for name, least in (("room", 1), ("micro", 1), ("workers", 0), ("eval_n", 1), ("show", 0),
                            ("save_every", 0)):
            if getattr(self, name) < least:
                raise MinipostError(f"{name} is {getattr(self, name)}; expected at least {least}")


# ---- command line

def algorithms():
    """The methods by their command-line name; a file in minipost/methods is a method."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(methods.__path__))


def method(algo):
    return importlib.import_module(f"minipost.methods.{algo.replace('-', '_')}")


def parse(argv):
    """The command line as (algo, options, method config, task); tyro makes flags of dataclasses."""
    first = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    first.add_argument("--algo", choices=algorithms())
    first.add_argument("--task", choices=sorted(TASKS))
    first.add_argument("--data")
    first.add_argument("--eval-data", default="")
    known, rest = first.parse_known_args(argv)
    if known.algo is None:
        if not rest or {"-h", "--help"} & set(rest):
            print(f"usage: {PROG} --algo {{{','.join(algorithms())}}} [--task "
                  f"{{{','.join(sorted(TASKS))}}} | --data FILE.jsonl] [options]\n"
                  f"       {PROG} --resume RUN_DIRECTORY\n\n{__doc__}\n"
                  f"`{PROG} --algo NAME --help` lists every option of a method.")
            raise SystemExit(0 if rest else 2)
        raise MinipostError(f"--algo is missing; choose one of {', '.join(algorithms())}")
    if known.data and known.task:
        raise MinipostError("--task and --data exclude each other")
    if known.eval_data and not known.data:
        raise MinipostError("--eval-data goes with --data")
    import tyro

    module, flat = method(known.algo), tyro.conf.OmitArgPrefixes
    parts = {"method": module.Config}
    if not known.data:
        parts["task"] = TASKS[known.task or module.TASK]
    parts["options"] = Options
    together = make_dataclass("Arguments", [(part, flat[c], c()) for part, c in parts.items()])
    found = tyro.cli(together, args=rest, prog=f"{PROG} --algo {known.algo}",
                     description=f"{module.__doc__}\n{PROBLEMS}",
                     config=(tyro.conf.FlagConversionOff,))
    task = File(known.data, known.eval_data) if known.data else found.task
    return known.algo, found.options, found.method, task


def resumed(directory):
    """The settings of an earlier run, from its config.json."""
    from minipost.checkpoint import read_json

    path = Path(directory) / "config.json"
    saved = read_json(path)
    try:
        module = method(saved["algo"])
        task = {**TASKS, File.name: File}[saved["task"]["name"]]
        return (saved["algo"], build(Options, saved["options"]),
                build(module.Config, saved["method"]), build(task, saved["task"]))
    except (KeyError, TypeError, AttributeError, ModuleNotFoundError) as error:
        raise MinipostError(f"{path}: not the settings of a run ({error!r})") from None


def build(cls, saved):
    known = {f.name: saved[f.name] for f in fields(cls) if f.name in saved}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


def fail_in_one_sentence(work):
    """Run work(); a MinipostError is printed as one sentence and gives exit code 1."""
    try:
        return work() or 0
    except MinipostError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped at once; the last saved state stands", file=sys.stderr)
        return 130


def main(argv=None):
    return fail_in_one_sentence(lambda: start(sys.argv[1:] if argv is None else argv))


def start(argv):
    resume = any(argument.partition("=")[0] == "--resume" for argument in argv)
    if resume:
        if len(argv) != 2 or argv[0] != "--resume":
            raise MinipostError(f"write {PROG} --resume RUN_DIRECTORY and nothing else; every "
                                "setting is read from the run's config.json")
        settings, directory = resumed(argv[1]), Path(argv[1])
    else:
        settings = parse(argv)
        algo, options, _, task = settings
        directory = Path(options.out or f"runs/{algo}-{task.name}-{options.seed}")
    from minipost import parallel

    options = settings[1]
    device = pick_device(options.device)
    workers = options.workers or parallel.default_workers(device)
    return parallel.launch(lambda: Session(directory, *settings, device, resume).go(), workers)


def pick_device(name):
    import torch

    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if name == "auto":
        return next((device for device, found in there.items() if found()), "cpu")
    if name in there and not there[name]():
        raise MinipostError(f"--device {name}: this machine or this build of torch has none")
    return name


def load_reward(names, task):
    """The reward function of the run: the task's, or the sum of those named FILE.py:FUNCTION."""
    if not names:
        return task.reward
    import importlib.util

    found = []
    for name in names:
        path, _, function = name.rpartition(":")
        if not path or not Path(path).is_file():
            raise MinipostError(f"--reward {name}: expected FILE.py:FUNCTION, the file existing")
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            found.append(getattr(module, function))
        except Exception as error:  # whatever the user's file raises, one sentence names it
            raise MinipostError(f"--reward {name}: {type(error).__name__}: {error}") from error
    return found[0] if len(found) == 1 else added(found)


def added(functions):
    """One reward function that adds up several; None from one means that it does not apply."""
    def total(prompts, completions, **columns):
        lists = [f(prompts=prompts, completions=completions, **columns) for f in functions]
        if any(len(values) != len(prompts) for values in lists):
            raise ValueError(f"expected {len(prompts)} values from each of {len(lists)} functions")
        rows = [[v for v in row if v is not None] for row in zip(*lists)]
        return [sum(row) if row else None for row in rows]
    total.__qualname__ = " + ".join(getattr(f, "__qualname__", str(f)) for f in functions)
    return total


# ---- one run

class Session:
    """One run from start, or from its saved state, to its summary."""

    def __init__(self, directory, algo, options, config, task, device, resume):
        self.directory, self.algo, self.options = directory, algo, options
        self.config, self.task, self.device, self.resume = config, task, device, resume
        self.module = method(algo)
        self.stop = False

    def go(self):
        from minipost import checkpoint, parallel
        from minipost.console import Console
        from minipost.evaluate import splits
        from minipost.run import Learner, Run

        self.lead = parallel.rank() == 0
        self.console = Console(quiet=not self.lead)
        model, self.vocabulary = checkpoint.load(
            self.options.model, self.device, self.options.dtype)
        self.splits = splits(self.task, self.options.eval_n)
        self.run = Run(Learner(model), self.vocabulary, self.task,
                       load_reward(self.options.reward, self.task), seed=self.options.seed,
                       micro=self.options.micro, room=self.options.room)
        self.check_room()
        self.console.header(self.algo, self.task, self.config, self.options, model,
                            parallel.world())
        if self.resume:
            self.restore()
        else:
            checkpoint.make_directory(self.directory)
            self.before = self.measure()
            self.open_directory()  # last, so that what fails before it costs no earlier run
        self.console.scores("before", self.before)
        code = self.train()
        if code == 0:
            self.finish()
        return code

    def check_room(self):
        """Fail before any training where a prompt does not fit; tasks without end are sampled."""
        limit = self.run.policy.module.config.max_position_embeddings
        known = self.task.training() if hasattr(self.task, "training") else self.run.problems(16)
        for problem in chain(known, *self.splits.values()):
            length = len(self.vocabulary.prompt(problem.prompt))
            if length + self.options.room > limit:
                raise MinipostError(
                    f"a prompt of {length} tokens ({problem.prompt[:40]!r}) and a response of up "
                    f"to {self.options.room} do not fit the model's context of {limit}; lower "
                    "--room"
                )

    def open_directory(self):
        from minipost import checkpoint

        if not self.lead:
            return
        checkpoint.write_json(self.directory / "config.json", {
            "algo": self.algo, "options": asdict(self.options), "method": asdict(self.config),
            "task": {"name": self.task.name, **asdict(self.task)},
        })
        for stale in ("state/state.safetensors", "summary.json"):
            (self.directory / stale).unlink(missing_ok=True)
        checkpoint.publish(self.directory / "metrics.jsonl", lambda path: path.write_text(""))

    def measure(self):
        """Results by split: {"split": {"greedy" or "sampled": {"score", "texts", "rewards"}}}."""
        from minipost.evaluate import interval, measure

        found = {}
        for split, problems in self.splits.items():
            found[split] = {}
            for metric, temperature in (("greedy", 0.0), ("sampled", 1.0)):
                rewards, texts = measure(self.run, problems, temperature)
                found[split][metric] = {"score": asdict(interval(rewards)),
                                        "rewards": rewards, "texts": texts}
        return found

    def train(self):
        from minipost import parallel

        import torch

        previous = self.watch_signals()
        learn, steps = self.module.train(self.run, self.config), self.config.steps
        first, self.started = self.run.step, time.perf_counter()
        tokens_before = self.run.tokens
        try:
            with self.console.progress(first, steps):
                while self.run.step < steps:
                    metrics = next(learn)
                    self.run.step += 1
                    seconds = time.perf_counter() - self.started
                    rate = (self.run.tokens - tokens_before) / seconds
                    self.log(metrics, seconds)
                    self.console.step(self.run.step, metrics, rate)
                    flag = torch.tensor([float(self.stop)])
                    parallel.sum_(flag)
                    every = self.options.save_every
                    if flag or self.run.step == steps or (every and self.run.step % every == 0):
                        self.save()
                    if flag and self.run.step < steps:
                        self.console.say(f"stopped after step {self.run.step} of {steps}; go on "
                                         f"with: {PROG} --resume {self.directory}")
                        return 130
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        self.seconds = self.spent + time.perf_counter() - self.started
        return 0

    spent = 0.0  # seconds of training before a resume

    def watch_signals(self):
        """The first SIGINT or SIGTERM lets the step finish, the second stops at once."""
        def handle(number, frame):
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True
            self.console.say("finishing this step, then saving (once more: stop at once)")

        if not self.lead:
            return {}
        return {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def log(self, metrics, seconds):
        if self.lead:
            line = {"step": self.run.step, **metrics, "num_tokens": self.run.tokens,
                    "seconds": round(self.spent + seconds, 3)}
            line = {name: value if math.isfinite(value) else None for name, value in line.items()}
            append(self.directory / "metrics.jsonl", json.dumps(line) + "\n")

    def save(self):
        from minipost import checkpoint

        tensors, facts = self.run.state()
        if self.lead:
            seconds = self.spent + time.perf_counter() - self.started
            checkpoint.save(self.directory / "model", self.run.policy.module, self.options.model,
                            self.options.dtype)
            checkpoint.save_state(self.directory / "state" / "state.safetensors", tensors,
                                  {**facts, "before": self.before, "seconds": seconds})

    def restore(self):
        from minipost import checkpoint

        path = self.directory / "state" / "state.safetensors"
        tensors, facts = checkpoint.load_state(path)
        try:
            self.run.restore(tensors, facts)
            self.before, self.spent = facts["before"], facts["seconds"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise MinipostError(f"{path}: does not belong to this run ({error!r})") from None
        if self.lead:
            metrics = self.directory / "metrics.jsonl"
            try:
                lines = metrics.read_bytes().splitlines(keepends=True)[: self.run.step]
            except OSError as error:
                raise MinipostError(f"{metrics}: could not be read ({error.strerror})") from None
            checkpoint.publish(metrics, lambda temporary: temporary.write_bytes(b"".join(lines)))

    def finish(self):
        from minipost import checkpoint

        after = self.measure()
        split, metric = next(iter(after)), self.module.METRIC  # a saved `before` has lost its order
        name = self.directory.name
        summary = {
            "name": name.removeprefix("demo-") if name.startswith("demo-") else self.algo,
            "task": self.task.name, "seed": self.options.seed,
            "metric": f"{metric} reward, {split}",
            "before": self.before[split][metric]["score"], "after": after[split][metric]["score"],
            "seconds": round(self.seconds, 1), "tokens": self.run.tokens,
            "all": {f"{metric}, {split}": {"before": self.before[split][metric]["score"],
                                           "after": after[split][metric]["score"]}
                    for split in after for metric in after[split]},
        }
        if self.lead:
            checkpoint.write_json(self.directory / "summary.json", summary)
        split = "held-out" if "held-out" in after else split
        self.console.side_by_side(self.splits[split], self.before[split][metric],
                                  after[split][metric], f"{split}, {metric}",
                                  self.options.show)
        self.console.result(summary, self.directory)


def append(path, text):
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise MinipostError(
            f"{path}: could not be written ({error.strerror}); the last saved state stands"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
