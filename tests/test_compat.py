"""What differs between versions of the libraries is found by looking."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from inference_pio import compat
from inference_pio.errors import ArtifactError
from tests import tiny


def test_a_configuration_is_told_by_its_looks() -> None:
    model = tiny.build("qwen3_vl")
    assert compat.is_config(model.config)
    assert compat.is_config(model.config.text_config)
    assert not compat.is_config(SimpleNamespace(model_type="qwen3"))
    assert not compat.is_config(model)


def test_a_mask_of_left_padding_hides_it_and_tells_what_is_seen() -> None:
    mask = compat.left_padding_mask(torch.tensor([2, 0], dtype=torch.int32), 4)
    assert mask.tolist() == [[[[False, False, True, True]]], [[[True] * 4]]]
    seen = compat.seen_keys(mask)
    assert seen is not None
    assert (seen.starts.tolist(), seen.length, seen.ends) == ([2, 0], 4, None)


def test_padding_is_hidden_from_all_queries_but_itself() -> None:
    mask = compat.left_padding_mask(torch.tensor([2, 0], dtype=torch.int32), 4, queries=3)
    assert mask.shape == (2, 1, 3, 4)
    assert mask[0, 0].tolist() == [[False, True, False, False], [False, False, True, False], [False, False, True, True]]
    assert mask[1, 0].tolist() == [[True, True, False, False], [True, True, True, False], [True, True, True, True]]
    seen = compat.seen_keys(mask)
    assert seen is not None
    assert (seen.starts.tolist(), seen.length) == ([2, 0], 4)


def test_what_compiling_raises_is_known_and_is_no_error_of_the_model() -> None:
    kinds = compat.compile_errors()
    assert torch._dynamo.exc.Unsupported in [sub for kind in kinds for sub in kind.__subclasses__()]
    assert not any(issubclass(error, kinds) for error in (ValueError, torch.OutOfMemoryError, KeyboardInterrupt))


def test_names_are_looked_for_in_the_forward_of_a_class() -> None:
    class Reading:
        def forward(self) -> object:
            return compat

    assert compat.knows_names(Reading, "compat")
    assert not compat.knows_names(Reading, "tiny")


def test_an_attention_function_is_added_once_with_a_mask_and_takes_no_name_of_the_librarys() -> None:
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    before = dict(AttentionInterface._global_mapping)

    def function() -> None: ...

    try:
        for _ in range(2):
            compat.add_attention_function("inference_pio_test", function)
        assert AttentionInterface._global_mapping == {**before, "inference_pio_test": function}
        assert "inference_pio_test" in AttentionMaskInterface._global_mapping
    finally:
        AttentionInterface._global_mapping.pop("inference_pio_test")
        AttentionMaskInterface._global_mapping.pop("inference_pio_test")


def test_the_name_of_the_attention_function_is_read_where_the_library_keeps_it() -> None:
    model = tiny.build("llama")
    model.set_attn_implementation("eager")
    assert compat.attention_name(model.config) == "eager"
    assert vars(model.config)[compat.ATTENTION_KEY] == "eager"
    assert compat.EXPERTS_KEY in vars(tiny.build("qwen3_moe").config)


def test_the_flash_kernel_of_the_cpu_is_told_from_the_plain_one() -> None:
    tensors = [torch.randn(1, 4, 3, 16) for _ in range(3)]
    assert compat.cpu_flash_serves(*tensors, causal=True)
    narrow_value = tensors[2][..., :8]  # the flash kernel wants one width for keys and values
    assert not compat.cpu_flash_serves(*tensors[:2], narrow_value, causal=True)


@pytest.mark.parametrize("name", ["os", "Trainer", "AutoModel", "no_such_class"])
def test_only_model_classes_of_the_library_are_built_from_a_file(name: str, tmp_path: object) -> None:
    with pytest.raises(ArtifactError):
        compat.meta_model(tmp_path, name)


def test_the_packed_matmul_is_used_only_where_it_is_right() -> None:
    if compat.has_int8_packed_matmul():
        rows = torch.randn(4, 64).bfloat16()
        codes = torch.randint(-127, 128, (8, 64), dtype=torch.int8)
        scale = torch.rand(8).bfloat16()
        expected = rows.float() @ (codes.float() * scale.float()[:, None]).T
        got = compat.int8_packed_matmul(rows, codes, scale).float()
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-1)


def test_the_packed_int4_product_is_used_only_in_the_order_in_which_it_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = compat.int4_packed_order()
    if order is None:
        return
    assert sorted(order) == list(range(len(order)))
    codes = torch.randint(0, 16, (2 * len(order), 64), dtype=torch.int32)
    packed = torch._convert_weight_to_int4pack_for_cpu(codes, 1).view(2, 64, -1)  # by the library's own words
    halves = torch.cat([packed & 15, packed >> 4], -1)
    assert torch.equal(halves, codes.view(2, len(order), 64)[:, list(order)].transpose(1, 2).to(torch.uint8))
    assert not compat._int4_product_is_right(tuple(reversed(order)))
    monkeypatch.setattr(compat, "int4_packed_matmul", lambda rows, codes, *_: torch.zeros(len(rows), len(codes)))
    assert not compat._int4_product_is_right(order)


@pytest.mark.parametrize(("said", "meant"), [(None, False), ("", False), ("0", False), ("1", True), ("true", True)])
def test_whether_triton_interprets_is_read_from_the_environment(
    said: str | None, meant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if said is not None:
        monkeypatch.setenv("TRITON_INTERPRET", said)
    assert compat.triton_interprets() is meant


def test_triton_is_found_without_being_loaded() -> None:
    code = "import sys; from inference_pio.compat import has_triton; has_triton(); sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class _Reads(TorchDispatchMode):
    """Counts how often a number is fetched from a tensor: on a GPU, the host waits for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def _padding(*starts: int, columns: int) -> torch.Tensor:
    return torch.arange(columns) >= torch.tensor(starts)[:, None]


OFFSET = torch.tensor(4)
ASKED: dict[str, tuple[dict[str, Any], compat.SeenKeys | None]] = {
    "nothing hidden": ({"q_length": 5, "kv_length": 5}, None),
    "a mask of ones": ({"q_length": 5, "kv_length": 5, "attention_mask": _padding(0, 0, columns=5)}, None),
    "left padding": (
        {"q_length": 5, "kv_length": 5, "attention_mask": _padding(2, 0, columns=5)},
        compat.SeenKeys(torch.tensor([2, 0]), length=5),
    ),
    "a row of padding alone": (
        {"q_length": 5, "kv_length": 5, "attention_mask": _padding(5, 0, columns=5)},
        compat.SeenKeys(torch.tensor([5, 0]), length=5),
    ),
    "a chunk": ({"q_length": 3, "kv_length": 7, "q_offset": 4}, compat.SeenKeys(length=7)),
    "a padded chunk": (
        {"q_length": 3, "kv_length": 7, "q_offset": 4, "attention_mask": _padding(1, 3, columns=7)},
        compat.SeenKeys(torch.tensor([1, 3]), length=7),
    ),
    "padded decode": (
        {"q_length": 1, "kv_length": 7, "q_offset": 6, "attention_mask": _padding(1, 3, columns=7)},
        compat.SeenKeys(torch.tensor([1, 3]), length=7),
    ),
    "static prefill": ({"q_length": 5, "kv_length": 9}, None),
    "padded static prefill": (
        {"q_length": 5, "kv_length": 9, "attention_mask": _padding(2, 0, columns=5)},
        compat.SeenKeys(torch.tensor([2, 0]), length=5),
    ),
    "a static chunk": ({"q_length": 3, "kv_length": 9, "q_offset": OFFSET}, compat.SeenKeys(length=7)),
    "a padded static chunk": (
        {"q_length": 3, "kv_length": 9, "q_offset": OFFSET, "attention_mask": _padding(1, 0, columns=7)},
        compat.SeenKeys(torch.tensor([1, 0]), length=7),
    ),
    "static decode": (
        {"q_length": 1, "kv_length": 9, "q_offset": OFFSET, "allow_is_causal_skip": False},
        compat.SeenKeys(ends=torch.tensor([5, 5])),
    ),
    "padded static decode": (
        {
            "q_length": 1, "kv_length": 9, "q_offset": OFFSET, "attention_mask": _padding(1, 0, columns=5),
            "allow_is_causal_skip": False,
        },
        compat.SeenKeys(torch.tensor([1, 0]), torch.tensor([5, 5])),
    ),
    "static decode, all ones": (
        {
            "q_length": 1, "kv_length": 9, "q_offset": OFFSET, "attention_mask": _padding(0, 0, columns=5),
            "allow_is_causal_skip": False,
        },
        compat.SeenKeys(ends=torch.tensor([5, 5])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_a_mask_tells_which_keys_plain_causal_attention_sees_and_is_the_librarys(name: str) -> None:
    asked, expected = ASKED[name]
    with _Reads() as reads:
        mask = compat.telling_mask(batch_size=2, **asked)
    theirs = masking_utils.sdpa_mask(batch_size=2, **asked)
    assert (mask is None) == (theirs is None)
    told = compat.seen_keys(mask)
    assert reads.count <= 1
    if expected is None:
        assert mask is None
        return
    assert torch.equal(mask, theirs)
    assert told is not None
    assert told.length == expected.length
    for ours, wanted in ((told.starts, expected.starts), (told.ends, expected.ends)):
        assert (ours is None) == (wanted is None)
        if ours is not None:
            assert ours.dtype == torch.int32
            assert ours.is_contiguous()
            assert ours.tolist() == wanted.tolist()
    assert torch.equal(_mask_of(told, mask.shape), mask)


def _mask_of(told: compat.SeenKeys, shape: torch.Size) -> torch.Tensor:
    batch, _, queries, keys = shape
    places = torch.arange(keys)
    ends = torch.full((batch,), told.length) if told.ends is None else told.ends
    starts = torch.zeros(batch) if told.starts is None else told.starts
    until = ends[:, None, None, None] - queries + 1 + torch.arange(queries)[:, None]
    return (places < until) & (places >= starts[:, None, None, None])


HOLES = torch.tensor([[True, False, True, True, True]] * 2)
UNTOLD: dict[str, dict[str, Any]] = {
    "a hole in the padding": {"attention_mask": HOLES},
    "padding at the right": {"attention_mask": HOLES.flip(-1).logical_not().cumsum(-1) == 0},
    "a sliding window": {
        "mask_function": masking_utils.sliding_window_causal_mask_function(2), "local_size": 2,
        "attention_mask": _padding(1, 0, columns=5),
    },
    "both directions": {
        "mask_function": masking_utils.bidirectional_mask_function, "attention_mask": _padding(1, 0, columns=5)
    },
    "a function around the causal one": {
        "mask_function": masking_utils.and_masks(
            masking_utils.causal_mask_function,
            masking_utils.packed_sequence_mask_function(torch.tensor([[0, 0, 1, 1, 1]] * 2)),
        ),
        "allow_is_causal_skip": False,
    },
    "an offset of the keys": {"kv_offset": 2, "q_offset": 2, "attention_mask": torch.ones(2, 7).bool()},
    "a mask too short for the last query": {
        "q_length": 3, "kv_length": 5, "q_offset": 2, "attention_mask": torch.ones(2, 4).bool()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", UNTOLD)
def test_other_masks_are_the_librarys_and_tell_nothing(name: str) -> None:
    asked = {"batch_size": 2, "q_length": 5, "kv_length": 5, **UNTOLD[name]}
    mask, theirs = compat.telling_mask(**asked), masking_utils.sdpa_mask(**asked)
    assert (mask is None) == (theirs is None)
    assert mask is None or torch.equal(mask, theirs)
    assert compat.seen_keys(mask) is None


def test_nothing_is_read_while_a_graph_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import import_utils

    monkeypatch.setattr(import_utils, "is_tracing", lambda tensor=None: True)
    monkeypatch.setattr(masking_utils, "is_tracing", lambda tensor=None: True)
    with _Reads() as reads:
        padded = compat.telling_mask(2, 5, 5, attention_mask=_padding(1, 0, columns=5))
        static = compat.telling_mask(2, 1, 9, q_offset=OFFSET, allow_is_causal_skip=False)
    assert reads.count == 0
    assert compat.seen_keys(padded) is None
    assert compat.seen_keys(static).ends.tolist() == [5, 5]


def test_compiling_for_the_cpu_wants_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in str(compat.why_no_inductor("cpu"))


def test_torchs_fused_attentions_are_called_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flash", "cudnn", "efficient"):
        whole = f"_scaled_dot_product_{name}_attention"
        assert compat.attention_operator(name) is getattr(torch, whole)
        monkeypatch.delattr(torch, whole)
        assert compat.attention_operator(name) is getattr(torch.ops.aten, whole)


def test_torchs_flash_operator_takes_packed_rows() -> None:
    assert compat.has_varlen_attention()


def test_a_wish_for_attention_weights_is_seen_in_what_the_library_collects() -> None:
    from transformers.utils.output_capturing import _active_collector

    weights_wanted = compat.attention_weights_wanted()
    assert not weights_wanted()
    for name, wanted in (("attentions", True), ("hidden_states", False)):
        token = _active_collector.set({name: []})
        try:
            assert weights_wanted() is wanted
        finally:
            _active_collector.reset(token)


def test_whether_16_bits_are_multiplied_into_float32_is_tried() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        ones = torch.ones(2, 16, 16, dtype=dtype)
        if compat.bmm_widens("cpu", dtype):
            assert torch.bmm(ones, ones, out_dtype=torch.float32).dtype == torch.float32
        else:
            with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
                torch.bmm(ones, ones, out_dtype=torch.float32)
    assert not compat.bmm_widens("cpu", torch.float32)


def test_an_attention_class_that_uses_what_it_expands_in_another_way_is_told_by_its_code() -> None:
    kind: Any = type(tiny.build("glm4_moe_lite").model.layers[0].self_attn)
    assert compat.why_expansion_is_needed(kind) is None

    class Clamped(kind):  # type: ignore[misc]
        def forward(self, latent: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
            key, value = self.expand_kv(latent, rope)
            return key.clamp(-1, 1) @ value  # type: ignore[no-any-return]

    assert compat.why_expansion_is_needed(Clamped) == "its forward does more with what it expands (clamp)"
    assert "without a method of its own" in str(compat.why_expansion_is_needed(torch.nn.Linear))


def test_hooks_on_all_modules_of_the_process_are_seen() -> None:
    from torch.nn.modules import module

    assert not compat.has_global_hooks()
    kinds = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
    for kind in kinds:
        handle = getattr(module, f"register_module_{kind}")(lambda *given: None)
        assert compat.has_global_hooks()
        handle.remove()
    assert not compat.has_global_hooks()


def test_tensors_go_under_the_names_of_the_hub_whatever_their_dtype() -> None:
    model = tiny.build("qwen3_moe")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    codes = torch.arange(8 * 96).view(8, 96, 1).expand(8, 96, 64).to(torch.int16)
    found = compat.hub_tensors(model, {name: codes, "lm_head.weight": torch.ones(1)})
    assert found["lm_head.weight"].tolist() == [1]
    assert torch.equal(found["model.layers.1.mlp.experts.3.gate_proj.weight"], codes[3, :48])
    assert torch.equal(found["model.layers.1.mlp.experts.3.up_proj.weight"], codes[3, 48:])
    assert len(found) == 17


def test_a_twin_names_tensors_as_the_model_was_loaded() -> None:
    twin, loaded = SimpleNamespace(), SimpleNamespace(_weight_conversions=["one"])
    compat.take_hub_names(twin, SimpleNamespace())
    assert vars(twin) == {}
    compat.take_hub_names(twin, loaded)
    assert twin._weight_conversions == ["one"]


@pytest.mark.skipif(not compat.has_triton(), reason="triton is not installed (it is made for Linux alone)")
def test_warps_take_roles_up_to_the_triton_that_was_compiled_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """And here: else the tests of those kernels would be passed over, and nobody hear of it."""
    assert compat.why_no_warp_roles() is None or compat._triton_version() > compat.LAST_WITH_ROLES
    assert [one.__name__ for one in compat.tile_copies()] in (
        ["async_load", "async_store"], ["async_copy_global_to_shared", "async_copy_shared_to_global"]
    )  # fmt: skip
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.9.1")
    assert compat.why_no_warp_roles.__wrapped__() is None
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.10.0+git")
    assert compat.why_no_warp_roles.__wrapped__() == "it is compiled with Triton up to 3.9, and this is 3.10"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter" in compat.why_no_warp_roles.__wrapped__()
