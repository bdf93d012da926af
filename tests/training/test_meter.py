"""What a run's figures count."""

import pytest
from conftest import tiny_config

from longbert.training.meter import peak_flops, training_flops, visible_tokens


CARDS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA RTX A6000": 155e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 5090": 209e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla T4": 65e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GeForce GTX 1080": None,
    "NVIDIA A1000": None,
}


@pytest.mark.parametrize("name", CARDS)
def test_a_cards_peak_is_its_own(name):
    assert peak_flops(name) == CARDS[name]


def test_layers_that_read_in_full_are_counted_in_full():
    settings = {"max_position_embeddings": 256, "num_hidden_layers": 4, "attention_window": 8}
    window, mixed, full = (
        tiny_config(**settings | changes)
        for changes in ({}, {"full_attention_layers": [0, 3]}, {"attention_window": None})
    )
    assert [visible_tokens(config, 100) for config in (window, mixed, full)] == [4 * 10, 2 * 10 + 2 * 100, 4 * 100]
    assert visible_tokens(window, 16) == visible_tokens(full, 16) == 4 * 16
    halves = (training_flops(window, [100], 0) + training_flops(full, [100], 0)) / 2
    assert training_flops(mixed, [100], 0) == halves
