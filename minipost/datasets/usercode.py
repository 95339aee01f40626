"""Code of the user's own: a file as a module, and the run around each call.

    guarded     what the code changes in the process is put back, and it cannot end the process
    within      it has a time limit
    told        what was raised, and where in the user's files
    load        a file as a module like any other
    sources     the files of the user's that are read
"""

import ast
import builtins
import copy
import faulthandler
import gc
import importlib.util
import json
import linecache
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from importlib.machinery import SourceFileLoader
from os import getpid, write
from pathlib import Path

import numpy as np
import torch

from minipost import files
from minipost.errors import MinipostError

GRACE = 5.0  # seconds after the limit within which the code must have noticed it


class Ended(BaseException):
    """The code called a function that ends or replaces the process."""


class TimeIsUp(BaseException):
    """The code took longer than its limit.  No Exception: the code must not catch it by chance."""


# ---- the run around a call

def folder():
    """The working folder, or None if it has been deleted."""
    with suppress(FileNotFoundError):
        return os.getcwd()


def filter_warnings(filters):
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # type: ignore[attr-defined]  # a list, as documented


HELD: list[tuple[str, Callable, Callable]] = [  # (what it is, how to read it, how to set it)
    ("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
    ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("torch's default device", torch.get_default_device,
     lambda was: torch.set_default_device(None if was.type == "cpu" else was)),
    ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    ("torch's deterministic mode", torch.get_deterministic_debug_mode,
     torch.set_deterministic_debug_mode),
    ("torch's matmul precision", torch.get_float32_matmul_precision,
     torch.set_float32_matmul_precision),
    ("torch's anomaly detection", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    ("torch's autocast", lambda: torch.is_autocast_enabled("cpu"),
     lambda was: torch.set_autocast_enabled("cpu", was)),
    ("numpy's error handling", np.geterr, lambda was: np.seterr(**was)),
    ("the filters of warnings", lambda: [*warnings.filters], filter_warnings),
    ("the working folder", folder, os.chdir),
    ("the umask", files.umask, os.umask),
    ("the garbage collector", gc.isenabled, lambda was: gc.enable() if was else gc.disable()),
    ("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    ("the timer of SIGALRM", lambda: signal.getitimer(signal.ITIMER_REAL),
     lambda was: signal.setitimer(signal.ITIMER_REAL, *was)),
    *((f"the handler of {name}", partial(signal.getsignal, number),
       lambda was, number=number: signal.signal(number, was))
      for name in ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM")
      if (number := getattr(signal, name, None))),
]
ALWAYS_OURS = {"the handler of SIGINT", "the handler of SIGTERM"}  # a key press stops the run
# What sandboxes of generated code disable, and what the trainer itself uses.  Those of torch would
# cost more than the rest of `guarded`.
MODULES = (os, builtins, shutil, copy, json, math, random, re, signal, time)
REAL = {name: getattr(os, name) for name in ("_exit", "abort", "execv", "execve", "closerange")
        if hasattr(os, name)}  # what ends or replaces the process, or closes its files
CANARY = os.open(os.devnull, os.O_RDONLY)  # only code that closes what is not its own closes it
SYSTEM = sys.modules[os.name if os.name in sys.modules else "os"]  # posix or nt: os takes from it


@contextmanager
def guarded(changes, own=None, name="code of the user's own"):
    """Run the user's code in the block, so that it can neither change nor end the run.

    Put back are HELD, the functions of MODULES, sys.stdout and sys.stderr.  The dict `changes`
    receives {what: the value that the code left}.  Left as they are: os.environ, sys.path, imported
    modules, the functions of torch and of others, and the global random streams, from which no run
    draws.

    own: the `changes` of an earlier block, whose values of HELD hold in this block too, but for
    ALWAYS_OURS.  So what a file sets when it is imported holds in its functions, and nowhere else.

    Within the block what ends the process raises Ended, in this process and not in its children.
    Code that forks and comes back in the child ends there.  What the code leaves behind, such as a
    thread or a function for atexit, cannot end the process well either: see `keep_the_end`.  Code
    that has closed files of the run ends it with a sentence, under this `name`: nothing can put
    them back.
    """
    keep_the_end()
    owner, code = os.getpid(), 0
    with torch.inference_mode(False):  # an inference mode left on ends with the block
        held = [read() for _, read, _ in HELD]
        try:
            for what, _, put in HELD if own else ():
                if what in own and what not in ALWAYS_OURS:
                    set_to(put, own[what])
            with functions_and_streams(changes):
                yield
        except BaseException as error:
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) \
                else 1
            raise
        finally:
            if os.getpid() != owner:
                REAL["_exit"](code)
            if not os.path.exists(CANARY):
                finish(f"{name} closed files and connections that the run needs; let it close only "
                       "what it has opened itself")
            for (what, read, put), was in zip(HELD, held):
                if (left := read()) != was:
                    changes[what] = left
                    set_to(put, was)


def set_to(put, value):
    # The folder may be gone; handlers belong to the main thread, and those of C are not known.
    with suppress(OSError, TypeError, ValueError):
        put(value)


@contextmanager
def functions_and_streams(changes):
    """Put back the functions of MODULES and the streams.  Those of REAL raise Ended meanwhile."""
    spaces, streams = [{**vars(module)} for module in MODULES], (sys.stdout, sys.stderr)
    BLOCKS.depth += 1
    try:
        yield
    finally:
        BLOCKS.depth -= 1
        for module, space in zip(MODULES, spaces):
            found = vars(module)
            if found != space:
                for name, thing in space.items():
                    if (left := found.get(name)) is not thing:
                        setattr(module, name, thing)
                        changes[f"{module.__name__}.{name}"] = left
        for number, (name, stream) in enumerate(zip(("stdout", "stderr"), streams), 1):
            if (left := getattr(sys, name, None)) is not stream or getattr(stream, "closed", False):
                changes[f"sys.{name}"] = left
                setattr(sys, name, reopened(stream, number))


class Blocks(threading.local):
    depth = 0  # of `guarded` blocks in this thread


BLOCKS = Blocks()


def keep_the_end():
    """From now on the functions of REAL do not end this process as the caller likes.

    In a `guarded` block they raise Ended.  In a function of a loaded file, in a thread and at exit
    they end the process with a sentence and exit code 1.  So no run that was cut off looks as if it
    had been completed.  A program that calls minipost may end its processes as it likes, as
    multiprocessing does.  So may forked children, modules that took the functions before, and C.
    """
    if getattr(os._exit, "owner", None) == os.getpid():
        return
    for name, real in REAL.items():
        end = ending(name, real, os.getpid())
        setattr(os, name, end)
        setattr(SYSTEM, name, end)


def ending(name, real, owner):
    """What stands for `real`, an os function that ends the process; see `keep_the_end`."""
    def end(*arguments):
        if getpid() != owner:
            return real(*arguments)
        call = f"called os.{name}({', '.join(map(repr, arguments)):.40})"
        if BLOCKS.depth:
            raise Ended(call)
        frames = traceback.extract_stack()[:-1]
        main = threading.current_thread() is threading.main_thread()
        if main and frames and LOADED.isdisjoint(frame.filename for frame in frames):
            return real(*arguments)
        finish(f"code of the user's own {call}{place(frames)} in a thread or at exit, which ends "
               "the run; leave the call out")
    vars(end)["owner"] = owner
    return end


def finish(sentence):
    """End the process at once, from any thread, with an error in one sentence and exit code 1."""
    with suppress(OSError):
        write(2, f"error: {MinipostError(sentence)}\n".encode(errors="backslashreplace"))
    REAL["_exit"](1)


def within(limit, work, name="the code"):
    """work(), which may take `limit` seconds; 0 is no limit.  To be called in a `guarded` block.

    Once they are over TimeIsUp is raised in the main thread, as soon as Python gets to run there.
    Work that has not ended GRACE seconds later ends the process with exit code 1.  If it catches
    everything, or waits in C with Python's lock released, then a thread says so in one sentence,
    with its `name`.  If a call into C holds that lock, then no Python runs, and GRACE seconds after
    that faulthandler prints the stack.  Work that sets the timer of SIGALRM itself, and any work
    outside the main thread, has these two limits alone.
    """
    if not limit:
        return work()
    main, running = threading.current_thread() is threading.main_thread(), True
    caller, ended = threading.get_ident(), threading.Event()

    def strike(number, frame):
        if running:  # else the work ended at the same moment
            raise TimeIsUp

    def watch():
        if not ended.wait(limit + GRACE):
            frames = traceback.extract_stack(sys._current_frames().get(caller))
            finish(f"{name} did not return within {limit:g} s (--reward-timeout){place(frames)}, "
                   "nor when it was told to end; let it catch Exception instead of everything")

    before, limit = signal.getsignal(signal.SIGALRM), min(limit, 1e8)  # the clocks' own
    try:
        faulthandler.dump_traceback_later(limit + 2 * GRACE, exit=True, file=2)
        threading.Thread(target=watch, daemon=True).start()
        if main:
            signal.signal(signal.SIGALRM, strike)
            signal.setitimer(signal.ITIMER_REAL, limit)
        return work()
    finally:
        running = False
        ended.set()
        faulthandler.cancel_dump_traceback_later()
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            set_to(partial(signal.signal, signal.SIGALRM), before)


def reopened(stream, descriptor):
    """The stream, or a new one on its descriptor if it is closed."""
    if not getattr(stream, "closed", False):
        return stream
    try:
        return open(descriptor, "w", encoding=stream.encoding, errors=stream.errors, closefd=False)
    except (OSError, ValueError, AttributeError):
        return open(os.devnull, "w", encoding="utf-8")


# ---- what was raised

STANDARD = Path(os.__file__).resolve().parent
OURS = Path(__file__).resolve().parents[1]


def users(file):
    """Whether a file of Python code is the user's own: neither installed nor ours."""
    path = Path(file)
    return path.is_absolute() and not {"site-packages", "dist-packages"} & {*path.parts} and not (
        path.is_relative_to(STANDARD) or path.is_relative_to(OURS))


def told(error):
    """The error and where it arose: "TypeError: message (mine.py, line 12: `the code`)".

    The place is the last line of the user's own files that was on the way to it.  For a syntax
    error it is that error's line.
    """
    text = said(error)
    if isinstance(error, SyntaxError) and isinstance(error.filename, str) and error.lineno:
        file, line, text = error.filename, error.lineno, str(error.msg)[:120]
        code = str(error.text or linecache.getline(file, line))
    else:
        return f"{naming(error)}{text}{place(traceback.extract_tb(error.__traceback__))}"
    return f"{naming(error)}{text}{line_of(file, line, code)}"


def place(frames):
    """The last line of the user's own files among these frames, with a space before it, or ""."""
    frame = next((frame for frame in reversed(frames) if users(frame.filename)), None)
    if frame is None or frame.lineno is None:
        return ""
    return line_of(frame.filename, frame.lineno, frame.line or "")


def line_of(file, line, code):
    code = f": `{' '.join(code.split())[:60]}`" if code.strip() else ""
    return f" ({short(file)}, line {line}{code})"


def naming(error):
    """The kind of an error, with a colon if it says more; "" for our own."""
    if isinstance(error, Ended | TimeIsUp):
        return ""
    return type(error).__name__ + (": " if said(error) else "")


def said(error):
    """An error's own words, of bounded length."""
    try:
        return str(error)[:120]
    except BaseException:  # the user's class may raise anything
        return ""


def short(file):
    """A path as the user would write it: below the working folder, a relative one."""
    with suppress(ValueError, OSError):
        return str(Path(file).relative_to(Path.cwd()))
    return str(file)


# ---- a file as a module

class Source(SourceFileLoader):
    """Loads a file of any name as it is now.

    Python would take a cached compilation of an older text of the same time and size.
    """

    def path_stats(self, path):
        raise OSError


LOADED: set[str] = set()  # the files that were


def load(path):
    """The module of a file (a resolved Path), executed.  Errors are those of the file.

    It is a module like any other.  Its folder stands on sys.path, last, so that nothing in it
    hides an installed module.  The module stands in sys.modules under the file's name, so that
    what it defines can be pickled, in a process pool too.  If another module has that name, then a
    number follows; a pool that starts fresh processes ("spawn") cannot find such a module.

    MinipostError if the file or a module beside it imports another one beside it and Python has
    found a different module of that name first.
    """
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    name = module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    check_neighbours(path)
    LOADED.add(str(path))
    loader = Source(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # there is one wherever there is a loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    for beside in sources([path]):
        check_neighbours(beside)
    return module


def forget(path):
    """Let the next `load` execute the file again."""
    sys.modules.pop(module_name(path), None)


def origin(name):
    """The file from which Python takes, or would take, a module of this name; None if from none."""
    try:
        spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        spec = None
    return Path(spec.origin).resolve() if spec and spec.has_location and spec.origin else None


def module_name(path):
    """The name of a file's module: that of the file, unless another module has it."""
    name = path.stem
    free = "." not in name and name not in sys.modules and importlib.util.find_spec(name) is None
    if free or origin(name) == path:
        return name
    return f"{name.replace('.', '_')}_{zlib.crc32(os.fsencode(path)):08x}"


def check_neighbours(path):
    """MinipostError if what lies beside a file is not what it gets when it imports that."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # its execution says so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            continue
        for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
            beside = {path.with_name(f"{name}.py"), path.parent / name / "__init__.py"} - {path}
            beside = {file.resolve() for file in beside if file.is_file()}
            if beside and (found := origin(name)) not in beside:
                raise MinipostError(
                    f"{short(path)}, line {node.lineno}: imports {name}, but Python finds "
                    f"{short(found) if found else 'a module of its own'} before "
                    f"{short(min(beside))}; give one of them another name")


def sources(paths):
    """These files and the modules that lie in or below their folders and are imported, sorted.

    Installed modules and ours are not among them.  Modules that a function imports only when it is
    called are there from its first call on.
    """
    folders, found = {path.parent for path in paths}, set(paths)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and users(file):
            path = Path(file).resolve()
            if any(path.is_relative_to(where) for where in folders):
                found.add(path)
    return sorted(found)
