"""int4 as a format: groups that divide the inputs, two codes a byte, and one layout for all machines in files."""

from __future__ import annotations

import pytest
import torch

from inference_pio.compat import int4_packed_order
from inference_pio.errors import InvalidModel
from inference_pio.formats.int4 import Int4Experts, Int4Linear
from inference_pio.kernels import int4
from tests.formats.help import linear, seeded


@pytest.mark.parametrize(
    ("inputs", "group", "way_out"),
    [(192, 128, r"group_size=64 does"), (96, 64, r"group_size=32 does"), (40, 32, r"none of 32, 64, 128 does")],
)
def test_groups_that_do_not_divide_the_inputs_are_refused_with_the_way_out(
    inputs: int, group: int, way_out: str
) -> None:
    with pytest.raises(InvalidModel, match=rf"groups of {group} do not divide its {inputs} inputs \({way_out}\)"):
        Int4Linear.from_linear(linear(inputs, 8), group)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_it_takes_half_a_byte_a_weight_and_four_bytes_a_group(group: int) -> None:
    layer = Int4Linear.from_linear(linear(256, 64, bias=False), group)
    assert sum(tensor.nbytes for tensor in layer.buffers()) == 256 * 64 // 2 + 256 * 64 // group * 4
    assert f"group={group}" in repr(layer)
    assert Int4Experts.format == Int4Linear.format == "int4"


def test_a_machine_without_the_packed_product_reads_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Int4Linear.from_linear(linear(64, 128), 32), seeded(5, 64)
    state, here = layer.state_dict(), layer(x)
    assert state["weight_int4"].dtype is torch.int8
    monkeypatch.setattr(int4, "int4_packed_order", lambda: None)
    monkeypatch.setattr(int4, "_CHOSEN", {})
    there = Int4Linear.from_linear(linear(64, 128), 32)
    there.load_state_dict(state)
    assert there.weight_int4.dtype is torch.int8
    assert (there(x) - here).abs().max() <= 0.01 * here.abs().max()
    assert torch.equal(there.weight_int4, state["weight_int4"])


def test_codes_lie_as_the_cpu_reads_them_and_as_all_devices_do_elsewhere() -> None:
    layer = Int4Linear.from_linear(linear(64, 128), 32)
    packed = int4_packed_order() is not None
    assert layer.weight_int4.dtype is (torch.uint8 if packed else torch.int8)
    assert layer.to("meta").weight_int4.dtype is torch.int8
