"""Models that are refused whole: the real thing wherever the package is at hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import accelerate
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.testing._internal.two_tensor import TwoTensor

from inference_pio.anatomy.refusals import why_refused
from inference_pio.formats.int8 import Int8Linear
from tests import tiny

ON_TWO = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}


def reason(model: nn.Module) -> str:
    answer = why_refused(model)
    assert answer is not None
    return answer


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    """A process group of this one process."""
    meeting = tmp_path_factory.mktemp("group") / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", list(tiny.TINY))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ordinary_models_are_taken(name: str, dtype: torch.dtype) -> None:
    assert why_refused(tiny.build(name, dtype)) is None


def test_a_compressed_model_is_taken() -> None:
    assert why_refused(nn.Sequential(Int8Linear.from_linear(nn.Linear(4, 4)))) is None


def test_a_model_spread_by_a_device_map(tmp_path: Path) -> None:
    model = accelerate.dispatch_model(tiny.build("llama"), ON_TWO | {"lm_head": "cpu"}, offload_dir=tmp_path)
    assert "spreads it over cpu, disk; load it without device_map" in reason(model)


def test_a_model_offloaded_by_hooks() -> None:
    model = accelerate.cpu_offload(tiny.build("llama"), execution_device=torch.device("cpu"))
    assert "carries an accelerate hook (AlignDevicesHook), which moves weights" in reason(model)


def test_hooks_that_were_taken_off_are_forgotten() -> None:
    model = accelerate.dispatch_model(tiny.build("llama"), {"": "cpu"}, force_hooks=True)
    assert "remove_hook_from_module" in reason(model)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert why_refused(model) is None


def test_hooks_in_a_row_are_all_named() -> None:
    model = nn.Linear(2, 2)
    accelerate.hooks.add_hook_to_module(model, accelerate.hooks.ModelHook())
    accelerate.hooks.add_hook_to_module(model, accelerate.hooks.AlignDevicesHook(), append=True)
    assert "(ModelHook and AlignDevicesHook)" in reason(model)


def test_a_device_map_of_one_device_is_taken() -> None:
    assert why_refused(accelerate.dispatch_model(tiny.build("llama"), {"": "cpu"})) is None


def test_a_distributed_tensor(mesh: DeviceMesh) -> None:
    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(distribute_tensor(model.weight.data, mesh, [Replicate()]))
    assert "weight is a DTensor" in reason(model)


def test_models_sharded_by_fsdp(mesh: DeviceMesh) -> None:
    second = nn.Sequential(nn.Linear(4, 4))
    fully_shard(second, mesh=mesh)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FSDP is switching to use `NO_SHARD`")  # a group of one shards nothing
        first = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    for model in (first, second, nn.Sequential(first)):
        assert "sharded by FSDP" in reason(model)


def test_parallel_wrappers_point_to_the_model_inside(mesh: DeviceMesh) -> None:
    inside = nn.Linear(2, 2)
    for wrapper in (nn.DataParallel(inside), nn.parallel.DistributedDataParallel(inside)):
        assert reason(wrapper).endswith("pass the model inside: model.module.")
        assert why_refused(wrapper.module) is None


def test_a_compiled_wrapper_points_to_the_model_inside() -> None:
    compiled = torch.compile(tiny.build("llama"), backend="eager")
    assert "model._orig_mod" in reason(compiled)
    assert why_refused(compiled._orig_mod) is None


def test_scripted_code_is_fixed() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)  # the library steers away from it too
        scripted = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    assert "TorchScript" in reason(scripted)
    assert reason(nn.Sequential(scripted)).startswith("0 is a TorchScript module")


def test_models_without_values_or_shapes() -> None:
    assert "embed_tokens.weight is on the meta device" in reason(tiny.build("llama").to("meta"))
    assert "1.weight is on the meta device" in reason(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")))
    assert "weight has no shape yet; run the model once" in reason(nn.LazyLinear(4))


def test_a_model_that_a_quantizer_of_transformers_made() -> None:
    model = tiny.build("llama")
    model.hf_quantizer = object()
    assert "quantized by a quantizer of transformers already" in reason(model)
    model.quantization_method = "bitsandbytes"
    assert "quantized by bitsandbytes already; load the original weights" in reason(model)


class Params4bit(nn.Parameter):
    """The name by which bitsandbytes' parameters are known; the package itself needs a GPU build."""


def test_parameters_quantized_by_bitsandbytes() -> None:
    model = nn.Linear(2, 2)
    model.weight = Params4bit(model.weight.data)
    assert reason(model).startswith("weight is quantized already (Params4bit)")


def test_tensors_that_wrap_others() -> None:
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(TwoTensor(torch.ones(2, 2), torch.ones(2, 2)))
    assert reason(model).startswith("weight is quantized already (TwoTensor)")


def test_sparse_tensors() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_buffer("mask", torch.eye(2).to_sparse())
    assert reason(model) == (
        "0.mask is a tensor of layout torch.sparse_coo, without a plain storage; make it dense: .to_dense()."
    )


@pytest.mark.gpu
def test_tensors_on_two_devices() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="cuda"))
    assert reason(model) == "its tensors are on cpu, cuda:0; move all of it to one device: model.to('cpu')."
