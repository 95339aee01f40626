"""The nano-GPT: a decoder-only transformer in the Llama layout, written out by hand.

    x   = embed[token]
    x  += Wo attention(rope(Wq n), rope(Wk n), Wv n),   n = rmsnorm(x)         once per layer
    x  += Wdown( silu(Wgate m) * (Wup m) ),             m = rmsnorm(x)         once per layer
    logits = Whead rmsnorm(x)                           Whead is embed when they are tied

Other families of models change a little of it: families.py has the table.

This is what is computed.  minipost/engine/ says how: the pieces, where tokens stand, and a layer
with its derivative by hand, which is faster than what autograd makes of a Block.
The three matrices that read the same input are stored as one (`qkv_proj`, `gate_up_proj`), which
saves small products; checkpoint.py cuts them apart into the names that Hugging Face uses.

Axes: B sequences, T positions, D hidden, H query heads, K key/value heads, R = H/K, E head width.

Sequences are padded on the right.  Attention looks only backwards, so no token ever sees the
padding.  Ignore the outputs at padded positions.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from minipost.engine.block import block
from minipost.engine.functions import even, product, rms_norm, rotary_table, swiglu, turn
from minipost.engine.head import NEVER, WHOLE, adds_in_place, bytes_of_a_piece
from minipost.engine.packed import Packed, Padded, spans
from minipost.errors import MinipostError
from minipost.families import LLAMA, Family


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model, in the names of Hugging Face's LlamaConfig.

    family: what is different from Llama.
    """

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 344
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    family: Family = LLAMA

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need pairs")


ROTARY_ROWS = 512  # of the rotary table at first
# Room for a pass is this times what the layers keep: the way back makes tensors of its own, and
# answers that share a prompt each hold its keys and values.
AND_BACK = 2


class Linear(nn.Linear):
    """A matrix, in some families with a bias.  With LoRA it has an `adapter` (engine/lora.py)."""

    def __init__(self, inputs, outputs, bias=False):
        super().__init__(inputs, outputs, bias)
        self.adapter = None
        if bias:
            nn.init.zeros_(self.bias)

    def become(self, weight):
        """Be this matrix from now on, which does not learn.  (V, D)"""
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        found = product(x, self.weight)
        if self.adapter is not None:
            found = found + self.adapter(x)
        return found if self.bias is None else found + self.bias


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), over the last axis, computed in float32 or float64."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; R query heads share a key/value head.

    turned: how many heads rotate.  window: how many tokens a token sees, or None.
    """

    def __init__(self, config, layer=0):
        super().__init__()
        family, self.head_dim = config.family, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.turned = 0 if layer in family.unrotated else self.heads + self.kv_heads
        self.window, self.qk_norm = family.window(layer), family.qk_norm
        wide = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = Linear(config.hidden_size, wide, family.qkv_bias)
        if family.qk_norm:
            self.q_norm, self.k_norm = (
                RMSNorm(self.head_dim, config.rms_norm_eps) for _ in range(2))
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden_size)
        self.prefix = None  # keys and values before those of the text (engine/prefix.py)

    def project(self, x):
        """Queries, keys and values before they rotate.  (..., D) -> (..., H + 2K, E)"""
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        if not self.qk_norm:
            return qkv
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], -2)
        return torch.cat([self.q_norm(q), self.k_norm(k), v], -2)

    def forward(self, x, layout):
        """(..., D) -> (..., D)"""
        qkv = turn(self.project(x), layout.cos, layout.sin, self.turned)
        return self.o_proj(layout.attend(qkv, self.heads, self.kv_heads, self.window, self.prefix))


class MLP(nn.Module):
    """SwiGLU: down( silu(gate x) * up x )."""

    def __init__(self, config):
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.down_proj(swiglu(self.gate_up_proj(x)))


class Block(nn.Module):
    """One layer: attention, then the MLP, each on a normalised copy and added back."""

    def __init__(self, config, layer=0):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.after_attention = self.after_mlp = None  # adapters (engine/bottleneck.py)

    def forward(self, x, layout, pick=None):
        """(..., D) -> (..., D)  `pick` names the tokens that are wanted of it, all if None."""
        if not layout.explicit:
            return block(self, x, layout, pick)
        f = self.self_attn(self.input_layernorm(x), layout)
        x = x + (f if self.after_attention is None else self.after_attention(f))
        if pick is not None:
            x = x[pick]
        f = self.mlp(self.post_attention_layernorm(x))
        return x + (f if self.after_mlp is None else self.after_mlp(f))


class GPT(nn.Module):
    """The language model: `model(tokens)` gives logits, `hidden` and `head` are its two halves."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, k) for k in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self._rotary = None
        # Where no token has the id: (V,) bool, or None.  It moves with the model, and is not saved.
        self.register_buffer("unused", None, persistent=False)

    def initialise(self, seed):
        """New weights: N(0, 0.02), and 1/sqrt(2 layers) of that where a layer adds to x."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                adds = name.endswith(("o_proj.weight", "down_proj.weight"))
                shrink = math.sqrt(2 * len(self.layers)) if adds else 1.0
                nn.init.normal_(weight, std=0.02 / shrink, generator=generator)
        return self

    @property
    def device(self):
        return self.embed_tokens.weight.device

    @property
    def context(self):
        """The most tokens that a prompt and its response have together, BOS and EOS included."""
        return self.config.max_position_embeddings

    @property
    def bytes_per_token(self):
        """What the layers keep of each token in a training pass (tests/test_memory_table.py).

        With gradients recomputed: each layer's input, and all of one layer.
        """
        c, size = self.config, self.embed_tokens.weight.element_size()
        heads, kv = c.num_attention_heads, c.num_key_value_heads
        # x twice, queries, keys and values, what attention gives twice (in two orders), gate and
        # up; and in float32 the two norms' scales and each head's log-sum.
        layer = size * (2 * c.hidden_size + (3 * heads + 2 * kv) * c.head_dim
                        + 2 * c.intermediate_size) + 4 * (2 + heads)
        if c.family.qk_norm:  # queries, keys and values once more, and the heads' scales
            layer += size * (heads + 2 * kv) * c.head_dim + 4 * (heads + kv)
        if getattr(self.layers[0], "recompute", False):
            return size * c.num_hidden_layers * c.hidden_size + layer
        return c.num_hidden_layers * layer

    def tokens_within(self, memory, whole=False):
        """How many tokens a training pass may have, for so many bytes.

        whole: the pass keeps the logits of all of them, however many they are.
        """
        vocabulary, token = self.config.vocab_size, AND_BACK * self.bytes_per_token
        found = memory // (token + 4 * 6 * vocabulary)
        if whole or found * vocabulary <= WHOLE:
            return found
        return max(found, (memory - bytes_of_a_piece(vocabulary)) // token)

    def rotary(self, length):
        """The rotary table in the model's own type and on its device, of `length` rows or more.

        It grows as longer sequences come.  A context can be far longer than any of them.
        """
        weight = self.embed_tokens.weight
        if self._rotary is None or len(self._rotary[0]) < length or (
            self._rotary[0].dtype, self._rotary[0].device) != (weight.dtype, weight.device):
            rows = max(ROTARY_ROWS, 2 ** (length - 1).bit_length())
            self._rotary = rotary_table(self.config, weight.dtype, weight.device,
                                        min(rows, self.config.max_position_embeddings))
        return self._rotary

    def hidden(self, tokens, explicit=False, keep=None):
        """Final hidden states.  (B, T) -> (B, T, D)

        `explicit` computes all in plain operations, for second and forward derivatives.
        `keep`, a list, receives each layer's keys and values.
        """
        cos, sin = self.turns(tokens.shape[1])
        return self.through(tokens, Padded(cos, sin, explicit, keep))

    def hidden_at(self, tokens, where, prompts=None):
        """Final hidden states where `where` is true.  (B, T), (B, T) -> (N, D)

        They are in the order of where.nonzero().  What nothing there depends on is not computed.
        prompts: (B,) how many tokens of each row may be shared with other rows, as far as the
        first true place if None.
        """
        begins, ends = spans(where)                                         # (B,), (B,)
        longest = max(ends.tolist(), default=0)
        if not longest:
            return self.through(tokens, Padded(*self.turns(tokens.shape[1])))[where]
        packed = Packed(tokens, begins if prompts is None else torch.minimum(prompts, ends), ends)
        packed.rotated_by(*self.turns(longest))
        wanted, back = packed.places[where].unique(return_inverse=True)
        wanted = F.pad(wanted, (0, even(len(wanted)) - len(wanted)))
        return F.embedding(back, self.through(packed.tokens, packed, wanted))

    def turns(self, length):
        """The rotary table of so many positions.  MinipostError beyond the context."""
        if length > self.config.max_position_embeddings:
            raise MinipostError(
                f"a sequence of {length} tokens does not fit the model's context of "
                f"{self.config.max_position_embeddings}"
            )
        cos, sin = self.rotary(length)
        return cos[:length], sin[:length]

    def through(self, tokens, layout, pick=None):
        """Final hidden states of these tokens, all or those that `pick` names."""
        weight = self.embed_tokens.weight
        # Sparse: only the rows that were read are added to its gradient.
        x = F.embedding(tokens, weight, sparse=adds_in_place(weight) and not layout.explicit)
        for layer in self.layers:
            wanted = pick if layer is self.layers[-1] else None
            x = layer(x, layout, wanted)
        return self.norm(x)

    @property
    def head_weight(self):
        """The matrix of the head.  (V, D)"""
        tied = self.config.tie_word_embeddings
        return self.embed_tokens.weight if tied else self.lm_head.weight

    def head(self, hidden):
        """Logits of the next token.  (..., D) -> (..., V)  Unused ids get no probability.

        Whatever changes here changes in engine/head.py too, which computes it in pieces.
        """
        return self.known(product(hidden, self.head_weight))

    def known(self, logits):
        """Logits in which ids that no token has are impossible.  (..., V), as given"""
        return logits if self.unused is None else logits.masked_fill(self.unused, NEVER)

    def forward(self, tokens, explicit=False):
        """Logits of the token that follows each position.  (B, T) -> (B, T, V)"""
        return self.head(self.hidden(tokens, explicit))


class ValueHead(nn.Module):
    """A nano-GPT that gives one number per position: a value function, or a RewardModel.

    The head starts at zero, so a fresh critic predicts 0 and a fresh reward model is indifferent.
    """

    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk
        self.score = Linear(trunk.config.hidden_size, 1).to(trunk.embed_tokens.weight)
        nn.init.zeros_(self.score.weight)

    def forward(self, tokens, explicit=False):
        """(B, T) -> (B, T)"""
        return self.read(self.trunk.hidden(tokens, explicit))

    def at(self, tokens, where, prompts=None):
        """The numbers where `where` is true, as in GPT.hidden_at.  (B, T), (B, T) -> (N,)"""
        return self.read(self.trunk.hidden_at(tokens, where, prompts))

    def read(self, hidden):
        """(..., D) -> (...)"""
        return self.score(hidden)[..., 0]


class RewardModel(ValueHead):
    """A score of a prompt with its response, read at the last real token (rollout.final_score)."""

    def __init__(self, trunk):
        super().__init__(trunk)
        like = self.score.weight
        self.register_buffer("mean", torch.zeros((), dtype=like.dtype, device=like.device))
        self.register_buffer("deviation", torch.ones((), dtype=like.dtype, device=like.device))

    def normalise(self, scores):
        """Shift and scale so that these scores get mean 0 and deviation 1."""
        self.mean += self.deviation * scores.mean()
        self.deviation *= scores.std()

    def read(self, hidden):
        return (super().read(hidden) - self.mean) / self.deviation
