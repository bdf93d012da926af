"""Words: those of scripts that write no spaces between them are found by a segmenter that the user names."""

import functools
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass


# letters of scripts without spaces between words: Han, kana, bopomofo, Thai, Lao, Tibetan, Burmese, Khmer
UNSPACED_LETTERS = (
    "\u2e80-\u2fdf\u3005-\u3007\u3031-\u3035\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0f40-\u0fbc\u1000-\u103f\u1780-\u17d3"
)
UNSPACED = re.compile(f"[{UNSPACED_LETTERS}]")
SINGLE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")  # always a piece of its own
CONTINUES = "##"  # WordPiece's mark of a piece that continues a word


@dataclass(frozen=True)
class Segmenter:
    """The function of a package that divides a text into words; it travels to loader workers by its name.

    Args:
        name: `package:function`, such as pythainlp.tokenize:word_tokenize; without a function, its `cut`.

    Raises:
        ValueError: the package is not installed, or has no such function.
    """

    name: str

    def __post_init__(self) -> None:
        _find(self.name)

    def __call__(self, text: str) -> Iterable[str]:
        """The words of a text, in order."""
        return _find(self.name)(text)


@functools.cache
def _find(name: str) -> Callable[[str], Iterable[str]]:
    module, _, function = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        advice = "pip install 'longbert[chinese]'" if module == "rjieba" else f"install the package {module}"
        raise ValueError(f"word_segmenter {name!r} cannot be imported ({error}): {advice}") from error
    except ValueError as error:
        raise ValueError(f"word_segmenter must be package or package:function, got {name!r}") from error
    segmenter = getattr(found, function or "cut", None)
    if not callable(segmenter):
        raise ValueError(f"word_segmenter {name!r}: {module} has no function {function or 'cut'!r}")
    return segmenter


def is_unspaced(text: str) -> bool:
    """Whether a text begins with a letter of a script without spaces."""
    return bool(UNSPACED.match(text))


def continues_word(pieces: Sequence[str], segmenter: Callable[[str], Iterable[str]] | None = None) -> list[bool]:
    """Whether each WordPiece of a text belongs to the same word as the one before.

    The words of scripts without spaces are the segmenter's: ## says nothing there, for Chinese letters stand alone
    and Thai ones go on to the next blank. All others are told by ##.

    Raises:
        ValueError: the segmenter gives words that are not the text's.
    """
    marked = [piece.startswith(CONTINUES) for piece in pieces]
    if segmenter is None:
        return marked
    letters = [piece.removeprefix(CONTINUES) for piece in pieces]
    unspaced = [is_unspaced(each) for each in letters]
    text, starts = "", []
    for piece, is_word, continues in zip(letters, unspaced, marked, strict=True):
        # a comma or an English word divides words, and so did a blank, which shows where no Han letter stands alone
        if not is_word or not (continues or SINGLE.match(piece) or SINGLE.match(text[-1:])):
            text += " "
        starts.append(len(text))
        text += piece if is_word else ""
    begins = {*_word_starts(text, segmenter)}
    return [
        index > 0 and (unspaced[index - 1] and start not in begins if is_word else continues)
        for index, (start, is_word, continues) in enumerate(zip(starts, unspaced, marked, strict=True))
    ]


def _word_starts(text: str, segmenter: Callable[[str], Iterable[str]]) -> Iterator[int]:
    """Where the words of a segmenter begin in a text; it may leave out blanks."""
    place = 0
    for word in segmenter(text):
        found = text.find(word, place)
        if found < 0 or text[place:found].strip():
            raise ValueError(f"word_segmenter gives the word {word!r}, which is not in the text at its place")
        yield found
        place = found + len(word)
