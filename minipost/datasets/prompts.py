"""Prompts of a file: where one ends, which question it asks, and which answers repeat it.

Where the prompt of a pair ends that has none.  It ends in what both texts begin with:

    1. behind the last mark there that an answer follows, such as "Assistant:" or "assistant:" at
       the start of a line, "Answer:" anywhere, or a chat template's <|im_start|>assistant, with the
       line breaks behind it
    2. else behind the last line break there
    3. else before the white space in front of the word in which the texts differ

Rules 2 and 3 guess; the run and the doctor say so and show an example.  A pair without such a place
is a bad row.

What is held out is decided by the question: the prompt with capitals, white space, Unicode's forms
(NFKC) and characters without width made alike.  A prompt and one that goes on by at most a third as
many words are one question if an end was guessed: the rest may be the first words of the answers.
A guess that is much shorter, such as "When", is no sign of that.  Without --eval-data one question
in ten is held out.  With it, rows of --data that ask one of its questions are left out, counted and
reported.  A held-out question counts once: further rows that ask it are counted and reported too.

An answer begins with its prompt where it says the whole prompt, which is more than one word, and
goes on.  One such mark may stand before that.  If at least nine of ten rows have answers that do,
nothing is trained: the prompt would be learnt as a part of every answer.  Fewer such rows are
counted and reported.
"""

import random
import re
from unicodedata import category, normalize

from minipost.tasks.base import is_held_out

ANSWERS = ("completion", "chosen", "rejected")  # the keys of a row's answers
NEARLY_ALL = 0.9  # of the rows, whose answers begin with their prompts


# ---- where a prompt ends

TURN = re.compile(                                          # what an answer follows, or a question
    r"(?P<answer>(?:^|\n)[#* ]*(?:A|(?i:Assistant|AI|Bot|Response|Output|TL;DR"
    r"|(?:Final )?Answer|答案))[* ]*[:：]\**"
    r"|\bAnswer[:：]|\[/INST\]|<start_of_turn>model|<\|im_start\|>assistant"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>|<[|｜][Aa]ssistant[|｜]>)"
    r"|(?:^|\n)[#* ]*(?:Q|(?i:Human|User|Instruction|Input|Question|问题))[* ]*[:：]"
    r"|\[INST\]|<start_of_turn>user|<\|im_start\|>user"
    r"|<\|start_header_id\|>user<\|end_header_id\|>|<[|｜][Uu]ser[|｜]>")


def common_length(a, b):
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def end_of_prompt(chosen, rejected):
    """(the length of the prompt in both, whether a mark says so).  0 where it cannot be told."""
    length = common_length(chosen, rejected)
    shared, last = chosen[:length], None
    for last in TURN.finditer(shared):
        pass
    if last and last["answer"]:
        end = last.end()
        while shared[end : end + 1] in ("\r", "\n"):
            end += 1
        return end, True
    rest = chosen[length:], rejected[length:]
    if not all(rest) or any(mark["answer"] for text in rest if last
                            for mark in TURN.finditer(text)):
        return 0, False  # one goes on where the other ends, or they differ in the question
    if "\n" in shared.lstrip():
        return shared.rindex("\n") + 1, False
    if shared[-1:].isspace():
        return len(shared.rstrip()), False
    return len(" ".join(shared.rsplit(None, 1)[:-1])), False


# ---- what is held out

def alike(text):
    """The text, spelt as all texts are that ask the same."""
    if not text.isascii():
        text = normalize("NFKC", "".join(c for c in normalize("NFKC", text)
                                         if category(c) != "Cf"))  # such as a zero width space
    return re.sub(r" (?=[.,;:?!])", "", " ".join(text.casefold().split()))


def questions(rows):
    """The question of each row: equal strings for prompts that ask the same."""
    plain = [alike(row["prompt"]) for row in rows]
    guessed = {text for text, row in zip(plain, rows) if row.guess}
    if not guessed:
        return plain
    whole, above = {}, []                                   # above: prompts that this begins with
    for words in sorted(text.split(" ") for text in set(plain) if text):
        while above and words[: len(above[-1])] != above[-1]:
            above.pop()
        text = " ".join(words)
        whole[text] = text
        for head in reversed(above):
            if 3 * (len(words) - len(head)) > len(head):
                break
            if text in guessed or " ".join(head) in guessed:
                whole[text] = whole[" ".join(head)]
                break
        above.append(words)  # sorted so, all that begin with a prompt stand right behind it
    return [whole.get(text, text) for text in plain]


def split(rows, tests):
    """(training rows, held-out rows).  No held-out question is trained on.

    tests: the rows to hold out, None for one question of `rows` in ten.
    """
    asked = questions([*rows, *(tests or ())])
    if tests is None:
        spelling = {}                                       # one for all of a question's spellings
        for question, row in zip(asked, rows):
            spelling[question] = min(row["prompt"], spelling.get(question, row["prompt"]))
        held = {question for question, prompt in spelling.items() if is_held_out([prompt])}
        pairs = [(q, row) for q, row in zip(asked, rows) if q in held]
    else:
        pairs = list(zip(asked[len(rows):], tests))
        held = {question for question, _ in pairs}
    # Each held-out question counts once, except that all rows with a label or a reward count.
    heldout = [row for _, row in pairs] if pairs and judged(pairs[0][1]) else list(
        dict(pairs).values())
    random.Random(0).shuffle(heldout)
    return [row for question, row in zip(asked, rows) if question not in held], heldout


def judged(columns):
    """Whether a row states a label or a reward."""
    return isinstance(columns.get("label"), bool) or (
        isinstance(columns.get("reward"), int | float))


# ---- answers that begin with their prompt

def repeats(row, keys=ANSWERS):
    """Whether all answers of a row say its whole prompt, of more than one word, and go on.

    The mark of a turn may stand before that.
    """
    def says(text):
        return text.startswith(prompt) and len(text) > len(prompt)

    prompt = row["prompt"].lstrip()
    answers = [row[key].lstrip() for key in keys if isinstance(row.get(key), str)]
    return bool(answers) and bool(prompt) and not prompt.strip().isalnum() and all(
        says(answer) or (mark := TURN.match(answer)) and says(answer[mark.end():].lstrip())
        for answer in answers)


def repetition(path, rows, repeated):
    """The sentence on rows whose answers begin with their prompts, `repeated` of all `rows`."""
    answer = next(repeated[0][key] for key in ANSWERS if key in repeated[0])
    return (f"{path}: in {len(repeated)} of {len(rows)} rows the answer begins with the whole "
            f"prompt ({repeated[0].at}: {answer[:40]!r}) and teaches it too")


def divided(rows):
    """A sentence on the rows whose prompts were guessed, or ""."""
    guessed = [row for row in rows if row.guess]
    if not guessed:
        return ""
    first = guessed[0]
    return (f"{len(guessed)} of {len(rows)} rows of {first.path} have no prompt; it is taken to "
            f"end in the last line or word that chosen and rejected share ({first.at}: "
            f"...{first['prompt'][-24:]!r} + {first['chosen'][:16]!r} or "
            f"{first['rejected'][:16]!r}); a key 'prompt' would say it")
