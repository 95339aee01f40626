"""Data parallelism: the same program in every rank, and one collective, a sum.

On a CPU a small model gains little from two threads in one process, because every small operation
waits for both.  Two processes of one thread each lose nothing.  So `launch` forks workers after
torch is imported, so that they share its memory, and joins them over gloo.  Under torchrun it joins
the ranks that torchrun started.  Every rank holds the same parameters and draws the same problems.
Each samples and differentiates its share.

Rank 0 answers signals, prints and writes.  No rank outlives it.
"""

import ctypes
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from os import _exit  # code of the user's own finds another one, see minipost/datasets/usercode.py
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed as dist

from minipost import files
from minipost.errors import MinipostError, visible

BACKENDS = "gloo", "cpu:gloo,cuda:nccl"  # without a GPU, and with one


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(*tensors):
    """Sum each tensor over all ranks, in place.  If each fills its part of zeros, this gathers."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def largest(number):
    """The largest of the ranks' numbers."""
    each = torch.zeros(world(), dtype=torch.float64)
    each[rank()] = number
    all_reduce(each)
    return float(each.max())


def share(items):
    """This rank's contiguous share of a sequence, as even as can be."""
    return items[len(items) * rank() // world() : len(items) * (rank() + 1) // world()]


def default_workers(device):
    """One process per core, at most 4, on Linux CPUs; one elsewhere (forking is unsafe there)."""
    if device != "cpu" or not sys.platform.startswith("linux"):
        return 1
    return min(4, len(os.sched_getaffinity(0)))


def join(rank_, world_, folder):
    """Meet the other ranks.  A dead rank closes its connections, so no operation needs a limit."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dist.init_process_group("gloo", store=dist.FileStore(os.path.join(folder, "store"), world_),
                            rank=rank_, world_size=world_, timeout=timedelta(days=30))


@contextmanager
def alone():
    """Inside the block this process is a group of one rank."""
    dist.init_process_group(BACKENDS[torch.cuda.is_available()], store=dist.HashStore(), rank=0,
                            world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def launch(main, workers, group=False):
    """Run main() in `workers` ranks and return rank 0's result, which stays in this process.

    An error in rank 0 ends the others.  The end of another rank ends rank 0 with MinipostError,
    which gives that rank's error if it is known.  group: whether a single rank is a group of
    PyTorch's as well.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(BACKENDS[torch.cuda.is_available()])
        if rank():
            leave_signals_to_rank_0()
        try:
            return main()
        finally:
            dist.destroy_process_group()
    if workers == 1:
        with Signals(), alone() if group else nullcontext():
            return main()
    if not hasattr(os, "fork"):
        raise MinipostError(f"--workers {workers}: this system cannot fork a process; use "
                            "--workers 1")
    torch.set_num_threads(1)
    keep_memory()
    sweep()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        children = [fork(main, r, workers, folder) for r in range(1, workers)]
        signals = Signals(children)
        try:
            with signals:
                meet(children, workers, folder)
                return main()
        except RuntimeError as error:
            if signals.at_once:
                raise KeyboardInterrupt from None
            said = [path.read_text() for path in sorted(Path(folder).glob("error*"))]
            if not said and "Connection" not in str(error):
                raise
            raise MinipostError(said[0] if said else f"a worker process died ({error})") from error
        finally:
            end(children)
            for pid in children:
                os.waitpid(pid, 0)
            if dist.is_initialized():
                dist.destroy_process_group()


def keep_memory():
    """Let the C library keep the memory that tensors give back.

    It returns large pieces to the system and asks for them again, in every step.  Each page is then
    cleared anew, which is 3% of a step.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # another C library has its own ways
            mallopt = ctypes.CDLL(None).mallopt
            for option, size in ((-3, 2**25), (-1, 2**31 - 1)):  # M_MMAP_, M_TRIM_THRESHOLD
                mallopt(option, size)


def meet(children, workers, folder):
    """Join the other ranks, unless one of them dies before it has joined."""
    failed = []

    def joining():
        try:
            join(0, workers, folder)
        except Exception as error:  # it is raised again below, in the main thread
            failed.append(error)

    thread = threading.Thread(target=joining, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
        for pid in children:
            # WNOWAIT leaves a dead child to be waited for, as at any later time.
            if thread.is_alive() and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise RuntimeError("Connection closed: a rank ended before it had joined")
    if failed:
        raise failed[0]


def end(children):
    """Kill the other ranks.  A dead child can be signalled until it is waited for."""
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def fork(main, rank_, workers, folder):
    """Fork another rank.  The child never returns from here: whatever happens, it exits."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    code = 1
    try:
        leave_signals_to_rank_0()
        threading.Thread(target=outlive_nobody, args=(parent,), daemon=True).start()
        join(rank_, workers, folder)
        main()
        code = 0
    except MinipostError as error:  # rank 0 reports it, whether it meets the same error or not
        Path(folder, f"error{rank_}").write_text(str(error))
    except Exception as error:
        if "Connection" not in str(error):  # a closed connection only says that rank 0 has gone
            print(visible(f"worker {rank_}: {error}"), file=sys.stderr)
    finally:
        _exit(code)


def outlive_nobody(parent):
    """End this rank within a second of its parent, whatever it waits for."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _exit(1)


# ---- what killed processes leave behind

PREFIX = "minipost-"  # and the number of the process: a folder in which ranks meet


def sweep():
    """Delete the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isascii() and pid.isdigit() and not files.alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


# ---- signals

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def leave_signals_to_rank_0():
    """Ctrl-C and TERM reach a whole group of processes; rank 0 decides when all of it stops."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


class Signals:
    """Inside the block SIGINT, SIGTERM and SIGHUP end the other ranks and raise KeyboardInterrupt.

    `finish` may hold a function of no arguments: the next signal then only calls it.  A thread
    answers the signals, since the main thread may wait for another rank, and a handler of Python's
    would wait with it.  A signal that was ignored before stays ignored, as under nohup.
    """

    current: ClassVar["Signals"]  # of the innermost block

    def __init__(self, children=()):
        self.children, self.finish, self.usual = children, [], {}
        self.owed = 0                   # exceptions that are still to be raised
        self.deaf = 0.0                 # until then signals count as sent before
        self.at_once = self.held = False
        self.thread = None

    def __enter__(self):
        self.outer, Signals.current = Signals.current, self
        if threading.current_thread() is not threading.main_thread():
            return self
        if os.name != "posix":  # select takes no pipe there, and there is no other rank to wait for
            self.usual = {signal.SIGINT: signal.signal(signal.SIGINT, self.handle_alone)}
        else:
            self.read, self.write = os.pipe()
            os.set_blocking(self.write, False)
            self.fd = signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
            self.usual = {n: signal.signal(n, self.handle) for n in STOPS
                          if signal.getsignal(n) not in (signal.SIG_IGN, None)}
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *error):
        Signals.current, self.held = self.outer, True
        if self.thread:
            signal.set_wakeup_fd(self.fd)
        for number, handler in self.usual.items():
            signal.signal(number, handler)
        if self.thread:
            with suppress(OSError):  # code of the user's own may have closed them
                os.write(self.write, b"\0")
                self.thread.join(1.0)
                os.close(self.read)
                os.close(self.write)

    def handle(self, number, frame):
        """Python calls this in the main thread, when that runs Python again."""
        if self.owed and not self.held:
            self.owed -= 1
            raise KeyboardInterrupt
        if time.monotonic() >= self.deaf:
            self.finishing()

    def handle_alone(self, number, frame):
        """The same where no thread watches, as on Windows."""
        if not self.finishing() and not self.held:
            raise KeyboardInterrupt

    def finishing(self):
        """Call what `finish` holds, once, in whichever thread comes first.  -> whether it did"""
        try:
            finish = self.finish.pop()
        except IndexError:
            return False
        self.deaf = time.monotonic() + 0.5
        finish()
        return True

    def watch(self):
        """Answer the signals, one in half a second: `timeout` sends its own twice."""
        number = 0
        while True:
            try:
                ready = select.select([self.read], [], [], 0.1 if self.owed else None)[0]
                number = os.read(self.read, 1)[0] if ready else number
            except (OSError, IndexError):  # code of the user's own has closed the pipe
                return
            if ready:
                if number == 0:
                    return
                late = time.monotonic() >= self.deaf
                if number not in self.usual or not late or self.finishing():
                    continue
                self.at_once = True
                self.owed += 1
                end(self.children)
            # Python calls `handle` too early, before anything is owed, or too late, at the end of
            # a system call that the signal did not break off.
            if self.owed and not self.held:
                self.deaf = time.monotonic() + 0.5
                signal.pthread_kill(threading.main_thread().ident or 0, number)


Signals.current = Signals()  # outside of any block nothing is answered


@contextmanager
def unhurried():
    """Inside the block no signal raises KeyboardInterrupt: what is saved is saved whole."""
    signals = Signals.current
    signals.held = True
    try:
        yield
    finally:
        signals.held = False
