"""One training run: from a model directory, or from a saved state, to a summary."""

import shlex
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from itertools import chain

import torch

from minipost import checkpoint, files, parallel
from minipost.checks.model import FAULT, WARNING, before_prompts, weights_as_written
from minipost.cli.console import Console
from minipost.cli.defaults import LARGE, with_epochs
from minipost.cli.directory import Directory, as_written, made_from, telling_changes
from minipost.cli.samples import Samples, write_page
from minipost.cli.trackers import Trackers
from minipost.datasets import formats
from minipost.datasets.rows import File
from minipost.datasets.suited import for_method
from minipost.errors import Descent, MinipostError
from minipost.measure.asked import asked
from minipost.measure.meter import next_step, own
from minipost.measure.results import TEMPERATURES, as_data, forecast, from_data, on_both, splits
from minipost.measure.stats import paired
from minipost.measure.watch import Example, Signal
from minipost.opening import open_run, without_template
from minipost.parts import sharding

PROG = "python -m minipost.train"


def pick_device(name):
    """The device that --device names."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((device for device, found in there.items() if found), "cpu")
    if name in there and not there[name]:
        raise MinipostError(f"--device {name}: this machine or this build of torch has none")
    return name


def gain(before, after):
    """{"gain": the paired difference} of the problems that both Results have, {} if there is none.

    Neither is there one of Results that count other things.
    """
    before, after = on_both(before, after)
    if not before.rewards or len(before.rewards) != len(after.rewards):
        return {}
    return {"gain": asdict(paired(before.rewards, after.rewards))}


class Session:
    """One run from its start, or from its saved state, to its summary.

    resume: go on from the directory's state.  anyway: even if what it was made from has changed.
    longer: the settings' steps are another number than the state's.
    overwrite: replace the run that is in the directory.  note: a line to say at the start.
    """

    def __init__(self, directory, settings, device, workers, *, resume=False, anyway=False,
                 longer=False, overwrite=False, note=""):
        self.directory, self.settings, self.device = directory, settings, device
        self.workers, self.resume, self.anyway = workers, resume, anyway
        self.overwrite, self.longer, self.note = overwrite, longer, note
        self.method, self.options = settings.method, settings.options
        self.config, self.task = settings.config, settings.task
        self.stop = False
        self.spent = self.paused = 0.0  # seconds: of training before a resume, of evaluation since
        self.skipped = 0                # updates left out so far
        self.moved = resume             # whether any step has made an update, as far as is known
        self.saving = False
        self.doing, self.began, self.took = "", 0.0, 0.0  # of a step: seconds that the last took

    def go(self):
        self.lead = parallel.rank() == 0
        self.workers = parallel.world()
        self.console = Console(quiet=not self.lead)
        self.trackers = Trackers(self.options.log if self.lead else (), self.console.say)
        self.files = Directory(self.directory, PROG)
        if self.lead and self.resume:
            self.files.hold()
        elif self.lead:
            self.files.check_new(self.settings, self.overwrite)
        code = 1
        try:
            code = self.work()
            return code
        except KeyboardInterrupt:
            code = 130
            raise
        finally:
            self.trackers.close(code)
            with suppress(MinipostError, OSError):  # the next start in this directory does it
                if self.files.began and self.files.settle():
                    self.console.say(f"{self.directory}: the new run has saved nothing, so the "
                                     "one that was here is back")
            self.files.release()

    def work(self):
        self.run = open_run(self.options, self.task, self.device)
        self.task = self.run.task
        self.run.lag, self.vocabulary = self.options.lag, self.run.vocabulary
        self.run.sampler_bits = self.options.sampler_bits
        self.run.sampler_top_k = self.options.sampler_top_k
        if self.run.server and self.lead:
            self.run.server.connect()
        self.splits = self.held_out()
        reward_model = None
        if self.options.reward_model and not self.method.SCORED:
            raise MinipostError(f"{self.method.name} does not learn from a score; leave out "
                                "--reward-model, or take a method that does, such as grpo")
        if self.options.reward_model:
            reward_model = checkpoint.load_reward_model(
                self.options.reward_model, self.vocabulary,
                "cpu" if self.run.shard else self.device, self.options.dtype)
        self.made = made_from(self.settings) if self.lead else {}
        if self.options.keep_rollouts and self.options.rollout_format == "parquet":
            formats.arrow("--rollout-format parquet")
        with telling_changes(self.directory) if self.resume else nullcontext():
            self.check_prompts()
        length = self.lengths()
        self.method.check(self.run, self.config)
        self.console.header(self.method.name, self.task, self.config, self.options,
                            self.run.policy.module, parallel.world())
        slow = self.config.slow_start() if isinstance(self.config, Descent) else ""
        for line in filter(None, (self.note, length, "" if self.resume else slow)):
            self.console.say(line)
        if self.lead:
            for found in (before_prompts(self.options.model, self.vocabulary),
                          weights_as_written(self.options.model)):
                if found.status in (WARNING, FAULT):
                    self.console.say(f"{found.check}: {found.sentence}")
        for sentence in [*self.task.skipped(), without_template(self.run)]:
            if sentence:
                self.console.say(sentence)
        if self.resume:
            self.restore()
        else:
            self.announce()
            self.before = self.measure()
            self.check_metric()
            if self.options.ask:
                split = next(iter(self.splits))
                self.before[split] |= asked(self.run, self.splits[split], self.options.ask)
            if self.lead:  # last, so that what fails before it costs no earlier run
                self.files.begin(self.settings, self.made, self.workers, self.overwrite)
                self.trackers.open(self.directory, as_written(self.settings))
                self.trackers.results(0, self.before)
        self.example = Example(self.run)
        self.signal = Signal()
        self.run.watches += [self.example, self.signal]
        self.samples = Samples(self) if self.options.report else None
        if self.samples:
            if self.resume:
                self.samples.resume(self.run.step)
            else:
                self.samples.begin()
        if reward_model is not None:
            self.run.score_by(reward_model)
        self.console.scores("before", self.before)
        code = self.train()
        if code == 0:
            self.finish()
            if not self.resume and (said := self.signal.sentence()):
                self.console.say(said)
            if not self.moved:
                self.console.say("no step changed the model: " + (
                    f"all {self.skipped} updates were left out, since no gradient was finite; look "
                    "at the loss and the rewards" if self.skipped else "no update was made; does "
                    "the method call run.policy.step?"))
        if self.lead and self.options.report:
            write_page(self.directory, self.console, say=code == 0)  # else how to go on is last
        return code

    def check_prompts(self):
        """Look at all problems before any training, at a sample of an endless task's.

        What the run cannot use is an error, or is left out where rows of a file may be skipped.
        """
        known = self.task.training() if self.task.training else self.run.problems(16)
        self.task = self.run.task = for_method(
            self.run, self.method.name, self.method.READS, chain(known, *self.splits.values()),
            bool(self.options.reward_model), self.method.COMPARES)
        self.splits = self.held_out()

    def lengths(self):
        """Let the steps be those of --data-epochs, if there is one.  -> a line that says so, or ""

        A resumed run has them in its settings.
        """
        if self.resume or not self.options.data_epochs:
            return ""
        self.config, line = with_epochs(self.run, self.method, self.config,
                                        self.options.data_epochs)
        self.settings = replace(self.settings, config=self.config)
        return line

    def held_out(self):
        """{split: problems to measure}, {} where none are to be measured."""
        return splits(self.task, self.options.eval_n) if self.options.eval_n else {}

    def announce(self):
        """Say how long it takes to the first step, where that is long: for a large model."""
        size = sum(p.numel() for p in self.run.policy.module.parameters())
        if size <= LARGE or not self.splits:
            return
        seconds = forecast(self.run, self.splits, lambda some: self.method.measure(
            self.run, some, self.config))
        self.console.say(
            f"measuring {sum(map(len, self.splits.values()))} held-out problems first" + (
                "" if seconds is None else f", about {seconds:.0f} s, less where answers end early")
            + "; the first step follows (--eval-n 0: at once)")

    def measure(self):
        """The method's measurements: {split: {metric: Result}}, {} where there is nothing to do."""
        return self.method.measure(self.run, self.splits, self.config) if self.splits else {}

    def check_metric(self):
        """MinipostError where the method's METRIC is none of those that it measures.

        On a file some methods measure something else.
        """
        for found in self.before.values():
            if self.method.METRIC not in found and not isinstance(self.task, File):
                raise MinipostError(f"{self.method.module.__file__}: METRIC is "
                                    f"{self.method.METRIC!r:.40}; it measures {', '.join(found)}")

    def train(self):
        learn = self.method.train(self.run, self.config)
        self.run.total = steps = self.method.total(self.run, self.config)
        first, self.started = self.run.step, time.perf_counter()
        tokens_before, every = self.run.tokens, self.options.save_every
        every_eval, milestones = (self.options.eval_every,
                                  self.method.milestones(self.run, self.config))
        self.skipped = self.skips()
        if self.resume and self.over(steps):
            self.save()  # the models may be gone or damaged
            self.console.say("all steps had been made; the models are written again")
        with self.console.progress(first, steps), self.kept():
            while not self.over(steps):
                self.run.said.clear()  # what functions said of answers that were measured
                self.begin(f"step {self.run.step + 1}")
                self.metrics = metrics = {**next_step(learn, self.method),
                                          **self.run.differences()}
                metrics |= self.said_of(metrics)
                self.run.step += 1
                self.moved |= any(learner.updates for learner in self.run.learners.values())
                self.took = time.perf_counter() - self.began
                if self.run.step == first + 1:  # there was nothing to save before
                    parallel.Signals.current.finish = [self.stop_soon]
                rate = (self.run.tokens - tokens_before) / (self.seconds() - self.spent)
                ended = milestones.get(self.run.step, "")
                if ended or every_eval and self.run.step % every_eval == 0:
                    self.begin(f"the measurement after step {self.run.step}")
                    metrics |= self.evaluation(ended)
                self.keep_rollouts()
                if self.samples:
                    self.samples.step()
                self.log(metrics)
                self.boundary = self.seen()
                self.console.step(self.run.step, metrics, rate)
                self.say_skipped()
                flag = torch.tensor([float(self.stop)])
                parallel.all_reduce(flag)
                over = self.over(steps)
                if flag or over or (every and self.run.step % every == 0):
                    self.begin(f"the saving of step {self.run.step}")
                    self.save()
                if flag and not over:
                    self.console.say(f"stopped after step {self.run.step} of {steps}; go on "
                                     f"with: {self.command()}")
                    return 130
        return 0

    def command(self):
        """The command that goes on with this run."""
        named = " ".join(shlex.quote(name) for name in self.options.reward)
        return (f"{PROG} --resume {shlex.quote(str(self.directory))}"
                + (f" --reward {named}" if named else ""))

    def begin(self, doing):
        """Note what is done now, for whoever asks it to stop."""
        self.doing, self.began = doing, time.perf_counter()

    def stop_soon(self):
        """What the first signal calls: say what the end waits for.  The step in progress is kept.
        """
        self.stop = True
        usual = "" if self.doing.startswith("the") else f", the last one took {self.took:.0f} s"
        self.console.say(f"finishing {self.doing} ({time.perf_counter() - self.began:.0f} s so far"
                         f"{usual}), then saving (once more: stop at once)")

    @contextmanager
    def kept(self):
        """Save the last whole step if anything fails, such as by a second signal."""
        self.saved = self.logged = self.run.step
        self.boundary = self.seen()
        try:
            yield
        except BaseException:
            with parallel.unhurried(), suppress(MinipostError):  # the first error is the cause
                self.rescue()
            raise
        finally:
            parallel.Signals.current.finish = []

    def seen(self):
        """The facts of a state between two steps, and the version of every tensor in it."""
        if self.run.shard:  # no rank can save alone
            return {}, {}
        tensors, facts = self.run.state()
        facts = {**facts, "carried": dict(facts["carried"])}
        return facts, {name: tensor._version for name, tensor in tensors.items()}

    def rescue(self):
        """Save the last whole step, unless the failed one has changed a tensor already.

        A sharded state takes all ranks, and one of them may have failed: the last save stands.
        """
        if not self.lead or self.saving or self.run.shard:
            return
        if self.run.step > self.boundary[0]["step"]:  # a whole step; what failed came after it
            if self.logged < self.run.step:
                self.log(self.metrics)
            self.boundary = self.seen()
        facts, versions = self.boundary
        tensors, _ = self.run.state()
        if facts["step"] == self.saved or any(tensors[name]._version != version
                                              for name, version in versions.items()):
            return
        self.run.step = facts["step"]
        self.console.say(f"saving step {self.run.step}, which was made before")
        self.save({name: tensors[name] for name in versions}, facts)
        self.console.say(f"step {self.run.step} is saved; go on with: {self.command()}")

    def over(self, steps):
        budget = self.options.budget
        return self.run.step >= steps or bool(budget and self.run.tokens >= budget)

    def seconds(self):
        """Seconds of training so far, without those of evaluation."""
        return self.spent + time.perf_counter() - self.started - self.paused

    def evaluation(self, ended=""):
        """The current held-out results, as metrics; shown if they end a stage."""
        start, results = time.perf_counter(), self.measure()
        self.paused += time.perf_counter() - start
        if ended:
            self.console.scores(f"after {ended}", results)
        return {f"eval/{split}/{metric}": found.score.value
                for split, metrics in results.items() for metric, found in metrics.items()}

    def said_of(self, metrics):
        """The metrics that reward functions logged in this step, and the mean of each function."""
        found = self.run.said.metrics()
        if taken := own(found) | found.keys() & metrics.keys():
            raise MinipostError(f"a reward function logs the metric {min(taken)!r}, which is one "
                                "of the run's own; give it another name")
        return found

    def keep_rollouts(self):
        """Write the answers of this step, if they were kept."""
        if self.run.kept:
            self.files.keep_rollouts(self.run.step, self.run.kept, self.options.rollout_format)
            self.run.kept.clear()

    def skips(self):
        """Updates that were left out because their gradient was not finite."""
        return sum(learner.skipped for learner in self.run.learners.values())

    def say_skipped(self):
        """Say it at once when an update is left out: what a run learns depends on it."""
        if self.skips() > self.skipped:
            self.skipped = self.skips()
            self.console.say(f"step {self.run.step}: a gradient was not finite, so its update was "
                             f"left out; {self.skipped} so far" + (
                                 "" if self.moved else "; no update was made before it, so look at "
                                 "the loss and the rewards, not at --lr"))

    def log(self, metrics):
        if self.lead:
            row = {"step": self.run.step, **metrics, "num_tokens": self.run.tokens,
                   "seconds": round(self.seconds(), 3)}
            self.files.log(row)
            self.trackers.log(self.run.step, row)
        self.logged = self.run.step

    def save(self, tensors=None, facts=None):
        """Write the models that the method exports, each to its folder, and the state.

        tensors, facts: of the state; by default what it is now.
        """
        if tensors is None:
            tensors, facts = self.run.state()
        if not (self.lead or self.run.shard):
            return
        self.saving = True
        learners = self.run.learners
        for name, learner in learners.items():
            if not learner.finite():
                raise MinipostError(f"{self.directory}: not saved, the {name} holds values that "
                                    "are not finite; the last saved state stands")
        for name, folder in self.method.EXPORTS.items():
            if name not in learners:
                continue
            module = learners[name].module
            if self.run.shard:
                module = sharding().gathered(module, "cpu", keep=self.lead)
            if self.lead:
                checkpoint.save(self.directory / folder, module, self.options.model,
                                self.options.dtype, self.vocabulary.end, self.vocabulary.given,
                                self.options.merge)
        self.files.save(tensors, {**facts, "before": as_data(self.before),
                                  "seconds": self.seconds()},
                        self.settings, self.made, self.workers, bool(self.run.shard))
        if self.lead:
            self.files.settle()
        self.saving, self.saved = False, self.run.step

    def restore(self):
        """Go on from the newest whole state, unless it was made from something else."""
        tensors, facts, complaints = self.files.load(self.run.shard)
        if self.lead:
            for complaint in complaints:
                self.console.say(f"{complaint}; going on from the state before, of step "
                                 f"{facts['step']}")
            changes = self.files.changes(facts, self.settings, self.made, self.workers,
                                         self.longer)
            if changes and not self.anyway:
                for change in changes[1:]:
                    self.console.say(f"another change: {change}")
                raise MinipostError(f"{self.directory}: {changes[0]}; put it back, or go on with "
                                    "--anyway")
            for change in changes:
                self.console.say(f"going on although {change}")
            if self.run.shard and facts["workers"] != self.workers:
                self.console.say(f"ranks: {facts['workers']} -> {self.workers}; sums may be "
                                 "rounded otherwise")
        if self.longer:
            self.lengthen(facts)
        if self.lead:
            self.files.write_config(self.settings, self.made, self.workers)
        try:
            self.run.restore(tensors, facts)
            self.before, self.spent = from_data(facts["before"]), facts["seconds"]
            if not set(self.splits) <= set(self.before):
                raise ValueError(f"it measured {', '.join(self.before) or 'nothing'}")
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise MinipostError(f"{self.directory}: the state does not belong to this run "
                                f"({error!r})") from None
        if self.lead:
            self.files.drop_rollouts(self.run.step)
            sent = max((line["step"] for line in self.files.lines()), default=-1)
            self.trackers.open(self.directory, as_written(self.settings), step=self.run.step,
                               sent=sent)
        if self.lead and (complaint := self.files.restore_log(facts["log"], self.run.step)):
            self.console.say(complaint)

    def lengthen(self, facts):
        """Say what other steps mean.  MinipostError if so many have been made already."""
        steps = self.method.total(self.run, self.config)
        if facts["step"] >= steps:
            raise MinipostError(f"{self.directory}: {facts['step']} steps have been made, so "
                                f"--steps {self.config.steps} leaves none to make")
        before = facts["settings"]["method"].get("steps")
        schedule = getattr(self.config, "schedule", "constant")
        self.console.say(f"steps: {before} -> {self.config.steps}" + (
            "" if schedule == "constant" else f"; from step {facts['step'] + 1} on the learning "
            f"rate is that of a {schedule} schedule over {self.config.steps} steps"))

    def finish(self):
        self.trained = self.seconds()
        every = self.options.keep_rollouts
        if self.lead and every and self.run.step >= every and not self.files.kept():
            self.console.say(f"no rollouts are kept: {self.method.name} hands none over (run.keep)")
        after = self.measure()
        self.trackers.results(self.run.step, after)
        if any(set(after[split]) - set(self.before[split]) for split in after):
            raise MinipostError(f"{self.directory}: the state holds other measurements than this "
                                "run makes; begin again with --overwrite")
        name = self.directory.name
        summary = {
            "name": name.removeprefix("demo-") if name.startswith("demo-") else self.method.name,
            "task": self.task.name, "seed": self.options.seed, "metric": "",
            "seconds": round(self.trained, 1), "tokens": self.run.tokens, "skipped": self.skipped,
            "all": {}, "asked": {}, **({} if self.moved else {"unchanged": True}),
        }
        if not after:
            if self.lead:
                files.write_json(self.directory / "summary.json", summary)
            self.console.say("nothing was measured before or after (--eval-n 0)")
            self.console.end(summary, self.directory)
            return
        split = next(iter(after))  # not of `before`, which loses its order in a saved state
        metric = self.method.METRIC if self.method.METRIC in after[split] else next(
            iter(after[split]))
        every = {(split, metric): {"before": asdict(self.before[split][metric].score),
                                   "after": asdict(after[split][metric].score),
                                   **gain(self.before[split][metric], after[split][metric])}
                 for split in after for metric in after[split]}
        summary |= {
            "metric": f"{metric}{' reward' if metric in TEMPERATURES else ''}, {split}",
            **every[split, metric],
            "all": {f"{metric}, {split}": scores for (split, metric), scores in every.items()},
            "asked": {f"{metric}, {split}": asdict(found.score)
                      for split, results in self.before.items()
                      for metric, found in results.items() if metric not in after.get(split, {})},
        }
        if self.lead:
            self.files.write_rewards({
                f"{metric}, {split}": [found[split][metric].of_each(len(self.splits.get(split, ())))
                                       for found in (self.before, after)]
                for split, metric in every})
            files.write_json(self.directory / "summary.json", summary)
        headline = f"{metric}, {split}"
        split = "held-out" if "held-out" in after else split
        if self.samples:
            self.samples.finish(split, metric, self.before[split][metric], after[split][metric])
        self.console.group(self.example.rows)
        self.console.side_by_side(self.splits[split], self.before[split][metric],
                                  after[split][metric], f"{split}, {metric}",
                                  self.options.show)
        if self.lead:
            lines = self.files.lines()
            if self.method.TRACE:
                self.console.trace(lines, self.method.TRACE)
            if ends := self.method.milestones(self.run, self.config):
                self.console.stages(summary, lines, ends)
            if said := self.method.remark(lines):
                self.console.say(said)
        if "gain" in summary:
            self.console.look(headline, summary)
        self.console.result(summary, self.directory)
