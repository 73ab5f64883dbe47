"""What a profile asks of the machine that a model is optimized on."""

from __future__ import annotations

from pydantic import Field

from inference_pio.configuration.plain_data import Document


class ResourceConstraints(Document):
    """Held before a profile touches a model; what is None asks for nothing.

    - `max_memory_usage_ratio`, above 0 up to 1: the share of the total memory of the model's device (of the machine,
      for a model on the CPU) that its weights may take afterwards, as the plan predicts them. More is refused.
    - `min_compute_capability`, from 1.0, with one digit behind the point (8.0, 8.9, 9.0): the CUDA compute capability
      that the model's GPU must have at least. Less is refused; a model on the CPU is not asked.
    - `prefer_gpu_over_cpu`: a preference. A model on the CPU of a machine with a GPU is optimized where it is, and the
      log says that a GPU is there; no model is moved.

    >>> ResourceConstraints(min_compute_capability=8.0).min_compute_capability
    8.0
    """

    max_memory_usage_ratio: float | None = Field(
        default=None, gt=0, le=1, allow_inf_nan=False,
        description="Share of the total memory of the model's device that its weights may take; more is refused.",
    )  # fmt: skip
    min_compute_capability: float | None = Field(
        default=None, ge=1, lt=100, multiple_of=0.1, allow_inf_nan=False,
        description="Least CUDA compute capability of the model's GPU (8.0, say); a model on the CPU is not asked.",
    )  # fmt: skip
    prefer_gpu_over_cpu: bool = Field(
        default=False,
        description="Say in the log where a model stands on the CPU of a machine with a GPU; nothing is moved.",
    )
