"""What differs between versions of torch and transformers, found out by looking, never by comparing numbers.

The only file of the package that knows library versions or private names of the libraries.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import shutil
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    if AttentionInterface._global_mapping.get(name) is not function:
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, telling_mask)


@dataclass(frozen=True)
class SeenKeys:
    """What a mask of plain causal attention says, for kernels that read no mask: row b of the batch sees keys from
    `starts[b]` on (None: from the first) up to `length`, known here, or to `ends[b]`, known on the device alone. The
    last query stands at the last key seen; `starts` and `ends` are int32 on the device.
    """

    starts: Any = None
    ends: Any = None
    length: int | None = None


_TOLD = "_inference_pio_seen_keys"


def seen_keys(mask: Any) -> SeenKeys | None:
    """What `telling_mask` knew about a mask that it made; None for every other mask."""
    told = getattr(mask, _TOLD, None)
    return told if isinstance(told, SeenKeys) else None


def telling_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: Any = 0, kv_offset: Any = 0,
    mask_function: Callable[..., Any] | None = None, attention_mask: Any = None, **rest: Any,
) -> Any:  # fmt: skip
    """The library's mask for SDPA; where it is plain causal with padding at the left alone, it tells its `SeenKeys`.

    Reads the device once at most, where the library itself would, and never while a graph is traced or captured.
    """
    import torch
    from transformers.masking_utils import causal_mask_function, sdpa_mask
    from transformers.utils.import_utils import is_tracing

    mask_function = mask_function or causal_mask_function
    plain = mask_function is causal_mask_function and isinstance(kv_offset, int) and kv_offset == 0
    fits = attention_mask is None or (attention_mask.dim() == 2 and attention_mask.shape[0] == batch_size)
    seen = None
    if plain and fits and attention_mask is not None and not is_tracing(attention_mask):
        seen, whole, q_offset = _padding_told(attention_mask, q_length, q_offset)
        if seen is not None and seen.length is not None and whole:
            attention_mask = None  # what it hides comes after the last query anyhow
        elif seen is not None:
            rest["allow_is_causal_skip"] = False  # the library would read the padding again
    elif plain and attention_mask is None:
        if q_length > 1 and isinstance(q_offset, torch.Tensor) and not is_tracing(q_offset):
            q_offset = int(q_offset)
        seen = _unpadded(batch_size, q_length, q_offset)
    made = sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
        mask_function=mask_function, attention_mask=attention_mask, **rest,
    )  # fmt: skip
    if made is not None and seen is not None:
        if seen.length != kv_length:  # a static cache: what generate does next would make a copy that tells nothing
            made = made.contiguous()
        setattr(made, _TOLD, seen)
    return made


def left_padding_mask(starts: Any, length: int, queries: int = 1) -> Any:
    """The mask [B, 1, queries, length] of a row's last queries of `length` tokens, of which those before `starts` are
    padding, which sees itself; it tells its `SeenKeys`.
    """
    import torch

    keys = torch.arange(length, device=starts.device)
    mask = (keys >= starts[:, None])[:, None, None]
    if queries > 1:
        places = keys[length - queries :, None]
        mask = (mask & (keys <= places)) | (keys == places)
    setattr(mask, _TOLD, SeenKeys(starts, length=length))
    return mask


def _unpadded(batch_size: int, q_length: int, q_offset: Any) -> SeenKeys:
    import torch

    if not isinstance(q_offset, torch.Tensor):
        return SeenKeys(length=q_offset + q_length)
    return SeenKeys(ends=(q_offset + q_length).to(torch.int32).expand(batch_size).contiguous())


def _padding_told(mask: Any, q_length: int, q_offset: Any) -> tuple[SeenKeys | None, bool, Any]:
    """What a 2-D padding mask leaves to see, whether that is every key, and the query's offset: read at one time.

    None where padding is not at the left alone, or where the last queries would not see themselves.
    """
    import torch

    mask, columns = mask.bool(), mask.shape[-1]
    starts = (mask.cumsum(-1) == 0).sum(-1)
    left = (starts + mask.sum(-1) == columns).all()
    facts = left.long() + 2 * (left & (starts.sum() == 0)).long()
    read_offset = q_length > 1 and isinstance(q_offset, torch.Tensor)
    if read_offset:
        facts = facts + 4 * q_offset.to(facts.device).long().reshape(())
    known = int(facts)
    if read_offset:
        q_offset = known // 4
    is_left, whole = bool(known & 1), bool(known & 2)
    padded = None if whole else starts.to(torch.int32)
    if not is_left:
        return None, False, q_offset
    if not isinstance(q_offset, torch.Tensor):
        length = q_offset + q_length
        return (SeenKeys(padded, length=length) if columns >= length else None), whole, q_offset
    ends = (q_offset + q_length).clamp(max=columns).to(torch.int32).expand(mask.shape[0]).contiguous()
    return SeenKeys(padded, ends), whole, q_offset


def attention_function(name: str) -> Any:
    """The attention function of a name; SDPA's for "eager", which takes its masks in another form than ours."""
    from transformers.modeling_utils import AttentionInterface

    return library_attention() if name == "eager" else AttentionInterface._global_mapping[name]


def library_attention() -> Any:
    """transformers' own SDPA function, for calls with arguments that only it knows."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward


LATENT_EXPANSION = "expand_kv"
"""The method by which transformers' latent attention makes keys and values of all that its cache holds."""
EXPANSION_READS = frozenset(
    {"shape", "qk_nope_head_dim", "v_head_dim", "kv_b_proj", "view", "transpose", "torch", "split", "expand"}
    | {"new_empty", "qk_rope_head_dim", "copy_"}
)
"""The names in it, where it does nothing but that."""
READ_AFTER_EXPANSION = frozenset(
    {"ALL_ATTENTION_FUNCTIONS", "get_interface", "config", "_attn_implementation", "eager_attention_forward"}
    | {"training", "attention_dropout", "scaling", "reshape", "contiguous", "o_proj"}
    | {"sigmoid", "g_proj", "float", "to", "dtype", "unsqueeze"}  # a gate on the result
)
"""The names that a forward may come to after it, if keys and values are to reach the attention function untouched."""


@functools.cache
def why_expansion_is_needed(kind: Any) -> str | None:
    """Why the latents of an attention class cannot reach its attention function as they are cached; None if they can.

    Told from the names in its code, in the order in which they are first used.
    """
    expand = getattr(kind, LATENT_EXPANSION, None)
    names = inspect.unwrap(kind.forward).__code__.co_names
    if expand is None or LATENT_EXPANSION not in names:
        return "its forward expands the cache in place, without a method of its own for that"
    if frozenset(inspect.unwrap(expand).__code__.co_names) != EXPANSION_READS:
        return "it expands the cache in a way that is not known here"
    after = names[names.index(LATENT_EXPANSION) + 1 :]
    if foreign := [name for name in after if name not in READ_AFTER_EXPANSION]:
        return f"its forward does more with what it expands ({', '.join(foreign[:3])})"
    return None


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


@dataclass(frozen=True)
class Unread:
    """A model of the library's as `from_pretrained` makes it, all that it reads from a checkpoint on the meta device.

    `shapes` tells of tensors that the checkpoint has in another shape: their names, that shape, and the model's.
    """

    model: Any
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


def unread_model(build: Any, config: Any, folder: Any, tensors: dict[str, Any], dtype: Any) -> Unread:
    """The model of a class and a local folder, from `tensors` of the meta device in the place of the checkpoint's.

    The library maps their names and joins them as it would the real ones, so that it also knows how to name them back.
    What no checkpoint holds, such as the angles of rotary embeddings, is computed on the CPU.
    """
    import torch
    import transformers

    model, told = build.from_pretrained(
        None, config=config, state_dict=dict(tensors), device_map={"": "meta"}, dtype=dtype,
        ignore_mismatched_sizes=True, output_loading_info=True,
    )  # fmt: skip
    for name, buffer in list(model.named_non_persistent_buffers()):
        path, _, key = name.rpartition(".")
        owner = model.get_submodule(path)
        owner._buffers[key] = torch.empty_like(buffer, device="cpu")
        owner._is_hf_initialized = False
    model._initialize_missing_keys(False)
    nameless = model.name_or_path
    model.config.name_or_path = str(folder)
    for part in model.modules():
        if isinstance(part, transformers.PreTrainedModel) and part.name_or_path == nameless:
            part.name_or_path = str(folder)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    shapes = tuple((name, tuple(stored), tuple(wanted)) for name, stored, wanted in told["mismatched_keys"])
    return Unread(model, tuple(sorted(told["missing_keys"])), tuple(sorted(told["unexpected_keys"])), shapes)


def wanted_ties(model: Any) -> dict[str, str]:
    """The parameters that a model's class ties, each with the one that it is to be."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def forget_tie(model: Any, name: str) -> None:
    """The checkpoint has other values for a tied parameter: it is one of its own, as the library has it then."""
    model.all_tied_weights_keys.pop(name, None)


def ties_without(model: Any, head: str, embedding: str) -> Iterator[tuple[Any, str, dict[str, str]]]:
    """What a model, and the models within it, are to hold where the weight of a head is that of an embedding and the
    head is to have no tensor of it: holder, attribute, and the other ties, so that `tie_weights` gives it none."""
    for path, part in model.named_modules():
        inside = f"{path}." if path else ""
        if not (head.startswith(inside) and embedding.startswith(inside)):
            continue
        one, other = head.removeprefix(inside), embedding.removeprefix(inside)
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            ties = getattr(part, attribute, None)
            if not isinstance(ties, Mapping):  # none, or names as the library once listed them, which tell no pairs
                continue
            if ties.get(f"{one}.weight") == f"{other}.weight":
                yield part, attribute, {name: tied for name, tied in ties.items() if name != f"{one}.weight"}


def hub_tensors(model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors under the names, and cut as, a checkpoint on the hub has them: fused experts one by one.

    Whatever has the shape of a weight along all dimensions but the last goes the way of that weight.
    """
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, dict(tensors)))


def take_hub_names(twin: Any, model: Any) -> None:
    """Let a model of the same class name its tensors as the checkpoint did that this one was loaded from."""
    loaded = getattr(model, "_weight_conversions", None)
    if loaded is not None:
        twin._weight_conversions = loaded


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
def int4_packed_order() -> tuple[int, ...] | None:
    """The order in which torch's int4 product for this CPU wants the rows of a block; None where there is none.

    A block of as many rows as the order is long holds, for each column, a byte for each of the first half of the
    order, whose high bits are the code of the row at the same place in the second half. Blocks and order differ
    between CPUs, so they are read off what torch packs, and then held against a product.
    """
    for rows in (64, 32, 16):
        order = _packed_order(rows)
        if order is not None and _int4_product_is_right(order):
            return order
    return None


def _packed_order(rows: int) -> tuple[int, ...] | None:
    import torch

    try:
        digits = [
            torch._convert_weight_to_int4pack_for_cpu(digit.to(torch.int32)[:, None].repeat(1, 32), 1).view(32, -1)
            for digit in (torch.arange(rows) % 16, torch.arange(rows) // 16)
        ]
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    halves = [torch.cat([digit & 15, digit >> 4], -1).long() for digit in digits]
    order = halves[0] + 16 * halves[1]
    wanted = torch.arange(rows).expand(32, rows)
    regular = order.shape == wanted.shape and torch.equal(order.sort(-1).values, wanted)
    return tuple(order[0].tolist()) if regular and torch.equal(order, order[:1].expand_as(order)) else None


def _int4_product_is_right(order: tuple[int, ...]) -> bool:
    import torch

    columns, group = 64, 32
    codes = (torch.arange(2 * len(order))[:, None] * 7 + torch.arange(columns) * 5) % 16
    scale = torch.stack([1 + torch.arange(2 * len(order)) % 3, torch.arange(2 * len(order)) % 5 - 2.0], -1)
    scale = torch.stack([scale, scale.flip(0)]).bfloat16()
    low, high = codes.view(2, len(order), columns)[:, list(order)].transpose(1, 2).chunk(2, -1)
    packed = (low | high << 4).to(torch.uint8).reshape(2 * len(order), columns // 2)
    rows = torch.linspace(-1, 1, 3 * columns).reshape(3, columns).bfloat16()
    try:
        fast = int4_packed_matmul(rows, packed.contiguous(), group, scale).float()
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    grouped = codes.view(-1, columns // group, group).float() - 8
    step, middle = scale.float().transpose(0, 1)[..., None].unbind(2)
    return torch.allclose(fast, rows.float() @ (grouped * step + middle).flatten(1).T, rtol=1e-2, atol=0.5)


def int4_packed_matmul(rows: Any, codes: Any, group: int, scale: Any) -> Any:
    """bfloat16 rows [M, K] times codes in `int4_packed_order` [N, K / 2] with a step and a middle for each group of
    columns and row [K / group, N, 2], bfloat16: [M, N]."""
    import torch

    return torch.ops.aten._weight_int4pack_mm_for_cpu(rows, codes, group, scale)


@functools.cache
def has_fast_bfloat16_matmul() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by its own instructions; without them float32 is faster."""
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch._C._has_mkldnn and supported is not None and bool(supported())


@functools.cache
def has_fast_int8_matmul(device: Any) -> bool:
    """Whether a device multiplies matrices of int8 by its own instructions: NVIDIA GPUs do, and CPUs with VNNI."""
    import torch

    if device.type == "cuda":
        return torch.version.hip is None
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())


@functools.cache
def has_fp8_matmul(device: Any) -> bool:
    """Whether a device multiplies matrices of fp8 with a scale for each row and each column."""
    import torch

    if device.type != "cuda" or torch.version.hip is not None or not hasattr(torch, "_scaled_mm"):
        return False
    return bool(torch.cuda.get_device_capability(device) >= (8, 9))


def fp8_matmul(rows: Any, columns: Any, of_rows: Any, of_columns: Any) -> Any:
    """fp8 [M, K] times fp8 [K, N], which lies transposed, times float32 scales [M, 1] and [1, N], in bfloat16."""
    import torch

    return torch._scaled_mm(rows, columns, of_rows, of_columns, out_dtype=torch.bfloat16, use_fast_accum=True)


@functools.cache
def bmm_widens(device_type: str, dtype: Any) -> bool:
    """Whether torch multiplies batches of 16-bit matrices straight into float32 on a kind of device."""
    import torch

    if dtype not in (torch.bfloat16, torch.float16):
        return False
    ones = torch.ones(1, 16, 16, dtype=dtype, device=device_type)
    try:
        wide = torch.bmm(ones, ones, out_dtype=torch.float32)
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return bool(wide.dtype == torch.float32)


@functools.cache
def row_puts() -> dict[Any, bool]:
    """The operations that put or add rows where indices say, one of which the gradient of `x[rows]` calls, and whether
    each does so in place."""
    import torch

    names = {"_index_put_impl_": True, "index_put_": True, "index_put": False}
    aten = torch.ops.aten
    return {getattr(aten, name).default: in_place for name, in_place in names.items() if hasattr(aten, name)}


def operations_go_through(instead: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]) -> Any:
    """A context in which `instead(operation, args, kwargs)` answers for each of torch's operations on this thread."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Through(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            return instead(func, args, kwargs or {})

    return Through()  # type: ignore[no-untyped-call]


def assert_on_device(condition: Any, message: str) -> None:
    """Let a device stop where a condition on it does not hold, without the host waiting for it."""
    import torch

    torch._assert_async(condition, message)


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed (it is made for Linux alone); it is not loaded to find out."""
    return importlib.util.find_spec("triton") is not None


def triton_interprets() -> bool:
    """Whether Triton kernels are run by its interpreter, on the CPU: asked for before Triton is first loaded."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


LAST_WITH_ROLES = (3, 9)
"""The last Triton our kernels of warps with roles were compiled with: its language for them promises nothing beyond."""


@functools.cache
def why_no_warp_roles() -> str | None:
    """Why Triton's language for one architecture, in which warps take roles, is not there as we write it, or None."""
    if not has_triton():
        return "the package triton is not installed (it is made for Linux alone)"
    if triton_interprets():
        return "Triton's interpreter does not know its language"
    version, last = ".".join(map(str, _triton_version())), ".".join(map(str, LAST_WITH_ROLES))
    if _triton_version() > LAST_WITH_ROLES:
        return f"it is compiled with Triton up to {last}, and this is {version}"
    names = ("language", "language.nvidia.hopper", "nvidia.hopper")
    try:
        language, hopper, host = (importlib.import_module(f"triton.experimental.gluon.{name}") for name in names)
    except ImportError:
        return f"Triton {version} has no language for one architecture"
    wanted = ("fence_async_shared", "mbarrier", "tma", "warpgroup_mma", "warpgroup_mma_wait")
    roles = inspect.signature(getattr(language, "warp_specialize", lambda: None)).parameters
    there = all(hasattr(hopper, name) for name in wanted) and hasattr(host, "TensorDescriptor")
    return None if there and "functions_and_args" in roles else f"Triton {version} names what it uses otherwise"


def has_warp_roles() -> bool:
    """Whether kernels whose warps take roles can be compiled here."""
    return why_no_warp_roles() is None


def _triton_version() -> tuple[int, int]:
    major, minor = importlib.metadata.version("triton").split(".")[:2]
    return int(major), int(minor)


def tile_copies() -> tuple[Any, Any]:
    """What copies a tile to shared memory and from it, where warps take roles: since 3.8 by other names."""
    tma = importlib.import_module("triton.experimental.gluon.language.nvidia.hopper").tma
    found = (getattr(tma, "async_load", None), getattr(tma, "async_store", None))
    return found if all(found) else (tma.async_copy_global_to_shared, tma.async_copy_shared_to_global)


def compile_errors() -> tuple[type[Exception], ...]:
    """What torch raises where it cannot compile a function whole, before anything of it is computed."""
    from torch._dynamo import exc

    names = ("TorchDynamoException", "FailOnRecompileLimitHit")
    return tuple(kind for name in names if (kind := getattr(exc, name, None)) is not None)


def why_no_inductor(device_type: str) -> str | None:
    """Why torch cannot compile for a device here, or None: it wants Triton for a GPU, a C++ compiler for the CPU."""
    if device_type == "cuda":
        return None if has_triton() else "torch compiles for a GPU with the package triton, which is not installed"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"torch compiles for the CPU with a C++ compiler, and there is no {compiler} here (set CXX to another)"
    return None


@functools.cache
def has_varlen_attention() -> bool:
    """Whether torch's flash operator takes rows of many lengths, packed one behind another."""
    import torch

    operator = getattr(torch.ops.aten, "_flash_attention_forward", None)
    wanted = {"cum_seq_q", "cum_seq_k", "max_q", "max_k", "is_causal", "scale"}
    return operator is not None and wanted <= {argument.name for argument in operator.default._schema.arguments}


def varlen_attention(query: Any, key: Any, value: Any, bounds: Any, longest: int, scale: float | None) -> Any:
    """[T, H, D] packed rows, row i from `bounds[i]` to `bounds[i + 1]` (int32): each sees itself whole. [T, H, D]."""
    import torch

    operator = torch.ops.aten._flash_attention_forward
    return operator(query, key, value, bounds, bounds, longest, longest, 0.0, False, False, scale=scale)[0]


def attention_operator(name: str) -> Callable[..., Any]:
    """One of torch's fused attentions by name. As a function of torch it takes the host less than as an operator."""
    import torch

    named = f"_scaled_dot_product_{name}_attention"
    return getattr(torch, named, None) or getattr(torch.ops.aten, named)  # type: ignore[no-any-return]


ONLY_THE_LIBRARY_KNOWS = frozenset({"softcap", "position_bias", "cache", "s_aux"})
"""What some models give their attention that no kernel of ours takes."""


def attention_weights_wanted() -> Callable[[], bool]:
    """A function that tells whether the library collects the weights of attention in the forward that runs now."""
    from transformers.utils import output_capturing

    collector = getattr(output_capturing, "_active_collector", None)
    if collector is None:
        return lambda: False

    def wanted() -> bool:
        collected = collector.get()
        return collected is not None and any(name.endswith("attentions") for name in collected)

    return wanted


COLLECTED = ("output_attentions", "output_hidden_states", "output_router_logits")
"""What a forward may be asked to hand out of its inner parts, as an argument or in a configuration."""


def collected_by(config: Any, given: dict[str, Any]) -> str | None:
    """The first of them that a call asks for, or None."""
    asked = (name for name in COLLECTED if given.get(name, getattr(config, name, None)))
    return next(asked, None)


def collects_outputs() -> bool:
    """Whether the library, in this forward, collects what its inner parts give."""
    from transformers.utils import output_capturing

    collector = getattr(output_capturing, "_active_collector", None)
    return bool(collector is not None and collector.get())


LOSS = "_loss_function"
"""Where a model keeps a function of its own in the place of the library's loss."""


def library_loss(model: Any) -> Any:
    """The library's loss of next tokens, if it is what a model makes of logits and labels; else None."""
    if not hasattr(type(model), "loss_function") or LOSS in vars(model):
        return None
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    known = LOSS_MAPPING.get(getattr(model, "loss_type", None), ForCausalLMLoss)  # the library's own default
    return ForCausalLMLoss if known is ForCausalLMLoss else None


def knows_names(kind: Any, name: str) -> bool:
    """Whether the forward of a class uses a name."""
    return name in inspect.unwrap(kind.forward).__code__.co_names


def library_decoding(model: Any, settled: Any) -> Any:
    """The library's own method, of the model's class, that decodes as a settled configuration asks."""
    from transformers.generation.utils import GENERATION_MODES_MAPPING

    return getattr(type(model), GENERATION_MODES_MAPPING[settled.get_generation_mode()])


def library_prefill(model: Any, tokens: Any, settled: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The library's forward over a prompt, and what it hands to the step after it."""
    outputs = model._prefill(tokens, settled, given)
    return outputs, after_forward(model, outputs, given)


def after_forward(model: Any, outputs: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What the library hands to the step after a forward that was given this."""
    found: dict[str, Any] = model._update_model_kwargs_for_generation(outputs, dict(given))
    return found


def times_written(tensor: Any) -> int:
    """How often a tensor was written to, as far as torch counts it: not in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def compiled_from(function: Any) -> Any:
    """The method that a function was before `torch.compile(function)`; the function it was; None for any other."""
    if not hasattr(function, "_torchdynamo_orig_callable"):
        return None
    return inspect.unwrap(function, stop=lambda one: isinstance(one, types.MethodType))


def why_inputs_are_its_own(model: Any) -> str | None:
    """Why what the library does around a prompt's forward is not known beforehand, or None: a model, or its class, may
    do it in a way of its own.
    """
    from transformers import GenerationMixin

    for name in ("prepare_inputs_for_generation", "_prefill", "_update_model_kwargs_for_generation"):
        if name in vars(model) or getattr(type(model), name) is not getattr(GenerationMixin, name):
            return f"{name} is the model's own"
    return None


def pad_token(settled: Any) -> int | None:
    """The token that fills rows which have ended."""
    held = getattr(settled, "_pad_token_tensor", None)
    return None if held is None else int(held)


def has_global_hooks() -> bool:
    """Whether hooks on all modules of the process are set, which see every call."""
    return any(_global_hooks())


@functools.cache
def _global_hooks() -> tuple[Any, ...]:
    from torch.nn.modules import module

    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return tuple(getattr(module, f"_global_{kind}") for kind in kinds)


CACHE_DOOR = "_prepare_cache_for_generation"
"""The method by which `generate` makes the cache of a call, among its arguments under CACHE_ARGUMENT."""
CACHE_ARGUMENT = "past_key_values"


def why_no_cache_door(model: Any) -> str | None:
    """Why a model's `generate` does not make its caches where ours can be put in their place, or None."""
    door = getattr(type(model), CACHE_DOOR, None)
    if not callable(getattr(model, "generate", None)) or door is None:
        return "it has no generate that makes a cache"
    names = list(inspect.signature(inspect.unwrap(door)).parameters)
    if names[:3] != ["self", "generation_config", "model_kwargs"]:
        return "its generate makes caches in a way that is not known here"
    return None
