"""Hostile files and texts for every reader: each is opened or refused in one sentence.

    python -m scripts.fuzz --n 10000 --seed 0        every reader, one line each
    python -m scripts.fuzz --n 100000 --write        into BENCHMARKS.md; half an hour

Valid files are changed at random: values of JSON are replaced, deleted, repeated or nested, and
bytes are flipped, cut out or put in.  What a reader may do with such a file is to open it or to
raise MinipostError.  Anything else is kept as a crash, with the file that caused it, and makes the
exit code 1.
"""

import argparse
import copy
import json
import random
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minipost import checkpoint, methods, train
from minipost.cli.directory import as_written, check_facts
from minipost.errors import MinipostError
from minipost.gpt import GPT, GPTConfig
from minipost.layout import tensor_file
from minipost.layout.vocabulary_file import read_vocabulary
from minipost.rollout import generate
from minipost.tasks import TASKS
from minipost.tokenizer import Tokenizer, Vocabulary
from scripts.alternate import ROOT
from scripts.fuzz_rows import fuzz_rows
from scripts.pages import machine, table, write

TEXTS = ["7+5=? Answer: 12", "", " h\u00e9 \u5317\n\u0000<bos>", "a" * 300]
HOSTILE = [
    None, True, False, 0, 1, -1, 2, 0.0, 1.0, 0.5, -0.0, 1e-320, 1e308, 10**9, 10**8, 2**31, 2**63,
    -(2**63), 2**40, "", " ", "x", "\u2581", "<bos>", "a" * 5000, "\u0000", "../x", "(a+)+$",
    "a{1000}{1000}", "[", [], {}, [[]], [None], [1, 2], ["a", "b"], {"type": "Sequence"},
    {"String": ""}, {"Regex": "("}, {"String": " "}, [{"type": "Replace"}],
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000},
    {"type": "Prepend", "prepend": "aa"}, {"type": "Metaspace", "replacement": "ab"},
    {"type": "ByteLevel"}, {"type": "BPE"}, {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "Digits"},
    {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Removed", "invert": True},
    {"type": "Strip", "content": " ", "start": 9, "stop": 9}, "float16", "Lowercase", 0.9,
]
RAW = [b"NaN", b"Infinity", b"1e999", b"9" * 5000, b'"\\ud800"', b"\xff", b"[" * 5000, b"\x00",
       b'{"a":' * 500, b'"type":"BPE",', b"true", b"-1", b"1.5"]


@dataclass
class Record:
    """What came of some inputs.  crashes: (number of the input, what was raised)."""

    reader: str
    inputs: int = 0
    opened: int = 0
    crashes: list = field(default_factory=list)
    longest: float = 0.0  # seconds of the slowest input
    memory: float = 0.0   # MB by which the process grew at its highest
    sentence: int = 0     # characters of the longest sentence

    def __str__(self):
        return (f"{self.reader}: {self.inputs:,} inputs, {self.opened:,} opened, "
                f"{len(self.crashes)} crashes, at most {self.longest:.2f} s, {self.memory:.0f} MB, "
                f"sentences up to {self.sentence} characters")


def place(value, rng):
    """(holder, key) of a value somewhere inside, or None in an empty one."""
    found = None
    while isinstance(value, dict | list) and value and (found is None or rng.random() < 0.8):
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        found, value = (value, key), value[key]
    return found


def mutated(value, rng):
    """A copy of a JSON value with one to three changes."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        where, other = place(value, rng), place(value, rng)
        if where is None:
            break
        (holder, key), how = where, rng.random()
        if how < 0.6:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif how < 0.7:
            del holder[key]
        elif how < 0.8:
            holder[key] = copy.deepcopy(other[0][other[1]])
        elif how < 0.9 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(rng.choice([*holder, *HOSTILE])))
        elif how < 0.9:
            holder[rng.choice(("x", "dropout", "type", "\ud7ff", key * 2 if isinstance(key, str)
                               else "y"))] = copy.deepcopy(rng.choice(HOSTILE))
        else:
            holder[key] = [copy.deepcopy(holder[key])] * rng.choice((1, 2, 60))
    return value


def scrambled(data, rng):
    """Bytes with one to four of them flipped, cut out, or others put in."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, how = rng.randrange(len(data) + 1), rng.random()
        if how < 0.4 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif how < 0.6:
            del data[place : place + rng.choice((1, 2, 20, 10**6))]
        else:
            data[place:place] = rng.choice(RAW)
    return bytes(data)


def json_files(value, n, rng):
    """n files that are not quite this JSON value."""
    data = json.dumps(value, ensure_ascii=False).encode()
    for _ in range(n):
        yield scrambled(data, rng) if rng.random() < 0.3 else \
            json.dumps(mutated(value, rng)).encode()


def model(folder, **shape):
    """A tiny model directory."""
    words = Tokenizer.train(TEXTS, 270)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4,
             "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    checkpoint.create(folder, GPT(GPTConfig(words.vocab_size, **shape)).initialise(0), words)
    return Path(folder)


def memory():
    """The most memory that this process has had, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def look(name, path, files, read):
    """Write each file in turn and let `read` open it.  -> Record"""
    found, before = Record(name), memory()
    for number, data in enumerate(files):
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            read()
            found.opened += 1
        except MinipostError as error:
            found.sentence = max(found.sentence, len(str(error)))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's panics are no Exceptions
            found.crashes.append((number, f"{type(error).__name__}: {str(error)[:200]}", data))
        found.inputs += 1
        found.longest = max(found.longest, time.perf_counter() - start)
    found.memory = memory() - before
    return found


def fuzz_config(n, seed=0):
    """config.json, as far as the model that it describes."""
    with tempfile.TemporaryDirectory() as folder:
        directory = model(folder)
        path = directory / "config.json"

        def read():
            config, raw = checkpoint.read_config(directory)
            checkpoint.stored(config, checkpoint.names, directory, checkpoint.stated_dtype(raw))
            with torch.no_grad():
                GPT(config)(torch.tensor([[1, 2, 3]]))

        return look("config.json", path, json_files(json.loads(path.read_text()), n,
                                                    random.Random(seed)), read)


def fuzz_generation(n, seed=0):
    """generation_config.json: the ids that frame a sequence."""
    with tempfile.TemporaryDirectory() as folder:
        directory = model(folder)
        path = directory / "generation_config.json"
        value = {**json.loads(path.read_text()), "temperature": 0.6, "eos_token_id": [2, 5]}
        config, raw = checkpoint.read_config(directory)
        tokenizer, load = Tokenizer.load(directory / "tokenizer.json"), Tokenizer.load
        Tokenizer.load = lambda path: tokenizer             # it is the same file each time
        try:
            return look("generation_config.json", path, json_files(value, n, random.Random(seed)),
                        lambda: use(read_vocabulary(directory, raw, config.vocab_size)))
        finally:
            Tokenizer.load = load


def use(vocabulary):
    for text in TEXTS:
        for control in (False, True):
            vocabulary.decode(vocabulary.response(text, control))
            vocabulary.prompt(text, control)
        vocabulary.complaint(text, "stop")


def descriptions():
    """tokenizer.json of several families, cut to few tokens."""
    ours = json.loads(Tokenizer.train(TEXTS, 270).backend.to_str())
    spaces = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first",
              "split": False}
    llama = {**ours, "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {**ours["model"], "unk_token": "<pad>", "byte_fallback": True, "fuse_unk": True}}
    unigram = {**ours, "pre_tokenizer": spaces, "decoder": spaces, "model": {
        "type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [
            ["<pad>", 0.0], ["<bos>", 0.0], ["<eos>", 0.0],
            *([chr(c), -float(c)] for c in [0x2581, *range(32, 127)])]}}
    words = {**ours, "pre_tokenizer": {"type": "Whitespace"}, "decoder": None, "normalizer": {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
        "strip_accents": None, "lowercase": True}, "model": {
        "type": "WordPiece", "unk_token": "<pad>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {
            "<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3, "##a": 4, "7": 5}}}
    return [ours, llama, unigram, words]


def fuzz_tokenizer(n, seed=0):
    """tokenizer.json of four families: opened and used."""
    with tempfile.TemporaryDirectory() as folder:
        path, rng = Path(folder) / "tokenizer.json", random.Random(seed)
        kinds = descriptions()

        def files():
            for _ in range(n):
                yield from json_files(rng.choice(kinds), 1, rng)

        def read():
            tokenizer = Tokenizer.load(path)
            use(Vocabulary(tokenizer, tokenizer.before, [2], 0))

        return look("tokenizer.json", path, files(), read)


def fuzz_weights(n, seed=0):
    """model.safetensors: list of tensors, lengths, bits of values; read and sampled from."""
    with tempfile.TemporaryDirectory() as folder:
        directory, rng = model(folder), random.Random(seed)
        path = directory / "model.safetensors"
        whole = path.read_bytes()
        (directory / "digests.json").unlink()               # it would see all of them
        config, raw = checkpoint.read_config(directory)
        end = 8 + int.from_bytes(whole[:8], "little")
        table = json.loads(whole[8:end])

        def files():
            for _ in range(n):
                how = rng.random()
                if how < 0.4:                               # the exponent of a value
                    data = bytearray(whole)
                    for _ in range(rng.choice((1, 1, 40))):
                        data[end + 4 * rng.randrange((len(whole) - end) // 4) + 3] = rng.choice(
                            (0x7E, 0x7F, 0xFE, 0x5F))
                    yield bytes(data)
                elif how < 0.8:
                    part = json.dumps(mutated(table, rng)).encode()
                    yield len(part).to_bytes(8, "little") + part + whole[end:]
                else:
                    yield scrambled(whole, rng)

        def read():
            files = checkpoint.stored(config, checkpoint.names, directory,
                                      checkpoint.stated_dtype(raw))
            found = GPT(config)
            checkpoint.load_weights(found, checkpoint.names(config), files, directory)
            generate(found, [[1, 50]], max_new_tokens=3, eos={2}, pad=0)

        return look("model.safetensors", path, files(), read)


def fuzz_run(n, seed=0):
    """config.json of a run: its settings, as far as a resume makes them."""
    rng = random.Random(seed)
    runs = [as_written(train.settings_of(["--algo", algo])) for algo in methods.names()]
    runs = [json.loads(json.dumps({**run, "workers": 1, "made_from": {}})) for run in runs]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"

        def files():
            for _ in range(n):
                yield from json_files(rng.choice(runs), 1, rng)

        return look("config.json of a run", path, files(),
                    lambda: train.resumed(["--resume", folder]))


def fuzz_state(n, seed=0):
    """A run's saved state: its bytes, and facts that are whole but those of no run."""
    rng = random.Random(seed)
    facts = {"step": 3, "tokens": 60, "workers": 1, "seconds": 1.5, "carried": {"baseline": 0.5},
             "before": {}, "learners": {"policy": [3, 0, 0]}, "made_from": {"torch": "2"},
             "settings": {"algo": "sft", "options": {}, "method": {}, "task": {}},
             "log": {"bytes": 10, "sha256": "0"}}
    tensors = {"learner/policy/weights": torch.arange(40.0)}
    with tempfile.TemporaryDirectory() as folder:
        path, other = Path(folder) / "state.safetensors", Path(folder) / "whole"
        tensor_file.save_state(path, tensors, facts)
        whole = path.read_bytes()

        def files():
            for _ in range(n):
                if rng.random() < 0.5:
                    yield scrambled(whole, rng)
                else:
                    tensor_file.save_state(other, tensors, mutated(facts, rng))
                    yield other.read_bytes()

        return look("state.safetensors", path, files(),
                    lambda: check_facts(path, *tensor_file.load_state(path)))


PIECES = ["Answer:", "17", " ", "\n", "-", "+", "=", "7+5=12", "4 9", "10-4=6:4 6", "(", ")",
          "*", "/", "\\boxed{", "}", "$", "**", "24", ".", "9" * 300, "\u2212", "\u00d7", "none",
          "ok", "no", "Paris", "\u0301", "\x00", "\ud7ff", "A", "1_0", "1e9", "0x1", "\u0661",
          "e", "if", "x", "\uff11", "\uff1a", "Answer**:"]


def pieced(rng):
    """A text that is nearly an answer."""
    return "".join(rng.choice(PIECES) for _ in range(rng.choice((0, 1, 2, 3, 5, 9, 40))))


def answering(name, n, seed, use):
    """Texts in a file, read by use(task, problem, text) of any task."""
    rng = random.Random(seed)
    made = [kind() for kind in TASKS.values()] + [
        TASKS["arithmetic"](direct=True), TASKS["countdown"](direct=True)]
    asked = [(task, task.sample(1, rng)[0]) for task in made]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answer.txt"

        def read():
            use(*rng.choice(asked), path.read_text(encoding="utf-8"))

        return look(name, path, (pieced(rng).encode() for _ in range(n)), read)


def fuzz_answers(n, seed=0):
    """What tasks read in an answer: `parse`, `reward`, `ballot`, `steps`, `check_steps`."""
    def use(task, problem, text):
        task.parse(text)
        task.ballot(text)
        columns = {name: [value] for name, value in problem.columns.items()}
        task.reward([problem.prompt], [text], **columns)
        if task.steps:
            task.check_steps(problem, text)

    return answering("answers", n, seed, use)


def fuzz_problems(n, seed=0):
    """What a user poses: `solve --problem`."""
    return answering("problems", n, seed,
                     lambda task, problem, text: task.pose(text) if task.pose else None)


def fuzz_damaged_rows(n, seed=0):
    """Rows of --data and --eval-data, with bytes, values and keys damaged."""
    record, before = Record("rows, two files", n), memory()
    found = fuzz_rows(n, seed, lambda said: record.crashes.append((0, said, b"")))
    record.opened, record.longest = n - found["refused"] - found["failures"], found["slowest"]
    record.memory, record.sentence = memory() - before, found["sentence"]
    return record


FUZZERS = {"config": fuzz_config, "generation": fuzz_generation, "tokenizer": fuzz_tokenizer,
           "weights": fuzz_weights, "run": fuzz_run, "state": fuzz_state, "answers": fuzz_answers,
           "problems": fuzz_problems, "rows": fuzz_damaged_rows}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="inputs of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FUZZERS, action="append", help="one reader; may repeat")
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    records = []
    for name in args.only or FUZZERS:
        record = FUZZERS[name](args.n, args.seed)
        records.append(record)
        print(record, flush=True)
        for number, said, data in record.crashes[:10]:
            print(f"  input {number}: {said}\n    {data[:300]!r}")
    if args.write:
        write(ROOT / "BENCHMARKS.md", "scripts.fuzz", [
            "## Hostile files and texts", "", machine(), "",
            f"`python -m scripts.fuzz --n {args.n} --seed {args.seed}`.  Valid inputs are damaged "
            "at random.  Each is opened, or refused in one sentence; all else is a crash.", "",
            *table(["reader", "inputs", "opened", "crashes", "slowest", "most memory",
                    "longest sentence"],
                   [[r.reader, f"{r.inputs:,}", f"{r.opened:,}", str(len(r.crashes)),
                     f"{r.longest:.2f} s", f"{r.memory:.0f} MB", f"{r.sentence} characters"]
                    for r in records])], command="python -m")
    return int(any(record.crashes for record in records))


if __name__ == "__main__":
    sys.exit(main())
