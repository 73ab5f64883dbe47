"""Spiking layers as NIR graphs, one for each matrix, with a manifest of what a host does around them.

NIR has neurons and weights, but no product of two signals and no softmax: attention's products, norms, gating and
routing are named in the manifest. Its neurons fire up alone, so each of ours is two: one for each sign.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inference_pio.errors import ArtifactError, InvalidModel, InvalidSetting, MissingExtra
from inference_pio.files import partial_folder, replace_folder_atomically, storage_errors
from inference_pio.kernels.spikes import GRID, RATE, Code, potentials, split, trains
from inference_pio.kernels.spiking_product import power_of_two
from inference_pio.spiking.attention import SpikingAttention
from inference_pio.spiking.experts import SpikingExperts
from inference_pio.spiking.linear import SpikingLinear
from inference_pio.spiking.module import SpikingModule
from inference_pio.spiking.plain_nets import host_operations

MANIFEST = "manifest.json"
FORMAT = "inference-pio spiking segments"
ENCODE = (
    "at step 0 give each neuron its potential, later nothing; v = floor((x / threshold + 1/2) * 65536) / 65536, cut to "
    "[-reach, reach + 1 - 1/65536]; second neurons: m = floor((v + levels) / base), v = v - base * m; the input is v, "
    "1 - 1/65536 - v, then m and 1 - 1/65536 - m where there are second neurons, 1/131072 added to each"
)
DECODE = "sum the outputs over all steps and add the bias"


def export_nir(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write every spiking matrix of a model as a `.nir` file, and the manifest beside them.

    Raises InvalidModel for a model without spikes, InvalidSetting for a radix coding, ArtifactError for a folder that
    holds something else, MissingExtra where nir is not installed.
    """
    nir, final = _nir(), Path(folder).absolute()
    spiking = {path: module for path, module in model.named_modules() if isinstance(module, SpikingModule)}
    if not spiking:
        raise InvalidModel(f"this {type(model).__name__} does not compute with spikes: apply snn_conversion first.")
    with storage_errors(final):
        if final.exists() and (not final.is_dir() or (any(final.iterdir()) and not (final / MANIFEST).is_file())):
            raise ArtifactError(f"{final} exists and holds something else: choose another folder.")
        final.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(final) as built, storage_errors(built):
        told = []
        for name, threshold, weight, bias, code in _segments(spiking):
            nir.write(str(built / f"{name}.nir"), segment(threshold, weight, code))
            told.append(
                {"name": name, "file": f"{name}.nir", "inputs": weight.shape[1], "outputs": weight.shape[0],
                 "threshold": threshold.tolist(), "bias": None if bias is None else bias.tolist()}
            )  # fmt: skip
        (built / MANIFEST).write_text(json.dumps(_manifest(model, spiking, told)), encoding="utf-8")
        replace_folder_atomically(built, final)
    return final


def segment(threshold: Tensor, weight: Tensor, code: Code) -> Any:
    """The NIR graph of neurons with their thresholds [n] folded into weights [out, n]: input, IF, Linear, output."""
    nir = _nir()
    if code.coding != RATE:
        raise InvalidSetting(
            f"NIR's neurons count every spike once, and this model's coding is {code.coding}: convert it with "
            "coding='rate' to export it."
        )
    one = weight.double().cpu().numpy()
    parts = [one, -one] + ([code.base * one, -code.base * one] if code.second else [])
    matrix = np.concatenate(parts, 1)
    size = (matrix.shape[1],)
    nodes = {
        "input": nir.Input({"input": np.array(size)}),
        "neurons": nir.IF(
            r=np.ones(size), v_threshold=np.ones(size), v_reset=np.zeros(size), metadata={"reset": "subtract"}
        ),
        "weights": nir.Linear(matrix),
        "output": nir.Output({"output": np.array(matrix.shape[:1])}),
    }
    edges = [("input", "neurons"), ("neurons", "weights"), ("weights", "output")]
    return nir.NIRGraph(nodes, edges, metadata={"reset": "subtract", "steps": code.steps, "threshold_is": "1"})


def encoded(x: Tensor, threshold: Tensor, code: Code) -> Tensor:
    """What a segment's neurons are given at step 0 for `x` [..., n]: [..., 2 n] or, with second ones, [..., 4 n]."""
    held = potentials(x, threshold, code)
    sides = [side for given, _ in split(held, code) for side in (given, 1 - 1 / GRID - given)]
    return torch.cat(sides, -1) + 0.5 / GRID  # so that "above" and "not below" a threshold are one


def run_segment(graph: Any, given: Tensor, steps: int) -> Tensor:
    """A segment read back, run by our own neurons: the outputs' sum over all steps [..., out]."""
    weight = torch.from_numpy(np.asarray(graph.nodes["weights"].weight)).double()
    threshold = torch.from_numpy(np.asarray(graph.nodes["neurons"].v_threshold)).double()
    held = (given / threshold - 0.5 / GRID).clamp(0, steps + 1 - 1 / GRID)
    total = given.new_zeros(*given.shape[:-1], weight.shape[0], dtype=torch.float64)
    for spikes, _ in trains(held, Code(RATE, steps)):
        total += spikes @ weight.T
    return total


def _segments(spiking: dict[str, SpikingModule]) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None, Code]]:
    """Name, thresholds [n], weights [out, n] with thresholds folded in, bias and code of every matrix."""
    for path, module in spiking.items():
        tensors: dict[str, Any] = dict(module.named_buffers(recurse=False))
        if isinstance(module, SpikingLinear):
            weight = tensors["whole"] * power_of_two(tensors["exponent"])[:, None]
            yield path, tensors["threshold"], weight, module.bias, module.code
        if isinstance(module, SpikingExperts):
            for name in ("gate_up", "down"):
                whole = tensors[f"{name}_whole"] * power_of_two(tensors[f"{name}_exponent"])[..., None]
                thresholds = tensors[f"{name}_threshold"].expand(len(whole), -1)
                for expert, (threshold, weight) in enumerate(zip(thresholds, whole, strict=True)):
                    yield f"{path}.{name}.{expert}", threshold, weight, None, module.code


def _manifest(model: nn.Module, spiking: dict[str, SpikingModule], segments: list[dict[str, Any]]) -> dict[str, Any]:
    code = next(iter(spiking.values())).code
    left = [path for path, module in spiking.items() if not isinstance(module, SpikingLinear | SpikingExperts)]
    return {
        "format": FORMAT, "version": 1, "model": type(model).__name__, "coding": code.coding, "levels": code.levels,
        "steps": code.steps, "base": code.base if code.second else None, "reach": code.reach, "reset": "subtract",
        "encode": ENCODE, "decode": DECODE, "segments": segments,
        "products_of_two_signals": [path for path in left if isinstance(spiking[path], SpikingAttention)],
        "convolutions": [path for path in left if not isinstance(spiking[path], SpikingAttention)],
        "host_operations": host_operations(model, SpikingModule),
    }  # fmt: skip


def _nir() -> Any:
    try:
        import nir
    except ImportError as error:
        raise MissingExtra("nir", "snn", "exporting spiking layers") from error
    return nir
