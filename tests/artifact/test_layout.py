"""Names, packing and configuration are those of the compressed-tensors layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.artifact.layout import Scheme, quantization_config, whole_codes
from inference_pio.errors import ArtifactError
from inference_pio.formats.fp8 import Fp8Linear
from inference_pio.formats.int4 import Int4Linear
from inference_pio.formats.int8 import Int8Linear
from tests.artifact.help import unpacked

PACKED = {"weight_packed", "weight_shape", "weight_scale"}


def made_of(kind: Any, int4: str, rows: int = 50) -> tuple[Any, Scheme, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    layer = kind.from_linear(nn.Linear(96, rows), group=32)
    scheme, made = whole_codes(layer, "weight", int4)  # type: ignore[arg-type]
    return layer, scheme, dict(scheme.packed("weight", made.codes, made.step, made.zero))


@pytest.mark.parametrize(
    ("kind", "int4", "told", "names"),
    [
        (Int8Linear, "wide", "int8 by rows", PACKED),
        (Fp8Linear, "wide", "fp8 by rows", {"weight", "weight_scale"}),
        (Int4Linear, "wide", "int8 in groups of 32", PACKED),
        (Int4Linear, "symmetric", "int4 in groups of 32", PACKED),
        (Int4Linear, "asymmetric", "int4 in groups of 32, with zeros", PACKED | {"weight_zero_point"}),
    ],
)
def test_a_layer_is_named_and_packed_as_its_scheme_says(kind: Any, int4: str, told: str, names: set[str]) -> None:
    layer, scheme, tensors = made_of(kind, int4)
    assert str(scheme) == told
    assert tensors.keys() == names
    groups = 3 if scheme.group else 1
    assert tensors["weight_scale"].shape == (50, groups)
    if scheme.type == "float":
        assert tensors["weight"].dtype is torch.float8_e4m3fn
        weight = tensors["weight"].float() * tensors["weight_scale"].float()
    else:
        assert tensors["weight_packed"].shape == (50, 96 * scheme.bits // 32)
        assert tensors["weight_shape"].tolist() == [50, 96]
        codes = unpacked(tensors["weight_packed"], scheme.bits, 96).float().unflatten(1, (groups, -1))
        if not scheme.symmetric:
            assert tensors["weight_zero_point"].shape == (7, 3)  # 50 rows, 8 to a word
            codes -= unpacked(tensors["weight_zero_point"].t(), 4, 50).t()[..., None]
        weight = (codes * tensors["weight_scale"].float()[..., None]).flatten(1)
    lost = (weight - layer.dequantize()).norm() / layer.dequantize().norm()
    assert lost <= {"int8 by rows": 0, "fp8 by rows": 0, "int8 in groups of 32": 0.004}.get(told, 0.09)


def test_the_library_itself_reads_what_is_packed() -> None:
    reason = "the extra export is not installed"
    compressors = pytest.importorskip("compressed_tensors.compressors", reason=reason)
    quantization = pytest.importorskip("compressed_tensors.quantization", reason=reason)
    for kind, int4 in [(Int8Linear, "wide"), (Fp8Linear, "wide"), (Int4Linear, "wide"), (Int4Linear, "asymmetric")]:
        layer, scheme, tensors = made_of(kind, int4)
        tensors["weight_scale"] = tensors["weight_scale"].float()
        read = quantization.QuantizationScheme.model_validate(scheme.to_config(["Linear"]))
        reader = compressors.BaseCompressor.get_value_from_registry(scheme.format)
        weight = reader.decompress(tensors, read)["weight"]
        lost = (weight - layer.dequantize()).norm() / layer.dequantize().norm()
        assert lost < (0.004 if scheme.symmetric else 0.09)


def test_a_format_without_a_form_is_refused() -> None:
    class Other(Int8Linear):
        format = "exponent12"

    layer = Other.from_linear(nn.Linear(32, 32))
    with pytest.raises(ArtifactError, match="no form for exponent12"):
        whole_codes(layer, "weight", "wide")


def test_the_scheme_of_most_is_that_of_every_linear_and_patterns_stand_in_front() -> None:
    most, head = Scheme(4, "int", 32), Scheme(8)
    config = quantization_config({most: ["a", "b"], head: ["re:^lm_head$"]}, ["gate"])
    assert [group["targets"] for group in config["config_groups"].values()] == [["re:^lm_head$"], ["Linear"]]
    assert (config["format"], config["ignore"], config["quantization_status"]) == (
        "pack-quantized", ["gate"], "compressed",
    )  # fmt: skip
    assert config["config_groups"]["group_1"]["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": True, "dynamic": False, "strategy": "group", "group_size": 32,
    }  # fmt: skip
    assert quantization_config({most: ["a", "b"], Scheme(8, "float"): ["c"]}, [])["format"] == "mixed-precision"
