"""How a file that somebody else wrote is opened: a regular file of bounded size, JSON without
tricks.

A pipe, a device or a folder under the name of a file would hang the process or fill its memory.
So would a file that is far too long.
"""

import json
import math
import os
import re
import stat
from contextlib import contextmanager

from minipost.errors import MinipostError

MOST = 64 * 2**20  # bytes of the longest JSON file that is read; the tokenizer of Llama 3 has 17 MB
DEEPEST = 64       # levels of lists and objects in a JSON file
KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
         stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


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
