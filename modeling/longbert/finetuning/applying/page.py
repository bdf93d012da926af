"""An explanation as one HTML page: it needs no network, no script and no other file, and lets none in."""

import html
import re
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from .explaining import ROUNDING, Explanation


TEMPLATE = Path(__file__).with_name("page.html")
SNIPPET = 240  # characters of a passage that a list shows
LEAST_SEEN = 0.05  # of the strongest: weaker passages are not coloured
RAMP = (1.0, 0.55, 0.2)

VALUE = "the value"
LOG_ODDS = "the log-odds, log p / (1 \u2212 p), of {what}"
OCCLUSION = """
The document was cut into {count} passages of at most {size} tokens, where paragraphs, lines, sentences or words end.
Each was left out once, by the attention mask: the model sees nothing of it, and all other tokens keep their positions.
What a passage contributes is by how much {figure} fell. This is occlusion (Zeiler and Fergus 2014, arXiv 1311.2901,
section 4.2; of text, Li et al. 2016, arXiv 1612.08220); for why by the mask, Hase et al. 2021, arXiv 2106.00786.
"""
ANSWERS = """
The score is the probability of the answer\u2019s first token times that of its last, among all tokens read with it.
The answer itself always stays, as without it there is nothing to score: the figure of its passage is what the words
around it contribute.
"""
PIECES = """
The document is longer than the model reads at once, {reach} tokens: it was read in {pieces} pieces that overlap, as in
prediction. What does not stand in the answer\u2019s piece cannot move its score.
"""
NOT_READ = """
<strong>Not all was read.</strong> This model reaches {reach} tokens; of the document\u2019s {tokens} it read the first
{read}, as it does in prediction.
"""
TRUNCATED_TITLE = "From the first {length} tokens alone"
DECIDED = """
The passages that decided are the strongest ones that together have half of all that speaks for it, five at most. The
score without them all, and with them alone, are comprehensiveness and sufficiency (DeYoung et al. 2020, ERASER, arXiv
1911.03429, section 4).
"""
LIMITS = """
<strong>What it does not say.</strong> Evidence that stands in two passages shows in neither, as leaving one out leaves
the other; the score with those that decided alone is then high, and without them too. A text with a gap is not quite
what the model was trained on. And what decides for a model need not be a reason for a person.
"""
TRUNCATED = """
\u201cFrom the first {length} tokens alone\u201d is this same model on what truncation would have left. A model that
was trained on truncated texts may say something else.
"""


def render(explained: Explanation) -> str:
    """The page.

    All text of the document, the labels and the question is escaped, and the page's Content-Security-Policy forbids
    scripts and whatever else would have to be loaded. The text inside `.text` is the document, character by character,
    with line ends as HTML has them; NUL, which HTML cannot hold, is U+FFFD.
    """
    page = _Page(explained)
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        version=version("longbert"),
        title=_text(f"What decided: {explained.document}"),
        document=_text(explained.document),
        question=f'<p class="ask">Question: <bdi>{_text(explained.question)}</bdi></p>\n'
        if explained.question
        else "",
        heading=page.heading(),
        lead=page.lead(),
        figures="\n".join(page.figures()),
        map=page.map(),
        legend="\n".join(page.legend()),
        lists="\n".join(page.lists()),
        text="\n".join(page.text()),
        how="\n".join(f"<p>{line.strip()}</p>" for line in page.how()),
        count=len(explained.passages),
        table=page.table(),
        cost=page.cost(),
    )


def _text(value: Any) -> str:
    return html.escape(str(value).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd"))


def signed(value: float, digits: int = 2) -> str:
    """+1.50, and a true minus sign; what rounds to nothing has no sign."""
    rounded = f"{abs(value):,.{digits}f}"
    if float(rounded.replace(",", "")) == 0:
        return rounded
    return ("\u2212" if value < 0 else "+") + rounded


def probability(value: float) -> str:
    """0.973, or how close to 0 or 1 it is where three digits do not say."""
    if 0.9995 <= value < 1:
        return "&gt; 0.999"
    if 0 < value < 0.0005:
        return "&lt; 0.001"
    return f"{value:.3f}"


def in_words(prediction: Any) -> str:
    """A prediction, as text that is not escaped yet."""
    if isinstance(prediction, list):
        return ", ".join(map(str, prediction)) or "no label"
    if isinstance(prediction, float):
        return f"{prediction:,.3f}"
    return str(prediction) or "no answer"


class _Page:
    def __init__(self, explained: Explanation):
        self.explained = explained
        self.asked = explained.answer is not None
        self.valued = explained.unit == "value"
        contributions = [abs(line["contribution"]) for line in explained.passages if line["read"]]
        self.most = max(contributions, default=0.0)
        self.least = max(LEAST_SEEN * self.most, ROUNDING * max(1.0, abs(explained.strength)))
        self.rank = {number: place for place, number in enumerate(explained.deciding, 1)}
        self.what = "the value" if self.valued else f"\u201c{explained.explained}\u201d"

    def score(self, value: float) -> str:
        return f"{value:,.3f}".replace("-", "\u2212") if self.valued else probability(value)

    def question(self) -> str:
        asked = self.explained.question
        return f'<p class="ask">Question: <bdi>{_text(asked)}</bdi></p>\n' if asked else ""

    def heading(self) -> str:
        explained = self.explained
        if self.asked and not explained.prediction:
            return "The model says: no answer"
        said = in_words(explained.prediction)
        verb = "Answer: " if self.asked else "Value: " if self.valued else "Predicted: "
        return f"{verb}<bdi>{_text(said)}</bdi>"

    def lead(self) -> str:
        """What decided, and whether truncation would have lost it."""
        explained = self.explained
        deciding = [explained.passages[number] for number in explained.deciding]
        if self.asked:
            sentences = [f"The answer stands in {self._stand(self.holding())}."]
            if deciding:
                around = deciding == self.holding()
                sentences.append("The words around it speak for it." if around else self._decided(deciding))
            else:
                sentences.append("No passage speaks for it: leaving one of them out weakens nothing.")
        elif deciding:
            sentences = [self._decided(deciding)]
        else:
            sentences = [
                f"No passage speaks for <bdi>{_text(self.what)}</bdi>: leaving one of them out weakens nothing."
            ]
        if self.asked and not explained.prediction:
            sentences.append("It is the best span, and scores less than \u201cno answer\u201d.")
        elif not self.asked and not self.valued and explained.explained not in _listed(explained.prediction):
            sentences.append("This label was asked for; it is not what the model predicts.")
        return " ".join(sentences)

    def holding(self) -> list[dict[str, Any]]:
        """The passages that hold the answer."""
        return [line for line in self.explained.passages if line.get("holds_answer")]

    def _stand(self, lines: list[dict[str, Any]]) -> str:
        names = " and ".join(f'<a href="#p{line["number"]}">passage {line["number"] + 1}</a>' for line in lines)
        return names + (", " + self._lost(lines) if self.explained.source_limit is not None else "")

    def _decided(self, lines: list[dict[str, Any]]) -> str:
        explained = self.explained
        words = (
            f"{_count(len(lines), 'passage')} of {len(explained.passages)} decided for <bdi>{_text(self.what)}</bdi>"
        )
        return words + (f"; {self._lost(lines)}." if explained.source_limit is not None else ".")

    def _lost(self, lines: list[dict[str, Any]]) -> str:
        """Which of some passages lie past what the source reads."""
        explained = self.explained
        source = f"the {explained.source_length:,} tokens that the source reads"
        past = sum(line["past_source_limit"] for line in lines)
        if explained.tokens_read <= explained.source_limit_token:
            return f"what follows {source} was not read"
        if not past:
            return f"within {source}"
        which = "" if past == len(lines) else f"{past} of them "
        return f"{which}past {source}: truncation would have lost {'it' if past == 1 else 'them'}"

    def figures(self) -> list[str]:
        explained = self.explained
        name = "Probability of the answer" if self.asked else "Value" if self.valued else "Probability"
        named = "start times end, among all tokens read with it" if self.asked else ""
        if not self.asked and not self.valued:
            named = f"of <bdi>{_text(explained.explained)}</bdi>"
        cards = [_card(name, self.score(explained.score), named)]
        if explained.deciding:
            which = "that passage" if len(explained.deciding) == 1 else f"those {len(explained.deciding)} passages"
            kept = "the answer itself stays" if self.asked else ""
            cards.append(_card(f"Without {which}", self.score(explained.score - explained.comprehensiveness), kept))
            cards.append(_card(f"With {which} alone", self.score(explained.score - explained.sufficiency), ""))
        if explained.truncated:
            said, score = explained.truncated["prediction"], explained.truncated["score"]
            lost = said != explained.prediction
            note = "does not stand there" if score is None else f"{self.score(score)}"
            note = note if self.valued else f"<bdi>{_text(self.what)}</bdi>: {note}"
            title = TRUNCATED_TITLE.format(length=f"{explained.source_length:,}")
            figure = f"<bdi>{_text(_snippet(in_words(said), 60))}</bdi>"
            cards.append(_card(title, figure, note, "lost" if lost else "", words=not self.valued))
        return cards

    def map(self) -> str:
        explained = self.explained
        parts = []
        for line in explained.passages:
            kind, weight = self.shade(line)
            parts.append(
                f'<a class="{kind}" style="--w:{max(line["tokens"], 1)};--a:{weight:.3f}" href="#p{line["number"]}" '
                f'tabindex="-1" title="{self.label(line)}"></a>'
            )
        scale = ['<span style="inset-inline-start:0">token 1</span>']
        mark = ""
        end = f"{explained.tokens:,}"
        if explained.source_limit is not None:
            at = 100 * explained.source_limit_token / explained.tokens
            mark = f'<span class="at" style="inset-inline-start:{at:.2f}%"></span>'
            side = f"inset-inline-start:{at:.2f}%" if at < 60 else f"inset-inline-end:{100 - at:.2f}%"
            scale = scale if at > 18 else []
            scale.append(f'<span class="at" style="{side}">{explained.source_length:,}: the source stops</span>')
            end = end if at < 78 else ""
        scale.append(f'<span style="inset-inline-end:0">{end}</span>')
        return f'<div class="map" aria-hidden="true">{"".join(parts)}{mark}</div>\n' + (
            f'<div class="scale" aria-hidden="true">{"".join(scale)}</div>'
        )

    def shade(self, line: dict[str, Any]) -> tuple[str, float]:
        """A passage's class, and how strong its colour is, from 0 to 1."""
        if not line["read"] or line.get("read_with_answer") is False:
            return "u", 0.0
        if abs(line["contribution"]) < self.least:
            return "z", 0.0
        share = line["contribution"] / self.most
        return ("s" if share > 0 else "o"), abs(share)

    def label(self, line: dict[str, Any]) -> str:
        """A passage's figures in words."""
        if not line["read"]:
            return "not read"
        if line.get("read_with_answer") is False:
            return f"passage {line['number'] + 1}: not read together with the answer"
        unit = "" if self.valued else " log-odds"
        words = f"passage {line['number'] + 1}: {signed(line['contribution'])}{unit}, "
        return words + f"without it {self.score(line['score_without'])}" + self.changed(line)

    def changed(self, line: dict[str, Any]) -> str:
        if self.valued or line["prediction_without"] == self.explained.prediction:
            return ""
        return f", and the prediction is {_text(in_words(line['prediction_without']))}"

    def legend(self) -> list[str]:
        explained = self.explained
        steps = [f'<i class="o" style="--a:{step}"></i>' for step in RAMP]
        steps.append("<i></i>")
        steps += [f'<i class="s" style="--a:{step}"></i>' for step in reversed(RAMP)]
        low, high = ("lowers it", "raises it") if self.valued else ("speaks against", "speaks for")
        unit = "" if self.valued else " log-odds"
        lines = [
            f'<li>{low} {signed(-self.most)}<span class="ramp" aria-hidden="true">{"".join(steps)}</span>'
            f"{signed(self.most)}{unit} {high} <bdi>{_text(self.what)}</bdi></li>",
            '<li><span class="n" aria-hidden="true">1</span>decided</li>',
        ]
        if explained.source_limit is not None:
            lines.append(f'<li><span class="tag">past {explained.source_length:,}</span> lost by truncation</li>')
        if any(self.shade(line)[0] == "u" for line in explained.passages):
            unread = "not read together with the answer" if self.asked else "not read"
            lines.append(f'<li><span class="key u">\u2003</span>{unread}</li>')
        if self.asked:
            lines.append('<li><mark class="answer">answer</mark></li>')
        return lines

    def lists(self) -> list[str]:
        explained = self.explained
        parts = []
        apart = [line["number"] for line in self.holding() if line["number"] not in explained.deciding]
        if apart:
            parts.append(f'<h2>Where the answer stands</h2>\n<ol class="answered">\n{self._items(apart)}\n</ol>')
        if explained.deciding:
            title = "What raised it most" if self.valued else "What decided"
            parts.append(f"<h2>{title}</h2>\n<ol>\n{self._items(explained.deciding)}\n</ol>")
        against = [n for n in explained.against if n not in apart and self.shade(explained.passages[n])[0] == "o"]
        if against:
            title = "What lowered it most" if self.valued else "What spoke against it"
            parts.append(f'<h2>{title}</h2>\n<ol class="no">\n{self._items(against)}\n</ol>')
        chosen = explained.prediction if isinstance(explained.prediction, list) else []
        others = [label for label in chosen if label != explained.explained]
        if others:
            parts.append("<h2>Other labels</h2>")
            parts += [self._other(label) for label in others]
        return parts

    def _items(self, numbers: list[int]) -> str:
        explained = self.explained
        items = []
        for number in numbers:
            line = explained.passages[number]
            unit = "" if self.valued else " log-odds"
            badge = f'<span class="n">{self.rank[number]}</span>' if number in self.rank else ""
            tags = ""
            if line["past_source_limit"]:
                tags += f' <span class="tag">past {explained.source_length:,}</span>'
            if line.get("holds_answer"):
                tags += ' <span class="tag">the answer</span>'
            first, last = line["first_token"] + 1, line["first_token"] + line["tokens"]
            items.append(
                f'<li><div class="top"><span>{badge}<a href="#p{number}">passage {number + 1}</a>{tags}</span>'
                f"<strong>{signed(line['contribution'])}{unit}</strong></div>"
                f'<p class="where">tokens {first:,}\u2013{last:,}; without it {self.score(line["score_without"])}'
                f"{self.changed(line)}</p>"
                f'<p class="said" dir="auto">{_text(self.said(line))}</p></li>'
            )
        return "\n".join(items)

    def said(self, line: dict[str, Any]) -> str:
        """How a passage begins, or what stands around the answer in it."""
        text, answer = line["text"], self.explained.answer
        if answer is not None and line["start"] < answer["start"] - SNIPPET // 2 and answer["start"] < line["end"]:
            before = answer["start"] - line["start"] - SNIPPET // 2
            text = "\u2026" + text[text.find(" ", before) + 1 or before :]
        return _snippet(text)

    def _other(self, label: str) -> str:
        read = [line for line in self.explained.passages if line["read"]]
        best = max(read, key=lambda line: line["contributions"][label])
        return (
            f"<p><bdi>{_text(label)}</bdi> ({probability(self.explained.scores[label])}): most by "
            f'<a href="#p{best["number"]}">passage {best["number"] + 1}</a>, '
            f"{signed(best['contributions'][label])} log-odds</p>"
        )

    def text(self) -> list[str]:
        """The document, passage by passage, with the limits where they stand."""
        explained = self.explained
        begin = '<div class="text" dir="auto" lang="">'
        parts, read = [begin], True
        for line in explained.passages:
            stops = []
            if explained.source_limit is not None and line["first_token"] == explained.source_limit_token:
                stops.append(self._limit(unread=not line["read"]))
            elif read and not line["read"]:
                stops.append(self._reach())
            read = line["read"]
            parts += [f"</div>\n{stop}\n{begin}" for stop in stops] + [self._span(line)]
        parts.append("</div>")
        return ["".join(parts)]

    def _limit(self, unread: bool) -> str:
        length = self.explained.source_length
        rest = "what follows was not read" if unread else "truncation would have lost what follows"
        return f'<div class="limit" id="limit"><span>The source stops at token {length:,}: {rest}</span></div>'

    def _reach(self) -> str:
        return (
            f'<div class="limit end" id="reach"><span>This model stops at token {self.explained.reach:,}: what '
            "follows was not read</span></div>"
        )

    def _span(self, line: dict[str, Any]) -> str:
        kind, weight = self.shade(line)
        number, rank = line["number"], self.rank.get(line["number"])
        badge = f'<span class="n" aria-hidden="true" data-n="{rank}"></span>' if rank else ""
        return (
            f'<span class="p {kind}{" d" if rank else ""}" id="p{number}" style="--a:{weight:.3f}" '
            f'title="{self.label(line)}">{badge}{self._marked(line)}</span>'
        )

    def _marked(self, line: dict[str, Any]) -> str:
        """A passage's characters, with the answer among them marked."""
        text, answer = line["text"], self.explained.answer
        if answer is None or answer["end"] <= line["start"] or answer["start"] >= line["end"]:
            return _text(text)
        first, last = max(answer["start"] - line["start"], 0), answer["end"] - line["start"]
        return f'{_text(text[:first])}<mark class="answer">{_text(text[first:last])}</mark>{_text(text[last:])}'

    def how(self) -> list[str]:
        explained = self.explained
        figure = VALUE if self.valued else LOG_ODDS.format(what=f"<bdi>{_text(self.what)}</bdi>")
        lines = [OCCLUSION.format(count=len(explained.passages), size=explained.passage_tokens, figure=figure)]
        if self.asked:
            lines.append(ANSWERS)
        if explained.pieces > 1:
            lines.append(PIECES.format(reach=f"{explained.reach:,}", pieces=explained.pieces))
        if explained.tokens_read < explained.tokens:
            read, tokens = f"{explained.tokens_read:,}", f"{explained.tokens:,}"
            lines.append(NOT_READ.format(reach=f"{explained.reach:,}", tokens=tokens, read=read))
        lines += [DECIDED, LIMITS]
        return lines + ([TRUNCATED.format(length=f"{explained.source_length:,}")] if explained.truncated else [])

    def table(self) -> str:
        unit = "value" if self.valued else "log-odds"
        rows = []
        for line in self.explained.passages:
            figures = ["not read", "", ""]
            if line["read"]:
                figures = [
                    signed(line["contribution"], 3),
                    self.score(line["score_without"]),
                    _text(in_words(line["prediction_without"])),
                ]
            first, last = line["first_token"] + 1, line["first_token"] + line["tokens"]
            rows.append(
                f'<tr><td><a href="#p{line["number"]}">{line["number"] + 1}</a></td>'
                f'<td class="f">{first:,}\u2013{last:,}</td><td class="f">{figures[0]}</td>'
                f'<td class="f">{figures[1]}</td><td><bdi>{figures[2]}</bdi></td>'
                f'<td dir="auto">{_text(_snippet(line["text"], 60))}</td></tr>'
            )
        head = (
            '<tr><th scope="col">passage</th><th scope="col" class="f">tokens</th>'
            f'<th scope="col" class="f">contributes ({unit})</th><th scope="col" class="f">without it</th>'
            '<th scope="col">prediction then</th><th scope="col">begins</th></tr>'
        )
        return f"<table>\n<thead>{head}</thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"

    def cost(self) -> str:
        explained = self.explained
        return (
            f"{explained.tokens:,} tokens, read {_count(explained.copies, 'time')} over in {explained.seconds:,.1f} s "
            f"with {_text(explained.model)}, which reaches {explained.reach:,}. Made by longbert "
            f"{_text(version('longbert'))}."
        )


def _card(name: str, figure: str, note: str, kind: str = "", words: bool = False) -> str:
    size = "words" if words else "big"
    below = f'<div class="note">{note}</div>' if note else ""
    return f'<div class="{kind}"><dt>{name}</dt><dd class="{size}">{figure}</dd><dd>{below}</dd></div>'


def _listed(prediction: Any) -> list[Any]:
    return prediction if isinstance(prediction, list) else [prediction]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _snippet(text: str, size: int = SNIPPET) -> str:
    short = re.sub(r"\s+", " ", text).strip()
    return short if len(short) <= size else short[: size - 1].rstrip() + "\u2026"
