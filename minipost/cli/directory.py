"""The directory of a run: what it was made from, its log, its last two states.

    config.json      settings, and digests of all that the run was made from
    metrics.jsonl    a line per step
    rollouts/        000020.jsonl: the answers of step 20, a row each, where they are kept
    state/           state.safetensors and, of the save before, previous.safetensors; with --shard
                     the folders state and previous, of a file for each rank (shard.py)
    trackers/        what --log keeps here
    model/ ...       the models that the method exports
    summary.json     before and after
    rewards.json     of each held-out problem, before and after
    report.jsonl     samples for the report (measure/watch.py)
    report.html      the report
    replaced-run/    the run that was here, until the one that replaces it has saved something

A state holds its own digest, the settings and digests of config.json, and length and digest of the
log.  So a resumed run takes the newest state that is whole, and knows whether anything that it was
made from has changed.  One process at a time works in a directory.
"""

import hashlib
import json
import math
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch

from minipost import __version__, checkpoint, files
from minipost.datasets import formats
from minipost.datasets.named import sources
from minipost.errors import MinipostError
from minipost.files import read_bytes
from minipost.layout import tensor_file
from minipost.layout.lora_file import CONFIG, base_of
from minipost.parts import sharding
from minipost.tasks import TASKS

ENDING = ".safetensors"  # of a state's name, unless it is sharded
# Of any method's run.
FOLDERS = ("state", "model", "critic", "reward_model", "rollouts", "trackers")
FILES = ("summary.json", "rewards.json", "metrics.jsonl", "config.json", "report.jsonl",
         "report.html")
REPLACED, MOVING = "replaced-run", "replaced-run.partly"  # hold an earlier run, a part of one
MODEL_FILES = ("config.json", CONFIG, *checkpoint.SIDE_FILES, f"{checkpoint.WEIGHTS}.index.json")
# Options that do not act on what is made; what the models are is in `made_from`.
FREE = {"out", "report", "show", "save_every", "merge", "model", "reward_model", "keep_rollouts",
        "rollout_format", "sampler_url", "log"}
MOST_LOG = 2**31  # bytes of the longest log that is read


def made_from(settings):
    """{what: its version or SHA-256}: minipost, torch, method, task, data, reward files, models."""
    options, task = settings.options, settings.task
    replay = getattr(settings.config, "replay", "")
    named = filter(None, (getattr(task, "data", ""), getattr(task, "eval_data", ""),
                          "" if replay in TASKS else replay))
    paths = [*(part for name in named for part in formats.parts(name)), *sources(options.reward)]
    paths += filter(None, [options.chat_template])
    models = list(filter(None, (options.model, options.reward_model)))
    models += [base for name in models if (base := base_of(name)) != Path(name)]
    for directory in models:
        paths += [path for name in MODEL_FILES if (path := Path(directory) / name).exists()]
        paths += sorted(Path(directory).glob("*.safetensors"))
    return {"minipost": __version__, "torch": torch.__version__, **code_of(settings),
            **{str(path): files.sha256(path) for path in paths}}


def code_of(settings):
    """{"minipost/methods/grpo.py": its SHA-256} of the files of the method and of the task."""
    modules = settings.method.module, sys.modules[type(settings.task).__module__]
    return {f"{module.__name__.replace('.', '/')}.py": files.sha256(module.__file__)
            for module in modules}


def as_written(settings):
    """The settings as config.json holds them."""
    return {
        "algo": settings.method.name, "options": asdict(settings.options),
        "method": asdict(settings.config),
        "task": {"name": settings.task.name, **asdict(settings.task)},
    }


def flat(settings):
    """{"options.lr": value, ...} of what config.json says, but for what does not act."""
    settings = json.loads(json.dumps(settings))
    settings["options"]["reward"] = [  # where they lie is in `made_from`
        name.rpartition(":")[2] for name in settings["options"].get("reward", [])]
    found = {"algo": settings["algo"]}
    for part in ("options", "method", "task"):
        found |= {f"{part}.{name}": value for name, value in settings[part].items()
                  if part != "options" or name not in FREE}
    return found


@contextmanager
def telling_changes(directory):
    """Where a resumed run fails in here and its data has changed, the error says that first."""
    try:
        yield
    except MinipostError as error:
        if changed := changed_data(directory):
            raise MinipostError(f"{changed} has changed since the run began; put it back, or begin "
                                f"again ({error})") from None
        raise


def changed_data(directory):
    """The first file of rows that is not what it was when the run in a directory began, or ""."""
    with suppress(MinipostError, OSError, KeyError, TypeError, AttributeError):
        saved = files.read_json(Path(directory) / "config.json")
        for name in filter(None, (saved["task"].get("data"), saved["task"].get("eval_data"))):
            for part in formats.parts(name):
                if not part.exists() or saved["made_from"].get(str(part)) != files.sha256(part):
                    return str(part)
    return ""


class Directory:
    """A run's directory.  MinipostError where it cannot be used, with what to do about that."""

    def __init__(self, path, prog):
        self.path, self.prog, self.lock = Path(path), prog, None
        self.began = False  # whether a new run has taken it
        self.log_digest, self.log_bytes = hashlib.sha256(), 0

    def __truediv__(self, name):
        return self.path / name

    def hold(self):
        """Keep other processes out of this directory until this one ends."""
        for name in FILES:
            if (self / name).is_dir():
                raise MinipostError(f"{self / name}: is a directory; expected a file, move it away")
        try:
            import fcntl
        except ImportError:  # there is no such lock on Windows
            return
        self.lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise MinipostError(f"{self.path}: another process is at work in this run; wait for it "
                                "or choose another --out") from None
        for folder in (self.path, *(self / name for name in FOLDERS)):
            files.sweep(folder)
        self.settle()

    def release(self):
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    # ---- a new run

    def check_new(self, settings, overwrite):
        """MinipostError unless a new run may begin here."""
        try:
            str(self.path.resolve()).encode()
        except UnicodeEncodeError:
            raise MinipostError(f"{self.path}: the name is not UTF-8; choose another") from None
        if self.path.exists() and not self.path.is_dir():
            raise MinipostError(f"{self.path}: is a file; --out names a directory")
        ours = {self.path.resolve(), *((self / name).resolve() for name in FOLDERS)}
        for model in filter(None, (settings.options.model, settings.options.reward_model)):
            if Path(model).resolve() in ours:
                raise MinipostError(f"{self.path}: holds the model {model} that this run reads; "
                                    "choose another --out")
        if any(self.path.glob("*.safetensors")) or (self / "tokenizer.json").exists():
            raise MinipostError(f"{self.path}: is a model directory; choose another --out")
        if (self / "config.json").exists() and not files.is_run(self.path):
            raise MinipostError(f"{self.path}: has a config.json that is not of a run; choose "
                                "another --out")
        held = [name for there in (self.path, self / REPLACED)
                for name in (*FOLDERS, "summary.json") if (there / name).exists()]
        if held and not overwrite:
            what = "a finished run" if "summary.json" in held else "an unfinished run"
            saved = self.has_state() or any((self / REPLACED / "state").glob("[!.]*"))
            more = f"; go on with it by {self.prog} --resume {self.path}," if saved else \
                " without a state to go on from;"
            raise MinipostError(f"{self.path}: holds {what}{more} choose another --out, or replace "
                                "it by --overwrite")

    def begin(self, settings, made, workers, overwrite):
        """Take the directory, move the run that is in it aside, and write config.json."""
        files.make_directory(self.path)
        self.hold()
        self.check_new(settings, overwrite)  # another process may have begun since it was asked
        self.began = True
        self.move(self.path, self / MOVING, self.parts(settings.method.EXPORTS.values()))
        if (self / MOVING).exists():
            (self / MOVING).replace(self / REPLACED)
        self.write_config(settings, made, workers)
        files.publish(self / "metrics.jsonl", lambda path: path.write_text(""))

    # ---- the run that is replaced
    #
    # It lies in REPLACED, whole, until the new run has a state, and then it is deleted.  Where the
    # new run ends without one, or was killed, the old one is put back.  MOVING holds a part of it:
    # the other part is in its place, and nothing of the new run is there.

    def parts(self, exports=()):
        """The names of what a run has written here, states first."""
        return [name for name in dict.fromkeys((*FOLDERS, *exports, *FILES))
                if (self / name).exists() or (self / name).is_symlink()]

    def has_state(self):
        return any((self / "state").glob("[!.]*"))

    def move(self, source, to, names):
        """Move these from one folder to another, each in one step."""
        if names:
            files.make_directory(to)
        for name in names:
            try:
                (source / name).replace(to / name)
            except OSError as error:
                raise MinipostError(f"{source / name}: could not be moved ({error.strerror}); "
                                    "choose another --out") from None

    def unsettled(self):
        return (self / REPLACED).exists() or (self / MOVING).exists()

    def settle(self):
        """Delete the run that was replaced if the new one has a state, else put it back.

        -> whether it was put back
        """
        replaced, moving = self / REPLACED, self / MOVING
        if replaced.exists() and self.has_state():
            shutil.rmtree(replaced, ignore_errors=True)
        elif replaced.exists():
            for name in self.parts(path.name for path in replaced.iterdir()):
                delete(self / name)
            replaced.replace(moving)
        if not moving.exists():
            return False
        self.move(moving, self.path, sorted(path.name for path in moving.iterdir()))
        moving.rmdir()
        return True

    def write_config(self, settings, made, workers):
        files.write_json(self / "config.json", {
            **as_written(settings), "workers": workers, "folder": os.getcwd(), "made_from": made})

    def write_rewards(self, found):
        """found: {metric: (rewards before, after)}, in the order of the held-out problems."""
        rows = {name: dict(zip(("before", "after"), sides)) for name, sides in found.items()}
        files.publish(self / "rewards.json",
                      lambda path: path.write_text(json.dumps(rows), encoding="utf-8"))

    # ---- the log

    def log(self, line):
        """Append a line of metrics.  Numbers that are not finite become null."""
        line = {name: value if math.isfinite(value) else None for name, value in line.items()}
        text = (json.dumps(line) + "\n").encode()
        path = self / "metrics.jsonl"
        try:
            with open(path, "ab") as file:
                file.write(text)
        except OSError as error:
            raise MinipostError(f"{path}: could not be written ({error.strerror}); the last saved "
                                "state stands") from None
        self.log_digest.update(text)
        self.log_bytes += len(text)

    def lines(self):
        """The lines of the log that can be read, as dicts."""
        return whole_lines(self.read_log())

    def read_log(self):
        try:
            return read_bytes(self / "metrics.jsonl", MOST_LOG)
        except MinipostError:
            return b""

    def restore_log(self, said, step):
        """Cut the log to what it was at a state.  -> a sentence if that is not all there."""
        text = self.read_log()[: said["bytes"]]
        complaint = ""
        if hashlib.sha256(text).hexdigest() != said["sha256"]:
            lines = [line for line in whole_lines(text) if line["step"] <= step]
            text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            complaint = (f"{self / 'metrics.jsonl'}: damaged; {len(lines)} of the lines of {step} "
                         "steps are left.  Nothing else depends on it, and the run goes on")
        files.publish(self / "metrics.jsonl", lambda path: path.write_bytes(text))
        self.log_digest, self.log_bytes = hashlib.sha256(text), len(text)
        return complaint

    # ---- what the report shows

    def keep_samples(self, rows):
        """Write the rows for the report, whole or not at all."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        files.publish(self / "report.jsonl", lambda path: path.write_text(text))

    # ---- rollouts

    def keep_rollouts(self, step, rows, format):
        """Write the rows of a step to a file of its own, whole or not at all."""
        path = self / "rollouts" / f"{step:06}.{format}"
        files.make_directory(path.parent)
        if format == "parquet":
            files.publish(path, lambda temporary: formats.write_parquet(temporary, rows))
            return
        lines = "".join(json.dumps({name: as_json(value) for name, value in row.items()}) + "\n"
                        for row in rows)
        files.publish(path, lambda temporary: temporary.write_text(lines))

    def kept(self):
        """Whether any rollouts are kept here."""
        return any((self / "rollouts").glob("*.*"))

    def drop_rollouts(self, step):
        """Delete the rollouts of later steps, which a resumed run makes again."""
        for path in (self / "rollouts").glob("*.*"):
            if path.stem.isdigit() and int(path.stem) > step:
                path.unlink()

    # ---- states

    def save(self, tensors, facts, settings, made, workers, sharded=False):
        """Write a state.  The one before is kept as well.  All ranks write one that is sharded."""
        path = self / "metrics.jsonl"
        try:
            with open(path, "ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise MinipostError(f"{path}: could not be written ({error.strerror}); the last saved "
                                "state stands") from None
        facts = {
            **facts, "settings": as_written(settings), "made_from": made, "workers": workers,
            "log": {"bytes": self.log_bytes, "sha256": self.log_digest.hexdigest()},
        }
        write, end = (sharding().save_state, "") if sharded else (tensor_file.save_state, ENDING)
        write(self / "state" / f"state{end}", tensors, facts, aside=self / "state"
              / f"previous{end}")

    def load(self, shard=""):
        """The newest state that is whole: (tensors, facts), and complaints about a newer one.

        shard: as in Run.
        """
        complaints = []
        for name in ("state", "previous"):
            path = self / "state" / (name if shard else f"{name}{ENDING}")
            if not path.exists():
                continue
            try:
                tensors, facts = (sharding().load_state(path, shard) if shard
                                  else tensor_file.load_state(path))
                check_facts(path, tensors, facts)
                return tensors, facts, complaints
            except MinipostError as error:
                # A state is ours: there is nowhere to fetch it from.
                complaints.append(str(error).removesuffix("; fetch it again"))
        if complaints:
            raise MinipostError(f"{complaints[0]}; there is no other state to resume from, begin "
                                "again with --overwrite")
        raise MinipostError(f"{self.path}: holds no state, there is nothing to resume from; begin "
                            "again with --overwrite")

    def changes(self, facts, settings, made, workers, longer=False):
        """What differs from what a state was made from, in words.  longer: except its steps.

        A sharded run may go on with any number of workers.
        """
        before = {**flat(facts["settings"]), "workers": facts["workers"]}
        now = {**flat(as_written(settings)), "workers": workers}
        found = [f"config.json says {name} {now.get(name)!r:.40}, the state was made with "
                 f"{before.get(name)!r:.40}"
                 for name in sorted({*before, *now}) if before.get(name) != now.get(name)
                 and not (longer and name == "method.steps")
                 and not (settings.options.shard and name in ("workers", "options.workers"))]
        known = facts["made_from"]
        for part in ("model", "reward_model"):  # it may have moved
            old, new = facts["settings"]["options"].get(part), getattr(settings.options, part)
            if old and new:
                known = {str(Path(new) / Path(what).relative_to(old))
                         if Path(what).is_relative_to(old) else what: digest
                         for what, digest in known.items()}
        for what in sorted({*known, *made}):
            if known.get(what) == made.get(what):
                continue
            if what not in known and what in code_of(settings):
                continue  # a run that began before code was noted
            if what in ("minipost", "torch"):
                found.append(f"{what} was {known.get(what)} and is {made.get(what)}")
            else:
                found.append(f"{what} " + ("is new" if what not in known else "is gone"
                                           if what not in made else "has changed since"))
        return found


def delete(path):
    """Delete a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def as_json(value):
    """A value of a table as JSON has it: NaN and infinity are null, an object is its text."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value


def is_count(value):
    return type(value) is int and value >= 0


FACTS = {  # what a state says, and whether it may say that
    "step": is_count, "tokens": is_count, "workers": is_count,
    "seconds": lambda x: type(x) in (int, float) and 0 <= x < math.inf,
    "carried": lambda x: isinstance(x, dict),
    "before": lambda x: isinstance(x, dict),
    "learners": lambda x: isinstance(x, dict) and all(
        isinstance(v, list) and all(map(is_count, v)) for v in x.values()),
    "made_from": lambda x: isinstance(x, dict) and all(isinstance(v, str) for v in x.values()),
    "settings": lambda x: isinstance(x, dict) and "algo" in x and all(
        isinstance(x.get(part), dict) for part in ("options", "method", "task")),
    "log": lambda x: isinstance(x, dict) and is_count(x.get("bytes")) and
    isinstance(x.get("sha256"), str),
}


def check_facts(path, tensors, facts):
    """MinipostError unless a file that is whole also is the state of a run."""
    if not isinstance(facts, dict) or any(name.count("/") < 2 for name in tensors):
        raise MinipostError(f"{path}: not the state of a run")
    for name, good in FACTS.items():
        if not good(facts.get(name)):
            raise MinipostError(f"{path}: not the state of a run; {name} is "
                                f"{facts.get(name)!r:.60}")


def whole_lines(text):
    """The lines of a log that are a JSON object with a step, as dicts of numbers."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and type(value.get("step")) is int:
            found.append({name: number for name, number in value.items()
                          if number is None or type(number) in (int, float)})
    return found
