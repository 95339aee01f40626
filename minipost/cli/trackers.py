"""`--log tensorboard wandb trackio`: a run's metrics in an experiment tracker, under TRL's names.

metrics.jsonl holds all of it in any case.  A tracker's package is imported only where it is named.
Its failure costs one warning and never the run.  A resumed run goes on in the same log, with the
steps that the log does not have yet.
"""

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from minipost import files
from minipost.errors import MinipostError

Name = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "minipost"
FOLDER, KEY = "trackers", "run.json"  # in the run's directory; what trackers call the run

# Ours -> TRL's, where they differ.  All others are the same, or TRL has none.
TRL: Mapping[str, str] = {
    "clip_ratio": "clip_ratio/region_mean",
    "sampling_logp_difference/max": "sampling/sampling_logp_difference/max",
}
PAIRS = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"}


def trl_name(name):
    """A metric's name as TRL logs it, with the part that transformers puts before it."""
    if name.startswith("eval/"):
        return name
    if name.startswith("rewards/") and name.count("/") == 1 and name not in PAIRS:
        name += "/mean"  # of a reward function
    return f"train/{TRL.get(name, name)}"


class Tensorboard:
    """Event files in the run's own directory: `tensorboard --logdir runs` shows all runs.

    A run that goes on from a step drops the events of later ones.
    """

    NEEDS: ClassVar = {"torch.utils.tensorboard": "tensorboard"}  # module: the package to install

    def __init__(self, module, run):
        self.writer = module.SummaryWriter(
            str(run.directory / FOLDER), purge_step=run.step + 1 if run.step else None)
        self.writer.add_text("settings", run.as_text(), run.step)

    def log(self, metrics, step):
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self, code):
        self.writer.close()


class Wandb:
    """A run of the project "minipost", or of the one that WANDB_PROJECT names."""

    NEEDS: ClassVar = {"wandb": "wandb"}

    def __init__(self, module, run):
        self.run = module.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT, name=run.directory.name,
            dir=str(run.directory / FOLDER), config=run.settings, id=run.key, resume="allow",
            settings=module.Settings(console="off"))

    def log(self, metrics, step):
        self.run.log(metrics, step=step)

    def close(self, code):
        self.run.finish(exit_code=code)


class Trackio:
    """A run of the project "minipost" in Trackio's local database, or of TRACKIO_PROJECT."""

    NEEDS: ClassVar = {"trackio": "trackio"}

    def __init__(self, module, run):
        self.module = module
        module.init(project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
                    name=f"{run.directory.name}-{run.key}", config=run.settings, resume="allow")

    def log(self, metrics, step):
        self.module.log(metrics, step=step)

    def close(self, code):
        self.module.finish()


KINDS: Mapping[str, Any] = {"tensorboard": Tensorboard, "wandb": Wandb, "trackio": Trackio}


def imported(names):
    """{name: its module}.  MinipostError where a tracker is not installed."""
    found = {}
    for name in dict.fromkeys(names):
        if name not in KINDS:
            raise MinipostError(f"log is {name!r:.40}; expected some of {', '.join(KINDS)}")
        (module, package), = KINDS[name].NEEDS.items()
        try:
            found[name] = importlib.import_module(module)
        except ImportError as error:
            raise MinipostError(f"--log {name}: is not installed here ({error}); get it by "
                                f"`pip install {package}`, or leave --log out") from None
    return found


class Trackers:
    """The trackers that --log names, of one run.  In other ranks than the first there are none.

    names: of --log.  say: prints a sentence.  `open` it when the run's directory is there.
    """

    def __init__(self, names, say):
        self.modules, self.say = imported(names), say
        self.open_: dict[str, Any] = {}
        self.sent = -1  # the last step that an earlier part of this run has logged

    def open(self, directory, settings, *, step=0, sent=-1):
        """Begin, or go on from a step.  sent: the last step that the log has already."""
        self.directory, self.settings, self.step = Path(directory), settings, step
        self.sent = sent
        if self.modules:
            self.key = key_of(self.directory)
        for name, module in self.modules.items():
            self.attempt(name, lambda name=name, module=module: self.open_.__setitem__(
                name, KINDS[name](module, self)))

    def as_text(self):
        """The settings, a line each."""
        return "  \n".join(f"{part}.{name}: {value}" for part, values in self.settings.items()
                           if isinstance(values, dict) for name, value in values.items())

    def log(self, step, metrics):
        """Send the metrics of a step under TRL's names."""
        metrics = {trl_name(name): value for name, value in metrics.items() if name != "step"}
        for name, tracker in list(self.open_.items()):
            # Steps that are made again have the same values, so others need not drop theirs.
            if step > self.sent or name == "tensorboard":
                self.attempt(name, lambda tracker=tracker: tracker.log(metrics, step))

    def results(self, step, results):
        """Send held-out results: {split: {metric: Result}}."""
        self.log(step, {f"eval/{split}/{metric}": found.score.value
                        for split, metrics in results.items() for metric, found in metrics.items()})

    def close(self, code=0):
        """End them all.  code: the exit code of the run, 0 where it is finished."""
        for name, tracker in list(self.open_.items()):
            self.attempt(name, lambda tracker=tracker: tracker.close(code))
        self.open_.clear()

    def attempt(self, name, work):
        """Do it; where that fails, say so once and do without this tracker."""
        try:
            work()
        except Exception as error:  # a service may fail in any way
            self.open_.pop(name, None)
            said = " ".join(str(error).split())[:120]
            self.say(f"--log {name} has failed and is left out from here on "
                     f"({type(error).__name__}: {said}); metrics.jsonl has everything")


def key_of(directory):
    """What trackers call the run of this directory: kept there, and made if it is a new run."""
    files.make_directory(directory / FOLDER)
    path = directory / FOLDER / KEY
    if path.exists():
        key = files.read_json(path).get("run")
        if isinstance(key, str) and re.fullmatch("[0-9a-f]{12}", key):
            return key
    key = os.urandom(6).hex()
    files.write_json(path, {"run": key})
    return key
