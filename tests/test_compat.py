"""What differs between versions of the libraries is found by looking."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from inference_pio import compat
from inference_pio.errors import ArtifactError
from tests import tiny


def test_a_configuration_is_told_by_its_looks() -> None:
    model = tiny.build("qwen3_vl")
    assert compat.is_config(model.config)
    assert compat.is_config(model.config.text_config)
    assert not compat.is_config(SimpleNamespace(model_type="qwen3"))
    assert not compat.is_config(model)


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
