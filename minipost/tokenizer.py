"""The tokenizer: BPE and its like from the `tokenizers` library behind a small interface.

Our own are byte-level.  Digits and punctuation marks are always tokens of their own, so arithmetic
is spelled out.  Letters merge into frequent pieces.  The base alphabet is the 256 bytes, so any
text survives the round trip.  PAD, BOS and EOS are three different ids.

What stands before a text is what the tokenizer's own template puts there: BOS, more or nothing.
Text that merely looks like a control token is encoded as plain text, unless it is asked for.  In a
chat the template's own control tokens are these tokens; what a message spells out is not.
"""

import json
import re
from functools import cached_property

from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from minipost.chat import Messages, Turns, marked
from minipost.errors import MinipostError
from minipost.files import parse_json, read_bytes
from minipost.tokenizer_file import check, frame, inside_a_text

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
PROBE = " a 12\n\u5317 <x>\x00"


class Tokenizer:
    """Text to ids and back.

    vocab_size: the number of ids, control tokens included.  control: id -> text of each control
    token.  before, behind: the ids that the template puts before and behind a text.
    """

    def __init__(self, backend, raw=None):
        raw = json.loads(backend.to_str()) if raw is None else raw
        inside = inside_a_text(raw)
        self.backend = backend
        self.inside = backend if inside == raw else Backend.from_str(json.dumps(inside))
        for each in (self.backend, self.inside):
            each.encode_special_tokens = True
            each.no_padding()
            each.no_truncation()
        self.before, self.behind = frame(raw)
        self.vocab_size = backend.get_vocab_size()
        self.control = {i: token.content for i, token in
                        backend.get_added_tokens_decoder().items() if token.special}

    @classmethod
    def train(cls, texts, vocab_size=512):
        """Learn merges from an iterable of texts.  The same texts give the same tokenizer."""
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(r"\p{N}|[^\p{L}\p{N}\s]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.post_processor = begin_with(BOS, backend.token_to_id(BOS))
        return cls(backend)

    @classmethod
    def load(cls, path):
        """Open a tokenizer.json; MinipostError where it is missing or not a tokenizer."""
        raw = parse_json(read_bytes(path), path)
        try:
            check(raw)
            raw |= {"padding": None, "truncation": None}
            tokenizer = cls(guarded(Backend.from_str, json.dumps(raw)), raw)
            for each in raw.get("added_tokens") or []:
                if tokenizer.id(each["content"]) != each["id"]:
                    raise MinipostError(f"its added token {each['content'][:40]!r} does not get "
                                        f"its id {each['id']}")
            for backend in (tokenizer.backend, tokenizer.inside):
                guarded(backend.decode, guarded(backend.encode, PROBE).ids)
        except MinipostError as error:
            raise MinipostError(f"{path}: cannot be read ({error}); fetch it again or choose "
                                "another model") from None
        return tokenizer

    def id(self, token):
        """The id of a token by its exact name, or None."""
        return self.backend.token_to_id(token)

    def encode(self, text, inside=False, control=False):
        """Ids of the text, without what the template adds.

        inside: the text goes on behind other text.  control: control tokens that it spells out are
        these tokens and not their characters.
        """
        backend = self.inside if inside else self.backend
        backend.encode_special_tokens = not control
        return guarded(backend.encode, text, add_special_tokens=False).ids

    def places(self, text, mark=""):
        """(ids of a text with control tokens, (first, end) of each one's characters in the text).

        mark: a character that keeps what it stands in from being a control token, or "".
        """
        if not mark:
            self.backend.encode_special_tokens = False
            found = guarded(self.backend.encode, text, add_special_tokens=False)
            return found.ids, found.offsets
        ids, places, rest = [], [], 0
        for match in [*re.finditer(self.spelling, text), None]:
            piece = text[rest : match.start() if match else None]
            kept = [k for k, c in enumerate(piece, rest) if c != mark]
            backend = self.backend if self.each or not ids else self.inside
            backend.encode_special_tokens = True
            found = guarded(backend.encode, piece.replace(mark, ""), add_special_tokens=False)
            ids += found.ids
            places += [(kept[a], kept[b - 1] + 1) if a < b else (rest, rest)
                       for a, b in found.offsets]
            if match:
                ids.append(self.id(match[match.lastgroup]))
                places.append(match.span())
                rest = match.end()
        return ids, places

    @cached_property
    def spelling(self):
        """Matches a control token in a text, with the spaces beside it that it takes."""
        tokens = sorted((each for each in self.backend.get_added_tokens_decoder().values()
                         if each.special), key=lambda each: -len(each.content))
        return re.compile("|".join(
            (r"\s*" if each.lstrip else "") + f"(?P<t{k}>{re.escape(each.content)})"
            + (r"\s*" if each.rstrip else "") for k, each in enumerate(tokens)))

    @cached_property
    def each(self):
        """Whether the text behind a control token begins as a text does, with a space perhaps."""
        token = next(iter(self.control.values()))
        return self.places(f"{token}x")[0][1:] == self.encode("x")

    def decode(self, ids, hidden=None):
        """The text of ids that go on behind others; the control tokens in `hidden` are left out.

        None: all of them.  A control token that is not hidden stands there as it is spelt.
        """
        hidden = self.control if hidden is None else hidden
        ids = [i for i in ids if i not in hidden]
        shown = [k for k, i in enumerate(ids) if i in self.control]
        if not shown:
            return self.plain(ids)
        ends = [*shown, len(ids)]
        return self.plain(ids[: ends[0]]) + "".join(
            self.control[ids[k]] + self.plain(ids[k + 1 : end]) for k, end in zip(shown, ends[1:]))

    def plain(self, ids):
        return guarded(self.inside.decode, ids, skip_special_tokens=True) if ids else ""


def begin_with(token, number):
    """The template that puts this token before every text."""
    return processors.TemplateProcessing(single=f"{token} $A", pair=f"{token} $A $B:1",
                                         special_tokens=[(token, number)])


def guarded(ask, given, **options):
    """Ask the library.  MinipostError for whatever it raises, its panics included."""
    try:
        return ask(given, **options)
    except TypeError:
        raise MinipostError(
            f"text that is not valid Unicode (a lone surrogate?): {given[:40]!r}") from None
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise MinipostError(f"the tokenizer's library says: {str(error)[:120]}") from None


def written(vocabulary, prompt, answer, **how):
    """(ids of a prompt, ids of its answer, whether each of these is learnt).

    how: options of `Vocabulary.prompt` and `response`.
    """
    if isinstance(answer, Messages):
        return vocabulary.conversation(prompt, answer, **how)
    if isinstance(answer, Turns):  # each is encoded alone, as it is sampled or put in
        pieces = [vocabulary.response(part, **how)[:-1] for part in answer.parts]
        learnt = [k % 2 == 0 for k, piece in enumerate(pieces) for _ in piece]
        return (vocabulary.prompt(prompt, **how),
                [*sum(pieces, []), *vocabulary.response("", **how)], [*learnt, True])
    ids = vocabulary.response(answer, **how)
    return vocabulary.prompt(prompt, **how), ids, [True] * len(ids)


class Vocabulary:
    """A tokenizer with what frames a sequence.

    before: the ids that stand before every prompt, none where the tokenizer puts none.  eos: the
    ids that end a response.  pad: the id that fills padding.  named: further ids that are no text,
    such as a BOS that is not put before prompts.  end: the id that is written behind an answer, the
    smallest of eos if None.  template: the model's chat template, or None.
    given: the text of a chat template that the user gave instead of the model's, or "".
    """

    def __init__(self, tokenizer, before, eos, pad, named=(), end=None, template=None,
                 given=""):
        self.tokenizer, self.before, self.pad = tokenizer, list(before), pad
        self.eos = self.stated = frozenset(eos)
        self.named, self.end = frozenset(named), min(self.eos) if end is None else end
        self.template, self.given, self.ending = template, given, ""

    @property
    def frame(self):
        """The control tokens that are put where they belong: no text holds them.  A set of ids."""
        return {*self.before, *self.eos, *self.named} & self.tokenizer.control.keys()

    @property
    def chat(self):
        """The chat template.  MinipostError where the model has none."""
        if self.template is None:
            raise MinipostError("messages need a chat template, and this model has none: neither "
                                "chat_template.jinja nor chat_template in tokenizer_config.json; "
                                "put one into its directory, or write each prompt as one string")
        return self.template

    def begin_chat(self):
        """Let answers end as the template ends them.

        MinipostError where the model has no template, or it cannot be used.
        """
        self.ending = self.chat.ending(self.tokenizer.control.values())
        if self.ending:
            self.end = self.tokenizer.id(self.ending)
            self.eos |= {self.end}

    def prompt(self, text, control=False):
        """Ids of a prompt, with what the tokenizer's template puts before it.

        Messages are written as the chat template has them, up to where the assistant is to answer.
        control: control tokens that the text spells out are these tokens.
        """
        if not isinstance(text, Messages):
            return self.before + self.tokenizer.encode(text, control=control)
        (plain,), mark = marked([text], () if control else self.tokenizer.control.values())
        ids, _ = self.tokenizer.places(self.chat.asked(plain), mark)
        return ids + (self.tokenizer.encode(text.more, inside=True) if text.more else [])

    def response(self, text, control=False):
        """Ids of a response to a prompt, EOS at the end."""
        return self.tokenizer.encode(text, inside=True, control=control) + [self.end]

    def conversation(self, prompt, answer, control=False):
        """(ids up to the answer, ids of the answer, whether each of these is learnt) of Messages.

        Learnt is what the assistant says, with what ends its turns.
        """
        tokens = () if control else self.tokenizer.control.values()
        (asked, said), mark = marked([prompt, answer], tokens)
        text, spans = self.chat.whole(asked, said, self.ending)
        ids, places = self.tokenizer.places(text, mark)
        learnt = [any(a < end and b > start for start, end in spans) for a, b in places]
        first, last = learnt.index(True), len(learnt) - learnt[::-1].index(True)
        ids, learnt = ids[:last], learnt[:last]
        if not self.ending:
            ids, learnt = [*ids, self.end], [*learnt, True]
        return ids[:first], ids[first:], learnt[first:]

    def decode(self, ids):
        """The text of a response.  It shows control tokens, except BOS, EOS and PAD."""
        return self.tokenizer.decode(ids, self.frame)

    def spelt(self, text):
        """The control tokens that a text spells out, in the order of their first place."""
        found = {text.find(token): token for token in self.tokenizer.control.values()
                 if token in text}
        return [found[place] for place in sorted(found)]

    def complaint(self, text, control_tokens):
        """What is wrong with a text of the user's data: the end of a sentence, or "".

        control_tokens: how the text is read, "tokens" or "plain"; "stop" if nobody said it.
        """
        for token in self.spelt(text) if control_tokens != "plain" else []:
            if self.tokenizer.id(token) in self.frame:
                return (f"spells out {token!r}, which is put where it belongs anyway; take it out, "
                        "or say --control-tokens plain to have its characters")
            if control_tokens == "stop":
                return (f"spells out the control token {token!r}; say --control-tokens tokens to "
                        "have it as that token, or --control-tokens plain to have its characters")
        return ""

    def kind(self):
        """Equal for two vocabularies that give every text the same ids."""
        raw = json.loads(self.tokenizer.backend.to_str())
        parts = ("added_tokens", "normalizer", "pre_tokenizer", "model")
        return json.dumps([raw[name] for name in parts]), tuple(self.before), self.stated


def unlike(one, other):
    """In what two vocabularies are not of one kind, as a part of a sentence; else ""."""
    (*texts, ends), (*others, last) = one.kind(), other.kind()
    if texts != others:
        return "texts have other ids"
    return "" if ends == last else (f"answers end with {sorted(ends)} and with {sorted(last)} "
                                    "(eos_token_id)")
