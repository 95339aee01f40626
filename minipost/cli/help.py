"""What --help prints: the docstring, then every option in words, in groups.

Plain text in the width of the terminal, so that a pipe, `less` and a screen of 40 columns read
alike.  The words of an option are the comment that stands behind its field.
"""

import inspect
import re
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

WIDEST, COLUMN = 100, 26  # of the text; where the words of an option begin
COMMENT = re.compile(r"^    (\w+): .*?  # (.*)$", re.MULTILINE)  # a field and its comment

GROUPS: Mapping[str, tuple[str, ...]] = {  # the options of a command; those in no group are "run"
    "model": ("model", "max_new_tokens", "temperature", "chat", "chat_template", "control_tokens",
              "system", "verifier", "dtype"),
    "reward": ("reward", "reward_timeout", "reward_model"),
    "adapters and prefixes": ("lora", "lora_alpha", "lora_targets", "lora_numbers",
                              "lora_budget", "base_bits", "prefix", "bottleneck", "merge"),
    "measurement": ("eval_n", "eval_every", "ask", "show", "n", "pass_at", "samples", "value",
                    "width", "branching"),
    "output": ("out", "save_every", "keep_rollouts", "rollout_format", "report", "log"),
    "speed and memory": ("device", "workers", "micro_batch_size", "gradient_checkpointing", "shard",
                         "sampler", "sampler_url"),
}


def words(cls: type):
    """{field: the comment behind it} of a dataclass and of those that it derives from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__dataclass_fields__" in vars(base):
            found |= dict(COMMENT.findall(textwrap.dedent(inspect.getsource(base))))
    return found


def kind(hint):
    """A type as a user reads it: INT, {adamw,muon}, [STR ...]."""
    if get_origin(hint) is Literal:
        return f"{{{','.join(get_args(hint))}}}"
    if get_origin(hint) is tuple:
        return f"[{kind(get_args(hint)[0])} ...]"
    return "{True,False}" if hint is bool else hint.__name__.upper()


def default(value):
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value)


def options_of(part, names=None):
    """[(flag and kind, words)] of the fields of a dataclass, or of those that are named."""
    hints, said = get_type_hints(type(part)), words(type(part))
    found = []
    for name in [f.name for f in fields(part)] if names is None else names:
        usual = default(getattr(part, name))
        found.append((f"--{name.replace('_', '-')} {kind(hints[name])}",
                      said.get(name, "") + (f" (default: {usual})" if usual else "")))
    return found


def grouped(part):
    """{group: [(flag and kind, words)]} of a command's options."""
    names, found = {f.name for f in fields(part)}, {}
    known = {name for group in GROUPS.values() for name in group}
    for group, wanted in [("run", [f.name for f in fields(part) if f.name not in known]),
                          *GROUPS.items()]:
        if there := [name for name in wanted if name in names]:
            found[group] = options_of(part, there)
    return found


def wrapped(text, width, indent="", first=""):
    return textwrap.fill(" ".join(text.split()), width, initial_indent=first or indent,
                         subsequent_indent=indent, break_on_hyphens=False,
                         break_long_words=False)


def prose(text, width):
    """A docstring in lines of this width.  What is indented stays as it is, such as an equation."""
    found = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = block.splitlines()
        kept = len(lines) > 1 and any(line.startswith(" ") for line in lines) or block[:1] == " "
        found.append(block if kept else wrapped(block, width))
    return "\n\n".join(found)


def page(usage, description, sections):
    """The whole help.  sections: {title: (sentence or "", [(flag and kind, words)])}"""
    width = min(WIDEST, shutil.get_terminal_size().columns)
    column = COLUMN if width >= 60 else 6
    parts = [wrapped(usage, width, " " * 7, "usage: "), prose(description, width)]
    for title, (sentence, rows) in sections.items():
        lines = [f"{title} options" + (":" if not sentence else "")]
        if sentence:
            lines = [wrapped(f"{title} options: {sentence}", width)]
        parts.append("\n".join(lines + listed(rows, width, column)))
    return "\n\n".join(parts)


def listed(rows, width, column):
    """Names with their words behind them, or below where a name is too long.  -> lines"""
    lines = []
    for name, text in rows:
        beside = len(name) + 4 <= column
        if not beside:
            lines.append(wrapped(name, width, "    ", "  "))
        first = f"  {name}".ljust(column) if beside else " " * column
        lines.append(wrapped(text, width, " " * column, first))
    return lines


def choice(prog, flag, titles, usages, description):
    """The help where no method is named: what there is to choose from.

    titles: {name: what it is}.  usages: what may stand behind the command.
    """
    width = min(WIDEST, shutil.get_terminal_size().columns)
    said = "\n".join(wrapped(f"{prog} {usage}", width, " " * 9, " " * 7 if k else "usage: ")
                     for k, usage in enumerate(usages))
    column = 4 + max(map(len, titles)) if width >= 60 else 6
    names = "\n".join([f"{flag} NAME, one of:", *listed(titles.items(), width, column)])
    return "\n\n".join([said, prose(description, width), names])
