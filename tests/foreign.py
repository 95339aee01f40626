"""Tokenizers as other models have them, small and made here."""

import json

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIALS = [UNK, BOS, EOS]
LEARNT = ["7+5=? Answer: 12 and then we go on", "What is the capital of France?\nParis is it",
          "the answer is 12  two"] * 3
BYTES = [f"<0x{i:02X}>" for i in range(256)]
TEMPLATE = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B",
                                         special_tokens=[(BOS, 1)])


def old_llama():
    """Llama 2 and TinyLlama: a space is put before each text by the normalizer."""
    return sentencepiece(normalizers.Sequence([
        normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None)


def metaspace(scheme):
    """The same by a pre-tokenizer, as later versions write it."""
    return sentencepiece(None, pre_tokenizers.Metaspace("▁", scheme, split=False))


def sentencepiece(normalizer, pre_tokenizer):
    found = Backend(models.BPE(unk_token=UNK, fuse_unk=True, byte_fallback=True))
    if normalizer:
        found.normalizer = normalizer
    if pre_tokenizer:
        found.pre_tokenizer = pre_tokenizer
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                       decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    found.train_from_iterator(LEARNT, trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIALS, *BYTES], max_token_length=6,
        show_progress=False))
    raw = json.loads(found.to_str())
    raw["added_tokens"] = raw["added_tokens"][: len(SPECIALS)]   # the bytes are no control tokens
    found = Backend.from_str(json.dumps(raw))
    found.post_processor = TEMPLATE
    return found


def unigram(scheme="always"):
    found = Backend(models.Unigram())
    found.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme)
    found.decoder = decoders.Metaspace("▁", scheme)
    found.train_from_iterator([*LEARNT, "".join(map(chr, range(32, 127)))], trainers.UnigramTrainer(
        vocab_size=150, special_tokens=SPECIALS, unk_token=UNK, show_progress=False))
    found.post_processor = TEMPLATE
    return found


def bytelevel(digits=True, prefix=False, template=None):
    """SmolLM2 and GPT-2: bytes, and no BOS unless there is a template."""
    found = Backend(models.BPE())
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [*([pre_tokenizers.Digits(True)] if digits else []),
         pre_tokenizers.ByteLevel(add_prefix_space=prefix)])
    found.decoder = decoders.ByteLevel()
    found.train_from_iterator(LEARNT, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if template:
        found.post_processor = template
    return found


def llama3():
    """Llama 3: bytes, BOS by the second of two post-processors."""
    return bytelevel(template=processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                                   TEMPLATE]))


PREFIXED = {"old llama": old_llama, "first": lambda: metaspace("first"),
            "always": lambda: metaspace("always"), "unigram": unigram,
            "bytes with a space": lambda: bytelevel(False, prefix=True)}
PLAIN = {"smollm": bytelevel, "gpt2": lambda: bytelevel(False), "llama3": llama3,
         "never": lambda: metaspace("never")}


def write(directory, backend, tokenizer_class="PreTrainedTokenizerFast", vocab_size=400, **said):
    """Put the tokenizer's three files into a directory, beside a config.json without a model."""
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    (directory / "generation_config.json").write_text(json.dumps(ids))
    (directory / "config.json").write_text(json.dumps({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size,
        **ids}))
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": tokenizer_class, "bos_token": BOS, "eos_token": EOS, "unk_token": UNK,
        **said}))
    return directory
