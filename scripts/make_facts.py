r"""Write data/simple_tasks.jsonl: capitals, translations and two-digit sums, one object per line.

    python -m scripts.make_facts

    {"kind": "capital", "split": "train", "prompt": "What is the capital of France?\n",
     "completion": "Paris"}

Capitals come from data/capitals.tsv and translations from data/words.tsv, both written by hand.
They are all training rows: their purpose is memory, and there is nothing to generalise to.  If a
capital is contested, its row states what the country's own constitution or basic law says.  Of the
1,000 sums and differences, 800 are for training and 200 are held out.
"""

import json
import random
from pathlib import Path

from minipost.tasks.facts import hold_out

DATA = Path(__file__).resolve().parents[1] / "data"
LANGUAGES = ("french", "german", "spanish")
TRAIN, TEST, SEED = 800, 200, 0


def table(path, header):
    """The rows of a tab-separated file as tuples of strings.  Its first line must be `header`."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) != len(header) or not all(fields) or (number == 1 and fields != [*header]):
            raise ValueError(f"{path}:{number}: expected {' <tab> '.join(header)}, got {line!r}")
    return [tuple(line.split("\t")) for line in lines[1:]]


def row(kind, split, prompt, completion):
    """One line of the file.  Every prompt ends in a newline."""
    return {"kind": kind, "split": split, "prompt": prompt + "\n", "completion": completion}


def capitals():
    """One training row per country, in the order of the table."""
    return [row("capital", "train", f"What is the capital of {country}?", city)
            for country, city in table(DATA / "capitals.tsv", ("country", "capital"))]


def translations():
    """One training row per word and language, language by language."""
    words = table(DATA / "words.tsv", ("english", *LANGUAGES))
    return [row(language, "train", f'What is "{word[0]}" in {language.title()}?', word[column])
            for column, language in enumerate(LANGUAGES, 1) for word in words]


def arithmetic():
    """TRAIN rows, then TEST rows.  No pair of operands occurs twice with the same sign."""
    rng = random.Random(SEED)
    sums = [(a, b, sign) for a in range(10, 100) for b in range(10, a + 1)
            for sign in ("plus", "minus")]
    rng.shuffle(sums)
    held = [hold_out((a, b)) for a, b, _ in sums]
    train = [s for s, out in zip(sums, held) if not out][:TRAIN]
    test = [s for s, out in zip(sums, held) if out][:TEST]
    rows = []
    for i, (a, b, sign) in enumerate(train + test):
        # Here a >= b.  A difference keeps that order, to be non-negative.  A sum need not.
        x, y = (b, a) if sign == "plus" and rng.random() < 0.5 else (a, b)
        answer = a + b if sign == "plus" else a - b
        split = "train" if i < TRAIN else "test"
        rows.append(row("arithmetic", split, f"What is {x} {sign} {y}?", str(answer)))
    return rows


def render():
    """The whole file as text, the same on every run."""
    rows = capitals() + translations() + arithmetic()
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


if __name__ == "__main__":
    (DATA / "simple_tasks.jsonl").write_bytes(render().encode())
