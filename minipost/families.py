"""The families of models: what each changes of Llama's layout.

    llama      nothing
    mistral    a token sees the last `sliding_window` tokens alone
    qwen2      queries, keys and values have biases; some layers may have a window
    qwen3      each head's queries and keys are normalised before they turn; windows as in qwen2
    smollm3    every fourth layer, or those that are named, does not rotate; windows as in qwen2

In all of them rotary positions may follow the rules linear, dynamic, llama3 and yarn, by which a
longer context fits (engine/rotary.py).

A family is a row of FAMILIES.  checkpoint.py reads rows, and gpt.py the Family that comes of a row
and a config.json; nothing else knows of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minipost.engine.rotary import Rope, usual_attention
from minipost.errors import MinipostError

LARGEST = 10**8  # largest number allowed in config.json; more would only exhaust the memory


@dataclass(frozen=True)
class Family:
    """What is different from Llama in one model.

    windows: of each layer, how many tokens a token sees, itself included, or None for all; () if
    no layer has one.  unrotated: the layers without rotary positions.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    unrotated: tuple[int, ...] = ()
    rope: Rope | None = None

    def window(self, layer):
        return self.windows[layer] if self.windows else None


LLAMA = Family()


# ---- what config.json says

def whole_number(raw, key, usual=None):
    """A size in config.json.  KeyError if it is missing and there is no usual one."""
    value = raw.get(key)
    if value is None:
        value = raw[key] if usual is None else usual
    if type(value) is not int or not 0 < value <= LARGEST:
        raise ValueError(f"{key} is {value!r:.40}; expected a whole number from 1 to 10^8")
    return value


def positive(raw, key, usual=None):
    """A number in config.json that need not be whole."""
    value = usual if raw.get(key) is None else raw[key]
    if type(value) not in (int, float) or not 0 < value <= LARGEST:
        raise ValueError(f"{key} is {value!r:.40}; expected a number above 0, at most 10^8")
    return float(value)


def switch(raw, key):
    """A key that is true or false; false where it is missing."""
    value = raw.get(key)
    if value is not None and type(value) is not bool:
        raise ValueError(f"{key} is {value!r:.40}; expected true or false")
    return bool(value)


def no_windows(raw, layers):
    if raw.get("sliding_window") not in (None, False):
        raise ValueError(f"sliding_window is {raw['sliding_window']!r:.60}; minipost's model of "
                         "this family has no such part")
    return ()


def same_window(raw, layers):
    """Mistral: all layers have it, or none."""
    if raw.get("sliding_window") is None:
        return ()
    return (whole_number(raw, "sliding_window"),) * layers


def switched_windows(raw, layers):
    """Those layers have it that layer_types names, or that the family's own rule does."""
    if not switch(raw, "use_sliding_window") or raw.get("sliding_window") is None:
        return ()
    window, kinds = whole_number(raw, "sliding_window"), raw.get("layer_types")
    if kinds is None and "max_window_layers" in raw:
        first = raw["max_window_layers"]
        if type(first) is not int or first < 0:
            raise ValueError(f"max_window_layers is {first!r:.40}; expected a number of layers")
        return tuple(window if k >= first else None for k in range(layers))
    if kinds is None:
        without = unrotated_layers(raw, layers)
        return tuple(window if k in without else None for k in range(layers))
    known = {"sliding_attention": window, "full_attention": None}
    if not isinstance(kinds, list) or len(kinds) != layers or not all(
            isinstance(kind, str) and kind in known for kind in kinds):
        raise ValueError(f"layer_types is {kinds!r:.60}; expected {layers} of {', '.join(known)}")
    return tuple(known[kind] for kind in kinds)


def all_rotate(raw, layers):
    return ()


def unrotated_layers(raw, layers):
    """SmolLM3: those with a 0 in no_rope_layers, or else the last of each interval."""
    turns = raw.get("no_rope_layers")
    if turns is None:
        interval = whole_number(raw, "no_rope_layer_interval")
        turns = [(k + 1) % interval != 0 for k in range(layers)]
    if not isinstance(turns, list) or len(turns) < layers or not all(
            type(each) in (int, bool) and each in (0, 1) for each in turns):
        raise ValueError(f"no_rope_layers is {turns!r:.60}; expected {layers} numbers, each 0 or 1")
    return tuple(k for k in range(layers) if not turns[k])


# ---- the table

@dataclass(frozen=True)
class Row:
    """A family.  name: how the names of its classes in transformers begin.

    missing: the values of keys that config.json leaves out.  theta: likewise, the rotary base.
    windows, unrotated: functions of config.json and the number of layers, as in Family.
    """

    name: str
    qkv_bias: bool = False
    qk_norm: bool = False
    windows: Callable[[dict, int], tuple] = no_windows
    unrotated: Callable[[dict, int], tuple] = all_rotate
    theta: float = 10000.0
    missing: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama": Row("Llama"),
    "mistral": Row("Mistral", windows=same_window,
                   missing={"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": Row("Qwen2", qkv_bias=True, windows=switched_windows,
                 missing={"num_key_value_heads": 32, "sliding_window": 4096,
                          "max_window_layers": 28}),
    "qwen3": Row("Qwen3", qk_norm=True, windows=switched_windows,
                 missing={"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096,
                          "max_window_layers": 28}),
    "smollm3": Row("SmolLM3", windows=switched_windows, unrotated=unrotated_layers, theta=2e6,
                   missing={"num_key_value_heads": 4, "tie_word_embeddings": True,
                            "no_rope_layer_interval": 4}),
}


def row_of(raw, path):
    """The row of a config.json.  MinipostError where the model is of no family that opens here."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        *others, last = FAMILIES
        raise MinipostError(f"{path}: model_type is {str(kind)[:40]!r}; minipost opens "
                            f"{', '.join(others)} and {last}")
    return FAMILIES[kind]


def family_of(row, raw, layers, rope):
    """The Family of a model whose config.json, with what is `missing`, is `raw`."""
    return Family(row.qkv_bias, row.qk_norm, row.windows(raw, layers), row.unrotated(raw, layers),
                  rope)


# ---- rotary rules

PLACES = ("rope_parameters", "rope_scaling")  # of transformers 5, and of 4
COMMON = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}
KEYS = {  # of each rule
    "default": {"factor", "original_max_position_embeddings"},
    "linear": {"factor", "original_max_position_embeddings"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor",
               "high_freq_factor"},
    "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow",
             "attention_factor", "truncate", "finetuned"},
}


def rotary(row, raw, path):
    """The rotary base, the rule (None: as the base says), and the context.

    The context is max_position_embeddings, or what linear and yarn say that they make of an
    original one, if that is more.  The rule `dynamic` changes nothing up to the context.  Beyond,
    it would turn keys that are read already otherwise, so that what a token sees would depend on
    the longest row beside it; as always, longer sequences are refused.
    """
    found = [raw.get(place) or {} for place in PLACES]
    if not all(isinstance(each, dict) for each in found):
        raise MinipostError(f"{path}: rope_parameters and rope_scaling must be objects or null")
    for each in (raw, *found):
        if each.get("partial_rotary_factor") not in (None, 1):
            raise MinipostError(f"{path}: partial_rotary_factor is "
                                f"{str(each['partial_rotary_factor'])[:40]}; only whole heads "
                                "are rotated here")
    rules = [rule(each, place, path) for each, place in zip(found, PLACES) if each]
    if len(rules) == 2 and rules[0] != rules[1]:
        raise MinipostError(f"{path}: rope_parameters says {rules[0]!r:.80} but rope_scaling "
                            f"{rules[1]!r:.80}")
    length = whole_number(raw, "max_position_embeddings")
    base = theta(row, raw, found[0], path)
    rope, length = stretched(rules[0] if rules else {}, raw, length)
    if rope is not None and rope.kind == "yarn" and base <= 1:
        raise ValueError(f"rope_theta is {base}; yarn needs more than 1")
    return base, rope, length


def theta(row, raw, parameters, path):
    """The rotary base, from the key of transformers 4 or of 5."""
    new, old = (positive(found, "rope_theta", row.theta) for found in (parameters, raw))
    stated = [found.get("rope_theta") is not None for found in (parameters, raw)]
    if all(stated) and old != new:
        raise MinipostError(f"{path}: rope_theta is {old} but rope_parameters says {new}")
    return new if stated[0] else old


def rule(found, place, path):
    """A rule as config.json states it, in the keys of transformers 5 and without its base."""
    kinds = [found[key] for key in ("rope_type", "type") if found.get(key) is not None]
    if not kinds and place == "rope_scaling":
        raise MinipostError(f"{path}: rope_scaling {found!r:.60} names no type")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in KEYS:
            *others, last = KEYS
            raise MinipostError(f"{path}: rotary scaling of type {str(kind)[:40]!r} is not "
                                f"supported; minipost knows {', '.join(others)} and {last}")
    if len({*kinds}) > 1:
        raise MinipostError(f"{path}: {place} has the type {kinds[1]!r} and the rope_type "
                            f"{kinds[0]!r}")
    kind = kinds[0] if kinds else "default"
    settings = {key: value for key, value in found.items()
                if value is not None and key not in COMMON}
    if spare := sorted(map(str, settings.keys() - KEYS[kind])):
        raise MinipostError(f"{path}: {place} of type {kind!r} has the key {spare[0][:40]!r}, "
                            f"which minipost does not know; it knows "
                            f"{', '.join(sorted(KEYS[kind]))}")
    return {"rope_type": kind, **({} if kind == "default" else settings)}


def stretched(said, raw, length):
    """The rule and the context that come of a stated rule and max_position_embeddings."""
    kind, stated = said.get("rope_type", "default"), said
    if kind in ("llama3", "yarn") and raw.get("original_max_position_embeddings") is not None:
        stated = raw  # the key beside the rule goes before
    original = whole_number(stated, "original_max_position_embeddings", length)
    if kind == "default":
        return None, length
    if kind == "llama3":
        low, high = positive(said, "low_freq_factor"), positive(said, "high_freq_factor")
        if low >= high:
            raise ValueError(f"high_freq_factor is {high}; expected more than low_freq_factor, "
                             f"which is {low}")
        return Rope(kind, positive(said, "factor"), original, low, high), length
    factor = positive(said, "factor")
    if kind == "dynamic":
        return None, length
    if stated.get("original_max_position_embeddings") is not None:
        length = max(length, min(LARGEST, int(factor * original)))
    if kind == "linear":
        return Rope(kind, factor), length
    return Rope(kind, factor, original, positive(said, "beta_slow", 1),
                positive(said, "beta_fast", 32), switch({"truncate": True, **said}, "truncate"),
                positive(said, "attention_factor", usual_attention(factor))), length
