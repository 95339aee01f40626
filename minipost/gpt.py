"""The nano-GPT: a decoder-only transformer in the Llama layout, written out by hand.

    x   = embed[token]
    x  += Wo attention(rope(Wq n), rope(Wk n), Wv n),   n = rmsnorm(x)         once per layer
    x  += Wdown( silu(Wgate m) * (Wup m) ),             m = rmsnorm(x)         once per layer
    logits = Whead rmsnorm(x)                           Whead is embed when they are tied

RMSNorm is Zhang & Sennrich 2019 (arxiv.org/abs/1910.07467), rotary positions Su et al. 2021
(arxiv.org/abs/2104.09864, in the rotate-half form of Llama), SwiGLU Shazeer 2020
(arxiv.org/abs/2002.05202), grouped queries Ainslie et al. 2023 (arxiv.org/abs/2305.13245).
The three matrices that read the same input are stored as one (`qkv_proj`, `gate_up_proj`), which
saves small products; checkpoint.py cuts them apart into the names that Hugging Face uses.

Axes: B sequences, T positions, D hidden, H query heads, K key/value heads, R = H/K, E head width.

Sequences are padded on the right.  Attention looks only backwards, so no token ever sees the
padding and no mask is needed.  Ignore the outputs at padded positions.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from minipost.errors import MinipostError


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model, in the names of Hugging Face's LlamaConfig."""

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

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need pairs")


class Product(torch.autograd.Function):
    """y = x W^T through oneDNN:  dx = dy W,  dW = dy^T x.

    PyTorch calls MKL for float32 products.  On AMD processors with AVX-512, MKL runs at half of
    what the machine can do.  oneDNN does not, so a training step is a fifth faster with it.  The
    operator is PyTorch's but undocumented, so `product` checks that it exists.  The derivatives are
    made of differentiable products again, because second and forward derivatives need that.
    """

    @staticmethod
    def forward(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
        return Product.apply(grad.contiguous(), weight.t()), Product.apply(rows.t(), inputs.t())

    @staticmethod
    def jvp(ctx, dx, dweight):
        x, weight = ctx.saved_tensors
        return F.linear(dx, weight) + F.linear(x, dweight)


HAS_ONEDNN = (
    hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.mkldnn.is_available()
    and "AVX512" in torch.backends.cpu.get_cpu_capability()
)
NEVER = -1e9       # a logit whose probability is exactly 0, finite so that 0 times it is 0
ROTARY_ROWS = 512  # of the rotary table at first
FEW_ROWS = 256  # below this many rows oneDNN's products gain nothing


def product(x, weight):
    """x W^T by whichever way is faster.  (..., D), (V, D) -> (..., V)"""
    onednn = HAS_ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"
    if onednn and x.numel() >= FEW_ROWS * x.shape[-1]:
        return Product.apply(x, weight)
    return F.linear(x, weight)


class Linear(nn.Linear):
    """A matrix without a bias."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x):
        return product(x, self.weight)


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), over the last axis, computed in float32 or float64."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        # The norm's own kernel makes forward and backward a third faster than a mean of squares.
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.rsqrt(norm.square() / x.shape[-1] + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


def rotary_table(config, dtype, device, length=None):
    """cos and signed sin of the first positions' rotations, for `rotate`.  (P, E), (P, E)

    length: P, the model's whole context if None.

    Pair i of a head turns by position * theta^(-2i/E).  The sine carries the minus sign of the
    rotation in its first half, so that `rotate` needs no negation.
    """
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    place = torch.arange(length or config.max_position_embeddings, dtype=torch.float64)
    angle = torch.outer(place, config.rope_theta ** (-half / config.head_dim))
    cos, sin = angle.cos(), angle.sin()
    tables = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    return tuple(table.to(dtype).to(device) for table in tables)  # some devices have no float64


def rotate(x, cos, sin):
    """Turn each head's pairs (i, i + E/2) by their angle.  (..., E) -> (..., E)"""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; R query heads share a key/value head."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        wide = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = Linear(config.hidden_size, wide)
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden_size)

    def project(self, x, cos, sin):
        """Rotated queries, rotated keys, values.  (B, T, D) -> (B, H, T, E), (B, K, T, E) twice"""
        rows, length, _ = x.shape
        qkv = self.qkv_proj(x).view(rows, length, -1, self.head_dim).transpose(1, 2)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], 1)
        q, k = rotate(qk, cos, sin).split([self.heads, self.kv_heads], 1)
        return q, k, v

    def forward(self, x, cos, sin, explicit):
        """(B, T, D) -> (B, T, D), and the keys and values for a cache."""
        q, k, v = self.project(x, cos, sin)
        if explicit:
            mixed = explicit_attention(q, k, v)
        else:
            grouped = self.heads != self.kv_heads
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), k, v


def explicit_attention(q, k, v):
    """Softmax attention in plain operations, so that every kind of derivative exists.

    PyTorch's fused CPU kernel has neither double backward nor forward mode, which the
    Fisher-vector products of TRPO need.  (B, H, T, E), (B, K, T, E) twice -> (B, H, T, E)
    """
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    score = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])                  # (B, H, T, T)
    future = torch.ones(score.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return score.masked_fill(future, -math.inf).softmax(-1) @ v


class MLP(nn.Module):
    """SwiGLU: down( silu(gate x) * up x )."""

    def __init__(self, config):
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """One layer: attention, then the MLP, each on a normalised copy and added back."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, explicit):
        mixed, k, v = self.self_attn(self.input_layernorm(x), cos, sin, explicit)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class GPT(nn.Module):
    """The language model: `model(tokens)` gives logits, `hidden` and `head` are its two halves."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
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

        `explicit` computes attention in plain operations, for second and forward derivatives.
        `keep`, a list, receives each layer's keys and values.
        """
        length = tokens.shape[1]
        if length > self.config.max_position_embeddings:
            raise MinipostError(
                f"a sequence of {length} tokens does not fit the model's context of "
                f"{self.config.max_position_embeddings}"
            )
        cos, sin = self.rotary(length)
        x = F.embedding(tokens, self.embed_tokens.weight)                   # (B, T, D)
        for layer in self.layers:
            x, k, v = layer(x, cos[:length], sin[:length], explicit)
            if keep is not None:
                keep.append((k, v))
        return self.norm(x)

    def head(self, hidden):
        """Logits of the next token.  (..., D) -> (..., V)  Unused ids get no probability."""
        tied = self.config.tie_word_embeddings
        logits = product(hidden, self.embed_tokens.weight if tied else self.lm_head.weight)
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
        return self.score(self.trunk.hidden(tokens, explicit))[..., 0]


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

    def forward(self, tokens, explicit=False):
        """(B, T) -> (B, T)"""
        return (super().forward(tokens, explicit) - self.mean) / self.deviation
