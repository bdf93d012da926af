"""Law 4 for masks: whatever form says who sees whom, the outputs are those of plain BERT told the same by hand.

A row is written as a string: tokens with the same letter are one text, a dot is padding or a hole in a text. What
follows from it (positions, who sees whom, what is pooled) is written out here in loops over the letters, and judged by
transformers' BertModel with eager attention, the same weights, an additive 4D mask and position_ids.
"""

import functools
import inspect

import pytest
import torch
from conftest import (
    HEADS,
    LONG,
    TINY,
    N,
    assert_close,
    assert_equal,
    bert_class,
    first_then_slow,
    long_class,
    tiny_config,
)
from transformers import BertConfig, BertModel, DynamicCache, EncoderDecoderCache

from longbert import LongBertModel
from longbert.attention import attend
from longbert.text_layout import Flattening, Window
from longbert.texts import read_texts, whole_rows


LOWEST = torch.finfo(torch.float32).min
WINDOW = 8
ROWS = {
    "whole": ["A" * 40, "A" * 40],
    "right": ["A" * 40, "A" * 30 + "." * 10, "A" * 12 + "." * 28, "A" + "." * 39],
    "left": ["A" * 40, "." * 10 + "A" * 30, "." * 28 + "A" * 12, "." * 39 + "A"],
    "both sides": ["." * 5 + "A" * 30 + "." * 5, "." + "A" * 39],
    # the third has few tokens, but spans more places than the source has
    "holes": ["AAA..A.AAAAAAAA...........A.AAAAA.AAAAAA", "A" * 20 + "." + "A" * 19, "A.A" * 7 + "." * 19],
    "holes, left": ["....A.AAAAAAAAAAAAAAA.AAAAAAAAAA.A.AAAA.", "." * 23 + "A" + "." * 15 + "A"],
    "all padding": ["." * 40, "A" * 40],
    "packed": ["A" * 22 + "B" * 18, "A" * 3 + "B" * 5 + "C" * 32],
    "packed, of one token": ["AABCCC" + "D" * 20 + "EF" + "G" * 12, "A" + "B" * 38 + "C"],
    "packed, padded": ["." * 4 + "A" * 4 + "." * 4 + "B" * 20 + "C" * 4 + "." * 4, "A" * 20 + "B" * 20],
    "packed, with holes": ["A.A" + "A" * 17 + "B..BB.BBBB" + "B" * 10, "A" * 40],
    "short": ["A" * 10, "AAAAAA....", "....AAAAAA"],
    "one row": ["." * 7 + "A" * 33],
}
# how a row may be said in two dimensions, where it is one text
FLAT = {
    "bool": lambda real: real,
    "int64": lambda real: real.long(),
    "int8": lambda real: real.to(torch.int8),
    "minus one": lambda real: -real.to(torch.int8),
    "float": lambda real: real.float(),
    "half": lambda real: real.half(),
    "twos": lambda real: real.long() * torch.arange(1, real.shape[1] + 1),
    "4D, one query": lambda real: real[:, None, None],
    "4D, one query, added": lambda real: torch.where(real, 0.0, LOWEST)[:, None, None],
    "4D, every query": lambda real: real[:, None, None].expand(-1, 1, real.shape[1], -1),
    "3D, one query": lambda real: real[:, None],
}
# and in more, where padding sees nothing
SQUARE = {
    "3D bool": lambda sees: sees,
    "3D int": lambda sees: sees.long(),
    "3D added": lambda sees: torch.where(sees, 0.0, LOWEST),
    "4D bool": lambda sees: sees[:, None],
    "4D int": lambda sees: sees[:, None].int() * 3,
    "4D added": lambda sees: torch.where(sees, 0.0, LOWEST)[:, None],
    "4D -inf": lambda sees: torch.where(sees, 0.0, -torch.inf)[:, None],
    "4D -10000": lambda sees: torch.where(sees, 0.0, -10000.0)[:, None],
    "4D heads": lambda sees: sees[:, None].expand(-1, TINY["num_attention_heads"], -1, -1),
}
IMPLEMENTATIONS = ["longbert", "sdpa", "eager"]
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
ATTENTION = {
    "full": {},
    "window": {"attention_window": WINDOW},
    "window, 3 globals": {"attention_window": WINDOW, "global_tokens": 3},
    "window, no global": {"attention_window": WINDOW, "global_tokens": 0},
}


# --- what a row means, in loops


def letters(row: str) -> str:
    """A row that attends to nothing attends to all."""
    return row if row.strip(".") else "A" * len(row)


def real_tokens(rows: list[str]) -> torch.Tensor:
    return torch.tensor([[letter != "." for letter in letters(row)] for row in rows])


def as_given(rows: list[str]) -> torch.Tensor:
    return torch.tensor([[letter != "." for letter in row] for row in rows])


def is_packed(rows: list[str]) -> bool:
    return any("B" in row for row in rows)


def positions(rows: list[str], restart: bool) -> torch.Tensor:
    """From the row's first token on, or from that of each text."""
    found = []
    for row in map(letters, rows):
        start = min(index for index, letter in enumerate(row) if letter != ".")
        first = {letter: row.index(letter) for letter in row}
        found.append(
            [
                max(0, index - (first[letter] if restart and letter != "." else start))
                for index, letter in enumerate(row)
            ]
        )
    return torch.tensor(found)


def sight(row: str, attention_window: int | None = None, global_tokens: int = 1, marked: tuple = ()) -> torch.Tensor:
    """Who sees whom, `[len(row), len(row)]`."""
    row = letters(row)
    sees = torch.zeros(len(row), len(row), dtype=torch.bool)
    for letter in set(row) - {"."}:
        tokens = [index for index in range(len(row)) if row[index] == letter]
        span = tokens[-1] - tokens[0] + 1
        everywhere = {*tokens[:global_tokens], *marked}
        for query in tokens:
            for key in tokens:
                near = attention_window is None or abs(query - key) <= attention_window / 2
                sees[query, key] = near or span <= N or query in everywhere or key in everywhere
    return sees


def all_sight(rows: list[str], **attention) -> torch.Tensor:
    return torch.stack([sight(row, **attention) for row in rows])


def added(sees: torch.Tensor) -> torch.Tensor:
    return torch.where(sees, 0.0, LOWEST)[:, None]


# --- the models


def settings(**changes) -> dict:
    undropped = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {**undropped, **changes}


@functools.cache
def models(head: str = "Model", **changes) -> tuple:
    """Ours, and a plain BERT with the same weights."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        ours = long_class(head)(tiny_config(max_position_embeddings=LONG, **settings(**changes))).eval()
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours_alone = {"attention_window", "global_tokens", "classifier_pooling"}
    shared = {name: value for name, value in changes.items() if name not in ours_alone}
    config = BertConfig(**TINY | {"max_position_embeddings": LONG} | settings(**shared))
    config._attn_implementation = "eager"
    theirs = bert_class(head)(config).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def tokens(rows: list[str]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (len(rows), len(rows[0]))
    return {
        "input_ids": torch.randint(1, TINY["vocab_size"], shape, generator=generator),
        "token_type_ids": torch.randint(0, 2, shape, generator=generator),
    }


def pooled(bert, states: torch.Tensor, rows: list[str], pooling: str) -> torch.Tensor:
    vectors = []
    for row, vector in zip(map(letters, rows), states, strict=True):
        real = [index for index, letter in enumerate(row) if letter != "."]
        vectors.append(vector[real].mean(0) if pooling == "mean" else vector[real[0]])
    return bert.pooler(torch.stack(vectors)[:, None])


@functools.cache
def expected(name: str, attention: str, restart: bool) -> torch.Tensor:
    rows, (_, theirs) = ROWS[name], models()
    sees = all_sight(rows, **ATTENTION[attention])
    with torch.no_grad():
        inputs = tokens(rows) | {"position_ids": positions(rows, restart)}
        return theirs(**inputs, attention_mask=added(sees)).last_hidden_state


def assert_as_expected(inputs: dict, name: str, attention: str, restart: bool, implementation: str) -> None:
    rows, states = ROWS[name], expected(name, attention, restart)
    for pooling in ("cls", "mean"):
        ours, theirs = models(**ATTENTION[attention], classifier_pooling=pooling)
        ours.set_attn_implementation(implementation)
        with torch.no_grad():
            result = ours(**tokens(rows), **inputs)
        real = real_tokens(rows)
        assert_close(result.last_hidden_state[real], states[real], rtol=1e-5, atol=1e-5)
        assert_close(result.pooler_output, pooled(theirs, states, rows, pooling), rtol=1e-5, atol=1e-5)
        assert result.last_hidden_state.isfinite().all()


# --- every form of every situation, in every implementation, in full and windowed


@every_implementation
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("form", FLAT)
@pytest.mark.parametrize("name", [name for name, rows in ROWS.items() if not is_packed(rows)])
def test_padding_is_padding_in_every_form(name, form, attention, implementation):
    mask = FLAT[form](as_given(ROWS[name]))
    assert_as_expected({"attention_mask": mask}, name, attention, False, implementation)


@every_implementation
@pytest.mark.parametrize("attention", ["full", "window"])
@pytest.mark.parametrize("form", SQUARE)
@pytest.mark.parametrize("name", first_then_slow(ROWS, len(ROWS) // 2))
def test_a_square_mask_is_the_texts_that_it_says(name, form, attention, implementation):
    """Positions run on through a row, as in BERT, unless they are given."""
    sees = all_sight(ROWS[name])
    for row, text in zip(sees, ROWS[name], strict=True):
        row &= "A" in text  # says nothing of a row of padding
    mask = {"attention_mask": SQUARE[form](sees)}
    assert_as_expected(mask, name, attention, False, implementation)
    given = {"position_ids": positions(ROWS[name], True)}
    assert_as_expected(mask | given, name, attention, True, implementation)


@every_implementation
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", ["whole", "packed", "packed, of one token"])
def test_packed_positions_say_the_texts(name, attention, implementation):
    given = {"position_ids": positions(ROWS[name], True)}
    assert_as_expected(given, name, attention, True, implementation)


@every_implementation
@pytest.mark.parametrize("attention", ["full", "window"])
@pytest.mark.parametrize("name", ["left", "holes", "all padding"])
def test_given_positions_are_kept_and_embeddings_taken(name, attention, implementation):
    rows = ROWS[name]
    ours, theirs = models(**ATTENTION[attention])
    ours.set_attn_implementation(implementation)
    given = {"position_ids": torch.arange(LONG).flip(0)[None], "token_type_ids": None}
    given["inputs_embeds"] = ours.get_input_embeddings()(tokens(rows)["input_ids"]).detach()
    mask = added(all_sight(rows, **ATTENTION[attention]))
    with torch.no_grad():
        result = ours(**given, attention_mask=as_given(rows))
        states = theirs(**given, attention_mask=mask).last_hidden_state
    real = real_tokens(rows)
    assert_close(result.last_hidden_state[real], states[real], rtol=1e-5, atol=1e-5)
    assert_close(result.pooler_output, pooled(theirs, states, rows, "cls"), rtol=1e-5, atol=1e-5)


@every_implementation
@pytest.mark.parametrize("name", ["right", "left", "holes"])
def test_marks_at_padding_mark_nothing(name, implementation):
    rows, marked = ROWS[name], (12, 20, 25, 33)
    ours, theirs = models(attention_window=WINDOW)
    ours.set_attn_implementation(implementation)
    marks = torch.zeros(len(rows), LONG)
    marks[:, marked] = 1
    mask = added(all_sight(rows, attention_window=WINDOW, marked=marked))
    with torch.no_grad():
        result = ours(**tokens(rows), attention_mask=as_given(rows), global_attention_mask=marks)
        states = theirs(**tokens(rows), position_ids=positions(rows, False), attention_mask=mask).last_hidden_state
    real = real_tokens(rows)
    assert_close(result.last_hidden_state[real], states[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["full", "window"])
@pytest.mark.parametrize("name", ["left", "holes", "all padding", "packed, of one token", "packed, with holes"])
def test_gradients_are_those_of_the_plain_model(name, attention):
    rows, found = ROWS[name], []
    ours, theirs = models(**ATTENTION[attention])
    ours.set_attn_implementation("longbert")
    mask, given = all_sight(rows), {"position_ids": positions(rows, True)}
    plain = added(all_sight(rows, **ATTENTION[attention]))
    for model, each in ((ours, mask[:, None]), (theirs, plain)):
        model.zero_grad()
        states = model(**tokens(rows), **given, attention_mask=each).last_hidden_state
        states[real_tokens(rows)].square().sum().backward()
        found.append({key: parameter.grad for key, parameter in model.named_parameters() if "pooler" not in key})
    assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["longbert", "eager"])  # sdpa has none to give
@pytest.mark.parametrize("attention", ["full", "window"])
@pytest.mark.parametrize("name", ["right", "left", "holes", "all padding", "packed, of one token"])
def test_attention_probabilities_are_the_plain_models(name, attention, implementation):
    rows, real = ROWS[name], real_tokens(ROWS[name])
    ours, theirs = models(**ATTENTION[attention])
    ours.set_attn_implementation(implementation)
    given = {"position_ids": positions(rows, True)}
    mask = {} if is_packed(rows) else {"attention_mask": as_given(rows)}
    plain = added(all_sight(rows, **ATTENTION[attention]))
    with torch.no_grad():
        result = ours(**tokens(rows), **given, **mask, output_attentions=True)
        judge = theirs(**tokens(rows), **given, attention_mask=plain, output_attentions=True)
    assert_close(result.last_hidden_state[real], judge.last_hidden_state[real], rtol=1e-5, atol=1e-5)
    assert len(result.attentions) == len(judge.attentions) == TINY["num_hidden_layers"]
    for one, other in zip(result.attentions, judge.attentions, strict=True):
        assert_close(one.transpose(1, 2)[real], other.transpose(1, 2)[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["full", "window", "window, 3 globals"])
@pytest.mark.parametrize("name", ROWS)
def test_what_a_kernel_lets_a_token_see(name, attention):
    """Read off the kernel token by token: where all scores are equal, the output is the mean of the values seen."""
    rows, changes = ROWS[name], ATTENTION[attention]
    shape = (len(rows), len(rows[0]))
    texts = read_texts(all_sight(rows)[:, None], None, shape, 2) or whole_rows(shape, torch.device("cpu"))
    window = Window(changes["attention_window"] // 2, longer_than=N) if changes else None
    flattening = Flattening(texts, window, changes.get("global_tokens", 1))
    tokens = len(flattening.index)
    zeros, values = torch.zeros(1, 1, tokens, tokens), torch.eye(tokens)[None, None]
    means = attend(zeros, zeros, values, flattening.layout, scaling=1.0, windowed=window is not None)[0, 0]
    sees = torch.block_diag(*all_sight(rows, **changes).byte()).bool()[flattening.index][:, flattening.index]
    assert_close(means, sees / sees.sum(-1, keepdim=True))


# --- masks that say more than texts

SQUARE_SHAPE = (2, TINY["num_attention_heads"], 30, 30)
MORE = {
    "causal": lambda: torch.ones(SQUARE_SHAPE).tril().bool()[:, :1],
    "any": lambda: torch.rand(SQUARE_SHAPE)[:, :1] + torch.eye(30) > 0.5,
    "every head its own": lambda: torch.rand(SQUARE_SHAPE) + torch.eye(30) > 0.5,
    "all but itself": lambda: ~torch.eye(30).bool().expand(2, 1, -1, -1),
    "texts in turns": lambda: (torch.arange(30)[:, None] % 3 == torch.arange(30) % 3).expand(2, 1, -1, -1),
    "a bias": lambda: -0.1 * (torch.arange(30)[:, None] - torch.arange(30)).abs()[None, None].float(),
    "a bias and padding": lambda: torch.where(torch.arange(30) < 25, torch.rand(30), LOWEST).expand(2, 1, 30, -1),
}


@every_implementation
@pytest.mark.parametrize("name", MORE)
def test_any_other_mask_is_berts(name, implementation):
    mask = MORE[name]()
    ours, theirs = models()
    ours.set_attn_implementation(implementation)
    inputs = tokens(["A" * 30] * 2)
    plain = mask if mask.is_floating_point() else torch.where(mask, 0.0, LOWEST)
    with torch.no_grad():
        for given in ({}, {"position_ids": torch.arange(30).flip(0)[None]}):
            result = ours(**inputs, **given, attention_mask=mask)
            judge = theirs(**inputs, **given, attention_mask=plain)
            assert_close(result.last_hidden_state, judge.last_hidden_state, rtol=1e-5, atol=1e-5)
            assert_close(result.pooler_output, judge.pooler_output, rtol=1e-5, atol=1e-5)


@every_implementation
@pytest.mark.parametrize("name", MORE)
def test_what_needs_the_texts_is_refused_where_a_mask_does_not_say_them(name, implementation):
    inputs = tokens(["A" * 30] * 2)
    for changes in ({"attention_window": WINDOW}, {"classifier_pooling": "mean"}):
        ours, _ = models(**changes)
        ours.set_attn_implementation(implementation)
        (changed,) = changes
        with pytest.raises(ValueError, match=f"{changed}=.*pass a 2D mask") as refused:
            ours(**inputs, attention_mask=MORE[name]())
        assert "\n" not in str(refused.value)
    ours, _ = models(attention_window=WINDOW)
    short = {key: tensor[:, :N] for key, tensor in inputs.items()}
    assert ours(**short, attention_mask=MORE[name]()[..., :N, :N]) is not None


REFUSED = {
    "one dimension": ({"attention_mask": torch.ones(10)}, r"shape \[10\].* 2 rows of 10 tokens: pass \[2, 10\]"),
    "a list": ({"attention_mask": [[1] * 10] * 2}, "must be a tensor, got list"),
    "nothing": ({"attention_mask": torch.ones(2, 0)}, r"shape \[2, 0\]"),
    "too long": ({"attention_mask": torch.ones(2, 11)}, r"shape \[2, 11\]"),
    "other rows": ({"attention_mask": torch.ones(3, 10)}, r"shape \[3, 10\]"),
    "3D": ({"attention_mask": torch.ones(2, 10, 9)}, r"shape \[2, 10, 9\]"),
    "4D": ({"attention_mask": torch.ones(2, 3, 10, 10)}, r"shape \[2, 3, 10, 10\]"),
    "5D": ({"attention_mask": torch.ones(1, 2, 1, 10, 10)}, r"shape \[1, 2, 1, 10, 10\]"),
    "floats of two meanings": ({"attention_mask": torch.eye(10)[None]}, r"pass attention_mask.bool\(\)"),
    "integers of two meanings": ({"attention_mask": -torch.eye(10).long()[None]}, "integers below 0"),
    "positions of two meanings": ({"position_ids": torch.zeros(1, 10).long()}, "0 in all of a row"),
    "positions of two meanings in a row": (
        {"position_ids": torch.stack((torch.arange(10) % 5, torch.zeros(10).long()))},
        "0 in all of a row",
    ),
    "positions that do not fit": ({"position_ids": torch.arange(9)[None]}, r"position_ids has the shape \[1, 9\]"),
}


@every_implementation
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_understood_is_refused_in_a_line(case, implementation):
    given, message = REFUSED[case]
    ours, _ = models()
    ours.set_attn_implementation(implementation)
    with pytest.raises(ValueError, match=message) as refused:
        ours(**tokens(["A" * 10] * 2), **given)
    assert "\n" not in str(refused.value)


def test_marks_that_do_not_fit_are_refused():
    ours, _ = models(attention_window=WINDOW)
    for implementation in IMPLEMENTATIONS:
        ours.set_attn_implementation(implementation)
        with pytest.raises(ValueError, match=r"global_attention_mask has the shape \[1, 40\]"):
            ours(**tokens(["A" * 40] * 2), global_attention_mask=torch.ones(1, 40))


def test_a_bag_of_words_and_texts_of_one_token_can_both_be_said():
    ours, theirs = models()
    inputs = tokens(["A" * 10] * 2) | {"position_ids": torch.zeros(1, 10).long()}
    for implementation in IMPLEMENTATIONS:
        ours.set_attn_implementation(implementation)
        with torch.no_grad():
            for mask in (torch.ones(2, 10), torch.eye(10).bool().expand(2, 1, -1, -1)):
                plain = mask if mask.dim() == 2 else torch.where(mask, 0.0, LOWEST)
                result, judge = ours(**inputs, attention_mask=mask), theirs(**inputs, attention_mask=plain)
                assert_close(result.last_hidden_state, judge.last_hidden_state, rtol=1e-5, atol=1e-5)


# --- compiled

COMPILED = {
    "twos": ({}, "left", lambda rows: as_given(rows).long() * 2),
    "holes under a window": ({"attention_window": WINDOW}, "holes, left", as_given),
    "all padding under a window": ({"attention_window": WINDOW}, "all padding", as_given),
    "blocks": ({}, "packed, padded", lambda rows: all_sight(rows)[:, None]),
    "padding, squared": ({}, "left", lambda rows: added(all_sight(rows))),
}


@pytest.mark.parametrize("case", first_then_slow(COMPILED, 1))
def test_compiled_masks_mean_the_same(case):
    changes, name, form = COMPILED[case]
    torch.compiler.reset()
    ours, theirs = models(**changes)
    ours.set_attn_implementation("longbert")
    rows, mask = ROWS[name], {"attention_mask": form(ROWS[name])}
    states = expected(name, "window" if changes else "full", False)
    with torch.no_grad():
        result = torch.compile(ours, backend="eager", fullgraph=True, dynamic=True)(**tokens(rows), **mask)
    real = real_tokens(rows)
    assert_close(result.last_hidden_state[real], states[real], rtol=1e-5, atol=1e-5)
    assert_close(result.pooler_output, pooled(theirs, states, rows, "cls"), rtol=1e-5, atol=1e-5)


def test_a_compiled_model_refuses_what_it_cannot_look_into():
    torch.compiler.reset()
    ours, _ = models(attention_window=WINDOW)
    with pytest.raises(Exception, match="pass a 2D mask"):
        torch.compile(ours, backend="eager", fullgraph=True)(
            **tokens(ROWS["packed"]), attention_mask=all_sight(ROWS["packed"])
        )


# --- every head: a text in a batch is the text alone

HEAD_ROWS = ["." * 3 + "A" * 37, "A" * 12 + "." * 28, "." * 30 + "A" * 10, "A" * 29 + "." * 11]


@every_implementation
@pytest.mark.parametrize("attention", ["full", "window"])
@pytest.mark.parametrize("head", HEADS)
def test_every_heads_outputs_are_the_texts_alone(head, attention, implementation):
    ours, theirs = models(head, **ATTENTION[attention])
    ours.set_attn_implementation(implementation)
    inputs = tokens(HEAD_ROWS) | {"attention_mask": as_given(HEAD_ROWS)}
    if head == "ForMultipleChoice":
        inputs = {name: tensor.unflatten(0, (2, 2)) for name, tensor in inputs.items()}
    with torch.no_grad():
        together = dict(ours(**inputs))
        for index, row in enumerate(HEAD_ROWS):
            real = as_given(HEAD_ROWS)[index]
            alone = {name: tensor[index : index + 1, real] for name, tensor in tokens(HEAD_ROWS).items()}
            mask = {"attention_mask": added(sight(row.strip("."), **ATTENTION[attention])[None])}
            if head == "ForMultipleChoice":  # its forward would take this mask apart
                judge = {"logits": theirs.classifier(theirs.bert(**alone, **mask).pooler_output)}
                together["logits"] = together["logits"].reshape(-1, 1)
            else:
                judge = dict(theirs(**alone, **mask))
            for name, values in judge.items():
                own = together[name][index]
                own = own[real] if len(own) == len(row) else own
                assert_close(own, values[0], rtol=1e-5, atol=2e-5)


# --- decoders


def name_of_cache() -> str:
    """Transformers 5.24 renamed it."""
    return ({"cache", "past_key_values"} & inspect.signature(BertModel.forward).parameters.keys()).pop()


def decoders(**changes) -> tuple:
    return models("Model", is_decoder=True, add_cross_attention=True, **changes)


@every_implementation
@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("name", ["whole", "right", "left", "short", "one row"])
def test_a_decoder_is_berts(name, attentions, implementation):
    """Causal, beside another text, at once and token by token; what is padded on the left counts from its first."""
    rows, real = ROWS[name], real_tokens(ROWS[name])
    ours, theirs = decoders()
    ours.set_attn_implementation(implementation)
    theirs.set_attn_implementation("eager")
    source = torch.randn(len(rows), 9, TINY["hidden_size"])
    source_mask = (torch.arange(9) < torch.arange(9, 9 - len(rows), -1)[:, None]).long() * 2
    beside = {"encoder_hidden_states": source, "encoder_attention_mask": source_mask}
    mask = {} if name == "whole" else {"attention_mask": real.long() * 2}
    placed = {"position_ids": positions(rows, False)}
    causal = added(all_sight(rows) & torch.ones(real.shape[1], real.shape[1]).tril().bool())
    with torch.no_grad():
        for across in ({}, beside):
            judge = theirs(**tokens(rows), **placed, **across, attention_mask=causal, use_cache=False)
            result = ours(**tokens(rows), **mask, **across, output_attentions=attentions, use_cache=False)
            assert_close(result.last_hidden_state[real], judge.last_hidden_state[real], rtol=1e-5, atol=1e-5)
            states = judge.last_hidden_state
            assert_close(result.pooler_output, pooled(theirs, states, rows, "cls"), rtol=1e-5, atol=1e-5)
            if attentions and implementation != "sdpa":
                assert len(result.attentions) == TINY["num_hidden_layers"]
                assert (result.attentions[0].triu(1) == 0).transpose(1, 2)[real].all()


@every_implementation
@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("name", ["whole", "left"])
def test_a_decoder_with_a_cache_is_one_without(name, attentions, implementation):
    rows, real = ROWS[name], real_tokens(ROWS[name])
    ours, theirs = decoders()
    ours.set_attn_implementation(implementation)
    causal = added(all_sight(rows) & torch.ones(LONG, LONG).tril().bool())
    parts, cache = [], EncoderDecoderCache(DynamicCache(), DynamicCache())
    with torch.no_grad():
        judge = theirs(**tokens(rows), position_ids=positions(rows, False), attention_mask=causal, use_cache=False)
        for start, stop in ((0, 30), (30, 31), (31, 36), (36, 40)):
            given = {key: tensor[:, start:stop] for key, tensor in tokens(rows).items()}
            mask = {} if name == "whole" else {"attention_mask": real[:, :stop]}
            result = ours(**given, **mask, **{name_of_cache(): cache}, use_cache=True, output_attentions=attentions)
            parts.append(result.last_hidden_state)
    assert_close(torch.cat(parts, 1)[real], judge.last_hidden_state[real], rtol=1e-5, atol=1e-5)


@every_implementation
def test_a_decoders_packed_documents_do_not_see_each_other(implementation):
    rows = ROWS["packed, of one token"]
    ours, theirs = decoders()
    ours.set_attn_implementation(implementation)
    given = {"position_ids": positions(rows, True)}
    causal = added(all_sight(rows) & torch.ones(LONG, LONG).tril().bool())
    with torch.no_grad():
        result = ours(**tokens(rows), **given)
        judge = theirs(**tokens(rows), **given, attention_mask=causal)
    assert_close(result.last_hidden_state, judge.last_hidden_state, rtol=1e-5, atol=1e-5)


@every_implementation
@pytest.mark.parametrize("form", ["bool", "twos", "4D, one query", "4D, one query, added", "3D, one query"])
def test_the_mask_of_what_a_decoder_looks_at_has_every_form_too(form, implementation):
    ours, theirs = decoders()
    ours.set_attn_implementation(implementation)
    rows, source = ["A" * 10] * 3, torch.randn(3, 9, TINY["hidden_size"])
    given = torch.arange(9) < torch.tensor([[9], [4], [0]])
    meant = torch.arange(9) < torch.tensor([[9], [4], [9]])
    with torch.no_grad():
        result = ours(**tokens(rows), encoder_hidden_states=source, encoder_attention_mask=FLAT[form](given))
        plain = torch.where(meant, 0.0, LOWEST)[:, None, None]
        judge = theirs(**tokens(rows), encoder_hidden_states=source, encoder_attention_mask=plain)
    assert_close(result.last_hidden_state[:2], judge.last_hidden_state[:2], rtol=1e-5, atol=1e-5)
    assert result.last_hidden_state.isfinite().all()
    if form in ("bool", "twos"):
        assert_close(result.last_hidden_state, judge.last_hidden_state, rtol=1e-5, atol=1e-5)


@every_implementation
@pytest.mark.parametrize("padded", [False, True])
def test_an_encoder_after_a_cached_prefix_is_berts(padded, implementation):
    """As peft's prefix tuning has it: the mask covers the prefix too."""
    ours, theirs = models()
    ours.set_attn_implementation(implementation)
    rows, prefix = ["A" * 10] * 2, torch.randn(2, 4, 2, 2, 5, 16)
    found = []
    for model in (ours, theirs):
        cache = DynamicCache()
        for layer in range(TINY["num_hidden_layers"]):
            cache.update(prefix[0, layer], prefix[1, layer], layer)
        mask = {"attention_mask": (torch.arange(15) < torch.tensor([[15], [12 if padded else 15]])).long()}
        with torch.no_grad():
            found.append(model(**tokens(rows), **mask, **{name_of_cache(): cache}))
    real = torch.arange(10) < torch.tensor([[10], [7 if padded else 10]])
    assert_close(found[0].last_hidden_state[real], found[1].last_hidden_state[real], rtol=1e-5, atol=1e-5)
    assert_close(found[0].pooler_output, found[1].pooler_output, rtol=1e-5, atol=1e-5)
    windowed, _ = models(attention_window=WINDOW)
    with pytest.raises(ValueError, match="attention_window cannot look into a cache"):
        windowed(**tokens(rows), **{name_of_cache(): cache})


def test_short_inputs_with_a_mask_of_ones_are_untouched():
    ours, theirs = models()
    theirs.set_attn_implementation("sdpa")
    ones = torch.ones(2, N)
    for implementation in ("longbert", "sdpa"):
        ours.set_attn_implementation(implementation)
        for mask in (ones, ones.bool(), 2 * ones.long(), ones[:, None, None], ones[:, None].bool().expand(-1, N, -1)):
            with torch.no_grad():
                result = ours(**tokens(["A" * N] * 2), attention_mask=mask)
                assert_equal(dict(result), dict(theirs(**tokens(["A" * N] * 2))))
    theirs.set_attn_implementation("eager")


def test_the_judge_can_tell():
    """Positions, sight and pooling each change the plain model's outputs."""
    _, theirs = models()
    whole, inputs = "A" * 30, tokens(["A" * 30])
    with torch.no_grad():
        states = [
            theirs(**inputs, position_ids=position_ids, attention_mask=added(mask[None])).last_hidden_state
            for position_ids, mask in (
                (positions([whole], False), sight(whole)),
                (positions([whole], False) + 1, sight(whole)),
                (positions([whole], False), sight(whole, attention_window=WINDOW)),
                (positions([whole], False), sight("A" * 15 + "B" * 15)),
            )
        ]
    for other in states[1:]:
        assert (states[0] - other).abs().max() > 1e-2
    assert isinstance(models()[0], LongBertModel)
