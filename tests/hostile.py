"""Fifty texts that a model could write to take over the page or the terminal that shows them.

Each text that could run as script would write MARKER into the document's title. No text contains
MARKER, so it stands in a document only where something has run. The tests of the report and of the
console both read this list.
"""

MARKER = "minipost-was-here"
_RUN = "document.title='minipost-'+'was-here'"

TEXTS: tuple[str, ...] = (
    # HTML and script
    f"<script>{_RUN}</script>",
    f"</script><script>{_RUN}</script>",
    f"</style><script>{_RUN}</script>",
    f"</textarea></title><script>{_RUN}</script>",
    f"<SCRIPT>{_RUN}</SCRIPT >",
    f"<script\n>{_RUN}</script\n>",
    f"<scr<script>ipt>{_RUN}</scr</script>ipt>",
    f"<!--><script>{_RUN}</script>-->",
    f"<![CDATA[><script>{_RUN}</script>]]>",
    f"--><script>{_RUN}</script>",
    f"<script type=module>{_RUN}</script>",
    f"<noscript><p title=\"</noscript><img src=x onerror={_RUN}>\">",
    # event handlers, and quotes that close an attribute
    f"<img src=x onerror=\"{_RUN}\">",
    f"<img src=x onerror={_RUN}//",
    f"\"><img src=x onerror=\"{_RUN}\">",
    f"'><img src=x onerror='{_RUN}'>",
    f"\" onmouseover=\"{_RUN}\" x=\"",
    f"' autofocus tabindex=1 onfocus='{_RUN}' x='",
    f"` onclick=`{_RUN}`",
    f"<body onload=\"{_RUN}\">",
    f"<details open ontoggle=\"{_RUN}\">",
    f"<input autofocus onfocus=\"{_RUN}\">",
    f"<video><source onerror=\"{_RUN}\">",
    # SVG and MathML
    f"<svg onload=\"{_RUN}\">",
    f"<svg><script>{_RUN}</script></svg>",
    f"</text></svg><svg/onload=\"{_RUN}\">",
    f"<svg><animate onbegin=\"{_RUN}\" attributeName=x dur=1s>",
    f"<math><mtext></mtext><mglyph><style></math><img src=x onerror={_RUN}>",
    f"<svg><use href=\"data:image/svg+xml,<svg id='x' onload='{_RUN}'/>#x\"/></svg>",
    # addresses and frames
    f"<a href=\"javascript:{_RUN}\">the answer</a>",
    f"<iframe srcdoc=\"<script>parent.{_RUN}</script>\"></iframe>",
    f"<object data=\"data:text/html,<script>{_RUN}</script>\"></object>",
    "<meta http-equiv=\"refresh\" content=\"0;url=https://example.invalid/\">",
    "<base href=\"https://example.invalid/\"><link rel=stylesheet href=x>",
    "<form action=\"https://example.invalid/\"><button>go</button></form>",
    # CSS
    "<style>body{display:none}</style>",
    "red;background:url(https://example.invalid/x)",
    "</style><style>@import 'https://example.invalid/x';</style>",
    # templates
    "{{ 7 * 7 }} {% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{# hidden #}${7*7}#{7*7}<%= 7*7 %>",
    # entities and JSON
    f"&lt;script&gt;{_RUN}&lt;/script&gt; &#60;script&#62; &amp;lt;",
    f"\\u003cscript\\u003e{_RUN}\\u003c/script\\u003e \",\"x\":\"</script>",
    # line separators that end a line of JavaScript, NUL and other control characters
    f"a\u2028{_RUN}\u2029b",
    f"<scr\x00ipt>{_RUN}</scr\x00ipt>\x00",
    "bell\x07 back\x08\x08\x08\x08 delete\x7f next-line\x85 return\rover",
    # bidi controls and invisible characters
    "answer \u202e24\u202c is 42 \u2066\u2067x\u2069\u2069 \u200f\u200e\u061c",
    "in\u200bvis\u200dible\ufeff \u2060and\u00ad soft \U000e0041\U000e0042",
    # terminals: ANSI escapes, and rich's markup
    "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b]8;;https://x.invalid\x1b\\x\x1b]8;;\x1b\\ \x9b31m",
    "[bold red]loud[/bold red] [link=https://example.invalid]x[/link] [/] [/nothing] \\[x]",
    "[on red]\x1b[?1049h[blink]" + ":skull: [@click=app.bell]x[/]" + "\ud7ff\ufffe\uffff",
)
