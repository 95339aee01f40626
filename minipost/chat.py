"""Chats: messages, and the template of a model that makes one text of them.

    Messages    the turns of a prompt or of an answer; also a text, for people and for the split
    Turns       an answer without a template, in which others have a say
    Template    a model's chat_template, rendered as transformers renders it
    marked      messages in which no text reads as a control token

A template is a program that comes with a model.  It runs in jinja2's sandbox and sees JSON data
alone.  What is learnt of a conversation are the assistant's turns: what the template's own
`generation` blocks hold, where it has them.  Elsewhere a turn begins where the template asks for it
(`add_generation_prompt`) and ends with the first control token behind it.  A template that renders
a turn in another way than it asks for it is refused for that row.
"""

import json
import re
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property

from minipost.errors import MinipostError

ROLE = "assistant"
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing; the first is usual
MARKS = range(0xE000, 0xF8FF)  # characters for private use


class Messages(str):
    """Turns of a conversation: [{"role": ..., "content": ..., ...}].

    As a text it is the content of its only turn, or else all turns with their roles.  tools,
    options: what the template also gets, a list and a dict.  given: whether the user's row holds
    messages, which a reward function then gets as such.  more: text of a model behind a prompt.
    """

    turns: list
    tools: list | None
    options: dict
    given: bool
    more: str

    def __new__(cls, turns, tools=None, options=None, given=True, more=""):
        found = super().__new__(cls, transcript(turns, tools, options) + more)
        found.turns, found.tools, found.options = turns, tools, options or {}
        found.given, found.more = given, more
        return found

    @classmethod
    def by(cls, role, text):
        """One turn of a text that is no message in the user's row."""
        return cls([{"role": role, "content": text}], given=False)

    def __add__(self, text):
        return Messages(self.turns, self.tools, self.options, self.given, self.more + text)

    def __reduce__(self):
        return Messages, (self.turns, self.tools, self.options, self.given, self.more)

    @property
    def first(self):
        """The text of the first turn."""
        return words(self.turns[0])


class Turns(str):
    """An answer in parts: one of the model, one of somebody else, one of the model, and so on.

    The model learns its own.  Somebody else is a user, or a tool.  As a text it is all parts.
    """

    parts: list

    def __new__(cls, parts):
        found = super().__new__(cls, "".join(parts))
        found.parts = list(parts)
        return found

    def __reduce__(self):
        return Turns, (self.parts,)


def words(turn):
    """The text of a turn's content, which may be a list of parts."""
    content = turn.get("content")
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def transcript(turns, tools=None, options=None):
    """Turns as a text: equal for what a template renders alike."""
    rest = [{k: v for k, v in turn.items() if k not in ("role", "content")} for turn in turns]
    if len(turns) == 1 and not (tools or options or rest[0]):
        return words(turns[0])
    lines = [json.dumps({"tools": tools, **(options or {})})] if tools or options else []
    return "\n".join(lines + [f"{turn['role']}: {words(turn)}" + (json.dumps(more) if more else "")
                              for turn, more in zip(turns, rest)])


# ---- texts that look like control tokens

def marked(parts, tokens):
    """Messages with a mark inside each control token that their texts spell out.  -> parts, mark

    What the template itself writes has no mark.  tokens: the spelling of each control token.  The
    mark is "" where nothing is spelt out.
    """
    data = json.dumps([[part.turns, part.tools, part.options] for part in parts],
                      ensure_ascii=False)
    bare = [token for token in tokens if token in data or json.dumps(token)[1:-1] in data]
    if not bare:
        return parts, ""
    mark = next(chr(code) for code in MARKS if chr(code) not in data)
    spelt = re.compile("|".join(map(re.escape, sorted(bare, key=len, reverse=True))))

    def hide(value):
        if isinstance(value, str):
            return spelt.sub(lambda found: found[0][0] + mark + found[0][1:], value)
        if isinstance(value, list):
            return [hide(each) for each in value]
        if isinstance(value, dict):
            return {hide(key): hide(each) for key, each in value.items()}
        return value

    return [Messages(hide(part.turns), hide(part.tools), hide(part.options), part.given)
            for part in parts], mark


# ---- the template

class Template:
    """A model's template.

    sources: {name: text}, "default" and perhaps "tool_use".  names: the tokens that it may name,
    such as {"eos_token": "</s>"}.  place: where it stands, for a sentence.
    """

    def __init__(self, sources, names, place):
        self.sources, self.names, self.place = sources, names, place

    @cached_property
    def compiled(self):
        """{name: what renders}.  MinipostError where jinja2 is missing or a source is faulty."""
        environment = sandbox()
        try:
            return {name: environment.from_string(text) for name, text in self.sources.items()}
        except Exception as error:  # such as a TemplateSyntaxError
            raise self.fault(error) from None

    def fault(self, error):
        return MinipostError(f"{self.place}: the chat template says: "
                             f"{' '.join(str(error).split())[:160] or type(error).__name__}")

    def render(self, turns, tools=None, options=None, ask=False):
        """(text, spans of `generation` blocks).  ask: end where the assistant is to answer."""
        name = "tool_use" if tools and "tool_use" in self.sources else "default"
        template, spans = self.compiled[name], []
        turns = [alike(turn) for turn in turns]
        try:
            context = template.new_context({
                **self.names, "documents": None, **(options or {}), "messages": turns,
                "tools": tools or None, "add_generation_prompt": ask})
            blocks = []
            with template.environment.tracked(blocks, spans):
                for block in template.root_render_func(context):
                    blocks.append(block)
        except Exception as error:  # a template may raise anything, such as a ZeroDivisionError
            raise self.fault(error) from None
        return "".join(blocks), spans

    def asked(self, prompt):
        """The text of a prompt, up to where the assistant is to answer."""
        return self.render(prompt.turns, prompt.tools, prompt.options, ask=True)[0]

    def whole(self, prompt, answer, ending=""):
        """(text, [(first, end)] of the assistant's turns in the answer, in characters).

        ending: what ends a turn, such as "<|im_end|>".  MinipostError where a turn is not found.
        """
        turns, rest = prompt.turns + answer.turns, (prompt.tools, prompt.options)
        text, spans = self.render(turns, *rest)
        if self.tells:
            begin = common(text, self.asked(prompt))
            spans = [(start, end) for start, end in spans if end > max(start, begin)]
        else:
            spans = [self.span(text, turns, k, rest, ending)
                     for k in range(len(prompt.turns), len(turns)) if turns[k]["role"] == ROLE]
        if not spans:
            raise MinipostError(f"{self.place}: the chat template shows nothing of the assistant's "
                                f"turn {answer[:40]!r}")
        return text, spans

    @property
    def tells(self):
        """Whether it has `generation` blocks."""
        return any(re.search(r"\{%-?\s*generation\s*-?%\}", text)
                   for text in self.sources.values())

    def span(self, text, turns, k, rest, ending):
        """Where turn k stands in the whole text, with what ends it."""
        tools, options = rest
        before = self.render(turns[:k], tools, options, ask=True)[0]
        if not text.startswith(before):
            raise MinipostError(
                f"{self.place}: the chat template writes message {k + 1} of {len(turns)} in "
                f"another way ({text[common(text, before):][:30]!r}) than it asks for it "
                f"({before[common(text, before):][:30]!r}), so it cannot be told what the assistant"
                " says; use a template with `generation` blocks, or one answer in each row")
        behind = self.render(turns[: k + 1], tools, options)[0]
        start, end = len(before), len(text)
        if text.startswith(behind):
            end = len(behind)
            place = text.rfind(ending, start, end) if ending else -1
        else:
            place = text.find(ending, start) if ending else -1
        if place >= 0:
            return start, place + len(ending)
        return start, start + len(text[start:end].rstrip())

    def ending(self, tokens):
        """The control token with which the template ends the assistant's turn, or "".

        tokens: the spelling of each control token.
        """
        probe = "\ue000ANSWER\ue000"
        turns = [{"role": "user", "content": "?"}, {"role": ROLE, "content": probe}]
        behind = self.render(turns)[0].rpartition(probe)[2]
        found = {behind.find(token): token for token in sorted(tokens, key=len) if token in behind}
        return found[min(found)] if found else ""


def alike(turn):
    """A message with its reasoning under each of the names that templates use."""
    found = next((turn[name] for name in REASONING if turn.get(name) is not None), None)
    return turn if found is None else {"thinking": found, **turn, REASONING[0]: found}


def common(a, b):
    """How many characters two texts have in common at their beginning."""
    return next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


# ---- jinja2, as transformers sets it up

def sandbox():
    """The environment in which templates run.  MinipostError where jinja2 is missing or old."""
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MinipostError("a chat template needs jinja2, which is not installed; pip install "
                            "'jinja2>=3.1.6'") from None
    if [int(n) for n in re.findall(r"\d+", jinja2.__version__)[:3]] < [3, 1, 6]:
        raise MinipostError(f"a chat template needs jinja2 from 3.1.6 on, since the sandbox of "
                            f"earlier ones leaks; here is {jinja2.__version__}")

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}: what the assistant wrote."""

        tags = {"generation"}

        def __init__(self, environment):
            super().__init__(environment)
            environment.extend(tracked=self.tracked)
            self.blocks, self.spans = [], []

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("note")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def note(self, caller):
            text, start = caller(), len("".join(self.blocks))
            self.spans.append((start, start + len(text)))
            return text

        @contextmanager
        def tracked(self, blocks, spans):
            self.blocks, self.spans = blocks, spans
            yield

    class Namespace(jinja2.utils.Namespace):
        """A namespace without names that begin with an underscore."""

        def __init__(*args, **kwargs):  # so `self` may be a name in it
            given = dict(*args[1:], **kwargs)
            for name in given:
                public(name)
            jinja2.utils.Namespace.__init__(args[0], given)

        def __setitem__(self, name, value):
            public(name)
            super().__setitem__(name, value)

    def public(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")

    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                          extensions=[Generation, loopcontrols])
    found.filters["tojson"] = tojson
    found.globals |= {"raise_exception": refuse, "namespace": Namespace,
                      "strftime_now": lambda form: datetime.now().strftime(form)}
    return found
