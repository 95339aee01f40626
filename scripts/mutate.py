"""Plant small mistakes in the code, one at a time, and see which of them the tests notice.

    python -m scripts.mutate --n 200             about an hour on two slow cores, in one process
    python -m scripts.mutate --n 200 --seed 1    another 200
    python -m scripts.mutate --n 5 --only minipost/methods/grpo.py

A mistake is an exchanged operator, bound, constant, argument or branch, a mean for a sum, a
statement, a `detach()` or a keyword that is gone.  The seed draws them, from one function after the
other.  The tree is never touched: they are planted in a copy in a temporary directory.

Every mistake is tried by the tests that call the function it is in, the quickest first, until one
fails.  Which those are is noted once, while all quick tests run (some minutes), and again for test
files that have changed.  The notes and the results are in runs/mutate/.  A run that is stopped goes
on with what it has not tried, and results are valid as long as the planted file is the same.

A survivor is a mistake that no test notices.  Look at its line.  If the mistake would change what
a user gets, some test is missing: write the one that sees all mistakes of its kind, and try again
with `--again`, which takes the survivors of this draw once more.  If it changes nothing that
anybody can see, say why in tests/survivors.json.  The exit code is 1 while a survivor is not
explained.
"""

import argparse
import ast
import contextlib
import difflib
import functools
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs/mutate")
EXPLAINED = Path("tests/survivors.json")
PLACES = ("methods", "test_time", "tasks", "measure", "datasets", "run.py", "parts.py",
          "rollout.py", "ops.py", "optim.py", "parallel.py", "checkpoint.py", "files.py")
SLOW = ("test_cli.py", "test_doctor.py", "test_resume.py", "test_learning.py", "test_interop.py",
        "test_compare.py", "test_compare_offline.py", "test_floors.py", "test_mutate.py")
WHOLE = ("test_cli.py", "test_resume.py")
ELSEWHERE = {  # by processes of their own, in which nobody notes what they call
    "test_ranks.py": ("methods", "run.py", "optim.py", "parallel.py", "rollout.py", "scorers.py"),
}


# ---- mistakes

@dataclass(frozen=True)
class Mutant:
    """A file with one mistake: where it is, of what kind, and the whole text with it."""

    path: str
    function: str
    line: int
    kind: str
    text: str
    before: str
    after: str

    @property
    def key(self):
        return hashlib.sha256(f"{self.path}\n{self.text}".encode()).hexdigest()[:16]


def swap(pairs):
    return {**dict(pairs), **{b: a for a, b in pairs}}


OPERATORS = swap([(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr),
                  (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot),
                  (ast.In, ast.NotIn), (ast.And, ast.Or)]) | {
    ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv}
NAMES = swap([("mean", "sum"), ("min", "max"), ("amin", "amax"), ("any", "all"),
              ("argmax", "argmin"), ("minimum", "maximum"), ("row_means", "row_sums")])
EITHER = {"max", "min", "maximum", "minimum", "logaddexp", "gcd", "equal", "allclose",
          "Meter"}      # whose arguments may come in any order
DROPPED = {"detach", "clone", "abs", "sqrt", "square", "exp", "log", "clamp", "flip", "strip",
           "double", "bool", "sigmoid", "to", "lower", "where"}  # x.detach() becomes x


def changed(node, **fields):
    """The node with other fields, as text that stands for itself anywhere."""
    new = type(node)(**{**{name: getattr(node, name, None) for name in node._fields}, **fields})
    return f"({ast.unparse(ast.fix_missing_locations(ast.copy_location(new, node)))})"


def constants(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, *([value - 1] if value > 0 else [])]
    return [2 * value if value else 1.0] if isinstance(value, float) else []


def mistakes(node):
    """(kind, text in place of this node) of every mistake that can be made here."""
    operator = getattr(node, "op", None) or (node.ops[0] if isinstance(node, ast.Compare) else None)
    other = OPERATORS.get(type(operator))
    if other and isinstance(node, ast.Compare):
        yield "operator", changed(node, ops=[other(), *node.ops[1:]])
    elif other and isinstance(node, (ast.BinOp, ast.BoolOp)):
        yield "operator", changed(node, op=other())
    elif other and isinstance(node, ast.AugAssign):
        yield "operator", changed(node, op=other())[1:-1]
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield "sign", f"({ast.unparse(node.operand)})"
    if isinstance(node, ast.Constant):
        for value in constants(node.value):
            yield "constant", f"({value!r})" if isinstance(value, float) else repr(value)
    if isinstance(node, ast.IfExp):
        yield "branches", changed(node, body=node.orelse, orelse=node.body)
    if isinstance(node, ast.comprehension) and node.ifs:
        yield "filter", None
    if isinstance(node, (ast.If, ast.While)):
        yield "condition", None
    if isinstance(node, ast.Call):
        yield from of_call(node)
    if isinstance(node, (ast.AugAssign, ast.Break, ast.Continue)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "statement", "pass"


def of_call(node):
    function, arguments = node.func, node.args
    if isinstance(function, ast.Attribute) and function.attr in NAMES:
        yield "function", changed(node, func=ast.Attribute(function.value, NAMES[function.attr],
                                                           ast.Load()))
    if isinstance(function, ast.Name) and function.id in NAMES:
        yield "function", changed(node, func=ast.Name(NAMES[function.id], ast.Load()))
    if isinstance(function, ast.Attribute) and function.attr in DROPPED and \
            "device" not in ast.unparse(node):
        yield "call", f"({ast.unparse(function.value)})"
    name = getattr(function, "attr", getattr(function, "id", ""))
    for k, (one, two) in enumerate(zip(arguments, arguments[1:]) if name not in EITHER else ()):
        if ast.dump(one) != ast.dump(two) and not isinstance(one, ast.Starred) and not isinstance(
                two, ast.Starred):
            yield "arguments", changed(node, args=[*arguments[:k], two, one, *arguments[k + 2:]])
    for keyword in node.keywords:
        if keyword.arg and not quiet(keyword):
            yield "keyword", changed(node, keywords=[x for x in node.keywords if x is not keyword])


QUIET = (ast.Raise, ast.JoinedStr, ast.Assert, ast.arguments)  # in which no mistake is planted
SEEDED = {"Random", "manual_seed", "initialise"}               # nor in their seeds


def quiet(node):
    """Whether a mistake here is of no use: in a message, a seed, or what other machines need."""
    if isinstance(node, ast.keyword):
        return node.arg in ("strict", "encoding", "device", "ensure_ascii")
    return isinstance(node, QUIET) or isinstance(node, ast.Call) and getattr(
        node.func, "attr", getattr(node.func, "id", "")) in SEEDED


def nodes(tree):
    """(function's qualified name, node) of all code within functions."""
    def walk(node, names, inside):
        for child in ast.iter_child_nodes(node):
            if quiet(child):
                continue
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                deeper = isinstance(child, ast.FunctionDef)
                for part in child.body:
                    yield from visit(part, [*names, child.name], deeper)
            elif inside:
                yield from visit(child, names, inside)

    def visit(node, names, inside):
        if quiet(node):
            return
        if inside and not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield ".".join(names), node
        yield from walk(ast.Module([node], []) if isinstance(
            node, (ast.FunctionDef, ast.ClassDef)) else node, names, inside)

    yield from walk(tree, [], False)


@functools.lru_cache(2)
def dump(text):
    return ast.dump(ast.parse(text))


@dataclass(frozen=True)
class Spot:
    """A place where a mistake can be made: bytes start to end of a file become `new`."""

    path: str
    function: str
    line: int
    kind: str
    start: int
    end: int
    new: str

    def plant(self, text):
        """The Mutant, or None where the code would be the same or no code at all."""
        whole = text.encode()
        made = (whole[: self.start] + self.new.encode() + whole[self.end :]).decode()
        try:
            if dump(made) == dump(text):
                return None
            compile(made, self.path, "exec")
        except (SyntaxError, ValueError):
            return None
        return Mutant(self.path, self.function, self.line, self.kind, made,
                      *difference(text, made))


def spots(path, text):
    """Every Spot of a file."""
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for function, node in nodes(ast.parse(text)):
        for kind, new in mistakes(node):
            at = node
            if kind == "filter":
                at, new = node.ifs[0], "True"
            if kind == "condition":
                at = node.test
                new = f"not ({ast.unparse(at)})"
            yield Spot(path, function, at.lineno, kind, starts[at.lineno - 1] + at.col_offset,
                       starts[at.end_lineno - 1] + at.end_col_offset, new)


def difference(one, two):
    """The lines that are no longer there, and those in their place."""
    pairs = list(difflib.ndiff(one.splitlines(), two.splitlines())) if len(one) < 2000 else \
        list(difflib.unified_diff(one.splitlines(), two.splitlines(), n=0, lineterm=""))[3:]
    return tuple("\n".join(line[1:].strip() for line in pairs if line.startswith(sign))
                 for sign in "-+")


def files(only=""):
    """The files that mistakes are planted in."""
    found = []
    for place in PLACES:
        path = ROOT / "minipost" / place
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    names = [path.relative_to(ROOT).as_posix() for path in found]
    return [name for name in names if name.startswith(only)]


def draw(n, seed, only=""):
    """n Mutants, of one function after the other in a random order, and of each any kind alike."""
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in files(only)}
    groups, found = {}, []
    for path, text in texts.items():
        for spot in spots(path, text):
            groups.setdefault((path, spot.function), {}).setdefault(spot.kind, []).append(spot)
    # Each function has a stream of its own, so a change of one moves the draws of no other.
    streams = {name: random.Random(f"{seed}/{name[0]}/{name[1]}") for name in groups}
    names = sorted(groups, key=lambda name: streams[name].random())
    while names and len(found) < n:
        for name in names[:]:
            kinds, rng = groups[name], streams[name]
            kind = rng.choice(sorted(kinds))
            spot = kinds[kind].pop(rng.randrange(len(kinds[kind])))
            groups[name] = {key: left for key, left in kinds.items() if left}
            if not groups[name]:
                names.remove(name)
            if len(found) < n and (mutant := spot.plant(texts[name[0]])):
                found.append(mutant)
    return found


# ---- the tests that call a function

class Tracer:
    """A pytest plugin that notes which functions of minipost each test calls, and its seconds."""

    def __init__(self, root):
        self.prefix, self.found, self.seen = f"{root}/", {}, set()

    def trace(self, frame, event, _):
        name = frame.f_code.co_filename
        if name.startswith(self.prefix):
            self.seen.add((name, frame.f_code.co_qualname))

    def pytest_runtest_protocol(self, item):
        self.seen, self.start = set(), time.perf_counter()
        sys.settrace(self.trace)

    def pytest_runtest_logfinish(self, nodeid):
        sys.settrace(None)
        calls = sorted({f"{name.removeprefix(self.prefix)}:{function.replace('.<locals>', '')}"
                        for name, function in self.seen if "/minipost/" in name
                        and not function.endswith(">")})
        self.found[nodeid] = [round(time.perf_counter() - self.start, 2), calls]


class Failure:
    """A pytest plugin that notes the first test that fails."""

    name = ""

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.name:
            self.name = report.nodeid


def inside(copy, seconds, work):
    """work(file to write to) in a child that lives in the copy: (exit code, what it wrote).

    The code is None if the child was ended after so many seconds.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        note = Path(folder) / "note"
        child = os.fork()
        if child == 0:
            code = 70
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.setsid()
                settle(copy, Path(folder))
                code = int(work(note))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        end, status = time.monotonic() + seconds, None
        try:
            while status is None and time.monotonic() < end:
                pid, found = os.waitpid(child, os.WNOHANG)
                status = os.waitstatus_to_exitcode(found) if pid else None
                time.sleep(0.05)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)  # and whatever it started
        if status is None:
            os.waitpid(child, 0)
        return status, note.read_text(encoding="utf-8") if note.exists() else ""


def settle(copy, folder):
    """Make this process one of the copy, without output and without leaving anything there."""
    os.chdir(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] in ("scripts", "minipost")]:
        del sys.modules[name]
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
                   "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
                   "TMPDIR": str(folder)}
    tempfile.tempdir = str(folder)
    sys.dont_write_bytecode = True
    silent = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silent, number)


def pytest_in(tests, plugin):
    import pytest
    import torch
    from hypothesis import Phase, settings

    torch.set_num_threads(1)
    settings.register_profile("mutate", phases=(Phase.explicit, Phase.generate), database=None,
                              derandomize=True, report_multiple_bugs=False)
    settings.load_profile("mutate")
    return pytest.main(["-x" if isinstance(plugin, Failure) else "-q", "--assert=plain", "-p",
                        "no:cacheprovider", "--rootdir", os.getcwd(), *tests], [plugin])


def notes(copy, say):
    """{test: [seconds, [functions]]} of all quick tests.  It is kept from run to run."""
    path = FOLDER / "calls.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    shared = {path.stem: path.read_bytes() for path in (ROOT / "tests").glob("*.py")
              if not path.name.startswith("test_")}
    for file in sorted((ROOT / "tests").glob("test_*.py")):
        text = file.read_bytes()
        text += b"".join(shared[name] for name in sorted(shared) if name.encode() in text)
        digest = hashlib.sha256(text).hexdigest()[:16]
        if file.name in SLOW or known.get(file.name, {}).get("digest") == digest:
            continue

        def work(note, file=file):
            plugin = Tracer(copy)
            code = pytest_in([f"tests/{file.name}"], plugin)
            note.write_text(json.dumps(plugin.found), encoding="utf-8")
            return code

        code, said = inside(copy, 1800, work)
        if code != 0:
            raise SystemExit(f"tests/{file.name} fails in a copy, without any mistake (exit code "
                             f"{code})")
        say(f"noted what {file.name} calls")
        known[file.name] = {"digest": digest, "tests": json.loads(said)}
        path.write_text(json.dumps(known), encoding="utf-8")
    return {test: found for file in known.values() for test, found in file["tests"].items()}


def tests_for(mutant, calls, seconds):
    """The tests that call the mutant's function, the quickest first, of so many seconds in all."""
    place, chosen, spent = f"{mutant.path}:{mutant.function}", [], 0.0
    asked = sorted((cost, test) for test, (cost, functions) in calls.items() if place in functions)
    for cost, test in asked:
        if spent + cost <= seconds:
            chosen.append(test)
            spent += cost
    own = [f"tests/{name}" for name in (f"test_{Path(mutant.path).stem}.py",
                                        f"test_{Path(mutant.path).parent.name}_"
                                        f"{Path(mutant.path).stem}.py")
           if (ROOT / "tests" / name).exists() and name not in SLOW]
    further = [f"tests/{name}" for name, parts in ELSEWHERE.items()
               if any(part in mutant.path.split("/") for part in parts)]
    # What is cached is called by one test alone, so the file's own tests are asked in any case.
    # If nobody calls it in a quick test, whole runs may.
    return chosen, own + ([] if chosen else [f"tests/{name}" for name in WHOLE]), further


# ---- the run

def try_out(mutant, copy, calls, seconds):
    """"killed", "survived" or "timed out", and the test that noticed."""
    target = copy / mutant.path
    before = target.stat()
    target.write_text(mutant.text, encoding="utf-8")
    try:
        for tests in tests_for(mutant, calls, seconds):
            if not tests:
                continue

            def work(note, tests=tests):
                plugin = Failure()
                code = pytest_in(tests, plugin)
                note.write_text(plugin.name, encoding="utf-8")
                return code

            code, said = inside(copy, 6 * seconds, work)
            if code is None:
                return "timed out", ""
            if code != 0:
                return "killed", said or f"exit code {code}"
        return "survived", ""
    finally:
        shutil.copy2(ROOT / mutant.path, target)
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))


def explained():
    """{(file, function, line as it was, line with the mistake): why it changes nothing}."""
    path = ROOT / EXPLAINED
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {(e["file"], e["function"], e["before"], e["after"]): e["reason"] for e in entries}


def copied(folder):
    """A copy of the tree, with its bytecode; the checkpoints are only linked."""
    import compileall

    copy = Path(folder).resolve() / "tree"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(
        ".*", "runs", "__pycache__", "checkpoints", "data", "*.egg-info"))
    for name in ("checkpoints", "data"):
        (copy / name).symlink_to(ROOT / name)
    with contextlib.redirect_stdout(io.StringIO()):
        compileall.compile_dir(copy / "minipost", quiet=2)
        compileall.compile_dir(copy / "tests", quiet=2)
    return copy


def main():
    parser = argparse.ArgumentParser(prog="python -m scripts.mutate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="mistakes to plant")
    parser.add_argument("--seed", type=int, default=0, help="which of all possible ones")
    parser.add_argument("--only", default="", help="in this file or folder, minipost/...")
    parser.add_argument("--seconds", type=float, default=30.0, help="of tests for a mistake")
    parser.add_argument("--again", action="store_true", help="try survivors once more")
    args = parser.parse_args()
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the copy goes
    FOLDER.mkdir(parents=True, exist_ok=True)
    log, start = FOLDER / "results.jsonl", time.monotonic()
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    done = {line["key"]: line for line in map(json.loads, lines)}
    drawn, known = draw(args.n, args.seed, args.only), explained()
    left = [m for m in drawn if m.key not in done or (
        args.again and done[m.key]["verdict"] == "survived")]
    print(f"{len(drawn)} mistakes, {len(drawn) - len(left)} of them tried before", flush=True)
    if left:
        import hypothesis  # noqa: F401  once, for all children
        import numpy  # noqa: F401
        import pytest  # noqa: F401
        import torch  # noqa: F401

        with tempfile.TemporaryDirectory(prefix="minipost-mutate-") as folder:
            copy = copied(folder)
            calls = notes(copy, lambda said: print(said, flush=True))
            for k, mutant in enumerate(left, 1):
                verdict, by = try_out(mutant, copy, calls, args.seconds)
                done[mutant.key] = {
                    "key": mutant.key, "verdict": verdict, "file": mutant.path,
                    "function": mutant.function, "line": mutant.line, "kind": mutant.kind,
                    "before": mutant.before, "after": mutant.after, "by": by}
                with open(log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(done[mutant.key]) + "\n")
                print(f"{k}/{len(left)}  {verdict:9}  {mutant.path}:{mutant.line}  "
                      f"{mutant.function}  {mutant.kind}  {by}", flush=True)
    return report([done[m.key] for m in drawn], known, time.monotonic() - start)


def report(found, known, seconds):
    """Print the counts and the survivors; 1 if one of them is not explained."""
    counts = {verdict: sum(x["verdict"] == verdict for x in found)
              for verdict in ("killed", "timed out", "survived")}
    open_ = 0
    for x in (x for x in found if x["verdict"] == "survived"):
        reason = known.get((x["file"], x["function"], x["before"], x["after"]))
        open_ += reason is None
        print(f"\n{x['file']}:{x['line']}  {x['function']}\n  - {x['before']}\n  + {x['after']}\n  "
              f"{'explained: ' + reason if reason else 'SURVIVES, and nothing explains it'}")
    print(f"\n{len(found)} mistakes: " + ", ".join(f"{n} {name}" for name, n in counts.items())
          + f"; {open_ or 'no'} survivor{'s' * (open_ != 1)} not explained ({seconds:.0f} seconds)")
    return int(open_ > 0)


if __name__ == "__main__":
    sys.exit(main())
