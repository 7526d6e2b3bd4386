"""Elements of a page, and names made fit to be looked at.

Text enters a page only as text of an element or value of an attribute. The standard library's serializer escapes both,
so no name can become markup; ``el`` spells out what hides or reverses; ``shown`` takes the middle out of endless names.
"""

from xml.etree import ElementTree as ET

NAME_LIMIT = 200
"""Characters of a name that a page shows."""

Element = ET.Element


def el(tag: str, *children: Element | str, **attributes: str | float) -> Element:
    """Return an element; ``class_`` is the attribute ``class``, ``stroke_width`` is ``stroke-width``."""
    given = {key.rstrip("_").replace("_", "-"): _visible(str(value)) for key, value in attributes.items()}
    element = Element(tag, given)
    last: Element | None = None
    for child in children:
        if not isinstance(child, str):
            element.append(child)
            last = child
            continue
        text = child if tag == "style" else _visible(child)
        if last is None:
            element.text = (element.text or "") + text
        else:
            last.tail = (last.tail or "") + text
    return element


def serialized(element: Element) -> str:
    """Return an element as HTML."""
    return ET.tostring(element, encoding="unicode", method="html")


def name(text: str) -> Element:
    """Return a name from the model, kept apart from what is around it even where it is written from right to left."""
    return el("bdi", shown(text), class_="name")


def shown(text: str, limit: int = NAME_LIMIT) -> str:
    """Return a name with what cannot be seen spelled out, and the middle of a long one left out."""
    visible = shortened(_visible(shortened(text, limit)), limit)
    return visible if len(text) <= limit or limit < NAME_LIMIT else f"{visible} ({len(text):,} characters)"


def shortened(text: str, limit: int) -> str:
    """Return a text without its middle if it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    tail = limit // 2
    return f"{text[: limit - tail - 1]}…{text[-tail:]}"


def _visible(text: str) -> str:
    """Return a text with escapes in place of controls, of line ends and of marks that reverse or hide."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
