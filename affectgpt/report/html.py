"""HTML elements. Text is escaped unless it is `Html`, which only this module makes from text."""

from __future__ import annotations

import html
import re

_INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # not allowed in HTML
_VOID = frozenset(("img", "meta", "br"))


class Html(str):
    """Markup, as opposed to text."""

    __slots__ = ()


Child = object
"""Html, or text or a number that is escaped; None is left out."""


def text(value: object) -> Html:
    """A value as escaped text.

    >>> text("<script>alert('x')</script> & 难过")
    '&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; 难过'
    """
    return value if isinstance(value, Html) else Html(html.escape(_INVALID.sub("\ufffd", str(value))))


def el(name: str, /, *children: Child, **attributes: object) -> Html:
    """An element; `class_` is the attribute class, `aria_label` is aria-label, None and False leave an attribute out.

    >>> el("td", "a < b", None, el("b", 2), class_="x", hidden=False)
    '<td class="x">a &lt; b<b>2</b></td>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text("" if value is True else value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Elements and texts one after the other."""
    return Html("".join(text(child) for child in children if child is not None))


def table(
    caption: str,
    head: tuple[Child, ...],
    rows: list[tuple[Child, ...]],
    *,
    numbers_from: int = 1,
    class_: str | None = None,
) -> Html:
    """A table with a caption; the first cell of each row is its header, columns from `numbers_from` on are numbers."""
    if not rows:
        return Html("")

    def cell(name: str, place: int, child: Child, **attributes: object) -> Html:
        return el(name, child, class_="n" if place >= numbers_from else None, **attributes)

    body = [el("tr", *(cell("td", n, c) if n else el("th", c, scope="row") for n, c in enumerate(row))) for row in rows]
    top = el("tr", *(cell("th", n, c, scope="col") for n, c in enumerate(head)))
    made = el("table", el("caption", el("span", caption)), el("thead", top), el("tbody", *body), class_=class_)
    return el("div", made, class_="scroll", role="region", aria_label=caption, tabindex="0")


def sections(*parts: tuple[str, str, Html]) -> Html:
    """(id, heading, content) as sections with a list of links to them; empty ones are left out."""
    shown = [part for part in parts if part[2]]
    links = [el("li", el("a", heading, href=f"#{key}")) for key, heading, _ in shown]
    made = [el("section", el("h2", heading), content, id=key) for key, heading, content in shown]
    return join(el("nav", el("ul", *links), aria_label="Sections"), el("main", *made))
