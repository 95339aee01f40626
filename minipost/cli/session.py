"""One run: from a model directory, or from a saved state, to a summary.

train.py reads the command line and lists the files of a run.  This file does the rest.
"""

import json
import math
import signal
import time
from dataclasses import asdict
from itertools import chain

import torch

from minipost import checkpoint, parallel
from minipost.cli.console import Console
from minipost.errors import MinipostError
from minipost.measure.results import TEMPERATURES, as_data, from_data, splits
from minipost.rollout import check_context
from minipost.run import open_run

PROG = "python -m minipost.train"


def pick_device(name):
    """The device that --device names."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((device for device, found in there.items() if found), "cpu")
    if name in there and not there[name]:
        raise MinipostError(f"--device {name}: this machine or this build of torch has none")
    return name


class Session:
    """One run from its start, or from its saved state, to its summary."""

    def __init__(self, directory, settings, device, resume):
        self.directory, self.device, self.resume = directory, device, resume
        self.method, self.options = settings.method, settings.options
        self.config, self.task = settings.config, settings.task
        self.stop = False
        self.spent = self.paused = 0.0  # seconds: of training before a resume, of evaluation since

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
        self.check_prompts()
        self.method.check(self.run, self.config)
        self.console.header(self.method.name, self.task, self.config, self.options,
                            self.run.policy.module, parallel.world())
        for sentence in self.task.skipped():
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

    def check_prompts(self):
        """Fail before any training if a prompt does not fit.  Endless tasks are sampled."""
        known = self.task.training() if self.task.training else self.run.problems(16)
        for problem in chain(known, *self.splits.values()):
            check_context(self.run.policy.module, len(self.run.prompt_ids(problem.prompt)),
                          self.options.max_new_tokens, problem.prompt)

    def open_directory(self):
        if not self.lead:
            return
        checkpoint.write_json(self.directory / "config.json", {
            "algo": self.method.name, "options": asdict(self.options),
            "method": asdict(self.config), "task": {"name": self.task.name, **asdict(self.task)},
        })
        for stale in ("state/state.safetensors", "summary.json"):
            (self.directory / stale).unlink(missing_ok=True)
        checkpoint.publish(self.directory / "metrics.jsonl", lambda path: path.write_text(""))

    def measure(self):
        """The method's measurements: {split: {metric: Result}}."""
        return self.method.measure(self.run, self.splits, self.config)

    def train(self):
        previous = self.watch_signals()
        learn = self.method.train(self.run, self.config)
        steps = self.method.total(self.run, self.config)
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
                    parallel.all_reduce(flag)
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

    def over(self, steps):
        budget = self.options.budget
        return self.run.step >= steps or bool(budget and self.run.tokens >= budget)

    def seconds(self):
        """Seconds of training so far, without those of evaluation."""
        return self.spent + time.perf_counter() - self.started - self.paused

    def evaluation(self):
        """The current held-out results, as metrics."""
        start, results = time.perf_counter(), self.measure()
        self.paused += time.perf_counter() - start
        return {f"eval/{split}/{metric}": found.score.value
                for split, metrics in results.items() for metric, found in metrics.items()}

    def watch_signals(self):
        """The first SIGINT or SIGTERM lets the step finish.  The second stops at once."""
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
        """Write the models that the method exports, each to its folder, and the state."""
        tensors, facts = self.run.state()
        if not self.lead:
            return
        learners = self.run.learners
        for name, learner in learners.items():
            if not learner.master.isfinite().all():
                raise MinipostError(f"{self.directory}: not saved, the {name} holds values that "
                                    "are not finite; the last saved state stands")
        for name, folder in self.method.EXPORTS.items():
            if name in learners:
                checkpoint.save(self.directory / folder, learners[name].module, self.options.model,
                                self.options.dtype)
        checkpoint.save_state(self.directory / "state" / "state.safetensors", tensors,
                              {**facts, "before": as_data(self.before), "seconds": self.seconds()})

    def restore(self):
        path = self.directory / "state" / "state.safetensors"
        tensors, facts = checkpoint.load_state(path)
        try:
            self.run.restore(tensors, facts)
            self.before, self.spent = from_data(facts["before"]), facts["seconds"]
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
        split = next(iter(after))  # not of `before`, which loses its order in a saved state
        metric = self.method.METRIC if self.method.METRIC in after[split] else next(
            iter(after[split]))
        every = {(split, metric): {"before": asdict(self.before[split][metric].score),
                                   "after": asdict(after[split][metric].score)}
                 for split in after for metric in after[split]}
        name = self.directory.name
        summary = {
            "name": name.removeprefix("demo-") if name.startswith("demo-") else self.method.name,
            "task": self.task.name, "seed": self.options.seed,
            "metric": f"{metric}{' reward' if metric in TEMPERATURES else ''}, {split}",
            **every[split, metric],
            "seconds": round(self.trained, 1), "tokens": self.run.tokens,
            "all": {f"{metric}, {split}": scores for (split, metric), scores in every.items()},
        }
        if self.lead:
            checkpoint.write_json(self.directory / "summary.json", summary)
        split = "held-out" if "held-out" in after else split
        self.console.side_by_side(self.splits[split], self.before[split][metric],
                                  after[split][metric], f"{split}, {metric}",
                                  self.options.show)
        if self.lead:
            text = (self.directory / "metrics.jsonl").read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.splitlines()]
            if self.method.TRACE:
                self.console.trace(lines, self.method.TRACE)
            if said := self.method.remark(lines):
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
