"""The model of a folder without its weights: as the library makes it; what does not fit is told by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference_pio.errors import CorruptFile, SourceError
from inference_pio.sources.folder import read_folder
from inference_pio.sources.unread import read_skeleton
from inference_pio.undo.checkpoint import read_header
from tests import tiny
from tests.sources.test_folder import edit_config, saved

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of a saved model, or take them out."""
    file = folder / "model.safetensors"
    tensors = load_file(file) | {name: value for name, value in changes.items() if value is not None}
    kept = {name: value for name, value in tensors.items() if changes.get(name, value) is not None}
    save_file(kept, file, {"format": "pt"})


def plain(model: Any) -> dict[str, Any]:
    """What hangs on the modules of a model beside its tensors, as text."""
    left_out = {"_parameters", "_buffers", "_modules"}
    return {
        f"{path}.{key}": repr(value) for path, module in model.named_modules() for key, value in vars(module).items()
        if key not in left_out and " at 0x" not in repr(value)
    }  # fmt: skip


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_it_is_the_librarys_model_without_its_weights(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    bare, whole = read_skeleton(tmp_path).model, read_folder(tmp_path).model
    assert type(bare) is type(whole)
    assert plain(bare) == plain(whole)
    assert bare.config.name_or_path == str(tmp_path)
    computed = {key for key, _ in whole.named_non_persistent_buffers()}
    ours, theirs = [
        dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers()]) for model in (bare, whole)
    ]
    assert list(ours) == list(theirs)
    for key, tensor in ours.items():
        assert (tensor.shape, tensor.dtype) == (theirs[key].shape, theirs[key].dtype)
        assert tensor.is_meta != (key in computed)
        assert tensor.is_meta or torch.equal(tensor, theirs[key])
    ties = [[one is other for one in tensors.values() for other in tensors.values()] for tensors in (ours, theirs)]
    assert ties[0] == ties[1]


@pytest.mark.parametrize("asked", ["auto", torch.bfloat16])
@pytest.mark.parametrize("stated", [None, "float32", "bfloat16"])
def test_the_dtype_is_the_one_that_the_library_takes(tmp_path: Path, asked: Any, stated: str | None) -> None:
    saved("llama", tmp_path, torch.float16)
    edit_config(tmp_path, dtype=stated, torch_dtype=None)
    assert read_skeleton(tmp_path, dtype=asked).model.dtype == read_folder(tmp_path, dtype=asked).model.dtype


def test_the_dtype_of_mixed_weights_is_the_one_that_the_library_takes(tmp_path: Path) -> None:
    saved("glm4_moe_lite", tmp_path, torch.bfloat16)
    edit_config(tmp_path, dtype=None, torch_dtype=None)
    first = next(iter(read_header(tmp_path / "model.safetensors").values()))
    assert first.dtype == torch.float32  # the correction of a router
    assert read_skeleton(tmp_path).model.dtype == read_folder(tmp_path).model.dtype == torch.bfloat16


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    rewrite(tmp_path, **{"model.layers.1.mlp.down_proj.weight": None})
    with pytest.raises(SourceError, match=r"holds no weights for model\.layers\.1\.mlp\.down_proj\.weight"):
        read_skeleton(tmp_path)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    saved("qwen3_moe", tmp_path)
    rewrite(tmp_path, **{"model.layers.1.mlp.experts.1.down_proj.weight": None})
    with pytest.raises(SourceError, match=r"layers\.1\.mlp\.experts"):
        read_skeleton(tmp_path)


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    rewrite(tmp_path, **{"model.norm.weight": torch.ones(7)})
    with pytest.raises(SourceError, match=r"model\.norm\.weight as \[7\], but this model has \[\d+\]"):
        read_skeleton(tmp_path)


def test_what_the_model_does_not_use_is_told(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    rewrite(tmp_path, extra=torch.ones(2))
    assert read_skeleton(tmp_path).notes == ("the source holds weights that the model does not use: extra",)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match="only in pickled form"):
        read_skeleton(tmp_path)


def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved("llama", tmp_path)
    edit_config(tmp_path, model_type="their_own", auto_map={"AutoConfig": "theirs.Config"})
    (tmp_path / "theirs.py").write_text("raise AssertionError('code was run')\n")
    monkeypatch.setattr("builtins.input", lambda *given: "y")
    with pytest.raises(SourceError, match=r"runs only with open_model\(\.\.\., trust_remote_code=True\)"):
        read_skeleton(tmp_path)
    assert "custom code" not in capsys.readouterr().out


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    index = {"weight_map": {EMBEDDING: "../outside.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match="does not map tensors to files of its own folder"):
        read_skeleton(tmp_path)


def test_weights_that_are_quantized_already_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "fp8"})
    with pytest.raises(SourceError, match="quantized already"):
        read_skeleton(tmp_path)


def test_a_header_that_lies_is_told(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    (length,) = struct.unpack("<Q", file.read_bytes()[:8])
    file.write_bytes(file.read_bytes()[: 8 + length + 100])
    with pytest.raises(CorruptFile, match="fetch it again"):
        read_skeleton(tmp_path)


@pytest.mark.parametrize(
    ("head", "same"),
    [
        (lambda embedding: embedding.clone(), True),
        (lambda embedding: embedding + 1, False),
        (lambda embedding: embedding.float(), True),
        (lambda embedding: torch.where(embedding == 0, -0.0, embedding), True),
        (lambda embedding: embedding.view(torch.float16).clone(), False),  # the same bits
    ],
)
def test_a_tied_head_that_is_stored_as_well_is_one_only_if_its_values_are(
    tmp_path: Path, head: Callable[[torch.Tensor], torch.Tensor], same: bool
) -> None:
    model = saved("qwen3", tmp_path, torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    embedding = load_file(tmp_path / "model.safetensors")[EMBEDDING]
    embedding[:, 0] = 0
    rewrite(tmp_path, **{EMBEDDING: embedding, HEAD: head(embedding)})
    bare, whole = read_skeleton(tmp_path).model, read_folder(tmp_path).model
    assert (whole.lm_head.weight is whole.model.embed_tokens.weight) == same
    assert (bare.lm_head.weight is bare.model.embed_tokens.weight) == same
    assert bare.all_tied_weights_keys == whole.all_tied_weights_keys
