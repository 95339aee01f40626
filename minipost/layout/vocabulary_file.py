"""The tokenizer of a model directory: its ids, what it puts before a prompt, its chat template."""

from pathlib import Path

import torch

from minipost import files
from minipost.chat import Template
from minipost.errors import MinipostError
from minipost.files import read_bytes
from minipost.tokenizer import BOS, EOS, PAD, Tokenizer, Vocabulary


def read_vocabulary(directory, raw, vocab_size, template=""):
    """The tokenizer of a directory; EOS and PAD come from generation_config or config.

    What stands before a prompt is what the tokenizer's template puts there.  A BOS that only
    config.json names is not put there by other tools either.  template: a file of a chat template
    instead of the model's.
    """
    tokenizer = Tokenizer.load(directory / "tokenizer.json")
    ids = stated_ids(directory, raw)
    bos, eos, pad = (ids.get(f"{kind}_token_id") for kind in ("bos", "eos", "pad"))
    eos, known = eos if isinstance(eos, list) else [eos], range(vocab_size)
    if not eos or not all(is_id(i, known) for i in eos):
        raise MinipostError(f"{directory}: eos_token_id is {str(eos)[:80]}; expected ids below "
                            f"{vocab_size}")
    if bos is not None and not is_id(bos, known):
        raise MinipostError(f"{directory}: bos_token_id is {str(bos)[:80]}; expected one below "
                            f"{vocab_size}")
    check_template(directory, tokenizer, known, (pad, bos, *eos))
    beyond = beyond_the_model(directory, tokenizer, vocab_size)
    # Masks come from lengths, so any id can fill the padding where a model names none.
    named = [pad] if is_id(pad, known) else []
    tokens = special_tokens(directory)
    end = tokenizer.id(tokens.get("eos_token", ""))
    own = read_template(Path(template), tokens) if template else None
    return Vocabulary(tokenizer, tokenizer.before, eos, (named or [0])[0], {*named, *beyond},
                      end if end in eos else eos[0], own or chat_template(directory, tokens),
                      own.sources["default"] if own else "")


def special_tokens(directory):
    """{"eos_token": its text, ...} as the files of the tokenizer name them for templates."""
    found = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        raw = files.read_json(directory / file) if (directory / file).exists() else {}
        for key, value in raw.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def read_template(path, tokens):
    """The Template of a file.  tokens: what it may name."""
    try:
        return Template({"default": read_bytes(path).decode()}, tokens, path)
    except UnicodeDecodeError:
        raise MinipostError(f"{path}: not UTF-8 text") from None


def chat_template(directory, tokens):
    """The model's chat Template, or None.  chat_template.jinja goes before tokenizer_config.json.

    tokens: what it may name.
    """
    path, side = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if path.exists():
        return read_template(path, tokens)
    found = files.read_json(side).get("chat_template") if side.exists() else None
    if isinstance(found, list):  # several by name
        found = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
    elif found is not None:
        found = {"default": found}
    if found is None:
        return None
    if "default" not in found or not all(isinstance(text, str) for text in found.values()):
        raise MinipostError(f"{side}: expected a text under 'chat_template', or a list of names "
                            "and templates with one called 'default'")
    return Template(found, tokens, side)


def unused(vocabulary, vocab_size):
    """Where no token has the id: (V,) bool, or None.

    Embeddings are often padded to a round number of rows.  What was never trained must not be
    drawn.
    """
    backend = vocabulary.tokenizer.backend
    free = set(range(vocab_size)) - set(backend.get_vocab().values()) - vocabulary.eos
    return torch.zeros(vocab_size, dtype=torch.bool).index_fill(
        0, torch.tensor(sorted(free)), True) if free else None


def stated_ids(directory, raw):
    """The keys of config.json, under those of generation_config.json."""
    side = directory / "generation_config.json"
    found = files.read_json(side) if side.exists() else {}
    return {**raw, **{key: value for key, value in found.items() if value is not None}}


def is_id(value, known):
    return type(value) is int and value in known


def check_template(directory, tokenizer, known, framing):
    """MinipostError unless the tokenizer's template puts known ids before a text, none behind."""
    path = directory / "tokenizer.json"
    if tokenizer.behind:
        raise MinipostError(f"{path}: its template puts {tokenizer.behind} behind every text; a "
                            "prompt would end before its answer, so take it out of post_processor")
    if not all(i in known for i in tokenizer.before):
        raise MinipostError(f"{path}: its template puts {tokenizer.before} before every text; "
                            f"expected ids below {len(known)}")
    side = directory / "tokenizer_config.json"
    ours = [tokenizer.id(token) for token in (PAD, BOS, EOS)]
    if (not tokenizer.before and ours == list(framing)
            and not (side.exists() and "add_bos_token" in files.read_json(side))):
        raise MinipostError(
            f"{path}: an earlier version of minipost wrote it without the template that puts {BOS} "
            "before a prompt; copy tokenizer.json and tokenizer_config.json from the model it was "
            "trained from, such as checkpoints/base")


def beyond_the_model(directory, tokenizer, vocab_size):
    """The tokenizer's ids for which the model has no row, which no text can contain.

    MinipostError where a text can contain one.
    """
    pieces = set(tokenizer.backend.get_vocab(with_added_tokens=False).values())
    beyond = {i for i in tokenizer.backend.get_vocab().values() if i >= vocab_size}
    bad = [i for i in beyond if i in pieces or i not in tokenizer.control]
    if bad:
        raise MinipostError(
            f"{directory}: the tokenizer has the id {max(bad)}, the model only {vocab_size} ids"
        )
    return beyond
