"""One run: from a model directory, or from a saved state, to a summary.

train.py reads the command line; what happens then is here.  The files of a run are listed there.
"""

import importlib.util
import json
import math
import signal
import time
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch

from minipost import checkpoint, parallel
from minipost.console import Console
from minipost.errors import MinipostError
from minipost.evaluate import splits
from minipost.gpt import RewardModel
from minipost.run import ANSWERS, Learner, Run

PROG = "python -m minipost.train"


def load_reward(names, task):
    """The reward function of the run: the task's, or the sum of those named FILE.py:FUNCTION."""
    if not names:
        return task.reward
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


def open_run(options, task, device):
    """The Run of a command line's settings: its model, task and reward."""
    model, vocabulary = checkpoint.load(options.model, device, options.dtype)
    return Run(Learner(model), vocabulary, task, load_reward(options.reward, task),
               hidden=getattr(task, "hidden", False) and not options.reward,
               seed=options.seed, micro=options.micro, room=options.room)


class Session:
    """One run from start, or from its saved state, to its summary."""

    def __init__(self, directory, algo, module, options, config, task, device, resume):
        self.directory, self.algo, self.module, self.options = directory, algo, module, options
        self.config, self.task, self.device, self.resume = config, task, device, resume
        self.stop = False
        self.spent = self.paused = 0.0  # seconds of training before a resume, of evaluation since

    def go(self):
        self.lead = parallel.rank() == 0
        self.console = Console(quiet=not self.lead)
        self.run = open_run(self.options, self.task, self.device)
        self.vocabulary = self.run.vocabulary
        self.splits = splits(self.task, self.options.eval_n)
        reward_model = None
        if self.options.reward_model:
            reward_model = checkpoint.load_reward_model(
                self.options.reward_model, self.vocabulary, self.device, self.options.dtype)
        self.check_room()
        if hasattr(self.module, "check"):
            self.module.check(self.run, self.config)
        self.console.header(self.algo, self.task, self.config, self.options,
                            self.run.policy.module, parallel.world())
        for sentence in getattr(self.task, "skipped", list)():
            self.console.say(sentence)
        if self.resume:
            self.restore()
        else:
            checkpoint.make_directory(self.directory)
            self.before = self.measure()
            self.open_directory()  # last, so that what fails before it costs no earlier run
        if reward_model is not None:
            self.run.score_by(reward_model)
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
        """Results by split, as Run.results gives them or a `measure` of the method's own."""
        if hasattr(self.module, "measure"):
            return self.module.measure(self.run, self.splits, self.config)
        return self.run.results(self.splits)

    def train(self):
        previous = self.watch_signals()
        learn, steps = self.module.train(self.run, self.config), self.steps()
        first, self.started = self.run.step, time.perf_counter()
        tokens_before, every = self.run.tokens, self.options.save_every
        try:
            with self.console.progress(first, steps):
                while not self.over(steps):
                    metrics = next(learn)
                    self.run.step += 1
                    rate = (self.run.tokens - tokens_before) / (self.seconds() - self.spent)
                    if self.options.eval_every and self.run.step % self.options.eval_every == 0:
                        metrics |= self.evaluation()
                    self.log(metrics)
                    self.console.step(self.run.step, metrics, rate)
                    flag = torch.tensor([float(self.stop)])
                    parallel.sum_(flag)
                    over = self.over(steps)
                    if flag or over or (every and self.run.step % every == 0):
                        self.save()
                    if flag and not over:
                        self.console.say(f"stopped after step {self.run.step} of {steps}; go on "
                                         f"with: {PROG} --resume {self.directory}")
                        return 130
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return 0

    def steps(self):
        """How many steps the method makes: its Config says so, or its `total` where stages add up."""
        return self.module.total(self.run, self.config) if hasattr(self.module, "total") else \
            self.config.steps

    def over(self, steps):
        budget = self.options.budget
        return self.run.step >= steps or bool(budget and self.run.tokens >= budget)

    def seconds(self):
        """Seconds of training so far, without those of evaluation."""
        return self.spent + time.perf_counter() - self.started - self.paused

    def evaluation(self):
        """The held-out results of now, as metrics."""
        start, results = time.perf_counter(), self.measure()
        self.paused += time.perf_counter() - start
        return {f"eval/{split}/{metric}": found["score"]["value"]
                for split, metrics in results.items() for metric, found in metrics.items()}

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

    def log(self, metrics):
        if self.lead:
            line = {"step": self.run.step, **metrics, "num_tokens": self.run.tokens,
                    "seconds": round(self.seconds(), 3)}
            line = {name: value if math.isfinite(value) else None for name, value in line.items()}
            append(self.directory / "metrics.jsonl", json.dumps(line) + "\n")

    def save(self):
        """Write what the method makes to model/, a reward model on the way to it beside that."""
        tensors, facts = self.run.state()
        if not self.lead:
            return
        for name, learner in self.run.learners.items():
            if not learner.master.isfinite().all():
                raise MinipostError(f"{self.directory}: not saved, the {name} holds values that are "
                                    "not finite; the last saved state stands")
        product = getattr(self.module, "PRODUCT", "policy")
        for name, learner in self.run.learners.items():
            folder = "model" if name == product else name.replace(" ", "_")
            if name == product or isinstance(learner.module, RewardModel):
                checkpoint.save(self.directory / folder, learner.module, self.options.model,
                                self.options.dtype)
        checkpoint.save_state(self.directory / "state" / "state.safetensors", tensors,
                              {**facts, "before": self.before, "seconds": self.seconds()})

    def restore(self):
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
        self.trained = self.seconds()
        after = self.measure()
        split = next(iter(after))  # not of `before`, which has lost its order where it was saved
        metric = self.module.METRIC if self.module.METRIC in after[split] else next(iter(after[split]))
        name = self.directory.name
        summary = {
            "name": name.removeprefix("demo-") if name.startswith("demo-") else self.algo,
            "task": self.task.name, "seed": self.options.seed,
            "metric": f"{metric}{' reward' if metric in ANSWERS else ''}, {split}",
            "before": self.before[split][metric]["score"], "after": after[split][metric]["score"],
            "seconds": round(self.trained, 1), "tokens": self.run.tokens,
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
        if self.lead and (hasattr(self.module, "TRACE") or hasattr(self.module, "remark")):
            text = (self.directory / "metrics.jsonl").read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.splitlines()]
            if hasattr(self.module, "TRACE"):
                self.console.trace(lines, self.module.TRACE)
            if hasattr(self.module, "remark") and (said := self.module.remark(lines)):
                self.console.say(said)
        self.console.result(summary, self.directory)


def append(path, text):
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise MinipostError(
            f"{path}: could not be written ({error.strerror}); the last saved state stands"
        ) from None
