"""How far the answers of a model may move: what a profile, or a call, has its quality guard hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inference_pio.configuration.plain_data import Document

Quantity = Literal["kl", "perplexity_ratio"]
MaxKL = Annotated[
    float | None,
    Field(
        gt=0, allow_inf_nan=False,
        description="Most divergence from the unmodified model on held-out text, in nats a token; steps that break it "
        "are taken back.",
    ),
]  # fmt: skip
MaxPerplexityRatio = Annotated[
    float | None,
    Field(
        ge=1, allow_inf_nan=False,
        description="Most perplexity on held-out text over the unmodified model's; steps that break it are taken back.",
    ),
]  # fmt: skip


class QualityBounds(Document):
    """Both are held where both are set, by the mean over held-out tokens; without one nothing is measured.

    >>> QualityBounds(max_kl=0.01).broken_by(0.05, 1.02)
    'KL 0.05 nats/token, above max_kl=0.01'
    """

    max_kl: MaxKL = None
    max_perplexity_ratio: MaxPerplexityRatio = None

    @property
    def any(self) -> bool:
        """Whether there is something to hold."""
        return self.max_kl is not None or self.max_perplexity_ratio is not None

    def broken_by(self, kl_nats_per_token: float, perplexity_ratio: float) -> str | None:
        """What is too much, in words; None where all holds."""
        found = (
            ("KL", kl_nats_per_token, " nats/token", "max_kl", self.max_kl),
            ("perplexity ratio", perplexity_ratio, "", "max_perplexity_ratio", self.max_perplexity_ratio),
        )
        told = [
            f"{what} {value:.3g}{unit}, above {name}={most:g}"
            for what, value, unit, name, most in found
            if most is not None and not value <= most
        ]
        return "; ".join(told) or None

    def judged_by(self, kl_nats_per_token: float) -> Quantity:
        """What tells who is guilty: the divergence where its bound is broken, else the perplexity.

        >>> QualityBounds(max_kl=0.1, max_perplexity_ratio=1.01).judged_by(0.05)
        'perplexity_ratio'
        """
        return "kl" if self.max_kl is not None and not kl_nats_per_token <= self.max_kl else "perplexity_ratio"

    def over(self, others: QualityBounds) -> QualityBounds:
        """These where they are set, else the others."""
        return QualityBounds(
            max_kl=others.max_kl if self.max_kl is None else self.max_kl,
            max_perplexity_ratio=(
                others.max_perplexity_ratio if self.max_perplexity_ratio is None else self.max_perplexity_ratio
            ),
        )

    def __str__(self) -> str:
        set_here = {name: value for name, value in self.model_dump().items() if value is not None}
        return ", ".join(f"{name}={value:g}" for name, value in set_here.items()) or "no bounds"


UNBOUNDED = QualityBounds()
