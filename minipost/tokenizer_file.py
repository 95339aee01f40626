"""What a tokenizer.json may say.

The `tokenizers` library panics on some descriptions, ends the process on others and fills the
memory on a third kind.  So a description is read here first.  Only parts that are listed in PARTS
pass, with the parameters that are listed there.  The docstring of each check of a parameter says
what is expected, in the words of the refusal.
"""

import base64
import binascii
import re
from math import prod

from minipost.errors import MinipostError

LONGEST = 2000       # characters of a pattern, a prefix and the like
LARGEST = 2**31 - 1  # the largest id
GROWTH = 100         # how much longer replacements may make a text
REPEATS = 10_000     # how often a pattern may repeat, all counts multiplied


def text(value):
    """a text of at most 2000 characters"""
    return isinstance(value, str) and len(value) <= LONGEST


def some_text(value):
    """a text of 1 to 2000 characters"""
    return text(value) and value != ""


def flag(value):
    """true or false"""
    return isinstance(value, bool)


def character(value):
    """a text of 1 character"""
    return isinstance(value, str) and len(value) == 1


def number(value):
    """a whole number from 0 to 2^31 - 1"""
    return type(value) is int and 0 <= value <= LARGEST


def few(value):
    """a whole number from 0 to 2000"""
    return number(value) and value <= LONGEST


def maybe(inner):
    def check(value):
        return value is None or inner(value)
    check.__doc__ = f"null or {inner.__doc__}"
    return check


def one_of(*values):
    def check(value):
        return isinstance(value, str) and value in values
    check.__doc__ = " or ".join(map(repr, values))
    return check


def nothing(value):
    """0 or null"""
    # Dropout would cut the same text into other tokens each time.
    return value is None or value == 0 and not isinstance(value, bool)


def pattern(value):
    """a String or Regex, not empty, that repeats at most 10,000 times"""
    if not (isinstance(value, dict) and len(value) == 1):
        return False
    (kind, said), = value.items()
    if kind == "Regex" and some_text(said):
        counts = [int("0" + n) for pair in re.findall(r"\{(\d*),?(\d*)\}", said) for n in pair]
        return prod(max(1, n) for n in counts) <= REPEATS
    return kind == "String" and some_text(said)


def charsmap(value):
    """base64 of a size and as many bytes"""
    try:
        raw = base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return False
    size = int.from_bytes(raw[:4], "little")
    return len(raw) > 4 and size % 4 == 0 and 4 + size <= len(raw)


def vocabulary(value):
    """an object of tokens and ids, each id once"""
    return (isinstance(value, dict) and all(map(number, value.values()))
            and len(set(value.values())) == len(value))


def scores(value):
    """a list of tokens, each with a number"""
    return isinstance(value, list) and len(value) > 0 and all(
        isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)
        and type(row[1]) in (int, float) for row in value)


def merges(value):
    """a list of pairs of tokens"""
    return isinstance(value, list) and all(
        (isinstance(row, str) and row.count(" ") == 1)
        or (isinstance(row, list) and len(row) == 2 and all(isinstance(x, str) for x in row))
        for row in value)


def special_tokens(value):
    """an object of tokens, each with its id, ids and tokens"""
    return isinstance(value, dict) and all(
        isinstance(row, dict) and row.keys() == {"id", "ids", "tokens"} and row["id"] == name
        and isinstance(row["ids"], list) and all(map(number, row["ids"]))
        and isinstance(row["tokens"], list) and all(map(text, row["tokens"]))
        and len(row["ids"]) == len(row["tokens"]) > 0
        for name, row in value.items())


def template(value):
    """a list of a Sequence and SpecialTokens"""
    return isinstance(value, list) and 0 < len(value) <= LONGEST and all(map(piece, value))


def piece(value):
    if not (isinstance(value, dict) and len(value) == 1):
        return False
    (kind, said), = value.items()
    return (isinstance(said, dict) and said.keys() == {"id", "type_id"} and few(said["type_id"])
            and (text(said["id"]) if kind == "SpecialToken" else
                 kind == "Sequence" and said["id"] in ("A", "B")))


BYTES = {"add_prefix_space": flag, "trim_offsets": flag, "use_regex": flag}
SPACES = {"replacement": character, "str_rep": character, "add_prefix_space": flag, "split": flag,
          "prepend_scheme": one_of("always", "first", "never")}
CUT = one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
PLAIN: dict = {}
# Part -> kind -> parameter -> what its value must be.  A Sequence is known in every part.
PARTS: dict[str, dict[str, dict]] = {
    "normalizer": {
        **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt",
                         "ByteLevel"), PLAIN),
        "Strip": {"strip_left": flag, "strip_right": flag},
        "Prepend": {"prepend": some_text},
        "Replace": {"pattern": pattern, "content": text},
        "BertNormalizer": {"clean_text": flag, "handle_chinese_chars": flag,
                           "strip_accents": maybe(flag), "lowercase": flag},
        "Precompiled": {"precompiled_charsmap": charsmap},
    },
    "pre_tokenizer": {
        **dict.fromkeys(("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts"),
                        PLAIN),
        "ByteLevel": BYTES, "Metaspace": SPACES,
        "Split": {"pattern": pattern, "behavior": CUT, "invert": flag},
        "Digits": {"individual_digits": flag}, "Punctuation": {"behavior": CUT},
        "CharDelimiterSplit": {"delimiter": character},
    },
    "post_processor": {
        "ByteLevel": BYTES,
        "TemplateProcessing": {"single": template, "pair": template,
                               "special_tokens": special_tokens},
    },
    "decoder": {
        **dict.fromkeys(("ByteFallback", "Fuse"), PLAIN),
        "ByteLevel": BYTES, "Metaspace": SPACES,
        "Replace": {"pattern": pattern, "content": text},
        "Strip": {"content": character, "start": few, "stop": few},
        "BPEDecoder": {"suffix": text}, "WordPiece": {"prefix": text, "cleanup": flag},
    },
    "model": {
        "BPE": {"dropout": nothing, "unk_token": maybe(text),
                "continuing_subword_prefix": maybe(one_of("")), "end_of_word_suffix": maybe(text),
                "fuse_unk": flag, "byte_fallback": flag, "ignore_merges": flag,
                "vocab": vocabulary, "merges": merges},
        "Unigram": {"unk_id": maybe(number), "vocab": scores, "byte_fallback": flag},
        "WordLevel": {"vocab": vocabulary, "unk_token": text},
        "WordPiece": {"unk_token": text, "continuing_subword_prefix": text,
                      "max_input_chars_per_word": few, "vocab": vocabulary},
    },
}
NEEDED = {"pattern", "content", "prepend", "single", "special_tokens", "vocab", "merges", "start",
          "stop", "replacement", "strip_left", "precompiled_charsmap"}
ENDS = ("BertProcessing", "RobertaProcessing")  # what they put behind a prompt would end it
INSIDE = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers",
          "post_processor": "processors", "decoder": "decoders"}
ADDED = {"id": number, "content": some_text, "special": flag, **dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized"), flag)}
SPLITTERS = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}  # they take the spaces away


def parts(raw, name):
    """The parts under this name, those of a Sequence one by one."""
    found = raw.get(name)
    if found is None:
        return []
    inside = INSIDE.get(name)
    if isinstance(found, dict) and found.get("type") == "Sequence" and inside:
        rows = found.get(inside)
        if not isinstance(rows, list) or found.keys() != {"type", inside}:
            raise MinipostError(f"its {name} is a Sequence of {', '.join(found)[:40]!r}; expected "
                                f"'type' and a list of {inside}")
        return [row for each in rows for row in parts({name: each}, name)]
    return [found]


def check(raw):
    """MinipostError, without the name of the file, unless all parts are known and harmless."""
    if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
        raise MinipostError("it has no model; expected an object under 'model'")
    for name, kinds in PARTS.items():
        for part in parts(raw, name):
            kind = part.get("type") if isinstance(part, dict) else None
            if name == "post_processor" and kind in ENDS:
                raise MinipostError(f"its {name} {kind} puts a token behind every text; write a "
                                    "TemplateProcessing of what stands before a prompt, or null")
            if not isinstance(kind, str) or kind not in kinds:
                raise MinipostError(f"its {name} is of the kind {str(kind)[:40]!r}; known are "
                                    f"{', '.join(kinds)}")
            missing = NEEDED & kinds[kind].keys() - part.keys()
            if missing:
                raise MinipostError(f"its {name} {kind} lacks {min(missing)!r}")
            for key, value in part.items():
                good = kinds[kind].get(key)
                if key != "type" and not (good and good(value)):
                    expected = good.__doc__ if good else f"only {', '.join(kinds[kind]) or 'type'}"
                    raise MinipostError(f"its {name} {kind} has {key[:40]!r}: {str(value)[:40]}; "
                                        f"expected {expected}")
    added = raw.get("added_tokens") or []
    if not isinstance(added, list):
        raise MinipostError(f"its added_tokens are {str(added)[:40]}; expected a list")
    for token in added:
        if not (isinstance(token, dict) and token.keys() == ADDED.keys()
                and all(ADDED[key](value) for key, value in token.items())):
            raise MinipostError(f"it has the added token {str(token)[:80]}; expected an object of "
                                f"{', '.join(ADDED)}")
    model = raw["model"]
    for row in model.get("merges", []):
        if "".join(row.split(" ") if isinstance(row, str) else row) not in model["vocab"]:
            raise MinipostError(f"its merge {str(row)[:80]} makes a token that it does not have")
    for name in ("normalizer", "decoder"):
        if growth(raw, name) > GROWTH:
            raise MinipostError(f"the replacements of its {name} make a text more than {GROWTH} "
                                "times as long")


def growth(raw, name):
    """How many times as long the replacements of this part make a text, at most."""
    found = 1.0
    for part in parts(raw, name):
        if part["type"] == "Replace":
            (kind, said), = part["pattern"].items()
            found *= max(1.0, len(part["content"]) / (len(said) if kind == "String" else 1))
        elif part["type"] == "Prepend":
            found *= 1 + len(part["prepend"]) / 10  # of a short text
    return found


def frame(raw):
    """(ids before, ids behind) a text, as the template of a tokenizer puts them there."""
    before, behind = [], []
    for part in parts(raw, "post_processor"):
        if part["type"] != "TemplateProcessing":
            continue
        kinds = [next(iter(each)) for each in part["single"]]
        if kinds.count("Sequence") != 1:
            raise MinipostError("its template does not hold the text once; expected one Sequence "
                                "in 'single'")
        known = part["special_tokens"]
        names = [each.get("SpecialToken", {}).get("id") for each in part["single"]]
        if not {name for name in names if name is not None} <= known.keys():
            raise MinipostError("its template names a token that it does not give; expected it "
                                "under 'special_tokens'")
        ids = [known[name]["ids"] if name is not None else [] for name in names]
        at = kinds.index("Sequence")
        before = [i for row in ids[:at] for i in row] + before
        behind += [i for row in ids[at:] for i in row]
    return before, behind


def rows(value, name, edit):
    """A part with each of its inner parts changed by edit(part), which gives None to drop it."""
    if value is None:
        return None
    if value["type"] == "Sequence":
        kept = [rows(each, name, edit) for each in value[INSIDE[name]]]
        return {**value, INSIDE[name]: [each for each in kept if each is not None]}
    return edit(value)


def inside_a_text(raw):
    """The description without what happens at the beginning of a text alone.

    Some tokenizers put a space before each text and take it away when they decode.  Text that goes
    on behind other text must get no such space, and lose none.
    """
    def first(part):
        if part["type"] == "Prepend":
            return None
        if part["type"] == "Strip" and "strip_left" in part:
            return {**part, "strip_left": False}
        if part["type"] == "Strip" and part["content"] == " ":
            return {**part, "start": 0}
        if part["type"] == "Metaspace":
            return {**{key: value for key, value in part.items() if key != "add_prefix_space"},
                    "prepend_scheme": "never"}
        return part

    def bytewise(part):
        return {**part, "add_prefix_space": False} if part["type"] == "ByteLevel" else first(part)

    splits = {part["type"] for part in parts(raw, "pre_tokenizer")} & SPLITTERS
    return {**raw, "normalizer": rows(raw.get("normalizer"), "normalizer", first),
            "pre_tokenizer": raw.get("pre_tokenizer") if splits else
            rows(raw.get("pre_tokenizer"), "pre_tokenizer", bytewise),
            "decoder": rows(raw.get("decoder"), "decoder", first)}
