"""Systems that are not Linux, as far as Linux can play them."""

import builtins
import os
import signal
import threading

import pytest

from minipost import files, parallel
from minipost.errors import MinipostError


@pytest.fixture
def windows(monkeypatch):
    """os.name says Windows, whose os has none of these."""
    for name in ("fork", "set_blocking", "waitid"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.delattr(signal, "pthread_kill")
    monkeypatch.setattr(os, "name", "nt")
    yield
    monkeypatch.undo()  # before pytest looks at paths again


def test_a_file_is_synced_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """Windows refuses to sync another."""
    modes, real = {}, builtins.open

    def noted(path, mode="r", **options):
        file = real(path, mode, **options)
        modes[file.fileno()] = mode
        return file

    monkeypatch.setattr(builtins, "open", noted)
    monkeypatch.setattr(os, "fsync", lambda number: modes.get(number, "w")[-2:] == "+b" or (
        number not in modes) or pytest.fail(f"synced a handle of mode {modes[number]}"))
    files.publish(tmp_path / "x", lambda path: path.write_text("y"))
    assert (tmp_path / "x").read_text() == "y"


def test_no_process_is_signalled_to_see_whether_it_lives(windows, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    assert files.alive(1)


def test_the_first_interrupt_finishes_the_step_and_the_second_stops(windows):
    threads, said = threading.active_count(), []
    usual = signal.getsignal(signal.SIGINT)
    with parallel.Signals() as signals:
        signals.finish = [lambda: said.append("finishing")]
        assert threading.active_count() == threads
        signal.raise_signal(signal.SIGINT)
        assert said == ["finishing"]
        with parallel.unhurried():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == usual


def test_without_fork_there_is_one_worker(windows):
    assert parallel.launch(lambda: 7, 1) == 7
    with pytest.raises(MinipostError, match="--workers 2: this system cannot fork a process"):
        parallel.launch(lambda: 7, 2)


@pytest.mark.parametrize("system, name", [("darwin", "lo0"), ("linux", "lo")])
def test_ranks_meet_over_the_loopback_of_the_system(monkeypatch, tmp_path, system, name):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr(parallel.dist, "FileStore", lambda *_: None)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda *_, **__: None)
    parallel.join(0, 2, str(tmp_path))
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == name
