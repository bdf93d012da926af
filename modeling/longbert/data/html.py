"""HTML: the text of a page, without its markup.

The parser is Python's own, through Beautiful Soup: it needs no compiler, and reads on where lxml's stops at broken
markup.
"""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from bs4 import BeautifulSoup, NavigableString, Tag
from bs4.dammit import EncodingDetector

from ..arguments import FileArguments
from .files import DAMAGED, MARKS, open_bytes, wrong_encoding


UNSEEN = {"script", "style", "template", "noscript"}
INLINE = {  # elements within a line; all others have lines of their own
    *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i"),
    *("ins", "kbd", "label", "mark", "nobr", "q", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike"),
    *("strong", "sub", "sup", "time", "tt", "u", "var", "wbr"),
}
BLANKS = re.compile(r"[ \t\r\n\f]+")
AS_WRITTEN = {"pre", "textarea"}
# what browsers read under these names, as pages that name them are written
READ_AS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}


def read_html(file: Path, settings: FileArguments) -> str:
    """The text of a page, a line for each block.

    The encoding is the one that the file declares; where it declares none, the one of the settings, or UTF-8.

    Raises:
        ValueError: the file is damaged, or in another encoding.
    """
    try:
        with open_bytes(file) as stream:
            content = stream.read()
    except DAMAGED as error:
        raise ValueError(f"{file} is damaged, or not what its name says: {error}") from error
    try:
        encoding = _encoding_of(content, settings)
        return text_of(content.decode(encoding))
    except LookupError as error:
        raise ValueError(f"{file} declares an encoding that Python does not know: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(wrong_encoding(file, encoding)) from error


def _encoding_of(content: bytes, settings: FileArguments) -> str:
    marked = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    if marked:
        return marked
    declared = EncodingDetector.find_declared_encoding(content, is_html=True)
    name = codecs.lookup(declared or settings.encoding or "utf-8").name
    # a declaration that can be read as ASCII is in no UTF-16
    return "utf-8" if declared and name.startswith(("utf-16", "utf-32")) else READ_AS.get(name, name)


def text_of(page: str) -> str:
    """What a reader of a page sees: no scripts, styles and comments; lines where a browser begins them."""
    soup = BeautifulSoup(page, "html.parser")
    around: dict[int, _Around] = {id(soup): _Around(id(soup))}
    pieces: list[str] = []
    last = id(soup)
    for element in soup.descendants:
        outside = around[id(element.parent)]
        if isinstance(element, Tag):
            around[id(element)] = outside.within(element)
            pieces += ["\n"] if element.name in ("br", "hr") else []
        elif type(element) is NavigableString and not outside.unseen:  # comments and the like have types of their own
            pieces += ["\n"] if outside.block != last else []
            pieces.append(element if outside.as_written else BLANKS.sub(" ", element))
            last = outside.block
    lines = (line.strip(" ") for line in "".join(pieces).splitlines())
    return "\n".join(line for line in lines if line)


@dataclass(frozen=True)
class _Around:
    """What is around a text: the nearest element with lines of its own, whether it is seen, and with its blanks."""

    block: int
    unseen: bool = False
    as_written: bool = False

    def within(self, tag: Tag) -> "_Around":
        return _Around(
            id(tag) if tag.name not in INLINE else self.block,
            self.unseen or tag.name in UNSEEN,
            self.as_written or tag.name in AS_WRITTEN,
        )
