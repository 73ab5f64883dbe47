"""Removal by cost: the stream's turns are measured truly, stand-ins compute what an edit would, the cheapest goes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from inference_pio.calibration.removal import cheapest, influences, passed_over, stream_in, to_judge
from inference_pio.calibration.source import calibration_source
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

COSTS = {"a": 0.3, "b": 0.1, "c": 0.2}


def divergence(gone: Sequence[str]) -> float:
    return sum(COSTS[path] for path in gone) + (0.5 if {"b", "c"} <= set(gone) else 0.0)


def test_the_cheapest_goes_first_and_the_next_is_judged_beside_it() -> None:
    one = cheapest(COSTS, divergence, remove=1)
    assert (one.taken, one.together, one.divergences) == (["b"], 0.1, COSTS)
    assert cheapest(COSTS, divergence, remove=2).taken == ["b", "a"]  # alone, c is cheaper than a
    assert sorted(cheapest(COSTS, divergence, remove=9).taken) == ["a", "b", "c"]


def test_a_bar_ends_it() -> None:
    assert cheapest(COSTS, divergence, remove=3, max_kl=0.45).taken == ["b", "a"]
    none = cheapest(COSTS, divergence, remove=3, max_kl=0.05)
    assert (none.taken, none.together, none.divergences) == ([], 0.0, COSTS)
    assert cheapest(COSTS, lambda gone: float("nan"), remove=1, max_kl=1.0).taken == []


def test_only_those_of_least_influence_are_judged() -> None:
    influence = {str(number): float(-number) for number in range(20)}
    assert to_judge(influence, remove=1) == [str(number) for number in range(19, 11, -1)]
    assert len(to_judge(influence, remove=12)) == 12


def test_influence_is_how_far_the_stream_is_turned() -> None:
    model = tiny.build("llama")
    rows = torch.randint(1, 120, (2, 12), generator=torch.Generator().manual_seed(0))
    streams: list[torch.Tensor] = []
    added: list[torch.Tensor] = []
    layers = model.model.layers  # type: ignore[union-attr]
    for layer in layers:  # type: ignore[union-attr]
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: streams.append(stream_in(args, kwargs)), with_kwargs=True
        )  # type: ignore[operator]
        layer.self_attn.register_forward_hook(lambda _, args, out: added.append(out[0]))  # type: ignore[operator, union-attr]
    with torch.no_grad():
        for row in rows:
            model(input_ids=row[None])
    wanted = 1 - torch.cosine_similarity(torch.cat(streams[1::3]), torch.cat(streams[2::3]), dim=-1).mean()
    streamed = torch.cat(streams[1::3])
    sublayer = 1 - torch.cosine_similarity(streamed, streamed + torch.cat(added[1::3]), dim=-1).mean()
    path = "model.layers.1"
    for layer in layers:  # type: ignore[union-attr]
        layer._forward_pre_hooks.clear()  # type: ignore[operator, union-attr]
        layer.self_attn._forward_hooks.clear()  # type: ignore[operator, union-attr]
    before = fingerprint(model)
    found = influences(model, calibration_source(model, rows), [path], {f"{path}.self_attn": path})
    assert found[path] == pytest.approx(float(wanted), abs=1e-6)
    assert found[f"{path}.self_attn"] == pytest.approx(float(sublayer), abs=1e-6)
    assert before.differences(fingerprint(model)) == []


@pytest.mark.parametrize(("name", "layer"), [("llama", "model.layers.1"), ("gpt2", "transformer.h.1")])
def test_what_is_passed_over_computes_like_a_model_without_it(name: str, layer: str) -> None:
    model = tiny.build(name)
    ids = tiny.inputs(name, model)["input_ids"]
    attention = f"{layer}.{'attn' if name == 'gpt2' else 'self_attn'}"
    before = fingerprint(model)
    with torch.no_grad():
        with passed_over(model, [layer], {}):
            without = model(ids).logits
        with passed_over(model, [], {attention: None}):
            less = model(ids).logits
        assert before.differences(fingerprint(model)) == []
        above, _, last = layer.rpartition(".")
        listed = model.get_submodule(above)
        whole = listed[int(last)]  # type: ignore[index]
        with passed_over(model, [], {attention: nn.Linear(64, 64)}):
            assert not torch.equal(model(ids).logits, less)
        result = whole.get_submodule(attention.rpartition(".")[2])
        out = result.get_submodule("c_proj" if name == "gpt2" else "o_proj")
        for parameter in out.parameters():
            parameter.zero_()
        assert torch.equal(model(ids).logits, less)
        del listed[int(last)]  # type: ignore[operator]
        cut = model(ids).logits
    assert isinstance(listed, nn.ModuleList)
    assert torch.equal(cut, without)
    assert not torch.equal(less, without)
