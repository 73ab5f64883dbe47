"""The tensors of a compressed model as a checkpoint has them, one by one, and which modules are stored how."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.parts import is_experts
from inference_pio.artifact.layout import Int4As, Scheme, whole_codes
from inference_pio.compat import hub_tensors
from inference_pio.errors import ArtifactError
from inference_pio.formats.compressed_embedding import CompressedEmbedding
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.compressed_module import CompressedModule


class CheckpointTensors:
    """Iterate once; then `schemes` tells the modules of each scheme, `kept` those that are stored as they are.

    `twin` is the model without an optimization, without bytes: what a checkpoint must hold is what it has.
    """

    def __init__(self, model: nn.Module, twin: nn.Module, int4: Int4As) -> None:
        self._model, self._twin, self._int4 = model, twin, int4
        self._compressed = {
            path: module for path, module in model.named_modules() if isinstance(module, CompressedModule)
        }
        self.schemes: dict[Scheme, list[str]] = {}
        self.kept: list[str] = []
        self._error = self._squares = 0.0
        plain = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        self._step_dtype = torch.promote_types(torch.bfloat16, next(plain, torch.bfloat16))
        """Steps are read in the model's dtype, and some readers make weights of the steps' own."""
        self._plain = self._plain_tensors()
        self._check_structure()

    @property
    def moved(self) -> float:
        """How far rounding anew has moved the weights: root mean square, relative."""
        return float((self._error / max(self._squares, 1e-30)) ** 0.5)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        first: dict[int, str] = {}
        for name, tensor in self._plain.items():
            tied = first.setdefault(id(tensor), name) != name
            found = {} if tied else hub_tensors(self._twin, {name: tensor.detach()})
            self._keep(name, list(found) or [name])
            yield from found.items()
        for path, module in self._compressed.items():
            yield from self._coded(path, module)

    def _plain_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers that are saved, but for codes and their scales."""
        codes = {
            f"{path}.{name}" for path, module in self._compressed.items()
            for name in module._buffers
        }  # fmt: skip
        return {name: tensor for name, tensor in self._model.state_dict(keep_vars=True).items() if name not in codes}

    def _check_structure(self) -> None:
        for path, module in self._compressed.items():
            if isinstance(module, CompressedEmbedding):
                raise ArtifactError(
                    f"{path} is held as {module.format} codes, one table for it and the head that is tied to it, and "
                    "what reads the compressed-tensors layout looks rows up in plain weights alone: compress with "
                    "head=false to export, or keep this model with inference_pio.save(model, folder)."
                )
        coded = {f"{path}.{name}" for path, module in self._compressed.items() for name in module.original_weights}
        differing = sorted((coded | self._plain.keys()) ^ self._twin.state_dict().keys())
        if differing:
            raise ArtifactError(
                f"this model is not built as its class is, so that no other can load it: {', '.join(differing[:3])} "
                f"({len(differing)} in all) differ. Remove what changed its structure before exporting."
            )
        self._check_experts()
        for path, module in self._compressed.items():
            if isinstance(module, CompressedLinear) and not isinstance(self._twin.get_submodule(path), nn.Linear):
                raise ArtifactError(
                    f"{path} is a {type(self._twin.get_submodule(path)).__name__} in this model's class, and the "
                    "compressed-tensors layout knows Linear alone: save it with inference_pio.save(model, folder)."
                )

    def _check_experts(self) -> None:
        """transformers takes experts for packed where others are: it refuses plain ones, or leaves them random."""
        kept = [path for path, one in self._twin.named_modules() if is_experts(one) and path not in self._compressed]
        main, _ = Counter(module.format for module in self._compressed.values()).most_common(1)[0]
        if kept and main != "fp8":
            raise ArtifactError(
                f"{kept[0]} is kept as it is ({len(kept)} in all) while others are {main}, which transformers cannot "
                "read: compress the experts too, or all to fp8."
            )

    def _keep(self, name: str, found: list[str]) -> None:
        """Remember a weight that a reader could take for a compressed one."""
        path, _, key = name.rpartition(".")
        owner: Any = self._twin.get_submodule(path)
        if len(found) > 1:  # the experts of one layer
            self._add(self.kept, [_all_below(_common_path(found))])
        elif key == "weight" and owner.weight.dim() == 2 and not isinstance(owner, nn.Embedding):
            self._add(self.kept, [path, found[0].removesuffix(".weight")])

    def _coded(self, path: str, module: CompressedModule) -> Iterator[tuple[str, Tensor]]:
        for original in module.original_weights:
            scheme, made = whole_codes(module, original.removesuffix("_proj"), self._int4)
            self._error, self._squares = self._error + made.squared_error, self._squares + made.squares
            name = f"{path}.{original}"
            codes, step, zero = (hub_tensors(self._twin, {name: part}) for part in (made.codes, made.step, made.zero))
            astray = [one for one in codes if not one.endswith(".weight") or codes[one].dim() != 2]
            if astray:
                raise ArtifactError(
                    f"checkpoints of {type(self._twin).__name__} hold {astray[0]} as one tensor, which has no "
                    "compressed-tensors form: keep its experts uncompressed to export it."
                )
            for one, matrix in codes.items():
                steps, zeros = (part[one].reshape(len(matrix), -1) for part in (step, zero))  # 5.17 drops sizes of 1
                yield from scheme.packed(one, matrix, steps.to(self._step_dtype), zeros)
            stems = {one.removesuffix(".weight") for one in codes}
            is_linear = isinstance(module, CompressedLinear)
            targets = [f"re:^{re.escape(one)}$" for one in sorted({path} | stems)] if is_linear else [_all_below(path)]
            self._add(self.schemes.setdefault(scheme, []), targets)

    @staticmethod
    def _add(names: list[str], found: list[str]) -> None:
        """Names in a checkpoint and in the model may differ, and readers go by either."""
        names += [name for name in dict.fromkeys(found) if name not in names]


def _common_path(names: list[str]) -> str:
    levels = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels))


def _all_below(path: str) -> str:
    return f"re:^{re.escape(path)}\\..*"
