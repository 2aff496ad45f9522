"""HTML by functions that escape text, so that no inserted text can act as markup.

A page is self-contained: its style is inside, its pictures are data URIs, and its policy forbids
the browser to run scripts or to fetch anything.
"""

from __future__ import annotations

import base64
import html
import struct
import unicodedata
import zlib
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
VOID_ELEMENTS = {"meta", "img", "line", "circle", "path", "polygon"}
"""Elements without content, closed by a slash as SVG needs it."""


class Html(str):
    """Text that is markup."""

    __slots__ = ()


Child = str | None
"""Markup (`Html`), text to escape, or nothing."""


def markup(*children: Child) -> Html:
    """Join children; text is escaped."""
    return Html(
        "".join(
            child if isinstance(child, Html) else html.escape(_printable(child))
            for child in children
            if child is not None
        )
    )


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """Return an element; `class_` is class, other `_` become `-`, None omits an attribute."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_printable(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID_ELEMENTS:
        return Html(f"<{name}{text}/>")
    return Html(f"<{name}{text}>{markup(*children)}</{name}>")


def section(title: str, *children: Child) -> Html:
    """Return a section with a title; empty if it has no content."""
    content = markup(*children)
    return tag("section", tag("h2", title), content) if content else content


def paragraph(*children: Child, class_: str | None = None) -> Html:
    """Return a paragraph."""
    return tag("p", *children, class_=class_)


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Child]],
    *,
    left: int = 1,
    marked: Iterable[int] = (),
    caption: str | None = None,
) -> Html:
    """Return a table that scrolls in a box of its own.

    Args:
        head: Titles of the columns.
        rows: Rows of cells.
        left: Number of first columns that hold words; the others hold numbers.
        marked: Numbers of the rows that are printed in bold.
        caption: Caption of the table.
    """
    strong = set(marked)

    def row(cells: Sequence[Child], name: str, class_: str | None = None) -> Html:
        return tag(
            "tr",
            *(
                tag(
                    name,
                    cell,
                    class_=None if column < left else "number",
                    scope="col" if name == "th" else None,
                )
                for column, cell in enumerate(cells)
            ),
            class_=class_,
        )

    body = [row(cells, "td", "marked" if i in strong else None) for i, cells in enumerate(rows)]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption) if caption else None,
            tag("thead", row(head, "th")),
            tag("tbody", *body),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or "table",
    )


def image(content: bytes, text: str, class_: str | None = None) -> Html:
    """Return a PNG that is embedded in the page."""
    return tag("img", src=data_uri(content, "image/png"), alt=text, class_=class_)


def figure(content: Html, caption: Child, class_: str | None = None) -> Html:
    """Return a figure with its caption."""
    return tag("figure", content, tag("figcaption", caption), class_=class_)


def badge(text: str, class_: str) -> Html:
    """Return a word that marks a row."""
    return tag("span", text, class_=f"badge {class_}")


def data_uri(content: bytes, kind: str) -> str:
    """Return content as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def page(title: str, *body: Child) -> Html:
    """Return a complete document."""
    style = files("pipelines.reports").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="igdit"),
        tag("title", title),
        tag("style", Html(style)),
    )
    document = tag("html", head, tag("body", tag("main", *body)), lang="en")
    return Html(f"<!doctype html>\n{document}\n")


def encode_png(pixels: Tensor) -> bytes:
    """Encode pixels as an 8-bit PNG.

    Args:
        pixels: uint8 (1, H, W) for gray, (3, H, W) for colour.

    Raises:
        ValueError: If there are not 1 or 3 channels.
    """
    channels, height, width = pixels.shape
    if channels not in (1, 3):
        raise ValueError(f"pixels must have 1 or 3 channels, but got {channels}")
    rows = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
    raw = b"".join(b"\0" + row.tobytes() for row in rows)  # 0: the row is not filtered
    color_type = 0 if channels == 1 else 2
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(raw, 9)),
            _chunk(b"IEND", b""),
        )
    )


def _printable(text: str) -> str:
    """Replace control characters, which HTML does not allow even when they are escaped."""
    return "".join(
        c
        if c in "\n\t" or not unicodedata.category(c).startswith("C")
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return b"".join(
        (
            struct.pack(">I", len(content)),
            name,
            content,
            struct.pack(">I", zlib.crc32(name + content)),
        )
    )
