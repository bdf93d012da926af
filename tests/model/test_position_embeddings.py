"""What each position type and each position_init promises, on the modules alone."""

import math

import pytest
import torch
from conftest import (
    LONG,
    TYPES,
    N,
    assert_close,
    assert_equal,
    auto_class,
    batch,
    every_dtype,
    every_head,
    every_type,
    extended,
    outputs,
    tiny_config,
)
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModel

from longbert import (
    POSITION_INITS,
    POSITION_TYPES,
    LongBertConfig,
    LongBertModel,
    PositionEmbedding,
    PositionInit,
    extend_table,
    register_position_init,
    register_position_type,
)


HIDDEN = 32
every_init = pytest.mark.parametrize("position_init", POSITION_INITS)
every_length = pytest.mark.parametrize("length", [N, N + 1, LONG, N * N])


def init_config(position_init: str, **settings) -> LongBertConfig:
    return tiny_config(position_type="learned-extended", position_init=position_init, **settings)


def module(dtype: torch.dtype = torch.float32, **settings) -> PositionEmbedding:
    """A position module with random weights."""
    config = tiny_config(**settings)
    positions = POSITION_TYPES[config.position_type](config).to(dtype)
    nn.init.normal_(positions.weight, std=0.1)
    return positions


def numbered_rows(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A table `[n, hidden_size]` whose row k is all k, so that a copied row tells where it came from."""
    return torch.arange(N, dtype=dtype)[:, None].expand(N, HIDDEN)


def textbook(table: torch.Tensor, alpha: float) -> torch.Tensor:
    """All n² rows in fp64, as bert4keras computes them (layers.py, PositionEmbedding with hierarchical)."""
    p, position = table.double(), torch.arange(N * N)
    e = (p - alpha * p[:1]) / (1 - alpha)
    return alpha * e[position // N] + (1 - alpha) * e[position % N]


# How learned-extended fills its rows


@every_dtype
@every_length
@every_init
def test_filled_table_keeps_dtype_and_the_sources_rows(position_init, length, dtype):
    table = torch.randn(N, HIDDEN).to(dtype)
    filled = extend_table(table, length, init_config(position_init, max_position_embeddings=length))
    assert filled.shape == (length, HIDDEN)
    assert filled.dtype == dtype
    assert filled.isfinite().all()
    if position_init != "interpolate":
        assert_equal(filled[:N], table)


@every_dtype
def test_tile_repeats_the_table(dtype):
    filled = extend_table(numbered_rows(dtype), 3 * N + 5, init_config("tile"))
    assert_equal(filled[:, 0], (torch.arange(3 * N + 5) % N).to(dtype))


@every_dtype
def test_tile_skip_special_never_reuses_the_first_row_nor_the_last(dtype):
    filled = extend_table(numbered_rows(dtype), 5 * N, init_config("tile-skip-special"))
    assert set(filled[N:, 0].tolist()) == set(range(1, N - 1))
    steps = filled[N:, 0].diff()
    assert steps[(steps != 1)].unique().tolist() == [-(N - 3)]  # in order, from 1 to n-2, again and again


def test_tile_skip_special_needs_rows_to_reuse():
    with pytest.raises(StrictDataclassError, match="at least 3 positions.*use 'tile'"):
        init_config("tile-skip-special", pretrained_positions=2)


@every_dtype
def test_repeat_last_repeats_the_last(dtype):
    filled = extend_table(numbered_rows(dtype), LONG, init_config("repeat-last"))
    assert_equal(filled[N:, 0], torch.full((LONG - N,), N - 1, dtype=dtype))


@every_dtype
def test_interpolate_keeps_row_0_and_the_ends_of_what_it_stretches(dtype):
    table = torch.randn(N, HIDDEN).to(dtype)
    filled = extend_table(table, LONG, init_config("interpolate"))
    assert_equal(filled[[0, 1, -1]], table[[0, 1, -1]])
    assert_equal(extend_table(table, N, init_config("interpolate")), table)


def test_interpolate_is_linear():
    filled = extend_table(numbered_rows(), LONG, init_config("interpolate"))
    assert_close(filled[1:, 0], torch.linspace(1, N - 1, LONG - 1))


def test_random_draws_at_berts_scale_and_says_that_it_is_noise(logged):
    config = init_config("random", initializer_range=0.5)
    filled = extend_table(torch.zeros(N, HIDDEN), 1000, config)
    assert_close(filled[N:].std(), torch.tensor(0.5), rtol=0.02, atol=0)
    assert "rows 16 to 999 hold noise" in logged


def test_nothing_to_fill_is_nothing_to_warn_about(logged):
    assert_equal(extend_table(numbered_rows(), N, init_config("random")), numbered_rows())
    assert "noise" not in logged


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.9])
def test_hierarchical_rows_are_the_textbooks(alpha):
    table = 0.1 * torch.randn(N, HIDDEN)
    config = init_config("hierarchical", hierarchical_alpha=alpha)
    assert_close(extend_table(table, N * N, config).double(), textbook(table, alpha), rtol=0, atol=1e-6)


def test_a_table_never_shrinks_and_hierarchical_rows_end_at_n_squared():
    with pytest.raises(ValueError, match="ask for at least 16"):
        extend_table(numbered_rows(), N - 1, init_config("tile"))
    with pytest.raises(ValueError, match="256 positions, got 257"):
        extend_table(numbered_rows(), N * N + 1, init_config("hierarchical"))


# Every type: nn.Embedding's contract


@every_dtype
@every_type
def test_position_ids_of_any_shape(settings, dtype):
    positions = module(dtype, **settings)
    reach = positions.config.max_position_embeddings
    every = positions(torch.arange(reach))
    assert every.shape == (reach, HIDDEN)
    assert every.dtype == dtype
    for shape in [(), (1,), (2, 5), (2, 3, 4), (2, 0)]:
        position_ids = torch.randint(0, reach, shape)
        assert_equal(positions(position_ids), every[position_ids])


@every_type
def test_the_gradient_is_the_adjoint_of_the_lookup(settings):
    # Every type is linear in its weight: <J^T J w, w> = |J w|² for any w
    positions = module(**settings)
    position_ids = torch.tensor([[0, 3, N - 1], [3, 7, positions.config.max_position_embeddings - 1]])
    direction = torch.randn_like(positions.weight)
    change = torch.func.functional_call(positions, {"weight": direction}, (position_ids,))
    (gradient,) = torch.autograd.grad(positions(position_ids), positions.weight, change)
    assert_close((gradient * direction).sum(), change.square().sum())


# Hierarchical


@every_dtype
@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.9])
def test_hierarchical_is_the_stored_table_below_n(alpha, dtype):
    positions = module(dtype, position_type="hierarchical", hierarchical_alpha=alpha)
    assert_equal(positions(torch.arange(N)), positions.weight)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.9])
def test_hierarchical_is_the_textbooks_up_to_n_squared(alpha):
    positions = module(position_type="hierarchical", hierarchical_alpha=alpha, max_position_embeddings=N * N)
    every = positions(torch.arange(N * N))
    assert_close(
        every.double(), textbook(positions.weight.detach(), alpha), rtol=0, atol=1e-5 if alpha > 0.5 else 1e-6
    )
    assert len(every.unique(dim=0)) == N * N
    with pytest.raises(IndexError):
        positions(torch.tensor([N * N]))


def test_hierarchical_alpha_one_half_is_refused_because_positions_collide():
    rows = textbook(torch.randn(N, HIDDEN), alpha=0.5)
    i, j = 3, 5
    assert_close(rows[i * N + j], rows[j * N + i])
    with pytest.raises(StrictDataclassError, match="0.5, which gives positions"):
        tiny_config(position_type="hierarchical", hierarchical_alpha=0.5)


# Sinusoidal

# Vaswani et al. 2017, section 3.5: PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(pos / 10000^(2i/d)),
# here d = 4, so the angles are pos and pos / 100. Digits are those of sin and cos in any table of them.
PRINTED = {
    0: [0.0, 1.0, 0.0, 1.0],
    1: [0.8414709848, 0.5403023059, 0.0099998333, 0.9999500004],
    2: [0.9092974268, -0.4161468365, 0.0199986667, 0.9998000067],
    3: [0.1411200081, -0.9899924966, 0.0299955002, 0.9995500337],
    100: [-0.5063656411, 0.8623188723, 0.8414709848, 0.5403023059],
}


def sinusoidal(dtype: torch.dtype = torch.float32, **settings) -> PositionEmbedding:
    positions = module(dtype, position_type="sinusoidal", **settings)
    nn.init.ones_(positions.weight)
    return positions


def test_sinusoids_are_the_papers():
    positions = sinusoidal(hidden_size=4)
    assert_close(positions(torch.tensor(list(PRINTED))), torch.tensor(list(PRINTED.values())))


@every_dtype
def test_sinusoids_are_computed_in_fp32_and_then_rounded(dtype):
    position_ids = torch.arange(5000)
    assert_equal(sinusoidal(dtype)(position_ids), sinusoidal()(position_ids).to(dtype))


@pytest.mark.parametrize("position", [10, 513, 4096, 1_000_000])
def test_sinusoids_reach_anywhere_with_the_error_of_an_fp32_angle(position):
    frequencies = 10000 ** -(torch.arange(0, HIDDEN, 2, dtype=torch.float64) / HIDDEN)
    exact = torch.stack(((position * frequencies).sin(), (position * frequencies).cos()), dim=-1).flatten()
    vector = sinusoidal()(torch.tensor(position))
    angle_error = position * frequencies.repeat_interleave(2) * torch.finfo(torch.float32).eps
    assert ((vector - exact).abs() <= 8 * angle_error + 1e-6).all()
    assert_close(vector.square().mean(), torch.tensor(0.5))


def test_sinusoidal_base_sets_the_longest_wavelength():
    positions = sinusoidal(hidden_size=4, sinusoidal_base=400)
    assert_close(positions(torch.tensor(7))[2:], torch.tensor([math.sin(7 / 20), math.cos(7 / 20)]))


def test_sinusoidal_scale_is_learnt():
    positions = sinusoidal()
    once = positions(torch.arange(5)).detach()
    with torch.no_grad():
        positions.weight.fill_(3)
    assert_close(positions(torch.arange(5)), 3 * once)


def test_sinusoids_have_the_spread_of_the_rows_that_they_replace(bert, source_rows):
    table = extended(bert(), "Model", TYPES["sinusoidal"]).position_table()
    assert_close(table.square().mean().sqrt(), source_rows[1:].square().mean().sqrt())


def test_sinusoids_from_scratch_have_the_spread_of_berts_initial_rows():
    table = LongBertModel(tiny_config(**TYPES["sinusoidal"], initializer_range=0.07)).position_table()
    assert_close(table.square().mean().sqrt(), torch.tensor(0.07))


def test_zero_padding_positions_gives_padding_no_position(bert):
    settings = TYPES["sinusoidal"] | {"zero_padding_positions": True}
    # With attention that computes padding: longbert's own has none to give a vector to
    model, plain = (
        extended(bert(), "Model", each, attn_implementation="sdpa") for each in (settings, TYPES["sinusoidal"])
    )
    inputs = batch(10)
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, 6:] = mask[1, :2] = 0
    zeroed, usual = (outputs(each, **inputs, attention_mask=mask) for each in (model, plain))
    kept = mask.bool()
    assert_equal(zeroed["last_hidden_state"][kept], usual["last_hidden_state"][kept])
    embeddings = model.embeddings
    without_position = embeddings.word_embeddings(inputs["input_ids"]) + embeddings.token_type_embeddings(
        inputs["token_type_ids"]
    )
    assert_equal(zeroed["hidden_states"][0][~kept], embeddings.LayerNorm(without_position)[~kept])
    # Segments are optional, as in BERT
    given = outputs(model, input_ids=inputs["input_ids"], attention_mask=mask, token_type_ids=torch.zeros_like(mask))
    assert_equal(outputs(model, input_ids=inputs["input_ids"], attention_mask=mask), given)


# A type of one's own


class Mirrored(PositionEmbedding):
    """Position k reads row k on even laps over the table, and backwards on odd ones."""

    def __init__(self, config):
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(self.stored_rows(config), config.hidden_size))

    @classmethod
    def validate_config(cls, config):
        if config.max_position_embeddings % config.pretrained_positions:
            raise ValueError("mirrored positions come in whole laps")

    @classmethod
    def stored_rows(cls, config):
        return config.pretrained_positions

    def forward(self, position_ids):
        n = len(self.weight)
        lap, row = position_ids // n, position_ids % n
        return nn.functional.embedding(torch.where(lap % 2 == 0, row, n - 1 - row), self.weight)


@pytest.fixture
def mirrored():
    register_position_type("mirrored", Mirrored)
    yield {"position_type": "mirrored", "max_position_embeddings": 3 * N}
    del POSITION_TYPES["mirrored"]


@every_head
def test_a_registered_type_works_in_every_head(head, mirrored, bert, source_rows, tmp_path):
    config = LongBertConfig.from_pretrained(bert(), **mirrored)
    model = auto_class(head).from_pretrained(bert(), config=config)
    assert_equal(model.position_table(), torch.cat((source_rows, source_rows.flip(0), source_rows)))
    model.save_pretrained(tmp_path)
    inputs = batch(3 * N, head)
    assert_equal(outputs(auto_class(head).from_pretrained(tmp_path), **inputs), outputs(model, **inputs))


def test_a_registered_type_checks_its_config_and_initialises_from_scratch(mirrored):
    with pytest.raises(StrictDataclassError, match="whole laps"):
        tiny_config(**mirrored | {"max_position_embeddings": LONG})
    model = AutoModel.from_config(tiny_config(**mirrored, initializer_range=0.5))
    assert_close(model.position_table().std(), torch.tensor(0.5), rtol=0.1, atol=0)


def test_registering_the_same_class_again_is_harmless(mirrored):
    register_position_type("mirrored", Mirrored)
    assert POSITION_TYPES["mirrored"] is Mirrored


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="'learned' is already registered as LearnedPositionEmbedding"):
        register_position_type("learned", Mirrored)
    for wrong in (nn.Embedding, Mirrored(tiny_config()), "Mirrored"):
        with pytest.raises(TypeError, match="subclass of longbert.PositionEmbedding"):
            register_position_type("wrong", wrong)
    assert "wrong" not in POSITION_TYPES


# A filling of one's own


def in_reverse(table, length, config):
    return torch.cat((table, table.flip(0)[: length - len(table)]))


@pytest.fixture
def reverse():
    register_position_init("reverse", PositionInit(in_reverse))
    yield {"position_type": "learned-extended", "position_init": "reverse", "max_position_embeddings": N + 4}
    del POSITION_INITS["reverse"]


def test_a_registered_init_fills_what_is_saved_and_loaded(reverse, bert, source_rows, tmp_path):
    model = auto_class("ForMaskedLM").from_pretrained(bert(), config=LongBertConfig.from_pretrained(bert(), **reverse))
    expected = torch.cat((source_rows, source_rows.flip(0)[:4]))
    assert_equal(model.position_table(), expected)
    model.save_pretrained(tmp_path)
    assert_equal(auto_class("ForMaskedLM").from_pretrained(tmp_path).position_table(), expected)


def test_what_cannot_be_registered_as_an_init():
    with pytest.raises(TypeError, match="is a longbert.PositionInit"):
        register_position_init("wrong", in_reverse)
    with pytest.raises(ValueError, match="'tile' is already registered"):
        register_position_init("tile", PositionInit(in_reverse))
