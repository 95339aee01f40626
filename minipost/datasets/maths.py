r"""Rewards for answers to questions in maths, such as those of GSM8K and MATH.

    --reward minipost.datasets.maths:number        exact numbers; it needs nothing
    --reward minipost.datasets.maths:math_verify   any expression, by the package math-verify

Both compare with the row's column `solution`, or else `answer`, and give 1.0 or 0.0.  Other columns
are renamed by --columns.

A number is read

    from "#### 1,234", "Answer: $42." and \boxed{7}, the last of them: all that stands behind the
    mark on its line, or in the box, must be one number; a currency may stand before it, a unit
    behind it
    else as the last number of the text

Commas between thousands do not count, and 42.0 is 42.  17/2 is one number; "17 or 18" behind a mark
is none.  Numbers are compared exactly.

math_verify reads LaTeX and looks whether both are equal as sympy sees them.  That can take forever,
so it is done in a process of its own, and what takes longer than LIMIT seconds earns 0.0.
"""

import atexit
import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import threading
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from minipost.errors import MinipostError
from minipost.tasks.answers import spell, unwrap

LIMIT = 5.0     # seconds for one answer
START = 120.0   # seconds until the process has imported sympy
LONGEST = 4000  # characters of an answer that are looked at, its last
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{1,30})?"
# A sign belongs to a number unless it stands behind another one: 17-5 is 17 and 5.
NUMBER = re.compile(rf"(?<![\w.,])(?<!\d )[-+]?\s?\.?{DIGITS}(?:\s?/\s?\d{{1,30}})?(?!\d)"
                    rf"|(?<!\d){DIGITS}(?!\d)")
ALONE = re.compile(rf"(?:[A-Za-z]\w*\s*=)?\s*([-+]?)\s?[$€£¥]?\s?([-+]?\.?{DIGITS}"
                   r"(?:\s?/\s?\d{1,30})?)\s*(?:%|°|[A-Za-z][^\d]*)?\.?\s*")
MARK = re.compile(r"####|[Aa]nswer\**\s*:\**|\\boxed\{")


def read(text):
    """The number that a text answers with, as a Fraction, or None.  Never raises."""
    text = spell(text[-LONGEST:]).replace("\\$", "$").replace("\\%", "%").replace("\\!", "")
    marks = [*MARK.finditer(text)]
    if marks:
        rest = text[marks[-1].end():]
        said = boxed(rest) if marks[-1][0].endswith("{") else rest.lstrip().partition("\n")[0]
        found = ALONE.fullmatch(unwrap(unwrap(said.strip(" *")).rstrip(".")))
        return value(found[1] + found[2]) if found else None
    numbers = NUMBER.findall(text)
    return value(numbers[-1]) if numbers else None


def boxed(text):
    """What stands before the brace that closes the one in front of the text."""
    depth = 1
    for k, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return text[:k]
    return text


def value(number):
    """The Fraction of a number as it is written, None if it is none (two signs, a zero below)."""
    top, _, below = re.sub(r"[\s,]", "", number).partition("/")
    try:
        return Fraction(top) / Fraction(below or "1")
    except (ValueError, ZeroDivisionError):
        return None


def said(completion):
    """The text of a completion, which is messages where the prompt is: what was said last."""
    return completion[-1]["content"] if isinstance(completion, list) else completion


def solutions(solution, answer):
    found = answer if solution is None else solution
    if found is None:
        raise MinipostError("the rows have no column 'solution' or 'answer' to compare with; name "
                            "one by --columns OLD:solution")
    return found


def number(completions, solution=None, answer=None, **columns):
    """1.0 where a completion answers with the number of its row's solution, else 0.0.

    None for a row that has no solution.  ValueError where a solution holds no number.
    """
    found = []
    for text, right in zip(completions, solutions(solution, answer), strict=True):
        wanted = None if right is None else read(str(right))
        if right is not None and wanted is None:
            raise ValueError(f"the solution {str(right)[-40:]!r} states no number")
        found.append(None if right is None else float(read(said(text)) == wanted))
    return found


# ---- math-verify, in a process of its own

class Worker:
    """A process that compares answers.  It is killed where it takes too long, and begun anew."""

    def __init__(self):
        self.process: Any = None
        self.replies: queue.Queue = queue.Queue()

    def start(self):
        if importlib.util.find_spec("math_verify") is None:
            raise MinipostError("math_verify needs the package math-verify; install it by pip "
                                "install 'minipost[math]', or take minipost.datasets.maths:number")
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        process: Any = subprocess.Popen(
            [sys.executable, "-m", "minipost.datasets.maths"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path})
        self.process, self.replies = process, queue.Queue()
        replies = self.replies

        def listen():
            with suppress(ValueError):  # it is closed when the process is ended
                for line in process.stdout:
                    replies.put(line)
            replies.put("")

        threading.Thread(target=listen, daemon=True).start()
        if self.reply(START) is None:
            raise MinipostError("math-verify could not be started within "
                                f"{START:g} s; see whether `python -c 'import math_verify'` works")

    def reply(self, limit):
        """The next line of the process, None if there is none in so many seconds."""
        try:
            return self.replies.get(timeout=limit) or None
        except queue.Empty:
            return None

    def equal(self, solution, text):
        """Whether a text answers with this solution; False where that cannot be told in time."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.start()
        try:
            self.process.stdin.write(json.dumps([solution, text]) + "\n")
            self.process.stdin.flush()
            said = self.reply(LIMIT)
        except OSError:
            said = None
        except BaseException:  # such as the end of --reward-timeout: its reply would come too late
            self.stop()
            raise
        if said is None:
            self.stop()
        return said is not None and said.strip() == "true"

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                with suppress(OSError):  # what is in its buffer has no reader
                    stream.close()
            self.process = None


WORKER = Worker()
atexit.register(WORKER.stop)


def math_verify(completions, solution=None, answer=None, **columns):
    """1.0 where a completion equals its row's solution as math-verify sees it, else 0.0.

    None for a row that has no solution.
    """
    return [None if right is None else float(WORKER.equal(str(right), said(text)[-LONGEST:]))
            for text, right in zip(completions, solutions(solution, answer), strict=True)]


def serve(lines, say):
    """Answer each line, [solution, text] as JSON, with true or false."""
    from math_verify import parse, verify

    say("ready")
    for line in lines:
        right, text = json.loads(line)
        found = False
        try:
            gold = parse(right, parsing_timeout=None) or parse(f"${right}$", parsing_timeout=None)
            if "####" in right and (stated := read(right)) is not None:
                gold = parse(f"${stated}$", parsing_timeout=None)
            found = bool(verify(gold, parse(text, parsing_timeout=None), timeout_seconds=None))
        except Exception:  # what it cannot read is no right answer
            found = False
        say(json.dumps(found))


if __name__ == "__main__":
    serve(sys.stdin, lambda text: print(text, flush=True))
