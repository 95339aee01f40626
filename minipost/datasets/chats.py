"""Rows of chats: messages in the forms that files have, as Messages under the usual keys.

    {"messages": [{"role": "user", "content": "7+5?"}, {"role": "assistant", "content": "12"}]}

    {"prompt": [{"role": "user", "content": "7+5?"}]}      with completion, chosen and rejected as
                                                           lists too, or as strings
    {"chosen": [...], "rejected": [...]}                   the prompt is what both begin with
    {"conversations": [{"from": "human", "value": "7+5?"}, {"from": "gpt", "value": "12"}]}

`messages` is divided before the first turn of the assistant: what stands before it is the prompt,
the rest up to the assistant's last turn the completion.  `tools` (a list, or JSON of one) and
`chat_template_kwargs` (an object) are handed to the template.

`in_chat` makes chats of a task's problems: each prompt is the message of a user, or where the task
has conversations (`messages`) all that was said.
"""

import json
from copy import copy
from dataclasses import replace

from minipost.chat import ROLE, Messages
from minipost.datasets.prompts import ANSWERS

CHATS = ("messages", "conversations")
DEEPEST = 60  # lists and objects in each other, in a message
SPEAKERS = {"human": "user", "user": "user", "gpt": ROLE, "chatgpt": ROLE, "bot": ROLE,
            "model": ROLE, ROLE: ROLE, "system": "system", "tool": "tool", "function": "tool",
            "observation": "tool", "function_call": ROLE}

# What templates know as roles: those of all, and what some call a tool's or a document's words.
ROLES = ("system", "developer", "user", ROLE, "tool", "function", "observation", "ipython",
         "environment", "tool_call", "tool_response", "document", "documents", "context", "control")


def conversation(row):
    """The row, with Messages for its prompt and answers if it is a chat.

    ValueError says what is wrong.
    """
    lists = [key for key in ("prompt", *ANSWERS, *CHATS) if holds_turns(row.get(key))]
    whole = isinstance(row.get("prompt"), str) and any(isinstance(row.get(key), str)
                                                       for key in ANSWERS)
    if not lists or whole and set(lists) <= {*CHATS}:
        return row
    how = tools_of(row), options_of(row)
    turns = {key: turns_of(row[key], key) for key in lists}
    if {"chosen", "rejected"} <= turns.keys() and begins(turns["chosen"]) != ROLE:
        turns |= without_prompt(turns["chosen"], turns["rejected"])
    elif {*CHATS} & turns.keys() and "prompt" not in turns:
        parts = divided(turns.get("messages") or turns["conversations"])
        turns |= {"prompt": parts["prompt"]} if {*ANSWERS} & turns.keys() else parts
    for key in ("prompt", *ANSWERS):
        if key not in turns and isinstance(row.get(key), str):
            role = "user" if key == "prompt" else ROLE
            turns[key] = turns_of([{"role": role, "content": row[key]}], key)
    if "prompt" not in turns:
        raise ValueError(f"the answer under {lists[0]!r} has no prompt; expected one under "
                         "'prompt', or the whole conversation under 'messages'")
    found = {}
    for key in ("prompt", *ANSWERS):
        if key in turns:
            check_order(turns[key], key)
            found[key] = Messages(turns[key], *(how if key == "prompt" else ()))
    return row.but(found)


def holds_turns(value):
    """Whether a value is a message in one of the known forms, or a list that begins with one."""
    if isinstance(value, list):
        value = value[0] if value else None
    return isinstance(value, dict)


def turns_of(value, key):
    """The messages under a key as {"role", "content", ...}."""
    value = [value] if isinstance(value, dict) else value
    return [turn_of(each, f"message {k} under {key!r}") for k, each in enumerate(value, 1)]


def turn_of(turn, name):
    """A message, with its role under 'role' and its text under 'content'."""
    if not isinstance(turn, dict):
        raise ValueError(f"{name} is no object; expected 'role' and 'content'")
    turn = {key: value for key, value in turn.items() if value is not None}
    check_depth(turn, name)
    if "from" in turn and "role" not in turn:
        speaker = turn.pop("from")
        if not isinstance(speaker, str) or speaker.lower() not in SPEAKERS:
            raise ValueError(f"{name} is from {str(speaker)[:40]!r}; expected human, gpt, system "
                             "or tool")
        turn = {"role": SPEAKERS[speaker.lower()], "content": turn.pop("value", ""), **turn}
    if not isinstance(turn.get("role"), str):
        raise ValueError(f"{name} has no role; expected a string under 'role', found the keys "
                         f"{', '.join(map(str, turn))[:80] or 'none'}")
    if turn["role"] not in ROLES:
        meant = turn["role"].strip().lower()
        known = {**SPEAKERS, **{role: role for role in ROLES}}
        raise ValueError(f"{name} has the role {turn['role'][:40]!r}; expected " + (
            repr(known[meant]) if meant in known else
            f"{', '.join(ROLES[:5])} or another that templates know"))
    content = turn.get("content", "")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str)
                   for part in content):
            raise ValueError(f"{name} holds something that is no text; only text is read")
    elif not isinstance(content, str):
        raise ValueError(f"{name} has {str(content)[:40]!r} under 'content'; expected a string")
    if turn["role"] == ROLE and not content and not (turn.keys() - {"role", "content", "name"}):
        raise ValueError(f"{name} is an empty answer of the assistant; expected a text")
    return {**turn, "content": content}


def check_depth(value, name, most=DEEPEST):
    """ValueError where lists and objects stand in each other more than `most` times."""
    if isinstance(value, list | dict):
        if not most:
            raise ValueError(f"{name} has more than {DEEPEST} lists and objects in each other")
        for each in value.values() if isinstance(value, dict) else value:
            check_depth(each, name, most - 1)


def begins(turns):
    return turns[0]["role"]


def divided(turns):
    """{"prompt": ..., "completion": ...} of a whole conversation; no completion if none is there.

    What stands behind the assistant's last turn is left out, unless there is no such turn.
    """
    spoken = [k for k, turn in enumerate(turns) if turn["role"] == ROLE]
    if not spoken:
        return {"prompt": turns}
    return {"prompt": turns[: spoken[0]], "completion": turns[spoken[0] : spoken[-1] + 1]}


def without_prompt(chosen, rejected):
    """{"prompt", "chosen", "rejected"} of two conversations that begin alike."""
    k = 0
    while k < min(len(chosen), len(rejected)) and chosen[k] == rejected[k]:
        k += 1
    while k and chosen[k - 1]["role"] == ROLE:
        k -= 1
    if not k or k in (len(chosen), len(rejected)):
        raise ValueError("chosen and rejected are conversations that do not part at an answer; "
                         "expected the same messages and then different ones of the assistant")
    return {"prompt": chosen[:k], "chosen": chosen[k:], "rejected": rejected[k:]}


def check_order(turns, key):
    """ValueError unless a prompt ends before the assistant speaks, and an answer where it does."""
    if key == "prompt" and not turns:
        raise ValueError("the assistant speaks first; expected a message of a user before that")
    if key == "prompt" and turns[-1]["role"] == ROLE:
        raise ValueError("the prompt ends with a message of the assistant; expected the "
                         "assistant's turns under 'completion', or all under 'messages'")
    if key != "prompt" and {begins(turns), turns[-1]["role"]} != {ROLE}:
        raise ValueError(f"the messages under {key!r} begin or end with one of another than the "
                         "assistant; expected the assistant's answer")


def tools_of(row):
    """What stands under `tools`: a list of objects or functions in JSON, or None."""
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise ValueError("'tools' is a string that is no JSON; expected a list") from None
    if tools in (None, "", []):
        return None
    check_depth(tools, "'tools'")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"expected a list of objects under 'tools', found {str(tools)[:40]!r}")
    return tools


def options_of(row):
    """What stands under `chat_template_kwargs`: {name: value}."""
    options = row.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise ValueError("expected an object under 'chat_template_kwargs', found "
                         f"{str(options)[:40]!r}")
    check_depth(options, "'chat_template_kwargs'")
    if taken := options.keys() & {"messages", "tools", "add_generation_prompt"}:
        raise ValueError(f"'chat_template_kwargs' names {min(taken)!r}, which the row says itself")
    return options


def same_kind(rows):
    """A check that a row is a chat if most of these rows are, and else that it is none."""
    chats = sum(isinstance(row.get("prompt"), Messages) for row in rows)
    most = 2 * chats >= len(rows) and chats > 0

    def check(row):
        if isinstance(row.get("prompt"), Messages) != most:
            raise ValueError("expected messages, as most rows hold, found none" if most else
                             "the row holds messages, which most rows do not")
        return row
    return check


# ---- plain strings as chats

def as_chat(row):
    """A row of plain strings with Messages: the prompt by a user, the answers by the assistant."""
    return row.but({key: Messages.by("user" if key == "prompt" else ROLE, row[key])
                    for key in ("prompt", *ANSWERS) if isinstance(row.get(key), str)},
                   turn=row.turn, guess=row.guess)


def in_chat(task):
    """The task, with each prompt that it gives as the message of a user.

    So are the prompts in its other forms: a hint, a critique, a revision.
    """
    def posed(give):
        def wrapped(*args, **options):
            return mapped(give(*args, **options))
        return wrapped

    def spoken(form):
        return lambda *args: Messages.by("user", form(*args))

    def asked(problem):
        if task.messages is None:
            return Messages.by("user", problem.prompt)
        return Messages(task.messages(problem)[0], given=False)

    def mapped(found):
        if isinstance(found, dict):
            return {name: mapped(problems) for name, problems in found.items()}
        return [replace(p, prompt=asked(p)) for p in found]

    found = copy(task)
    if task.messages is not None:
        vars(found)["demonstrate"] = lambda problem, rng=None: Messages(
            task.messages(problem)[1], given=False)
    for name in ("sample", "heldout", "training", "splits"):
        if getattr(task, name) is not None:
            vars(found)[name] = posed(getattr(task, name))
    for name in ("hint", "critique", "revise"):
        if getattr(task, name) is not None:
            vars(found)[name] = spoken(getattr(task, name))
    return found
