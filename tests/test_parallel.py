"""Several ranks start together and end together, whatever ends one of them."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

from minipost import parallel

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
    import os, signal, sys, time
    import torch
    from minipost import parallel
    from minipost.cli.options import fail_in_one_sentence

    forked = parallel.fork
    def fork(*arguments):
        pid = forked(*arguments)
        print("rank", pid, flush=True)
        return pid
    parallel.fork = fork

    def wait():
        parallel.all_reduce(torch.ones(1))
        if parallel.rank() == 0:
            print("joined", flush=True)
        time.sleep(0.2)
        while True:
            parallel.all_reduce(torch.ones(1))
            time.sleep(0.01)
"""


@pytest.fixture
def start():
    """start(lines) -> a process that runs SCRIPT and these lines in a process group of its own."""
    started = []

    def script(lines):
        code = textwrap.dedent(SCRIPT) + textwrap.dedent(lines)
        started.append(subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True))
        return started[-1]

    yield script
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def rank_of(process):
    """The process number of the second rank."""
    return int(re.match("rank ([0-9]+)", process.stdout.readline())[1])


def until(condition, seconds=60):
    """Wait for a condition; a limit only keeps a broken test from hanging."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


LAUNCH = "sys.exit(fail_in_one_sentence(lambda: parallel.launch(wait, 2)))"


def test_a_worker_ends_when_rank_0_is_killed_while_they_join(start):
    process = start(f"""
        parallel.meet = lambda *arguments: time.sleep(1) or os.kill(os.getpid(), signal.SIGKILL)
        {LAUNCH}
    """)
    rank = rank_of(process)
    process.wait()
    until(lambda: not running(rank))


def test_a_worker_ends_when_rank_0_is_killed_at_work(start):
    process = start(LAUNCH)
    rank = rank_of(process)
    assert process.stdout.readline() == "joined\n"
    process.kill()
    until(lambda: not running(rank))


def running(pid):
    """Whether a process is there and no zombie, which nobody here can wait for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_rank_0_ends_when_a_worker_dies_before_it_has_joined(start):
    process = start(f"""
        join = parallel.join
        parallel.join = lambda rank, *rest: os._exit(7) if rank else join(rank, *rest)
        {LAUNCH}
    """)
    assert process.wait() == 1
    assert process.stderr.read().startswith("error: a worker process died")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_while_a_rank_is_stopped(start, number):
    """The main thread waits in a collective, where no Python runs."""
    process = start(LAUNCH)
    rank = rank_of(process)
    assert process.stdout.readline() == "joined\n"
    os.kill(rank, signal.SIGSTOP)
    time.sleep(0.3)                     # rank 0 has to come to wait
    process.send_signal(number)
    assert process.wait(timeout=60) == 130 and not running(rank)


def test_a_term_to_the_group_lets_all_ranks_finish(start):
    """`finish` is called once, in time; the ranks go on until rank 0 says that they stop."""
    process = start("""
        def work():
            stop = torch.zeros(1)
            parallel.Signals.current.finish = [lambda: stop.fill_(1)]
            parallel.all_reduce(torch.ones(1))
            if parallel.rank() == 0:
                print("joined", flush=True)
            for _ in range(10_000):
                flag = stop.clone()
                parallel.all_reduce(flag)
                if flag:
                    both = torch.ones(1)
                    parallel.all_reduce(both)
                    return int(both)
                time.sleep(0.01)
        print("ranks", parallel.launch(work, 2), flush=True)
    """)
    rank = rank_of(process)
    assert process.stdout.readline() == "joined\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 0 and process.stdout.readline() == "ranks 2\n"
    assert not running(rank)


def test_the_folder_of_a_killed_process_goes_with_the_next_start(start):
    process = start(LAUNCH)
    rank_of(process)
    assert process.stdout.readline() == "joined\n"
    folder, = Path(tempfile.gettempdir()).glob(f"minipost-{process.pid}-*")
    parallel.sweep()
    assert folder.exists()              # its process lives
    process.kill()
    process.wait()
    parallel.sweep()
    assert not folder.exists()


def test_a_signal_that_comes_twice_at_once_counts_once():
    calls = []
    with parallel.Signals() as signals:
        signals.finish = [lambda: calls.append(1)]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.6)                 # no exception
        assert calls == [1]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in parallel.STOPS]
    with parallel.Signals() as signals:
        assert parallel.Signals.current is signals
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        time.sleep(0.6)
        with parallel.unhurried():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)             # nothing is raised here
    assert [signal.getsignal(number) for number in parallel.STOPS] == before
    assert parallel.Signals.current is not signals


@pytest.mark.parametrize("ends", [["read"], ["write"], ["read", "write"]])
def test_a_pipe_that_the_users_code_closes_ends_no_run(ends):
    before = [signal.getsignal(number) for number in parallel.STOPS]
    with parallel.Signals() as signals:
        time.sleep(0.05)                # the thread waits
        for end in ends:
            os.close(getattr(signals, end))
    signals.thread.join(5)
    assert not signals.thread.is_alive()
    assert [signal.getsignal(number) for number in parallel.STOPS] == before
    for end in {"read", "write"} - {*ends}:
        with suppress(OSError):
            os.close(getattr(signals, end))
