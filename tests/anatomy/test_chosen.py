"""What targets and skips mean: roles, patterns, all below a path."""

from __future__ import annotations

import pytest

from inference_pio.anatomy.chosen import Chosen

PLACES = {"layers.0.q": "attention.qkv", "layers.10.q": "attention.qkv", "layers.1.up": "mlp.gate_up", "head": "head"}


@pytest.mark.parametrize(
    ("targets", "skip", "meant"),
    [
        (None, (), set(PLACES)),
        ((), (), set()),
        (("attention",), (), {"layers.0.q", "layers.10.q"}),
        (("attention.qkv",), ("layers.10",), {"layers.0.q"}),
        (("layers.1",), (), {"layers.1.up"}),
        (("layers.1*",), (), {"layers.10.q", "layers.1.up"}),
        (("mlp.gate_up", "head"), (), {"layers.1.up", "head"}),
        (None, ("*.q", "head"), {"layers.1.up"}),
    ],
)
def test_targets_and_skips_mean(targets: tuple[str, ...] | None, skip: tuple[str, ...], meant: set[str]) -> None:
    chosen = Chosen(targets, skip)
    assert {path for path, role in PLACES.items() if chosen.why_not(path, role) is None} == meant


def test_each_that_is_not_meant_has_its_reason() -> None:
    chosen = Chosen(("mlp",), ("layers.1.*",))
    assert chosen.why_not("layers.1.up", "mlp.gate_up") == "`skip` names it ('layers.1.*')"
    assert chosen.why_not("layers.0.q", "attention.qkv") == "it is not among the targets"


def test_what_means_nothing_is_found() -> None:
    assert Chosen(("experts", "attention", "layers.7"), ("heads", "head")).unmatched(PLACES) == [
        "experts", "layers.7", "heads",
    ]  # fmt: skip
    assert Chosen(("head",)).by_role("head")
    assert not Chosen(None).by_role("head")
