"""`latent_decode`: latent attention decodes over its cache as it is, by torch's functions, instead of expanding it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from inference_pio.anatomy.absorbed_decode import absorb, attend_absorbed, check_absorbed, expanded, is_unexpanded
from inference_pio.anatomy.attention_function import run_dense
from inference_pio.anatomy.attention_name import dense_part
from inference_pio.anatomy.latent_attention import latent_sites
from inference_pio.compat import add_attention_function, attention_name, library_attention
from inference_pio.contract.site import Site
from inference_pio.surgery.edit import Edit, Places
from inference_pio.undo.journal import Journal

OURS, SDPA = "inference_pio_absorbed", "sdpa"
MLA_DECODE = frozenset({"attention.mla_decode"})


class LatentDecode(Edit):
    """The product with what expands the cache moves to the queries and the result. Where attention runs another
    function than torch's own, that function's optimization may offer the same, and a plan gives it to that one.
    """

    name = "latent_decode"
    exactness = "algebraic"
    changes_state_dict = False

    def sites(self, model: nn.Module) -> Iterable[Site]:
        for path, module, reason in latent_sites(model):
            yield Site(path, "attention", MLA_DECODE, reason or _why_not(module), whole=False)

    def preflight(self, model: nn.Module, paths: Sequence[str]) -> None:
        for path in paths[:1]:
            check_absorbed(model.get_submodule(path))

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        add_attention_function(OURS, attention)
        run_dense(journal, model, list(places), OURS)
        for path in places:
            absorb(journal, model.get_submodule(path), OURS)
        return [f"latent attention decodes absorbed in {len(places)} layers: the cache is not expanded at each step."]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, **rest: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """transformers' SDPA function, before which a latent cache is attended to as it is where that is less work."""
    if is_unexpanded(query, key):
        out = attend_absorbed(module, query, key, value, attention_mask, scale=scaling, dropout=dropout)
        if out is not None:
            return out, None
        key, value = expanded(module, key, value)
    given = {"dropout": dropout, "scaling": scaling, **rest}
    return library_attention()(module, query, key, value, attention_mask, **given)  # type: ignore[no-any-return]


def _why_not(module: nn.Module) -> str | None:
    name = dense_part(attention_name(getattr(module, "config", None)) or "eager")
    return None if name == SDPA else f"its attention runs {name}, and this goes before {SDPA} alone"
