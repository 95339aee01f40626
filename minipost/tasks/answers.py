r"""How every task reads an answer: strict about what is stated, generous about its spelling.

    answer     the first line with anything on it behind the last "Answer:"; what is left of the
               marker's own line is one.  Later lines are not read.  Without "Answer:", as where the
               prompt ends in it, the whole text; empty lines before and behind do not count.
    wrapping   **A**, $A$, $$A$$, `A`, \(A\), \[A\], \boxed{A} and \text{A} are A, one in another
               too.  **Answer:** A, **Answer**: A, **Answer: A** and the same with **Final Answer
               are Answer: A.  There is no space in front of the colon.
    full stop  one at the end does not count, inside the wrapping or outside.
    equals     one in front does not count.
    spaces     around an answer do not count.  A tab and the spaces of Unicode are spaces.
    fullwidth  forms (U+FF01 to U+FF5E) are the characters of ASCII, digits and colon too.
    minus      -, U+2010, U+2011, U+2012, the en dash U+2013, U+2212
    times      *, U+00D7, U+00B7, U+22C5, U+2217, \times, \cdot; x and X between numbers or
               parentheses, but not in 0x10
    divided    /, U+00F7, U+2044, U+2215, \div

An answer has at most LONGEST characters.  What is left after this must be the answer and nothing
else.  Each task says in its own file what that may be.  A whole number is 0, 1, 2, ... of at most
nine digits 0-9 without leading zeros.  It may have a sign, and spaces behind that.
"""

import re

LONGEST = 200
MARKER = re.compile(  # the group: the marker stands in bold with the answer
    r"\*\*(?:Final )?Answer:\*\*|Answer\*\*:|(?:(\*\*)(?:Final )?)?Answer:")
WRAPPING = (("**", "**"), ("$$", "$$"), ("$", "$"), ("`", "`"), ("\\(", "\\)"), ("\\[", "\\]"),
            ("\\boxed{", "}"), ("\\text{", "}"))
WIDE = {code + 0xfee0: code for code in range(0x21, 0x7f)}
SIGNS = WIDE | str.maketrans({
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
    **dict.fromkeys("\u00d7\u00b7\u22c5\u2217", "*"),
    **dict.fromkeys("\u00f7\u2044\u2215", "/"),
    **dict.fromkeys("\t\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200b))),
                    " ")})
TIMES = re.compile("(?:(?<=[1-9)])|(?<=[0-9]0)|(?<=[0-9)]) +)[xX] *(?=[0-9(])")
NATURAL = "(?:0|[1-9][0-9]{0,8})"  # int() takes quadratic time for a very long number
WHOLE = re.compile(rf"([+-]?) *({NATURAL})")


def spell(text):
    """The text with the signs + - * / and the spaces of ASCII for all that are read as these."""
    for sign, plain in (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/")):
        text = text.replace(sign, plain)
    return TIMES.sub("*", text.translate(SIGNS))


def unwrap(text):
    """The text without the wrapping and the spaces around it."""
    inner = text.strip()
    for start, end in WRAPPING:
        if inner.startswith(start) and inner.endswith(end) and len(inner) >= len(start + end):
            return unwrap(inner[len(start) : len(inner) - len(end)])
    return inner


def marked(text):
    """Whether a text says where its answer stands."""
    return MARKER.search(text.translate(WIDE)) is not None


def stated(text):
    """The answer that a text states, spelt in ASCII; "" if there is none.  Never raises."""
    *before, answer = MARKER.split(text.translate(WIDE))
    if before:
        answer = (before[-1] or "") + answer.lstrip().partition("\n")[0]
    answer = answer.strip()
    if len(answer) > LONGEST:
        return ""
    answer = unwrap(answer)
    answer = unwrap(answer[:-1]) if answer.endswith(".") else answer
    return spell(unwrap(answer.removeprefix("=")))


def whole(answer):
    """The whole number that an answer, as `stated` gives it, is; None if it is none."""
    found = WHOLE.fullmatch(answer)
    return int(found[1] + found[2]) if found else None
