"""What differs between versions of torch and transformers, found out by looking, never by comparing numbers.

The only file of the package that knows library versions or private names of the libraries.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any


def is_config(value: Any) -> bool:
    """Whether an object is a transformers configuration (told by its looks: transformers need not be loaded)."""
    return hasattr(type(value), "model_type") and callable(getattr(type(value), "to_dict", None))


ATTENTION_KEY = "_attn_implementation_internal"
"""Where a transformers configuration keeps the name of its attention function."""


def attention_name(config: Any) -> str | None:
    """The name of the attention function that a configuration asks for."""
    name = vars(config).get(ATTENTION_KEY)
    return str(name) if name is not None else None


def add_attention_function(name: str, function: Any) -> None:
    """Add an attention function of our own to transformers' table, once, with the mask that SDPA gets.

    A function without a mask of its name would silently receive no mask, even for padded batches.
    """
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    if AttentionInterface._global_mapping.get(name) is not function:
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)


def attention_function(name: str) -> Any:
    """The attention function of a name; SDPA's for "eager", which takes its masks in another form than ours."""
    from transformers.modeling_utils import AttentionInterface

    return library_attention() if name == "eager" else AttentionInterface._global_mapping[name]


def library_attention() -> Any:
    """transformers' own SDPA function, for calls with arguments that only it knows."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward


def cpu_flash_serves(query: Any, key: Any, value: Any, *, causal: bool) -> bool:
    """Whether torch's fused attention takes its flash kernel (and not the plain one) for these tensors."""
    import torch

    grouped = query.shape[1] != key.shape[1]
    choice = torch._fused_sdp_choice(query, key, value, None, 0.0, causal, scale=None, enable_gqa=grouped)
    return bool(choice == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value)


def codes_of_calls(model: Any) -> set[Any]:
    """The code that runs while a model, or a module in it, computes: each has the module as its `self`."""
    import inspect

    from torch import nn

    calls = [nn.Module._call_impl]
    calls += [found for name in ("forward", "generate") if callable(found := getattr(type(model), name, None))]
    return {call.__code__ for call in map(inspect.unwrap, calls) if hasattr(call, "__code__")}


def torch_holds(tensor: Any) -> bool:
    """Whether torch itself keeps a tensor's bytes: for a backward pass yet to come, or as a view of another tensor."""
    count, is_view = getattr(tensor, "_use_count", None), getattr(tensor, "_is_view", None)
    return bool((count is not None and count() > 1) or (is_view is not None and is_view()))


EXPERTS_KEY = "_experts_implementation_internal"
"""Where a transformers configuration keeps the name of its experts function."""


def meta_model(folder: Any, class_name: str) -> Any:
    """A model of the library's own class, its configuration from a local folder, its tensors on the meta device.

    Raises ArtifactError for a class that is not one of transformers' models: files cannot name code to run.
    """
    import torch
    import transformers

    from inference_pio.errors import ArtifactError

    found = getattr(transformers, class_name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ArtifactError(f"{class_name!r} is not a model class of this version of transformers.")
    build: Any = found
    try:
        config = build.config_class.from_pretrained(str(folder), local_files_only=True)
        with torch.device("meta"):
            model = build(config)
        if (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a damaged configuration breaks the library in every way there is
        raise ArtifactError(f"{folder} does not describe a {class_name} that can be built: {error}") from error
    return model


PACKED_COLUMNS = 32
"""Columns of an int8 matrix come in multiples of this for the packed matmul; off 16 it reads past the rows' ends."""


@functools.cache
def has_int8_packed_matmul() -> bool:
    """Whether torch multiplies bfloat16 rows with int8 weights, unpacked on the fly, on this CPU, and does it right."""
    import torch

    rows = torch.linspace(-1, 1, 3 * PACKED_COLUMNS).reshape(3, PACKED_COLUMNS).bfloat16()
    codes = torch.arange(-80, 80).reshape(5, PACKED_COLUMNS).to(torch.int8)
    scale = torch.tensor([1.0, 0.5, 0.25, 2.0, 0.125]).bfloat16()
    try:
        fast = torch._weight_int8pack_mm(rows, codes, scale).float()
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return torch.allclose(fast, rows.float() @ (codes.float() * scale.float()[:, None]).T, rtol=1e-2, atol=0.5)


def int8_packed_matmul(rows: Any, codes: Any, scale: Any) -> Any:
    """bfloat16 rows [M, K] times int8 weights [N, K] with a bfloat16 scale each: [M, N]; K % PACKED_COLUMNS == 0."""
    import torch

    return torch._weight_int8pack_mm(rows, codes, scale)


@functools.cache
def has_fast_bfloat16_matmul() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by its own instructions; without them float32 is faster."""
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch._C._has_mkldnn and supported is not None and bool(supported())


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed (it is made for Linux alone); it is not loaded to find out."""
    return importlib.util.find_spec("triton") is not None


def triton_interprets() -> bool:
    """Whether Triton kernels are run by its interpreter, on the CPU: asked for before Triton is first loaded."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
