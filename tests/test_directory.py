"""A run's directory: it replaces nothing unasked, knows what it was made from, survives damage."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minipost import checkpoint, files, parallel, train
from minipost.cli import session
from minipost.cli.directory import Directory, whole_lines
from minipost.errors import MinipostError
from minipost.layout import tensor_file
from minipost.optim import Learner

STEPS = ("--steps", 3, "--batch-size", 4, "--save-every", 1)


@pytest.fixture
def says(capsys):
    """says(arguments, code, *parts): main gives this code and prints these parts, on any stream."""
    def check(arguments, code, *parts):
        capsys.readouterr()
        assert train.main([str(a) for a in arguments]) == code
        out, err = capsys.readouterr()
        for part in parts:
            assert str(part) in out + err
        return out + err
    return check


@pytest.fixture
def finished(command, tmp_path):
    """The directory of a finished run of three steps, each of them saved."""
    assert train.main(command("sft", *STEPS)) == 0
    return tmp_path / "run"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what is there already

def test_a_second_run_replaces_nothing_unless_it_is_asked_to(command, says, finished):
    before = contents(finished)
    says(command("sft", *STEPS), 1, "holds a finished run", f"--resume {finished}", "--overwrite")
    assert contents(finished) == before
    says(command("sft", *STEPS, "--overwrite"), 0)


@pytest.mark.parametrize("left, part", [
    ("state", "holds an unfinished run; go on with it by"),
    ("model", "holds an unfinished run without a state to go on from; choose another --out"),
])
def test_an_unfinished_run_is_not_replaced_either(command, says, finished, left, part):
    """Without a state, as a kill in the first save leaves it, it cannot go on either."""
    for path in finished.iterdir():
        if path.name not in (left, "config.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    says(command("sft", *STEPS), 1, part, "--overwrite")
    if left == "model":
        says(["--resume", finished], 1, "begin again with --overwrite")
    says(command("sft", *STEPS, "--overwrite"), 0)


def test_a_run_that_never_saved_is_replaced(command, says, finished):
    for name in ("state", "model", "summary.json"):
        path = finished / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    says(command("sft", *STEPS), 0)


def test_overwriting_leaves_nothing_of_another_method(command, says, tmp_path, wide):
    few = ("--steps", 1, "--prompts", 3, "--group-size", 2, "--batch-size", 4)
    assert train.main(command("oreo", *few)) == 0
    run = tmp_path / "run"
    (run / "notes.txt").write_text("mine")
    assert (run / "critic").is_dir()
    says(command("sft", *STEPS, "--overwrite"), 0)
    assert not (run / "critic").exists() and (run / "notes.txt").read_text() == "mine"


def test_a_model_directory_is_no_run_directory(command, says, tiny, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    before = contents(model)
    for flags in ((), ("--overwrite",)):
        says(command("sft", *STEPS, "--out", model, *flags), 1, "is a model directory")
        says(command("sft", *STEPS, "--model", model, "--out", tmp_path, *flags), 1,
             "that this run reads")
    assert contents(model) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "gpt2"}')
    says(command("sft", *STEPS, "--out", tmp_path / "other"), 1, "not of a run")
    (tmp_path / "file").write_text("")
    says(command("sft", *STEPS, "--out", tmp_path / "file"), 1, "is a file")


class Killed(BaseException):
    """A process that ends at once: nothing is put back."""


def killed(monkeypatch, owner, name, arguments, before=True):
    """A run that is killed when it calls this function, before or after that does its work."""
    real = getattr(owner, name)

    def kill(*given, **options):
        if not before:
            real(*given, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, kill)
        patch.setattr(Directory, "settle", lambda of: None)
        with pytest.raises(Killed):
            train.main(arguments)


@pytest.mark.parametrize("owner, name, before", [
    (files, "write_json", True), (Directory, "move", False), (Directory, "write_config", False),
    (session.Session, "train", True), (session.checkpoint, "save", False)])
def test_a_killed_run_leaves_no_mixture(command, says, finished, monkeypatch, owner, name, before):
    """Killed before its first save, a run that replaces another never has its weights."""
    whole = contents(finished)
    again = command("sft", *STEPS, "--lr", "0.5", "--overwrite")
    killed(monkeypatch, owner, name, again, before)
    assert not (finished / "state").exists()
    says(command("sft", *STEPS), 1, "holds a finished run; go on with it by")
    one = Directory(finished, "")
    one.hold()      # as the next start does
    one.release()
    assert contents(finished) == whole
    killed(monkeypatch, owner, name, again, before)
    says(["--resume", finished], 0)
    weights = finished / "model/model.safetensors"
    assert weights.read_bytes() == whole[weights] and (finished / "summary.json").exists()
    says(again, 0)
    assert weights.read_bytes() != whole[weights]
    assert not Directory(finished, "").unsettled()


@pytest.mark.parametrize("k", [0, 1, 6, 7, 8, 9, 12, 15])
def test_a_kill_between_two_moves_loses_nothing(command, finished, monkeypatch, k):
    """While the old run is moved aside, and while it is put back."""
    whole, real, count = contents(finished), Path.replace, []

    def replace(path, to):
        count.append(path)
        if len(count) == k + 1:
            raise Killed
        return real(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        patch.setattr(files, "publish", lambda *given, **options: None)
        with pytest.raises(Killed):
            train.main(command("sft", *STEPS, "--overwrite"))
    assert Directory(finished, "").unsettled() or contents(finished) == whole
    Directory(finished, "").settle()
    assert contents(finished) == whole


def test_the_old_run_goes_with_the_first_save(command, finished, monkeypatch):
    """A run that is killed after it is the new one, even where the old one was still there."""
    calls = []

    def kill(of):
        if of.has_state() and of.began and not calls:
            calls.append(of)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Directory, "settle", kill)
        with pytest.raises(Killed):
            train.main(command("sft", *STEPS, "--lr", "0.5", "--overwrite"))
    assert (finished / "replaced-run/state").exists()
    assert train.main(["--resume", str(finished)]) == 0
    assert not Directory(finished, "").unsettled()
    assert json.loads((finished / "config.json").read_text())["method"]["lr"] == 0.5


def test_ctrl_c_before_the_first_step_puts_the_old_run_back(command, says, finished, monkeypatch):
    whole = contents(finished)
    monkeypatch.setattr(session.Session, "train", lambda of: os.kill(os.getpid(), signal.SIGINT))
    says(command("sft", *STEPS, "--overwrite"), 130, "has saved nothing", "is back")
    assert contents(finished) == whole


# ---- two processes

def test_one_process_at_a_time_works_in_a_run(command, says, finished):
    one = Directory(finished, "")
    one.hold()
    says(["--resume", finished], 1, "another process is at work")
    says(command("sft", *STEPS, "--overwrite"), 1, "another process is at work")
    one.release()
    says(["--resume", finished], 0)


def test_what_killed_processes_left_goes_with_the_next_start(finished, says):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [finished / name for name in (f".config.json.{dead.pid}", f"state/.x.y.{dead.pid}")]
    mine = [finished / f".x.y.{os.getpid()}", finished / ".hidden.txt"]
    for path in (*left, *mine):
        path.write_text("")
    says(["--resume", finished], 0)
    assert not any(path.exists() for path in left) and all(path.exists() for path in mine)


# ---- damage

def damage(path, rng):
    """One byte of a file changed."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_a_damaged_state_is_seen_and_the_one_before_is_taken(finished, says):
    whole = (finished / "model/model.safetensors").read_bytes()
    state, before = (finished / "state" / name
                     for name in ("state.safetensors", "previous.safetensors"))
    kept, rng = [state.read_bytes(), before.read_bytes()], random.Random(0)
    for _ in range(12):
        damage(state, rng)
        said = says(["--resume", finished], 0, "going on from the state before, of step 2")
        assert str(state) in said
        assert (finished / "model/model.safetensors").read_bytes() == whole
        state.write_bytes(kept[0])
        before.write_bytes(kept[1])
    state.unlink()  # as a kill between two renames leaves it
    says(["--resume", finished], 0)
    assert (finished / "model/model.safetensors").read_bytes() == whole
    damage(state, rng)
    damage(before, rng)
    said = says(["--resume", finished], 1, "no other state to resume from", "--overwrite")
    assert "error: " in said


@pytest.mark.parametrize("size", [0, 7, 1000])
def test_a_state_cut_short_is_seen(finished, says, size):
    os.truncate(finished / "state/state.safetensors", size)
    says(["--resume", finished], 0, "going on from the state before")


def test_every_bit_of_a_state_counts(tmp_path):
    """Names, types, shapes, values and facts: a state that differs in any has another digest."""
    path = tmp_path / "state.safetensors"
    tensors = {"a": torch.arange(3.0), "b": torch.zeros(2, 2, dtype=torch.int64)}
    tensor_file.save_state(path, tensors, {"x": 1})
    whole, rng = path.read_bytes(), random.Random(1)
    found, facts = tensor_file.load_state(path)
    assert facts == {"x": 1} and all(torch.equal(found[k], v) for k, v in tensors.items())
    silent = 0
    for _ in range(400):
        path.write_bytes(whole)
        damage(path, rng)
        try:
            again, said = tensor_file.load_state(path)
        except MinipostError:
            continue
        silent += 1  # such as a space of the header that became another
        assert said == facts and again.keys() == tensors.keys()
        assert all(torch.equal(again[k], v) and again[k].dtype == v.dtype
                   for k, v in tensors.items())
    assert silent < 20


@pytest.mark.parametrize("harm", ["gone", "torn", "lost", "bytes"])
def test_a_damaged_log_is_said_and_ends_nothing(command, says, tmp_path, monkeypatch, harm):
    stop_at(monkeypatch, 2)
    run = tmp_path / "run"
    assert train.main(command("sft", *STEPS)) == 130
    stop_at(monkeypatch, None)
    log = run / "metrics.jsonl"
    text = log.read_bytes()
    log.unlink() if harm == "gone" else log.write_bytes({
        "torn": text[:-9], "lost": text.split(b"\n")[1] + b"\n", "bytes": b"\xff\x00\n" + text[9:],
    }[harm])
    says(["--resume", run], 0, "metrics.jsonl: damaged", "the run goes on")
    steps = [line["step"] for line in whole_lines(log.read_bytes())]
    assert steps == {"gone": [3], "torn": [1, 3], "lost": [2, 3], "bytes": [2, 3]}[harm]


def test_lines_of_a_log_that_are_no_metrics_are_left_out():
    assert whole_lines(b'{"step": 1}\n[]\n{"step": true}\n3\n{"st\n{"step": 2}{"step": 3}\n'
                       b'\xff\n{"step": 4, "loss": "x", "kl": null}') == [
        {"step": 1}, {"step": 4, "kl": None}]


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_the_model_of_a_finished_run_is_restored(finished, says, harm):
    model = finished / "model/model.safetensors"
    whole = model.read_bytes()
    if harm == "gone":
        shutil.rmtree(finished / "model")
    else:
        damage(model, random.Random(0))
    says(["--resume", finished], 0, "written again")
    assert model.read_bytes() == whole


# ---- what a run was made from

def stop_at(monkeypatch, k):
    """Runs that start from now on get a SIGINT while they make step k."""
    log = getattr(session.Session.log, "plain", session.Session.log)

    def logging(of, metrics):
        log(of, metrics)
        if of.run.step == k:
            os.kill(os.getpid(), signal.SIGINT)

    logging.plain = log
    monkeypatch.setattr(session.Session, "log", logging)


@pytest.fixture
def stopped(command, tmp_path, monkeypatch, tiny, rows, reward):
    """(directory, arguments that resume) of a run with files of its own, stopped at step 1."""
    shutil.copytree(tiny, tmp_path / "start")
    shutil.copy(rows, tmp_path / "mine.jsonl")
    arguments = command("grpo", "--steps", 2, "--prompts", 2, "--group-size", 2, "--model",
                        tmp_path / "start", "--data", tmp_path / "mine.jsonl", "--reward", reward)
    stop_at(monkeypatch, 1)
    assert train.main([str(a) for a in arguments]) == 130
    stop_at(monkeypatch, None)
    return tmp_path / "run", ["--resume", str(tmp_path / "run"), "--reward", reward]


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_made(run, change):
    """Change what a state was made from."""
    tensors, facts = tensor_file.load_state(run / "state/state.safetensors")
    change(facts["made_from"])
    tensor_file.save_state(run / "state/state.safetensors", tensors, facts)


@pytest.mark.parametrize("what, parts", [
    ("data", ("mine.jsonl has changed since",)), ("reward", ("reward.py has changed since",)),
    ("weights", ("start/model.safetensors has changed since",)),
    ("tokenizer", ("start/tokenizer_config.json has changed since",)),
    ("lr", ("method.lr 0.5, the state was made with 0.0002",)),
    ("seed", ("options.seed 9, the state was made with 0",)),
    ("micro", ("options.micro_batch_size 1",)),
    ("version", ("minipost was 0.0.1 and is",)),
    ("method", ("minipost/methods/grpo.py has changed since",)),
    ("task", ("minipost/datasets/rows.py has changed since",)),
])
def test_a_resume_on_anything_else_says_so_and_stops(stopped, says, tmp_path, what, parts):
    run, resume = stopped
    config = run / "config.json"
    if what in ("data", "reward"):
        with open(tmp_path / {"data": "mine.jsonl", "reward": "reward.py"}[what], "a") as file:
            file.write("\n")
    elif what == "weights":
        path = tmp_path / "start/model.safetensors"
        (tmp_path / "start/digests.json").unlink(missing_ok=True)
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    elif what == "tokenizer":
        edit(tmp_path / "start/tokenizer_config.json", lambda v: v.update(model_max_length=7))
    elif what in ("version", "method", "task"):
        edit_made(run, lambda made: made.update({
            "version": {"minipost": "0.0.1"}, "method": {"minipost/methods/grpo.py": "0"},
            "task": {"minipost/datasets/rows.py": "0"}}[what]))
    else:
        part, name, value = {"lr": ("method", "lr", 0.5), "seed": ("options", "seed", 9),
                             "micro": ("options", "micro_batch_size", 1)}[what]
        edit(config, lambda v: v[part].update({name: value}))
    says(resume, 1, *parts, "--anyway")
    says([*resume, "--anyway"], 0, "going on although", *parts)


def test_a_run_that_began_before_code_was_noted_goes_on(stopped, says):
    run, resume = stopped
    edit_made(run, lambda made: [made.pop(f"minipost/{name}.py")
                                 for name in ("methods/grpo", "datasets/rows")])
    assert "although" not in says(resume, 0)


def test_settings_that_do_not_act_may_change(stopped, says):
    run, resume = stopped
    edit(run / "config.json", lambda v: v["options"].update(show=0, save_every=1))
    says(resume, 0)


def test_another_method_cannot_go_on(stopped, says):
    run, resume = stopped
    edit(run / "config.json", lambda v: v.update(algo="rloo"))
    said = says(resume, 1, "config.json")
    assert "there is no setting" in said


def test_the_workers_of_a_run_stay_what_they_were(stopped, says, monkeypatch):
    """`workers 0` is one per core; a resume on other cores takes the number of the first start."""
    run, resume = stopped
    edit(run / "config.json", lambda v: (v["options"].update(workers=0), v.update(workers=1)))
    tensors, facts = tensor_file.load_state(run / "state/state.safetensors")
    facts["settings"]["options"]["workers"] = 0
    tensor_file.save_state(run / "state/state.safetensors", tensors, facts)
    monkeypatch.setattr(parallel, "default_workers", lambda device: 1 / 0)
    says(resume, 0)


def test_other_workers_are_another_run(stopped, says):
    run, resume = stopped
    edit(run / "config.json", lambda v: v["options"].update(workers=0))
    edit(run / "config.json", lambda v: v.update(workers=2))
    says(resume, 1, "options.workers 0", "workers 2, the state was made with 1")


def test_a_run_goes_on_from_any_folder(command, says, tmp_path, monkeypatch, rows, tiny):
    """What its settings name by relative paths is where it was."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    shutil.copytree(tiny, tmp_path / "here/start")
    shutil.copy(rows, tmp_path / "here/rows.jsonl")
    (tmp_path / "here/mine.py").write_text(
        "def length(completions, **columns):\n    return [len(text) / 9 for text in completions]\n")
    monkeypatch.chdir(tmp_path / "here")
    arguments = command("grpo", "--steps", 2, "--prompts", 2, "--group-size", 2, "--model", "start",
                        "--data", "rows.jsonl", "--reward", "mine.py:length", "--out", "run")
    stop_at(monkeypatch, 1)
    assert train.main(arguments) == 130
    stop_at(monkeypatch, None)
    monkeypatch.chdir(tmp_path / "there")
    says(["--resume", "../here/run", "--reward", "../here/./mine.py:length"], 0)
    assert (tmp_path / "here/run/summary.json").exists()


def test_going_on_anyway_is_done_once(stopped, says, tmp_path):
    """What a run goes on with is what it is made from now."""
    run, resume = stopped
    other = tmp_path / "other.py"
    other.write_text("def other(completions, **columns): return [0.5] * len(completions)\n")
    again = [*resume[:2], "--reward", f"{other}:other"]
    says([*again, "--anyway"], 0, "going on although")
    assert "going on although" not in says(again, 0)
    says(resume, 1, "was made with --reward")


def test_pipes_where_files_should_be_hang_nothing(stopped, says, tmp_path):
    run, resume = stopped
    os.mkfifo(tmp_path / "start/extra.json")
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    says(resume, 0, "metrics.jsonl: damaged")


def test_a_directory_in_the_place_of_the_log_costs_no_state(command, stopped, says):
    run, resume = stopped
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    before = contents(run)
    for arguments in (resume, command("sft", *STEPS, "--overwrite")):
        says(arguments, 1, "metrics.jsonl: is a directory; expected a file")
    assert contents(run) == before


@pytest.mark.parametrize("size", [0, 7, 8, 100, 1000])
def test_a_state_of_any_length_is_one_sentence(stopped, says, size):
    run, resume = stopped
    os.truncate(run / "state/state.safetensors", size)
    said = says(resume, 1, "state.safetensors: is cut short", "begin again with --overwrite")
    assert size > 7 or f"cut short, to {size} bytes; there is no other state" in said
    assert "fetch" not in said


def test_a_model_that_has_moved_is_named_again(stopped, says, tmp_path):
    """What it holds decides, and later it is looked for where it is."""
    run, resume = stopped
    start, moved = tmp_path / "start", tmp_path / "moved"
    start.rename(moved)
    says(resume, 1, f"its model {start} is not there", "add --model")
    kept = (moved / "generation_config.json").read_bytes()
    edit(moved / "generation_config.json", lambda v: v.update(max_length=7))
    says([*resume, "--model", moved], 1, "moved/generation_config.json has changed since")
    (moved / "generation_config.json").write_bytes(kept)
    says([*resume, "--model", os.path.relpath(moved)], 0)
    says(resume, 0)


def test_a_reward_function_is_named_again(stopped, says, tmp_path):
    """A run of somebody else names a program of his."""
    run, resume = stopped
    says(resume[:2], 1, "the run would execute a program", f"--reward {resume[3]}")
    other = tmp_path / "other.py"
    other.write_text("def other(completions, **columns): return [0.0] * len(completions)\n")
    says([*resume[:2], "--reward", f"{other}:other"], 1, "--anyway")
    says([*resume[:2], "--reward", f"{other}:other", "--anyway"], 0, "going on although")


@pytest.mark.parametrize("change, part", [
    (lambda v: v["method"].update(lr="fast"), "lr is 'fast'; expected"),
    (lambda v: v["method"].update(lr=True), "lr is True"),
    (lambda v: v["method"].update(prompts=2.5), "prompts is 2.5"),
    (lambda v: v["method"].update(kl=["exact"]), "kl is"),
    (lambda v: v["method"].update(steps=10**12), "steps is 1000000000000"),
    (lambda v: v["options"].update(reward="x.py:f"), "reward is"),
    (lambda v: v["options"].update(colour=3), "no setting 'colour'"),
    (lambda v: v["task"].update(data=3), "data is 3"),
    (lambda v: v.update(workers=-1), "workers is -1"),
    (lambda v: v.update(options=[]), "not the settings of a run"),
    (lambda v: v["task"].update(name=[]), "not the settings of a run"),
    (lambda v: v.update(algo={}), "not the settings of a run"),
    (lambda v: v.update(algo="../x"), "not the settings of a run"),
])
def test_settings_of_another_kind_are_named(stopped, says, change, part):
    run, resume = stopped
    edit(run / "config.json", change)
    said = says(resume, 1, "config.json", part)
    assert said.count("\n") == 1


# ---- failures between two saves

def test_the_last_whole_step_is_saved_when_a_step_fails(command, says, tmp_path):
    """The reward function fails in the fourth step; resumed without the fault, nothing is lost."""
    path = tmp_path / "late.py"
    path.write_text("""import pathlib
def late(completions, **columns):
    calls = pathlib.Path(__file__).with_name("calls")
    calls.write_text("x" + (calls.read_text() if calls.exists() else ""))
    assert len(calls.read_text()) != 6, "late"
    return [len(text) / 9 for text in completions]
""")
    arguments = command("grpo", "--steps", 5, "--prompts", 2, "--group-size", 2, "--reward",
                        f"{path}:late", "--save-every", 0)
    said = says(arguments, 1, "AssertionError: late", "step 3 is saved; go on with")
    resume = said.partition("go on with: ")[2].splitlines()[0].split()[3:]
    assert says(resume, 0)
    assert train.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    one, other = (tmp_path / name / "model/model.safetensors" for name in ("run", "whole"))
    assert one.read_bytes() == other.read_bytes()
    lines = whole_lines((tmp_path / "run/metrics.jsonl").read_bytes())
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_a_step_that_failed_in_its_middle_is_not_saved(command, says, tmp_path, monkeypatch):
    """The weights have moved, so the step before is no longer there to save."""
    real, calls = Learner.step, []

    def step(self, *arguments):
        found = real(self, *arguments)
        calls.append(1)
        if len(calls) == 4:
            raise MinipostError("in the middle")
        return found

    monkeypatch.setattr(Learner, "step", step)
    said = says(command("sft", "--steps", 9, "--batch-size", 4, "--save-every", 2), 1,
                "in the middle")
    assert "is saved" not in said
    assert tensor_file.load_state(tmp_path / "run/state/state.safetensors")[1]["step"] == 2


def test_a_failure_after_a_whole_step_loses_nothing(command, says, tmp_path, monkeypatch):
    def evaluation(of, ended=""):
        raise MinipostError("no evaluation today")

    monkeypatch.setattr(session.Session, "evaluation", evaluation)
    says(command("sft", "--steps", 9, "--batch-size", 4, "--save-every", 0, "--eval-every", 3), 1,
         "no evaluation today", "step 3 is saved")
    assert tensor_file.load_state(tmp_path / "run/state/state.safetensors")[1]["step"] == 3
    lines = whole_lines((tmp_path / "run/metrics.jsonl").read_bytes())
    assert [line["step"] for line in lines] == [1, 2, 3]


def test_a_step_without_an_update_is_said_and_counted(command, says, tmp_path, monkeypatch):
    real = Learner.step

    def step(self, *arguments):
        if self.updates in (1, 2) and self.skipped < 2:
            self.grad[0] = float("nan")
        return real(self, *arguments)

    monkeypatch.setattr(Learner, "step", step)
    said = says(command("sft", "--steps", 5, "--batch-size", 4), 0,
                "step 2: a gradient was not finite", "2 so far")
    assert said.count("a gradient was not finite") == 2
    assert json.loads((tmp_path / "run/summary.json").read_text())["skipped"] == 2
    stop_at(monkeypatch, 3)
    arguments = command("sft", "--steps", 5, "--batch-size", 4, "--out", tmp_path / "again")
    assert train.main([str(a) for a in arguments]) == 130
    stop_at(monkeypatch, None)
    said = says(["--resume", tmp_path / "again"], 0)
    assert json.loads((tmp_path / "again/summary.json").read_text())["skipped"] == 2
    assert "not finite" not in said


# ---- what is printed

def printed(arguments, **options):
    """A run in a process of its own, with stdout as given."""
    root = Path(checkpoint.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), **options.pop("env", {})}
    return subprocess.Popen([sys.executable, "-m", "minipost.train", *map(str, arguments)],
                            env=environment, stderr=subprocess.PIPE, **options)


def test_a_reader_that_goes_away_ends_no_run(command, tmp_path):
    process = printed(command("sft", "--steps", 40, "--batch-size", 4), stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read().decode()
    assert process.wait() == 0 and said == "" and (tmp_path / "run/summary.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", [
    ["minipost.train", "--algo", "sft", "--help"], ["minipost.train", "--help"],
    ["minipost.solve", "--help"],
    ["minipost.evaluate", "--task", "facts", "--n", "2", "--max-new-tokens", "4"],
])
def test_what_a_full_device_cannot_take_is_one_sentence(command, tiny):
    root = Path(checkpoint.__file__).parents[1]
    model = ["--model", str(tiny)] if "--task" in command else []
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", *command, *model], stdout=full, text=True,
                              stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 1 and done.stderr.startswith("error: nothing more could be printed")
    assert done.stderr.count("\n") == 1


def test_closed_streams_end_no_run(command, tmp_path):
    root = Path(checkpoint.__file__).parents[1]
    line = shlex.join([sys.executable, "-m", "minipost.train",
                       *command("sft", "--steps", 1, "--batch-size", 4)])
    done = subprocess.run(["sh", "-c", f"{line} <&- >&- 2>&-"],
                          env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0 and (tmp_path / "run/summary.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_device_ends_no_run(command, tmp_path):
    with open("/dev/full", "w") as full:
        process = printed(command("sft", "--steps", 2, "--batch-size", 4), stdout=full)
        said = process.communicate()[1].decode()
    assert process.returncode == 0 and said == "" and (tmp_path / "run/summary.json").exists()


def test_a_terminal_without_unicode_ends_no_run(command, tmp_path):
    process = printed(command("sft", "--steps", 2, "--batch-size", 4), stdout=subprocess.PIPE,
                      env={"PYTHONIOENCODING": "ascii"})
    out, said = process.communicate()
    assert process.returncode == 0 and said == b"" and out.isascii() and b"before" in out


def test_nothing_that_is_printed_steers_the_terminal(command, says, tmp_path):
    """Escape sequences in prompts and in exceptions of the user's own code."""
    path, reward = tmp_path / "rows.jsonl", tmp_path / "r.py"
    path.write_text("".join(json.dumps(
        {"prompt": f"\x1b[31m{n}\u202e\x9b=?", "completion": "\x07x"}) + "\n" for n in range(40)))
    reward.write_text("def r(completions, **columns):\n"
                      "    raise ValueError('\\x1b]0;title\\x07')\n")
    arguments = command("grpo", "--steps", 1, "--prompts", 2, "--group-size", 2)
    arguments[arguments.index("--data") + 1] = str(path)
    said = says(arguments, 0)
    said += says([*arguments, "--overwrite", "--reward", f"{reward}:r"], 1, "ValueError")
    assert "\\x1b[31m" in said and not {"\x1b", "\x9b", "\u202e", "\x07"} & set(said)


# ---- states of somebody else

JUNK = [None, True, -1, 2.5, "x", [], {}, [1], {"a": [None]}, 10**30, "\x1b[31m" * 99]


@pytest.mark.parametrize("name", ["step", "tokens", "workers", "seconds", "carried", "before",
                                  "learners", "made_from", "settings", "log"])
def test_a_whole_file_that_is_no_state_of_a_run_is_refused(finished, says, name):
    """Its digest is right, so only what it says can be wrong."""
    path = finished / "state/state.safetensors"
    (finished / "state/previous.safetensors").unlink()
    tensors, facts = tensor_file.load_state(path)
    for junk in JUNK:
        tensor_file.save_state(path, tensors, {**facts, name: junk})
        capture = train.main(["--resume", str(finished)])
        if capture != 0:
            said = says(["--resume", finished], 1, "error: ")
            assert said.splitlines()[-1].startswith("error: ") and len(said) < 1200


# ---- names

@pytest.mark.parametrize("flag", ["--out", "--model", "--data", "--reward", "--reward-model",
                                  "--resume"])
def test_names_that_no_file_can_have(command, says, flag):
    name = "x" * 300 + (":f" if flag == "--reward" else "")
    said = says([flag, name] if flag == "--resume" else command("grpo", "--steps", 1, flag, name),
                1, "error: ")
    assert said.splitlines()[-1].count("x") < 300


def test_a_path_that_is_not_utf_8(command, says, tmp_path):
    out = tmp_path / "n\udcff"
    says(command("sft", "--steps", 1, "--batch-size", 4, "--out", out), 1, "n\\udcff: the name is")


# ---- what a run says of its model

def test_weights_that_were_put_in_the_place_of_others_are_said(command, says, tiny, tmp_path):
    model = tmp_path / "start"
    shutil.copytree(tiny, model)
    assert "digest of the weights" not in says(command("sft", *STEPS, "--model", model), 0)
    tensors = load_file(model / "model.safetensors")
    save_file(tensors, model / "model.safetensors", {"format": "pt", "by": "another tool"})
    says(command("sft", *STEPS, "--model", model, "--overwrite"), 0, "digest of the weights")
