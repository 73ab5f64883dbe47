"""Pruning on trained models: close to the original, and far below one-shot methods on the same text and draws."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.head_groups import HeadGroups, head_groups
from inference_pio.anatomy.mlp_channels import InnerChannels, inner_channels
from inference_pio.anatomy.routed_experts import RoutedExperts, routed_experts
from inference_pio.calibration.input_pass import collect_inputs
from inference_pio.calibration.source import calibration_source
from inference_pio.calibration.twins import pruned_twin
from inference_pio.manager import ModularOptimizationManager
from tests.quality import reference_models
from tests.quality.reference_models import DRAWS, NAMES
from tests.quality.test_tensor_compression import EACH_DRAW as ONE_DRAW
from tests.quality.test_tensor_compression import calibration_tokens, in_turn, judged
from tests.sweep import LONG_ONES, in_its_turn

EACH_DRAW = range(DRAWS)
DENSE = [name for name in NAMES if name in ("qwen3", "qwen3_vl")]
MIXTURES = [name for name in NAMES if "moe" in name]


@functools.cache
def original(name: str) -> Any:
    return reference_models.load(name)


@functools.cache
def pruned(name: str, ratio: float, unit: str = "mlp", allocation: str = "measured", **more: Any) -> Any:
    model = reference_models.load(name)
    asked = {
        "pruning_ratio": ratio, "align": 8, "units": [unit], "allocation": allocation, "text": calibration_tokens(),
        **more,
    }  # fmt: skip
    ModularOptimizationManager().apply_optimizations(
        model, ["structured_pruning"], parameters={"structured_pruning": asked}
    )
    return model


@functools.cache
def by_one_shot(name: str, ratio: float, method: str) -> Any:
    """The same share of each MLP gone: by FLAP's score with its bias, by Wanda's, or by the size of weights."""
    model = copy.deepcopy(original(name))
    mlps = [one for one in inner_channels(model) if isinstance(one, InnerChannels) and one.unit == "mlp"]
    source = calibration_source(model, torch.tensor(calibration_tokens()), tokens=32768, window=512)
    seen = {reader: one for one in collect_inputs(model, source, [mlp.down for mlp in mlps]) for reader in one.readers}
    for mlp in mlps:
        statistics, weight = seen[mlp.down], mlp.down_weights[0]
        power = statistics.gram.diagonal()  # type: ignore[union-attr]
        score = {
            "flap": (power / statistics.count - statistics.mean.square()) * weight.double().square().sum(0),
            "wanda": power.sqrt() * weight.double().abs().sum(0),
            "magnitude": weight.double().square().sum(0),
        }[method]
        kept = score.topk(round(mlp.width * (1 - ratio))).indices.sort().values
        gone = torch.ones(mlp.width, dtype=torch.bool).index_fill(0, kept, False)
        for key, matrix in mlp.narrowed(kept[None], weight[None][..., kept]).items():
            owner = mlp.module.get_submodule(key.rpartition(".")[0])
            owner.weight = nn.Parameter(matrix)
        if method == "flap":
            bias = weight[:, gone].double() @ statistics.mean[gone]
            mlp.module.get_submodule("down_proj").bias = nn.Parameter(bias.to(weight.dtype))
    return model


def excess(model: Any, name: str, number: int) -> float:
    return judged(name, model, number).perplexity_ratio - 1


@in_its_turn(0, of=LONG_ONES)
@pytest.mark.parametrize("name", in_turn("qwen3", among=DENSE))
def test_a_quarter_of_the_channels_goes_at_little_loss(name: str) -> None:
    found = [excess(pruned(name, 0.25), name, number) for number in EACH_DRAW]
    assert max(found) <= 0.05
    for number in EACH_DRAW:
        assert found[number] <= 0.65 * excess(by_one_shot(name, 0.25, "flap"), name, number)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["flap", "wanda", "magnitude"])
@pytest.mark.parametrize("name", in_turn("qwen3", among=DENSE))
def test_half_of_the_channels_goes_at_far_less_loss_than_by_one_shot(name: str, method: str) -> None:
    shares = [
        excess(pruned(name, 0.5), name, number) / excess(by_one_shot(name, 0.5, method), name, number)
        for number in EACH_DRAW
    ]
    assert max(shares) < 0.75
    assert sum(shares) / len(shares) <= 0.65


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_half_of_the_channels_goes_at_a_fifth_more_perplexity(name: str) -> None:
    assert max(excess(pruned(name, 0.5), name, number) for number in EACH_DRAW) <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_what_is_fitted_to_the_stream_loses_less(name: str) -> None:
    for number in EACH_DRAW:
        assert excess(pruned(name, 0.5), name, number) < excess(pruned(name, 0.5, refit="outputs"), name, number)


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_stray_tokens_spare_what_the_text_never_says(name: str) -> None:
    with_strays, without = (
        [excess(pruned(name, 0.5, **asked), name, number) for number in EACH_DRAW] for asked in ({}, {"stray": 0.0})
    )
    assert sum(with_strays) < sum(without)
    assert with_strays[0] < 0.85 * without[0]  # a window of it is letters that the calibration text does not hold


@in_its_turn(1, of=LONG_ONES)
@pytest.mark.parametrize("name", in_turn("qwen3_moe", among=MIXTURES))
def test_a_quarter_of_each_experts_width_goes_at_little_loss(name: str) -> None:
    assert max(excess(pruned(name, 0.25, "expert_width"), name, number) for number in EACH_DRAW) <= 0.06


@functools.cache
def with_random_experts(name: str, ratio: float, seed: int) -> Any:
    model, chance = reference_models.load(name), torch.Generator().manual_seed(seed)
    for one in [one for one in routed_experts(model) if isinstance(one, RoutedExperts)]:
        count = round(one.width * (1 - ratio))
        kept = torch.randperm(one.width, generator=chance)[:count].sort().values
        model.set_submodule(one.path, pruned_twin(one, one.only(kept), count))
    return model


RANDOM_MASKS = 5


@in_its_turn(2, of=LONG_ONES)
@ONE_DRAW
@pytest.mark.parametrize("name", in_turn("qwen3_moe", among=MIXTURES))
def test_a_quarter_of_the_experts_goes_at_half_the_loss_of_chance(name: str, number: int) -> None:
    by_chance = [excess(with_random_experts(name, 0.25, seed), name, number) for seed in range(RANDOM_MASKS)]
    assert excess(pruned(name, 0.25, "experts"), name, number) <= 0.5 * sum(by_chance) / RANDOM_MASKS


@functools.cache
def with_random_heads(name: str, seed: int) -> Any:
    model, chance = reference_models.load(name), torch.Generator().manual_seed(seed)
    for one in [one for one in head_groups(model) if isinstance(one, HeadGroups)]:
        kept = torch.randperm(one.width, generator=chance)[None, : one.width // 2].sort().values
        for key, weight in one.narrowed(kept, one.down_weights[..., one.columns(kept)[0]]).items():
            one.module.get_submodule(key.rpartition(".")[0]).weight = nn.Parameter(weight)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("number", EACH_DRAW)
def test_half_of_the_key_heads_goes_at_a_fifth_of_the_loss_of_chance(number: int) -> None:
    by_chance = [excess(with_random_heads("qwen3", seed), "qwen3", number) for seed in range(RANDOM_MASKS)]
    assert excess(pruned("qwen3", 0.5, "kv_heads"), "qwen3", number) <= 0.2 * sum(by_chance) / RANDOM_MASKS


@pytest.mark.slow
def test_measured_widths_lose_less_than_equal_ones() -> None:
    for number in EACH_DRAW:
        assert excess(pruned("qwen3", 0.25), "qwen3", number) < excess(
            pruned("qwen3", 0.25, allocation="uniform"), "qwen3", number
        )
