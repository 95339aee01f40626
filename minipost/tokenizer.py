"""The tokenizer: byte-level BPE from the `tokenizers` library behind a small interface.

Digits and punctuation marks are always tokens of their own, so arithmetic is spelled out.  Letters
merge into frequent pieces.  The base alphabet is the 256 bytes, so any text survives the round
trip.  PAD, BOS and EOS are three different ids.  Text that merely looks like a control token is
encoded as plain text.
"""

from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from minipost.errors import MinipostError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


class Tokenizer:
    """Text to ids and back.  `vocab_size` counts all ids, the three control tokens included."""

    def __init__(self, backend):
        self.backend = backend
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.vocab_size = backend.get_vocab_size()

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
        return cls(backend)

    @classmethod
    def load(cls, path):
        """Open a tokenizer.json; MinipostError where it is missing or not a tokenizer."""
        if not Path(path).is_file():
            raise MinipostError(f"{path}: no such file; a model directory needs its tokenizer.json")
        try:
            return cls(Backend.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for anything malformed
            raise MinipostError(f"{path}: not a tokenizer that can be read ({error})") from None

    def id(self, token):
        """The id of a token by its exact name, or None."""
        return self.backend.token_to_id(token)

    def encode(self, text):
        """Ids of the text, without control tokens."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise MinipostError(
                f"text that is not valid Unicode (a lone surrogate?): {text[:40]!r}"
            ) from None

    def decode(self, ids):
        """The text of the ids; control tokens are left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


class Vocabulary:
    """A tokenizer with the ids that frame a sequence: bos (or None), the set eos, pad."""

    def __init__(self, tokenizer, bos, eos, pad):
        self.tokenizer, self.bos, self.eos, self.pad = tokenizer, bos, frozenset(eos), pad

    def prompt(self, text):
        """Ids of a prompt, BOS at the front."""
        return ([] if self.bos is None else [self.bos]) + self.tokenizer.encode(text)

    def response(self, text):
        """Ids of a response, EOS at the end."""
        return self.tokenizer.encode(text) + [min(self.eos)]

    def decode(self, ids):
        return self.tokenizer.decode(ids)

    def kind(self):
        """Equal for two vocabularies that give every text the same ids."""
        return self.tokenizer.backend.to_str(), self.bos, self.eos
