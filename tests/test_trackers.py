"""--log: what trackers get, under which names, and that none of them ever ends a run."""

import json
import sys
from types import SimpleNamespace

import pytest

from minipost import train
from minipost.cli import session, trackers
from minipost.cli.trackers import trl_name

RUN = ("--steps", 3, "--prompts", 2, "--group-size", 2)


class Service:
    """What a tracker was told, under each package's names of its functions."""

    def __init__(self, fail=""):
        self.rows, self.calls, self.fail = [], [], fail

    def call(self, name, /, *args, **kwargs):
        self.calls.append((name, args, kwargs))
        if name == self.fail:
            raise OSError("no route to host\nat all")

    def keep(self, metrics, step=None):
        self.call("log")
        self.rows.append((step, metrics))

    def named(self, name):
        return [kwargs or args for each, args, kwargs in self.calls if each == name]

    def wandb(self):
        run = SimpleNamespace(log=self.keep, finish=lambda **k: self.call("close", **k))
        return SimpleNamespace(Settings=lambda **k: k,
                               init=lambda **k: (self.call("init", **k), run)[1])

    def trackio(self):
        return SimpleNamespace(init=lambda **k: self.call("init", **k), log=self.keep,
                               finish=lambda: self.call("close"))

    def tensorboard(self):
        return SimpleNamespace(SummaryWriter=lambda *a, **k: (self.call("init", *a, **k),
                                                              self.writer())[1])

    def writer(self):
        return SimpleNamespace(
            add_text=lambda *a: None, close=lambda: self.call("close"),
            add_scalar=lambda name, value, step: self.keep({name: value}, step))


@pytest.fixture
def service(monkeypatch):
    """service(name, fail) -> a Service in place of the package."""
    def make(name, fail=""):
        found = Service(fail)
        (module, _), = trackers.KINDS[name].NEEDS.items()
        monkeypatch.setitem(sys.modules, module, getattr(found, name)())
        return found
    return make


def steps(found):
    return sorted({step for step, _ in found.rows})


@pytest.mark.parametrize("name", trackers.KINDS)
def test_a_tracker_gets_what_the_log_gets(service, command, reward, tmp_path, name):
    found = service(name)
    assert train.main([*command("grpo", *RUN), "--reward", reward, "--log", name]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    sent = {}
    for step, metrics in found.rows:
        sent.setdefault(step, {}).update(metrics)
    assert list(sent) == [0, 1, 2, 3]
    for line in map(json.loads, lines):
        step = line.pop("step")
        assert {trl_name(k): v for k, v in line.items()}.items() <= sent[step].items()
    for step, when in ((0, "before"), (3, "after")):
        assert sent[step]["eval/held-out/greedy"] == summary["all"]["greedy, held-out"][when][
            "value"]
    assert [call[0] for call in found.calls][0] == "init" and found.calls[-1][0] == "close"
    assert len(found.named("close")) == 1 and (name != "wandb" or found.named("close") == [
        {"exit_code": 0}])


def test_the_names_are_those_of_trl():
    assert [trl_name(name) for name in (
        "reward", "clip_ratio", "rewards/length", "rewards/margins", "eval/held-out/greedy",
        "sampling_logp_difference/max", "completions/mean_length")] == [
        "train/reward", "train/clip_ratio/region_mean", "train/rewards/length/mean",
        "train/rewards/margins", "eval/held-out/greedy",
        "train/sampling/sampling_logp_difference/max", "train/completions/mean_length"]


def test_the_names_stand_in_trl_itself():
    trl = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")
    with open(trl.__file__, encoding="utf-8") as file:
        text = file.read()
    for name in trackers.TRL.values():
        assert f'"{name}"' in text, name


@pytest.mark.parametrize("name", trackers.KINDS)
@pytest.mark.parametrize("fail", ["init", "log", "close"])
def test_a_service_that_fails_costs_one_warning(service, command, reward, tmp_path, capsys, name,
                                               fail):
    other = "wandb" if name == "trackio" else "trackio"
    found, fine = service(name, fail), service(other)
    assert train.main([*command("grpo", *RUN), "--reward", reward, "--log", name, other]) == 0
    said = capsys.readouterr().out
    assert said.count("has failed and is left out") == 1
    assert f"--log {name} has failed" in said and "(OSError: no route to host at all)" in said
    assert steps(fine) == [0, 1, 2, 3] and (tmp_path / "run" / "summary.json").exists()
    assert len(found.named(fail)) == 1                      # it is not asked again


def test_what_is_not_installed_costs_one_sentence_and_no_run(command, tmp_path, monkeypatch,
                                                             capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train.main([*command("sft", "--steps", 1), "--log", "wandb"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--log wandb: is not installed here" in said
    assert "`pip install wandb`" in said and not (tmp_path / "run").exists()


def test_a_run_that_is_stopped_or_fails_closes_its_tracker(service, command, reward, stopping,
                                                           monkeypatch):
    found = service("wandb")
    stopping(2)
    flags = [*command("grpo", *RUN), "--reward", reward, "--log", "wandb"]
    assert train.main(flags) == 130
    assert found.named("close") == [{"exit_code": 130}] and steps(found) == [0, 1, 2]
    monkeypatch.undo()

    def ended(method, error):
        """The calls that close the tracker of a run in which this method raises."""
        service = Service()

        def raises(self):
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "wandb", service.wandb())
            patch.setattr(session.Session, method, raises)
            if error is KeyboardInterrupt:
                assert train.main([*flags, "--overwrite"]) == 130   # at once, before a step is made
            else:
                with pytest.raises(error):
                    train.main([*flags, "--overwrite"])
        return service.named("close")

    assert ended("train", KeyboardInterrupt) == [{"exit_code": 130}]
    assert ended("finish", ZeroDivisionError) == [{"exit_code": 1}]


@pytest.mark.parametrize("name", trackers.KINDS)
def test_a_resumed_run_goes_on_in_the_same_log(service, command, reward, stopping, monkeypatch,
                                               tmp_path, name):
    first = service(name)
    with monkeypatch.context():
        stopping(2)
        flags = [*command("grpo", *RUN), "--reward", reward, "--log", name]
        assert train.main(flags) == 130
    second = service(name)
    monkeypatch.setattr(session.Session, "log", LOG)
    assert train.main(["--resume", str(tmp_path / "run"), "--reward", reward]) == 0
    assert steps(first) == [0, 1, 2] and steps(second) == [3]
    (one,), (two,) = first.named("init"), second.named("init")
    if name == "wandb":
        assert one["id"] == two["id"] and two["resume"] == "allow"
    elif name == "trackio":
        assert one["name"] == two["name"] and two["resume"] == "allow"
    else:
        assert (one["purge_step"], two["purge_step"]) == (None, 3)
    service(name)
    key = json.loads((tmp_path / "run" / "trackers" / "run.json").read_text())
    assert train.main([*flags, "--overwrite"]) == 0         # another run, under another name
    assert json.loads((tmp_path / "run" / "trackers" / "run.json").read_text()) != key


LOG = session.Session.log


def test_steps_that_are_made_again_are_sent_once(service, tmp_path):
    """A killed run has logged more steps than it has saved."""
    found, board = service("wandb"), service("tensorboard")
    log = trackers.Trackers(["wandb", "tensorboard"], print)
    log.open(tmp_path, {}, step=3, sent=5)
    for step in (4, 5, 6):
        log.log(step, {"reward": step})
    assert steps(found) == [6] and steps(board) == [4, 5, 6]


def test_only_rank_0_has_trackers(service, command, reward, tmp_path, monkeypatch):
    found, begun = service("wandb"), tmp_path / "begun"
    init = sys.modules["wandb"].init

    def begins(**settings):
        with open(begun, "a") as file:  # ranks are processes
            file.write("x")
        return init(**settings)

    monkeypatch.setattr(sys.modules["wandb"], "init", begins)
    flags = command("grpo", *RUN)
    flags[flags.index("--workers") + 1] = "2"
    assert train.main([*flags, "--reward", reward, "--log", "wandb"]) == 0
    assert begun.read_text() == "x" and [step for step, _ in found.rows] == [0, 1, 2, 3, 3]


def test_a_tracker_of_another_name_is_refused(command, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main([*command("sft", "--steps", 1), "--log", "mlflow"])
    assert "mlflow" in capsys.readouterr().err
    assert train.main(command("sft", "--steps", 1)) == 0
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["options"]["log"] = ["mlflow"]
    path.write_text(json.dumps(config))
    assert train.main(["--resume", str(tmp_path / "run")]) == 1
    assert "log is ['mlflow']; expected some of tensorboard, wandb" in capsys.readouterr().err


def test_tensorboard_itself_reads_what_is_written(command, reward, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train.main([*command("grpo", *RUN), "--reward", reward, "--log", "tensorboard"]) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--reward", reward, "--steps", "5"]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "trackers"))
    events.Reload()
    assert [each.step for each in events.Scalars("train/reward")] == [1, 2, 3, 4, 5]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [each.value for each in events.Scalars("train/reward")] == pytest.approx(
        [json.loads(line)["reward"] for line in lines], rel=1e-6)
