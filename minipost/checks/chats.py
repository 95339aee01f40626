"""Checks of chats before any training: the template, what is learnt of a conversation, the answers.

Each check is a function from texts and ids to a Finding, see model.py.
"""

from minipost.chat import Messages
from minipost.checks.model import NONE, OK, WARNING, Finding, of

FEW = 0.1   # up to this share of the answers, empty ones are no finding
SHOWN = 32  # characters of a stretch that is not learnt


def template_used(vocabulary, prompts):
    """A model with a chat template is asked in it."""
    name, chats = "chat template", [p for p in prompts if isinstance(p, Messages)]
    if vocabulary.template is None:
        return Finding(name, NONE, "the model has none")
    if not chats:
        return Finding(
            name, WARNING, f"the model has one, and {len(prompts)} prompts are plain strings, "
            "which are used as they are, without it", "the model is asked otherwise than in the "
            "chats that it was made for",
            "use --chat to make each prompt the message of a user, unless plain text is meant")
    text = vocabulary.tokenizer.decode(vocabulary.prompt(chats[0]), {})
    return Finding(name, OK, f"{len(chats)} prompts are written by it, such as {short(text)!r}")


def short(text, most=3 * SHOWN):
    """The text, without its middle if it is long."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2):]}"


def stretches(vocabulary, ids, learnt):
    """[(text, whether it is learnt)] of the stretches of ids that are alike in that."""
    found = []
    for i, yes in zip(ids, learnt):
        if not found or found[-1][1] != yes:
            found.append(([], yes))
        found[-1][0].append(i)
    return [(vocabulary.tokenizer.decode(part, {}), yes) for part, yes in found]


def assistant_turns(vocabulary, rows):
    """What is learnt of the rows: each turn of the assistant, with what ends it.

    rows: (ids up to the answer, ids of the answer, whether each of these is learnt), of chats.
    """
    name = "assistant turns"
    if not rows:
        return Finding(name, NONE, "there are no chats with answers to learn from")
    turns = ended = 0
    for _, ids, learnt in rows:
        last = [k for k, yes in enumerate(learnt) if yes and not (learnt[k + 1 :] or [0])[0]]
        turns += len(last)
        ended += sum(ids[k] in vocabulary.eos for k in last)
    before, ids, learnt = rows[0]
    shown = "".join(f"[[{short(text)}]]" if yes else short(text, SHOWN) for text, yes in
                    stretches(vocabulary, before + ids, [False] * len(before) + learnt))
    what = (f"learnt are {sum(sum(row[2]) for row in rows)} of "
            f"{sum(len(row[0]) + len(row[1]) for row in rows)} tokens, {turns} turns in "
            f"{len(rows)} rows, of which {ended} end in what ends a turn; in the first row what "
            f"stands in [[ ]]: {shown!r}")
    if ended < turns:
        return Finding(name, WARNING, what, "the policy does not learn to stop there",
                       "let the template's generation block hold what ends the turn")
    return Finding(name, OK, what)


def empty_answers(texts, finished):
    """Sampled answers say something.  finished: whether each ended by itself."""
    name, empty = "empty answers", sum(not text.strip() for text in texts)
    what = (f"{of(empty, len(texts), 'sampled answers')} are empty; "
            f"{sum(finished) / max(1, len(finished)):.0%} end by themselves")
    if empty > FEW * len(texts):
        return Finding(name, WARNING, what, "there is nothing to reward in them",
                       "ask an instruct model with --chat, or fine-tune first (--algo sft)")
    return Finding(name, OK, what)
