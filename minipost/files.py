"""How files are opened and written.

A file that somebody else wrote is a regular file of bounded size, with JSON without tricks.  A pipe
or a device under the name of a file would hang the process or fill its memory.  A file of ours is
written beside its final name and then renamed, so a crash or a full disk leaves what was there.
"""

import hashlib
import json
import math
import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path

from minipost.errors import MinipostError

MOST = 64 * 2**20  # bytes of the longest JSON file that is read; the tokenizer of Llama 3 has 17 MB
DEEPEST = 64       # levels of lists and objects in a JSON file
KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
         stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def shipped(name):
    """The path of a file or folder that comes with minipost, such as "checkpoints/base".

    It lies in the package where minipost was installed from a wheel, and beside it in a checkout.
    """
    package = Path(__file__).resolve().parent
    return package / name if (package / name).exists() else package.parent / name


@contextmanager
def opened(path):
    """A regular file, open to read bytes.  MinipostError where it is missing or something else."""
    try:
        # Without O_NONBLOCK, to open a pipe waits for somebody who writes into it.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise MinipostError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise MinipostError(f"{path}: could not be read "
                            f"({getattr(error, 'strerror', None) or error})") from None
    kind = stat.S_IFMT(os.fstat(number).st_mode)
    if kind != stat.S_IFREG:
        os.close(number)
        raise MinipostError(f"{path}: is {KINDS.get(kind, 'something else')}; expected a file")
    with open(number, "rb") as file:
        yield file


def read_bytes(path, most=MOST):
    """The bytes of a regular file, at most `most` of them.  MinipostError where there are more."""
    parts, left = [], most
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size <= most:
            try:
                while left >= 0 and (part := file.read(min(left + 1, 2**20))):
                    parts.append(part)
                    left -= len(part)
            except OSError as error:
                raise MinipostError(f"{path}: could not be read ({error.strerror})") from None
        else:
            left = -1
    if left < 0:
        raise MinipostError(f"{path}: is longer than {most:,} bytes, the most that is read of such "
                            "a file")
    return b"".join(parts)


def once(pairs):
    """A JSON object as a dict.  A repeated key is an error, not a silent choice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} stands twice")
    return found


def whole(digits):
    if len(digits) > 19:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def real(digits):
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is no finite number")
    return value


def no_constant(name):
    raise ValueError(f"{name} is not a JSON number")


def parse_json(data, where):
    """The value of JSON bytes.  MinipostError names `where` and what is wrong.

    Repeated keys, numbers that are not finite or have more than 19 digits, text that is not Unicode
    and more than DEEPEST levels are refused.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_int=whole,
                           parse_float=real, parse_constant=no_constant)
        if re.search(rb"\\u[dD][89a-fA-F]", data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise MinipostError(f"{where}: not readable as JSON (half of a surrogate pair)") from None
    except UnicodeDecodeError as error:
        raise MinipostError(
            f"{where}: not readable as JSON (not UTF-8 at byte {error.start})") from None
    except RecursionError:
        raise MinipostError(f"{where}: not readable as JSON (nested too deep)") from None
    except ValueError as error:
        raise MinipostError(f"{where}: not readable as JSON ({error})") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [each for outer in level if isinstance(outer, dict | list)
                 for each in (outer.values() if isinstance(outer, dict) else outer)
                 if isinstance(each, dict | list)]
        if not level:
            return value
    raise MinipostError(f"{where}: not readable as JSON (nested deeper than {DEEPEST} levels)")


def read_json(path):
    """A JSON object; MinipostError names the file and where it breaks."""
    value = parse_json(read_bytes(path), path)
    if not isinstance(value, dict):
        raise MinipostError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


# ---- writing

def is_run(directory):
    """Whether a directory holds a run of the command line (cli/directory.py).

    A config.json says so by its algo.  Where it is missing or damaged, a run's other files do.
    """
    directory = Path(directory)
    try:
        return "algo" in read_json(directory / "config.json")
    except MinipostError:
        return any((directory / name).exists() for name in ("metrics.jsonl", "state"))


def make_directory(path):
    """Make a directory and those above it; MinipostError where that is not possible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinipostError(f"{path}: could not be made a directory ({error.strerror})") from None


def publish(path, write, aside=None):
    """Let write(temporary path) make a file, then put it in place of `path` in one step.

    aside: a path under which what was there before is kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~umask())
        with open(temporary, "r+b") as file:  # Windows syncs no file that is open to read
            os.fsync(file.fileno())
        if aside is not None and path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise MinipostError(
            f"{path}: could not be written ({error}); what was there before is unchanged"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path):
    """Make sure that the names in a directory survive a loss of power."""
    if os.name == "posix":
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def sweep(directory):
    """Delete the temporary files that killed processes left in a directory."""
    for path in Path(directory).glob(".*.*"):
        pid = path.name.rpartition(".")[2]
        if pid.isascii() and pid.isdigit() and not alive(int(pid)) and path.is_file():
            path.unlink(missing_ok=True)


def sha256(path):
    """The SHA-256 of a file; MinipostError where it cannot be read."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def umask():
    mask = os.umask(0o077)  # there is no way to read it alone
    os.umask(mask)
    return mask


def write_json(path, value):
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        text = json.dumps(value, indent=2) + "\n"  # a path that is not UTF-8 holds surrogates
    publish(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def alive(pid):
    """Whether there is, or may be, a process of this number."""
    if os.name != "posix":  # there, to ask by a signal is to send one
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
