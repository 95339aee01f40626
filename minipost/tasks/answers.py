r"""How every task reads an answer: strict about what is stated, generous about its spelling.

    answer     what stands behind the last "Answer:", up to the end of that line; the whole text if
               it has no "Answer:".  Later lines are not read.
    wrapping   **A**, $A$, $$A$$, `A`, \(A\), \[A\], \boxed{A} and \text{A} are A, one in another
               too.  **Answer:** A and **Answer: A** are Answer: A.
    full stop  one at the end does not count, inside the wrapping or outside.
    spaces     around an answer do not count.  A tab and the spaces of Unicode are spaces.
    minus      -, U+2010, U+2011, U+2012, the en dash U+2013, U+2212
    times      *, U+00D7, U+00B7, U+22C5, U+2217, \times, \cdot
    divided    /, U+00F7, U+2044, U+2215, \div

An answer has at most LONGEST characters.  What is left after this must be the answer and nothing
else.  Each task says in its own file what that may be.  A whole number is 0, 1, 2, ... of at most
nine digits 0-9 without leading zeros.  It may have a sign, and spaces behind that.
"""

import re

LONGEST = 200
MARKER = "Answer:"
WRAPPING = (("**", "**"), ("$$", "$$"), ("$", "$"), ("`", "`"), ("\\(", "\\)"), ("\\[", "\\]"),
            ("\\boxed{", "}"), ("\\text{", "}"))
SIGNS = str.maketrans({
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
    **dict.fromkeys("\u00d7\u00b7\u22c5\u2217", "*"),
    **dict.fromkeys("\u00f7\u2044\u2215", "/"),
    **dict.fromkeys("\t\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200b))),
                    " ")})
NATURAL = "(?:0|[1-9][0-9]{0,8})"  # int() takes quadratic time for a very long number
WHOLE = re.compile(rf"([+-]?) *({NATURAL})")


def spell(text):
    """The text with the signs + - * / and the spaces of ASCII for all that are read as these."""
    for sign, plain in (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/")):
        text = text.replace(sign, plain)
    return text.translate(SIGNS)


def unwrap(text):
    """The text without the wrapping and the spaces around it."""
    inner = text.strip()
    for start, end in WRAPPING:
        if inner.startswith(start) and inner.endswith(end) and len(inner) >= len(start + end):
            return unwrap(inner[len(start) : len(inner) - len(end)])
    return inner


def stated(text):
    """The answer that a text states, spelt in ASCII; "" if there is none.  Never raises."""
    before, marker, answer = text.rpartition(MARKER)
    if marker:
        answer = answer.partition("\n")[0]
        if before.endswith("**"):  # the marker stands in bold, alone or with the answer
            answer = answer.removeprefix("**") if answer.startswith("**") else f"**{answer}"
    answer = answer.strip()
    if len(answer) > LONGEST:
        return ""
    answer = unwrap(answer)
    return spell(unwrap(answer[:-1]) if answer.endswith(".") else answer)


def whole(answer):
    """The whole number that an answer, as `stated` gives it, is; None if it is none."""
    found = WHOLE.fullmatch(answer)
    return int(found[1] + found[2]) if found else None
