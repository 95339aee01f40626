"""Damaged files of rows against their reader: they end in our sentences, soon.

    python -m scripts.fuzz --only rows

A good file is damaged in its bytes, values and keys.  It is JSONL or one JSON list, and Parquet or
Arrow where pyarrow is installed.  It is read as rows, as a task, for a method
that reads every key, and by the doctor's checks of texts.  Each file must give rows or a
MinipostError, of printable words, within a second.
"""

import io
import json
import random
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

from minipost.chat import Template
from minipost.checks.examine import look_at_texts
from minipost.datasets.fitting import fitted
from minipost.datasets.formats import table_of
from minipost.datasets.rows import File, read
from minipost.errors import MinipostError
from minipost.opening import as_asked
from minipost.tokenizer import BOS, EOS, PAD, Tokenizer, Vocabulary

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    pyarrow = None

KEYS = ("completion", "chosen", "rejected", "label", "reward")
LETTERS = "ab \n\t:AQ\x1b\x9b\u202e\u2028\u00e9\u5317{[\"\\"  # some of them control the screen
LIMIT = 1.0  # seconds
MODEL = SimpleNamespace(context=64)
CHAT = Template({"default": "{{ tools | tojson }}{% for m in messages %}<bos>{{ m.role + m.content "
                            "}}<eos>{% endfor %}{% if add_generation_prompt %}<bos>assistant"
                            "{% endif %}"}, {}, "a template")

GOOD = [
    lambda k: {"prompt": f"{k}+5=? Answer:", "completion": f" {k + 5}", "answer": k + 5},
    lambda k: {"prompt": f"Praise {k}.\n", "chosen": f"fresh {k}", "rejected": "nasty"},
    lambda k: {"chosen": f"\n\nHuman: {k}?\n\nAssistant: Yes, {k}", "rejected":
               f"\n\nHuman: {k}?\n\nAssistant: No"},
    lambda k: {"chosen": f"Praise {k} so fresh", "rejected": f"Praise {k} so nasty"},
    lambda k: {"prompt": f"{k}?", "completion": f"{k}", "label": k % 2 == 0},
    lambda k: {"prompt": f"{k}?", "completion": f"{k}", "reward": k % 5 / 4},
    lambda k: {"prompt": f"{k}? Say it.", "completion": f"{k}? Say it. {k}"},
    lambda k: {"question": f"{k}?", "answer": f"{k}"},
    lambda k: {"messages": [{"role": "user", "content": f"{k}?"}]},
    lambda k: {"messages": [{"role": "user", "content": f"{k}?"},
                            {"role": "assistant", "content": f"{k}"}] * 2},
    lambda k: {"prompt": [{"role": "user", "content": f"{k}?"}], "completion": f"{k}",
               "tools": [{"name": "f"}], "chat_template_kwargs": {"a": k}},
    lambda k: {"chosen": [{"role": "user", "content": f"{k}?"},
                          {"role": "assistant", "content": f"{k}"}],
               "rejected": [{"role": "user", "content": f"{k}?"},
                            {"role": "assistant", "content": "no"}]},
    lambda k: {"conversations": [{"from": "human", "value": f"{k}?"}, {"from": "gpt", "value":
                                                                     f"{k}"}]},
]


def deep(rng):
    """Lists in lists, or objects in objects."""
    n = rng.choice([1, 3, 50, 400, 900, 5000])
    return rng.choice(["[" * n + "]" * n, '{"a":' * n + "1" + "}" * n])


def odd_value(rng):
    """The JSON of a value that stands where another was expected."""
    return rng.choice([
        lambda: rng.choice(["null", "true", "false", "0", "-1", "1e308", "1e999", "-0.0", "NaN",
                            "[]", "{}", '""', '" "', '"\\n"', '"\\ud800"', '"\\u0000"', '"a"']),
        lambda: deep(rng),
        lambda: "9" * rng.choice([20, 400, 4000, 5000]),
        lambda: json.dumps("".join(rng.choices(LETTERS, k=rng.choice([1, 3, 40, 3000])))),
        lambda: json.dumps(rng.choice(["Answer:", "x y", "\n\nAssistant:", "[INST]"]) * rng.choice(
            [1, 2, 500])),
        lambda: json.dumps([["a", 1, None, {"b": []}], {"role": "user", "content": "x"}]),
    ])()


def damaged(rng):
    """The bytes of a good file with a few damages."""
    row = rng.choice(GOOD)
    rows = [row(k) for k in rng.choices(range(60), k=rng.choice([1, 12, 24]))]
    if rng.random() < 0.2:
        rows += [rng.choice(GOOD)(k) for k in range(rng.choice([1, 12]))]
    lines = [json.dumps(row) for row in rows]
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 3, 20])):           # values and keys
        at = rng.randrange(len(rows))
        key = rng.choice([*rows[at], *KEYS, "prompt"])
        left = {k: v for k, v in rows[at].items() if k != key}
        value = odd_value(rng)
        if rng.random() < 0.2:
            lines[at] = json.dumps(left)
        elif rng.random() < 0.1:
            lines[at] = value
        else:
            comma = ", " if left else ""
            lines[at] = f"{json.dumps(left)[:-1]}{comma}{json.dumps(key)}: {value}}}"
    kind = rng.choice(["jsonl", "jsonl", "list", "table"])
    if kind == "table" and pyarrow:
        return hurt(rng, table(rng, lines))
    text = "\n".join(lines) if kind == "jsonl" else f"[{', '.join(lines)}]"
    return hurt(rng, text.encode())


def table(rng, lines):
    """The rows that lines of JSON hold, as Parquet or Arrow; columns of mixed types as text."""
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        simple = isinstance(row, dict) and "{}" not in line and line.count("[") < 40
        rows += [row] if simple and len(line) < 4000 and line.count("{") < 40 else []
    made, sink = table_of(pyarrow, rows), io.BytesIO()
    if rng.random() < 0.5:
        parquet.write_table(made, sink, compression=rng.choice(["none", "snappy", "zstd"]),
                            use_dictionary=rng.random() < 0.5)
    else:
        how = rng.choice([pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
        with how(sink, made.schema) as writer:
            writer.write_table(made)
    return sink.getvalue()


def hurt(rng, data):
    """Bytes with a few of them changed, or with none."""
    data = bytearray(data)
    for _ in range(rng.choice([0, 0, 0, 0, 0, 0, 1, 4])):
        i, j = sorted(rng.choices(range(len(data) + 1), k=2))
        j = min(j, i + rng.choice([1, 8, 200]))
        data[i:j] = rng.choice([b"", rng.randbytes(j - i), bytes(data[i:j]) * 2, b"\n", b"\xff\xfe",
                                b"\0", b"\r\n", b'"', b"}", b"\xef\xbb\xbf"])
    return bytes(data)


def tried(errors, work, *arguments):
    """What work(*arguments) gives, or None and its MinipostError among the errors."""
    try:
        return work(*arguments)
    except MinipostError as error:
        errors.append(str(error))
        return None


def use(path, other, vocabulary, how):
    """Everything that reads a file before a run.  -> messages of MinipostErrors, other sentences"""
    errors, said = [], []
    tried(said, File, path, "", "skip", "question:prompt,answer:completion")  # most lack them
    for skip, eval_data in (("stop", ""), ("skip", ""), ("skip", other)):
        tried(errors, read, path, skip == "skip", KEYS)
        task = tried(errors, File, path, eval_data, skip)
        if task is not None:
            task = tried(errors, as_asked, task, vocabulary, False)
        if task is None:
            continue
        for reads in ((), KEYS):
            fit = tried(errors, fitted, task, MODEL, vocabulary, 4, reads, (), how)
            said += fit.skipped() if fit else []
        run = SimpleNamespace(task=task, vocabulary=vocabulary, max_new_tokens=4,
                              policy=SimpleNamespace(module=MODEL), rng=random.Random,
                              control_tokens="plain" if how == "stop" else how)
        options = SimpleNamespace(rows=4000, control_tokens=how)
        said += [finding.sentence for finding in look_at_texts(run, STATED, options)]
    return errors, said


HOW = ("stop", "tokens", "plain")  # control tokens are read
STATED = {name: {"bos": set(), "eos": set(), "pad": set()} for name in
          ("config.json", "generation_config.json", "tokenizer_config.json")}


def fuzz_rows(n, seed, say=print):
    """n pairs of damaged files.  -> {"files", "refused", "failures", "slowest", "sentence"}

    slowest: seconds of the slowest pair.  sentence: characters of the longest complaint.
    """
    tokenizer = Tokenizer.train(["7+5=? Answer: 12", "Praise the soup."], 280)
    found = {"files": n, "refused": 0, "failures": 0, "slowest": 0.0, "sentence": 0}
    words = [Vocabulary(tokenizer, before, {tokenizer.id(EOS)}, tokenizer.id(PAD),
                        template=template)
             for before, template in (([tokenizer.id(BOS)], CHAT), ([], None))]
    with tempfile.TemporaryDirectory() as folder:
        path, other = (str(Path(folder) / name) for name in ("rows.jsonl", "test.jsonl"))
        for k in range(n):
            rng, start = random.Random(f"{seed}/{k}"), time.process_time()
            Path(path).write_bytes(damaged(rng))
            Path(other).write_bytes(damaged(rng))
            try:
                errors, said = use(path, other, rng.choice(words), rng.choice(HOW))
                found["sentence"] = max([found["sentence"], *map(len, errors)])
                wrong = [text for text in errors + said if not "".join(text.split()).isprintable()]
                if wrong:
                    raise AssertionError(f"not printable: {wrong[0]!r}")
                if time.process_time() - start > LIMIT:
                    raise AssertionError("took more than a second")
                found["refused"] += bool(errors)
            except Exception:  # whatever it is, it is what this looks for
                found["failures"] += 1
                say(f"file {k} of seed {seed}: {traceback.format_exc()}")
            found["slowest"] = max(found["slowest"], time.process_time() - start)
    return found
