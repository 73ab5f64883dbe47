"""The edits by name and in order, and where their places are on a model that was saved with fewer layers."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from inference_pio.surgery.edits import ALL, edits_of, to_be_done
from inference_pio.surgery.parameters import EditName, SurgeryParameters


def test_every_name_has_an_edit_and_what_renumbers_layers_comes_last() -> None:
    assert sorted(kind.name for kind in ALL) == sorted(get_args(EditName))
    assert ALL[-1].name == "blocks"
    asked = SurgeryParameters(edits=["blocks", "patch_linear"])
    assert [edit.name for edit in edits_of(asked)] == ["patch_linear", "blocks"]
    assert all(edit.asked is asked for edit in edits_of(asked))


def test_places_follow_layers_that_have_moved_already_and_what_goes_is_left_alone() -> None:
    place = {"of": 5, "attention": "attn"}
    places: dict[str, Any] = {
        "attention": {"h.3": place, "h.1": place}, "blocks": {"h.2": place}, "norm_folding": {"h.2.norm": None},
        "latent_decode": {"h.1.attn": None, "h.2.attn": None, "h.4.attn": None},
    }  # fmt: skip
    whole = nn.ModuleDict({"h": nn.ModuleList(nn.ReLU() for _ in range(5))})
    left = {"attention": places["attention"], "latent_decode": {"h.4.attn": None}, "blocks": places["blocks"]}
    assert to_be_done(whole, places) == left
    fewer = nn.ModuleDict({"h": nn.ModuleList(nn.ReLU() for _ in range(4))})
    moved = {"attention": {"h.2": place, "h.1": place}, "latent_decode": {"h.3.attn": None}}
    assert to_be_done(fewer, places) == {**moved, "blocks": places["blocks"]}
    assert to_be_done(whole, {"latent_decode": places["latent_decode"]})["latent_decode"] == places["latent_decode"]
