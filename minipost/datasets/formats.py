"""Files of rows, whatever their format, as objects: what `--data` may name.

    JSONL     an object on every line; bad rows are named by their line
    JSON      one list of objects; rows are named by their number, from 1 on, as in all that follow
    Parquet   read by pyarrow (the extra `data`)
    Arrow     a file of it, or the directory that Hugging Face's `save_to_disk` writes.  A directory
              of splits is read where it has one; else DIRECTORY/SPLIT is to be named.

In Parquet and Arrow a missing value is a null.  A null under a key that rows.py reads is left out,
as if the row had no such key; other columns keep theirs.  The format is told by the first bytes.
"""

import json
import os
import re
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any, NamedTuple

from minipost.errors import MinipostError
from minipost.files import no_constant, once, read_bytes, read_json

MOST = 2**31        # bytes of the longest file of rows that is read, unpacked too
MOST_ROWS = 10**8   # rows of a file whose columns may be packed to nothing
READ = frozenset({"prompt", "completion", "chosen", "rejected", "label", "reward", "messages",
                  "conversations"})  # keys whose nulls mean that a row lacks them
DECODER = json.JSONDecoder(object_pairs_hook=once, parse_constant=no_constant)
LENIENT = json.JSONDecoder(parse_int=str, parse_float=str)  # finds the end of any value
PYTHON = re.compile(r"\{\s*'[^']*'\s*:")  # how a dict begins that Python prints
INDENTED = re.compile(rb'\{\s*\n\s*"')  # how an object over several lines begins
SPACE = re.compile(r"[ \t\n\r]*")
OTHERS = {  # how files of other kinds begin
    b"\x1f\x8b": "is compressed by gzip; unpack it", b"PK\x03\x04": "is a zip file; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it",
    b"\xff\xfe": "is UTF-16; save it as UTF-8", b"\xfe\xff": "is UTF-16; save it as UTF-8"}
ARROW = (b"ARROW1", b"\xff\xff\xff\xff")  # how a file of Arrow begins, and a stream
SETS = ("expected a file of rows, or the directory of a data set that save_to_disk of the package "
        "`datasets` wrote")


class Given(str):
    """Rows that were given as a list, under a name that stands where a path does."""

    content: bytes  # JSONL, a line for each row

    def __new__(cls, name, content):
        found = super().__new__(cls, name)
        found.content = content
        return found

    def __getnewargs__(self):
        return str(self), self.content


def is_folder(path):
    return not isinstance(path, Given) and os.path.isdir(path)


class Found(NamedTuple):
    """A value that stands where a row should, or a complaint instead.  `at` counts from 1 on."""

    at: int
    value: Any
    complaint: str = ""


# ---- the files of a data set

def parts(path):
    """The files that hold the rows of a path, in order: the path, or the Arrow files in it.

    MinipostError where a directory is no saved data set, or one of several splits.
    """
    if not is_folder(path):
        return [Path(path)]
    path = Path(path)
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(map(plain, splits)) or not splits:
            raise MinipostError(f"{path / 'dataset_dict.json'}: expected names under 'splits', "
                                f"found {splits!r:.60}")
        if len(splits) > 1:
            raise MinipostError(f"{path}: holds the splits {', '.join(splits)[:80]}; name one, "
                                f"such as {path / splits[0]}")
        return parts(path / splits[0])
    state = path / "state.json"
    if not state.is_file():
        shards = "*.parquet" if any(path.glob("*.parquet")) else ""
        raise MinipostError(f"{path}: is a directory without state.json; {SETS}"
                            + ("; its Parquet files can be named one by one" if shards else ""))
    said = read_json(state)
    if said.get("_indices_data_files"):
        raise MinipostError(f"{state}: is a selection of rows of a data set; save it anew with "
                            "flatten_indices() before save_to_disk")
    listed = said.get("_data_files")
    names = [each.get("filename") if isinstance(each, dict) else each for each in listed] \
        if isinstance(listed, list) else []
    if not names or not all(map(plain, names)):
        raise MinipostError(f"{state}: expected the names of Arrow files under '_data_files', "
                            f"found {listed!r:.60}")
    return [path / name for name in names]


def plain(name):
    """Whether a value is the name of a file in a folder, and no path out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def contents(path):
    """The bytes of each file of a path, MOST in all."""
    if isinstance(path, Given):
        return [path.content]
    found, left = [], MOST
    for part in parts(path):
        found.append(read_bytes(part, left))
        left -= len(found[-1])
    return found


# ---- the rows

def unit(path, contents):
    """What the rows of a file are counted in: "line" of JSONL, else "row"."""
    lines = not isinstance(path, Given) and not is_folder(path) and kind(contents[0]) == "jsonl"
    return "line" if lines else "row"


def kind(content):
    """The format of bytes: "parquet", "arrow", "json" or "jsonl"."""
    if content.startswith(b"PAR1"):
        return "parquet"
    if content.startswith(ARROW):
        return "arrow"
    start = content.removeprefix(BOM_UTF8).lstrip()
    if not start.startswith(b"["):
        return "jsonl"
    first, _, rest = start.partition(b"\n")
    return "jsonl" if rest.strip() and is_json(first) else "json"


def is_json(content):
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def values(path, contents):
    """Every Found of a path's contents, in order.  MinipostError where a file is no such thing."""
    if is_folder(path):
        return [Found(at, *rest) for at, (_, *rest) in enumerate(
            (row for part, content in zip(parts(path), contents)
             for row in records(part, content)), 1)]
    content = contents[0]
    for start, sentence in OTHERS.items():
        if content.startswith(start):
            raise MinipostError(f"{path}: {sentence}")
    return {"parquet": records, "arrow": records, "json": listed, "jsonl": lines}[kind(content)](
        path, content)


def lines(path, content):
    """The values of JSONL.  Blank lines are none.  MinipostError where it is another format."""
    if said := other_format(path, content):
        raise MinipostError(f"{path}: {said}")
    rows = content.split(b"\n")
    rows[0] = rows[0].removeprefix(BOM_UTF8)  # some editors put it before the first line
    return (decoded(at, line) for at, line in enumerate(rows, 1) if line and not line.isspace())


LATIN = "if it is Latin-1, iconv -f LATIN1 -t UTF-8 FILE > rows.jsonl converts it"
OFTEN = ("question", "instruction", "query", "problem", "text")  # what prompts are called too
JSONL = "to_json('rows.jsonl', orient='records', lines=True)"


def other_format(path, content):
    """What a file is that holds no JSONL at all, and how to convert it, or ""."""
    content = content.removeprefix(BOM_UTF8).strip()
    first = content.partition(b"\n")[0].strip()
    if first[:1] not in (b"{", b"[") and b"\n{" not in content:
        names = {name.strip(b' "') for name in re.split(rb"[,;\t]", first)}
        if len(names) > 1 and (Path(path).suffix in (".csv", ".tsv")
                               or names & {key.encode() for key in READ}):
            tabs = ", sep='\\t'" if b"\t" in first else ""
            return f"looks like CSV, not JSON; pandas.read_csv(FILE{tabs}).{JSONL} converts it"
    if first == content or first.startswith(b"{") and not first.endswith(b"}"):
        return one_object(content)
    return ""


def one_object(content):
    """What a file is that begins as one object, if that is no row, and how to convert it, or ""."""
    try:
        value = DECODER.decode(content.decode())
    except (ValueError, RecursionError):
        return "holds objects over several lines; jq -c . FILE > rows.jsonl writes each on one" \
            if INDENTED.match(content) else ""
    parts = [*value.values()] if isinstance(value, dict) else []
    if parts and all(map(column, parts)):
        return f"holds a list for each column; pandas.read_json(FILE).{JSONL} converts it"
    for key, part in value.items() if parts else ():
        if isinstance(part, list) and part and isinstance(part[0], dict) and \
                {*READ, *OFTEN} & part[0].keys():
            return (f"is one object with rows under {key[:40]!r}; jq -c '.\"{key[:40]}\"[]' FILE > "
                    "rows.jsonl writes them")
    return "" if b"\n" not in content else (
        "is one object over several lines; jq -c . FILE > rows.jsonl writes it on one")


def column(value):
    """Whether a value is a column of texts or numbers: a list, or what pandas makes of one."""
    if isinstance(value, dict) and all(map(str.isdigit, value)):
        value = [*value.values()]
    return isinstance(value, list) and value != [] and not any(
        isinstance(each, list | dict) for each in value)


def decoded(at, line):
    """The Found of a line."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return Found(at, None, f"not UTF-8 text; {LATIN}")
    try:
        if text.startswith("\ufeff"):
            raise ValueError("a byte order mark (BOM) stands before it")
        return Found(at, DECODER.decode(text))
    except (ValueError, RecursionError) as error:
        return Found(at, None, unread(text, error))


def unread(text, error):
    """The sentence on a text that is no JSON, and what to do where it is nearly such."""
    text = text.strip()
    if isinstance(error, RecursionError):
        what = "; lists and objects stand too deep in each other"
    elif text.endswith(",") and is_json(text[:-1]):
        what = "; take the comma behind it away, or write one list: [ before all rows and ] behind"
    elif PYTHON.match(text):
        what = "; it is written as Python, and json.dumps(row) writes JSON"
    else:
        what = f" ({str(error)[:80]})"
    return f"expected one JSON object, found {text[:40].rstrip()!r}{what}"


def listed(path, content):
    """The values of one JSON list.  A value that breaks our rules and no others is a bad row.

    MinipostError names the row where the file stops to be JSON: no row behind it can be told.
    """
    try:
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise MinipostError(f"{path}: not UTF-8 text at byte {error.start}; {LATIN}") from None
    place, found = behind(text, behind(text, 0) + 1), []
    while found or text[place : place + 1] != "]":
        at = len(found) + 1
        value, end = element(path, text, place, at)
        found.append(Found(at, *value))
        place = behind(text, end)
        if text[place : place + 1] == "]":
            break
        if text[place : place + 1] != ",":
            raise MinipostError(f"{path}, row {at}: expected a comma or ] behind it, found "
                                f"{text[place : place + 40]!r}; write one JSON list, or one object "
                                "per line")
        place = behind(text, place + 1)
    if rest := text[place + 1 :].strip():
        raise MinipostError(f"{path}: goes on behind its list with {rest[:40]!r}; write one JSON "
                            "list, or one object per line")
    return found


def behind(text, place):
    """The first place from this one on that is no white space of JSON."""
    found = SPACE.match(text, place)
    assert found is not None  # no space matches too
    return found.end()


def element(path, text, place, at):
    """((value, complaint), where it ends) of the value at this place of a list."""
    try:
        value, end = DECODER.raw_decode(text, place)
        return (value, ""), end
    except (ValueError, RecursionError) as error:
        try:
            end = LENIENT.raw_decode(text, place)[1]
        except (ValueError, RecursionError):
            line = text.count("\n", 0, getattr(error, "pos", place)) + 1
            raise MinipostError(f"{path}, row {at}, about line {line}: "
                                f"{unread(text[place : place + 40], error)}") from None
        return (None, unread(text[place:end], error)), end


# ---- Parquet and Arrow, by pyarrow

def arrow(path):
    """The modules (pyarrow, pyarrow.parquet).  MinipostError where pyarrow is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MinipostError(f"{path}: Parquet and Arrow need pyarrow ({error!s:.60}); install it "
                            "by pip install 'minipost[data]', or write the rows as JSON, one per "
                            "line") from None
    return pyarrow, pyarrow.parquet


def records(path, content):
    """The rows of the bytes of a Parquet or an Arrow file, as objects."""
    pa, parquet = arrow(path)
    try:
        source = pa.BufferReader(content)
        if content.startswith(b"PAR1"):
            file = parquet.ParquetFile(source)
            size = sum(file.metadata.row_group(k).total_byte_size
                       for k in range(file.metadata.num_row_groups))
            fitting(path, file.metadata.num_rows, size)
            table = file.read(use_threads=False)
        elif content.startswith(ARROW[0]):
            table = pa.ipc.open_file(source).read_all()
        else:
            table = pa.ipc.open_stream(source).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise MinipostError(f"{path}: could not be read by pyarrow ({error!s:.100}); it is damaged "
                            "or no such file") from None
    fitting(path, table.num_rows, table.nbytes)
    names = table.column_names
    if twice := [name for name in names if names.count(name) > 1]:
        raise MinipostError(f"{path}: has the column {twice[0][:40]!r} twice")
    found = []
    for batch in table.to_batches(max_chunksize=1024):
        try:
            rows = [(row, "") for row in batch.to_pylist()]
        except Exception:  # one value of it cannot be told in Python, whichever error says so
            rows = [record(batch.slice(k, 1)) for k in range(batch.num_rows)]
        found += [Found(len(found) + k, row and kept(row), complaint)
                  for k, (row, complaint) in enumerate(rows, 1)]
    return found


def fitting(path, rows, size):
    """MinipostError where a file unpacks to more than is read."""
    if rows > MOST_ROWS or size > MOST:
        raise MinipostError(f"{path}: unpacks to {rows:,} rows of {size:,} bytes; at most "
                            f"{MOST_ROWS:,} rows of {MOST:,} bytes are read")


def record(batch):
    """(row, "") of a batch of one row, or (None, why it cannot be told)."""
    try:
        return batch.to_pylist()[0], ""
    except Exception as error:  # such as text that is not UTF-8, or a date beyond Python's
        return None, f"holds a value that cannot be read ({type(error).__name__}: {error!s:.60})"


def kept(row):
    """A row without the nulls that mean that it lacks the key."""
    return {key: value for key, value in row.items() if value is not None or key not in READ}


def write_parquet(path, rows):
    """Write dicts as a Parquet file.  A column of values of several kinds is written as text."""
    pa, parquet = arrow(path)
    parquet.write_table(table_of(pa, rows), path)


def table_of(pa, rows):
    """Dicts as a table of pyarrow (`pa`).  A column of values of several kinds becomes text."""
    table = {}
    for name in {name: None for row in rows for name in row}:
        values = [row.get(name) for row in rows]
        try:
            table[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeError):
            table[name] = pa.array([None if value is None else ascii(value) for value in values])
    return pa.table(table)


# ---- other names for columns

def columns_of(text):
    """{old: new} of `--columns OLD:NEW,OLD:NEW`.  MinipostError where that is none."""
    pairs = [pair.partition(":") for pair in text.split(",")] if text else []
    old, new = [first.strip() for first, _, _ in pairs], [last.strip() for _, _, last in pairs]
    if not all(old) or not all(new) or len({*old}) < len(old) or len({*new}) < len(new):
        raise MinipostError(f"--columns is {text!r:.60}; expected OLD:NEW with commas between, "
                            "each name once, such as question:prompt,answer:solution")
    return dict(zip(old, new))


def renamed(row, names):
    """A row with the new names of its columns.  ValueError where two get the same."""
    if not names or not isinstance(row, dict):
        return row
    for old, new in names.items():
        if old in row and new in row and new not in names:
            raise ValueError(f"has both {old!r} and {new!r}, and --columns {old}:{new} makes them "
                             f"one; rename {new!r} too")
    return {names.get(key, key): value for key, value in row.items()}


def check_columns(path, rows, names):
    """{old name: a complaint} of columns that --columns names and no row (an object) has.

    MinipostError where no row has the new name either, or where the old one is read, and so no
    other file of the run can have it instead.
    """
    keys, lacks = {key for row in rows for key in row}, {}
    for old, new in names.items():
        if rows and old not in keys and new in keys:
            lacks[old] = (f"{path}: no row has {old!r}, which --columns {old}:{new} names, and "
                          f"rows have {new!r}; write --columns {new}:{old} if the two are "
                          f"swapped, else leave {old}:{new} out")
            if old in READ:
                raise MinipostError(lacks[old])
        if rows and old not in keys and new not in keys:
            known = ", ".join(sorted(map(repr, keys))[:8])
            raise MinipostError(f"{path}: no row has {old!r}, which --columns {old}:{new} names; "
                                f"the keys are {known or 'none'}")
    return lacks
