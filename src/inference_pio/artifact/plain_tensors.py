"""The tensors of a model that is its class's own, with smaller sizes, one by one as a checkpoint has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, nn

from inference_pio.compat import hub_tensors
from inference_pio.errors import ArtifactError
from inference_pio.formats.compressed_module import CompressedModule


class PlainTensors:
    """Iterate once; then `counts` tells how many tensors there are of each dtype.

    `twin` is what the class builds of the model's configuration, without bytes: another reader has it before it is
    given tensors. Raises ArtifactError where the model is of another shape.
    """

    def __init__(self, model: nn.Module, twin: nn.Module) -> None:
        self._twin = twin
        self._tensors: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
        self.counts: Counter[str] = Counter()
        if any(isinstance(module, CompressedModule) for module in model.modules()):
            raise ArtifactError(
                "this model's weights are compressed, and its class's checkpoints hold whole ones: export them as "
                "compressed-tensors, or take tensor_compression off first."
            )
        self._check_structure()
        self._check_widths()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        first: set[int] = set()
        for name, tensor in self._tensors.items():
            if id(tensor) in first:
                continue  # a tied weight is held once
            first.add(id(tensor))
            for found, data in hub_tensors(self._twin, {name: tensor.detach()}).items():
                self.counts[str(data.dtype).removeprefix("torch.")] += 1
                yield found, data

    def _check_structure(self) -> None:
        differing = sorted(self._tensors.keys() ^ self._twin.state_dict().keys())
        if differing:
            raise ArtifactError(
                f"this model is not built as its class is, so that no other can load it: {', '.join(differing[:3])} "
                f"({len(differing)} in all) differ. Remove what changed its structure, or keep it with "
                "inference_pio.save(model, folder)."
            )

    def _check_widths(self) -> None:
        built = self._twin.state_dict()
        differing = [name for name, tensor in self._tensors.items() if tensor.shape != built[name].shape]
        if differing:
            name = differing[0]
            raise ArtifactError(
                f"{name} is {list(self._tensors[name].shape)} and a model of this configuration has "
                f"{list(built[name].shape)} ({len(differing)} tensors in all): widths differ between layers, and a "
                "configuration has one number for all. Prune with allocation='uniform' and without skip or targets, or "
                "keep this model with inference_pio.save(model, folder)."
            )
