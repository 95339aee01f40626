"""Small stand-ins that several test files share."""

import torch

from minipost.gpt import GPT, GPTConfig
from minipost.rollout import pack
from minipost.tasks.base import Problem, Task

PAD, BOS, EOS = 0, 1, 2


def tiny(vocab=11, kv=2, tied=True, seed=0, context=64):
    """A float64 GPT with grouped queries and weights large enough to be far from uniform."""
    model = GPT(GPTConfig(vocab, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                          num_attention_heads=4, num_key_value_heads=kv, head_dim=4,
                          max_position_embeddings=context, tie_word_embeddings=tied)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.4)
            if p.dim() == 1:
                p.add_(1.0)
    return model


def sequences(rows, seed=0, vocab=11):
    """Ragged prompts and responses of random ids, as Sequences."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(3, vocab, (n,), generator=generator).tolist()

    lengths = torch.randint(1, 6, (rows, 2), generator=generator).tolist()
    return pack([[BOS, *ids(p)] for p, _ in lengths], [[*ids(r), EOS] for _, r in lengths], PAD)


class Letters:
    """A vocabulary of single characters for toy tasks; ids 0, 1, 2 are PAD, BOS, EOS."""

    letters = "abcdefgh"
    pad, bos, eos, vocab_size = PAD, BOS, frozenset([EOS]), 11

    def prompt(self, text):
        return [BOS, *(3 + self.letters.index(c) for c in text)]

    def response(self, text):
        return [*(3 + self.letters.index(c) for c in text), EOS]

    def decode(self, ids):
        return "".join(self.letters[i - 3] for i in ids if i >= 3)


class Echo(Task):
    """Answer with the prompt's letter: half a point for it anywhere, more for nothing else."""

    name = "echo"

    def sample(self, n, rng):
        return [Problem(c, {"letter": c}) for c in rng.choices("abcd", k=n)]

    def heldout(self, n):
        return [Problem(c, {"letter": c}) for c in "abcd"][:n]

    def demonstrate(self, problem, rng):
        return problem.prompt * 2

    def parse(self, text):
        return text or None

    def reward(self, prompts, completions, letter, **columns):
        return [text.count(c) / max(3, len(text)) for text, c in zip(completions, letter)]
