"""What may be asked of surgery: which edits, how much they may cost, and what they learn from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from inference_pio.contract.settings import Settings

EditName = Literal[
    "patch_linear", "latent_decode", "dead_modules", "norm_folding", "text_only", "vocabulary", "unused_experts",
    "attention", "blocks",
]  # fmt: skip
WITHOUT_LOSS: tuple[EditName, ...] = ("patch_linear", "latent_decode", "dead_modules")
APPROXIMATE: tuple[EditName, ...] = ("attention", "blocks")
OF_APPROXIMATE = ("max_kl", "remove", "refit", "stray")
"""What is asked of these edits alone."""


class SurgeryParameters(Settings):
    """`edits` are asked by name; without them, those that change no answer beyond rounding and take nothing away. With
    `max_kl` alone the approximate ones join them.

    Each approximate edit takes `remove` layers at most, the cheapest first, while the divergence on held-out text stays
    at `max_kl` nats a token or below. With `refit` an attention leaves a linear layer, the closest to what it said of a
    token for itself, and what lies behind all that goes, but for what `skip` names, is fitted again, to text of which
    the share `stray` of the tokens is replaced by any others. `keep_ids` are the tokens that `vocabulary` keeps, else
    those of `text`, from which other edits learn as well, `tokens` of it. `targets` and `skip` are path patterns.
    """

    edits: list[EditName] | None = Field(default=None, min_length=1)
    max_kl: float | None = Field(default=None, gt=0)
    remove: int = Field(default=1, ge=1)
    refit: bool = True
    keep_ids: list[int] | None = Field(default=None, min_length=1)
    targets: list[str] | None = None
    skip: list[str] = Field(default_factory=list)
    text: list[str] | list[list[int]] | None = None
    tokens: int = Field(default=32768, ge=1)
    stray: float = Field(default=0.125, ge=0, lt=1)

    @model_validator(mode="after")
    def _fitting(self) -> SurgeryParameters:
        if self.keep_ids is not None and "vocabulary" not in self.names:
            raise ValueError("keep_ids is for the edit 'vocabulary', which is not among the edits: add it")
        if self.keep_ids is not None and min(self.keep_ids) < 0:
            raise ValueError("keep_ids are ids of tokens, 0 or more")
        if not set(APPROXIMATE) & set(self.names) and (lost := [one for one in OF_APPROXIMATE if self._is_given(one)]):
            raise ValueError(
                f"{lost[0]} is for the edits {', '.join(APPROXIMATE)}, and none of them is among the edits"
            )
        if not self.refit and self._is_given("stray"):
            raise ValueError("stray is for what refit fits, and refit is false: leave one of them out")
        return self

    def _is_given(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @property
    def tokens_are_given(self) -> bool:
        return self._is_given("tokens")

    @property
    def names(self) -> tuple[EditName, ...]:
        """The edits that are meant."""
        if self.edits is not None:
            return tuple(dict.fromkeys(self.edits))
        return (*WITHOUT_LOSS, *APPROXIMATE) if self.max_kl is not None else WITHOUT_LOSS
