"""Channels that nothing depends on go, modules give up what costs them least, and the model is not edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.mlp_channels import InnerChannels, inner_channels
from inference_pio.calibration import output_pass
from inference_pio.calibration.narrowed import MEASURED, REFITTED, UNIFORM, narrow
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.calibration.twins import twin_of
from inference_pio.errors import InvalidSetting
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.quality.test_tensor_compression import in_turn


def text(windows: int = 16, window: int = 32, seed: int = 0) -> CalibrationSource:
    rows = torch.randint(1, 120, (windows, window), generator=torch.Generator().manual_seed(seed))
    return CalibrationSource("tokens by chance", tuple({"input_ids": row[None]} for row in rows))


def same_token(windows: int) -> CalibrationSource:
    """One token again and again, which reaches no more experts than a router gives it."""
    return CalibrationSource("one token", tuple({"input_ids": torch.tensor([[7]])} for _ in range(windows)))


def channels_of(model: Any) -> dict[str, InnerChannels]:
    return {one.path: one for one in inner_channels(model) if isinstance(one, InnerChannels)}


def answers(model: Any, weights: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
    channels = channels_of(model)
    with (
        stood_in(model, {path: twin_of(channels[path].module, made) for path, made in weights.items()}),
        torch.no_grad(),
    ):
        logits: torch.Tensor = model(input_ids=torch.arange(3, 40)[None]).logits
    return logits


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe"])
def test_channels_that_say_what_others_say_go_without_a_loss(name: str) -> None:
    model = tiny.build(name)
    channels = channels_of(model)
    with torch.no_grad():
        for one in channels.values():  # the second half of the channels says what the first half says
            half = one.width // 2
            for key, weight in one.weights.items():
                if key == one.down_name:
                    continue
                for start in range(0, weight.shape[-2], one.width):
                    weight[..., start + half : start + 2 * half, :] = weight[..., start : start + half, :]
    before, plain = fingerprint(model), answers(model, {})
    found = narrow(model, channels, {path: one.width - one.width // 2 for path, one in channels.items()}, text(32, 64))
    assert before.differences(fingerprint(model)) == []
    assert found.allocation == UNIFORM
    assert found.taken.widths == {path: one.width - one.width // 2 for path, one in channels.items()}
    torch.testing.assert_close(
        answers(model, found.taken.weights), plain, rtol=0.05, atol=0.05 * plain.abs().max().item()
    )


def test_modules_that_lose_nothing_give_up_more() -> None:
    model = tiny.build("llama")
    channels = channels_of(model)
    first, *others = channels
    with torch.no_grad():
        channels[first].module.down_proj.weight *= 1e-3
    found = narrow(model, channels, dict.fromkeys(channels, 75), text(), ratio=0.25, align=dict.fromkeys(channels, 5))
    assert set(found.divergences) == {UNIFORM, MEASURED}
    assert found.allocation == MEASURED
    assert found.divergences[MEASURED] < found.divergences[UNIFORM]
    assert found.sensitivities[first] < min(found.sensitivities[path] for path in others)
    assert found.taken.widths[first] < min(found.taken.widths[path] for path in others)
    assert all(width % 5 == 0 for width in found.taken.widths.values())
    assert sum(found.taken.widths.values()) <= 0.75 * sum(one.width for one in channels.values())


def test_channels_stay_that_lead_to_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    channels = channels_of(model)
    last = list(channels)[-1]
    down, half = channels[last].module.down_proj.weight, channels[last].width // 2
    with torch.no_grad():  # the head reads no output but the first, and only the first half of the channels makes it
        model.model.norm.weight[1:] = 0
        down[:1, half:] = 0
        down[1:, :half] = 0

    def of_the_first_half() -> tuple[int, str | None]:
        found = narrow(model, {last: channels[last]}, {last: half}, text(32, 64))
        return int((found.taken.kept[last] < half).sum()), found.to_json()["outputs_not_weighed"]

    def fail(*_: Any, **__: Any) -> None:
        raise InvalidSetting("Model cannot be differentiated: no gradients here")

    stayed, reason = of_the_first_half()
    assert reason is None
    assert stayed > 0.7 * half
    monkeypatch.setattr(output_pass, "collect_outputs", fail)
    stayed, reason = of_the_first_half()  # all outputs count alike, of which the other half makes nearly all
    assert "no gradients here" in str(reason)
    assert stayed < 0.3 * half


def test_experts_that_see_no_token_are_counted_and_keep_their_largest_channels() -> None:
    model = tiny.build("qwen3_moe")
    channels = {path: one for path, one in channels_of(model).items() if one.stacked}
    one = next(iter(channels.values()))
    found = narrow(model, channels, dict.fromkeys(channels, 8), text(4, 33))
    json = found.to_json()
    assert json["unseen_experts"] == found.unseen_experts >= 0
    assert torch.tensor(json["kept"][one.path]).shape == (one.copies, 8)
    few = narrow(model, channels, dict.fromkeys(channels, 8), same_token(60))
    assert few.unseen_experts > 0
    assert all(weight.isfinite().all() for made in few.taken.weights.values() for weight in made.values())


def test_a_text_that_is_too_short_is_refused_with_what_is_missing() -> None:
    model = tiny.build("llama")
    channels = channels_of(model)
    with pytest.raises(InvalidSetting, match="100 channels: give 68 tokens more"):
        narrow(model, channels, dict.fromkeys(channels, 50), text(2, 32))


@pytest.mark.parametrize("name", in_turn("llama", among=["llama", "qwen3_moe", "glm4_moe"]))
def test_what_writes_to_the_stream_is_fitted_to_the_whole_models(name: str) -> None:
    model = tiny.build(name)
    channels = channels_of(model)
    widths = {path: one.width // 2 // 8 * 8 for path, one in channels.items()}
    before = fingerprint(model)
    asked: list[str] = []

    def only_the_last(path: str) -> bool:
        asked.append(path)
        return path.startswith(f"model.layers.{len(model.model.layers) - 1}.")

    found = narrow(model, channels, widths, text(24, 64), stream=only_the_last)
    assert before.differences(fingerprint(model)) == []
    assert set(found.divergences) == {UNIFORM, REFITTED}
    assert found.taken.divergence == min(found.divergences.values())
    assert asked
    assert all(path.endswith("self_attn.o_proj") for path in asked)
    plain = narrow(model, channels, widths, text(24, 64))
    assert plain.divergences == {UNIFORM: found.divergences[UNIFORM]}
    assert all(plain.taken.kept[path].equal(kept) for path, kept in found.taken.kept.items())
    if found.divergences[REFITTED] < found.divergences[UNIFORM]:
        assert list(found.taken.beside) == [asked[-1]]
    else:
        assert found.taken.beside == {}


@pytest.mark.parametrize(("name", "meant"), [("qwen3", 0.125), ("glm4_moe", 0.0)])
def test_stray_tokens_are_put_in_unless_experts_are_narrowed(name: str, meant: float) -> None:
    model = tiny.build(name)
    channels = channels_of(model)
    widths = {path: one.width // 2 for path, one in channels.items()}
    by_default, asked, other = (
        narrow(model, channels, widths, text(), stray=stray) for stray in (None, meant, 0.125 - meant)
    )
    assert by_default.to_json() == asked.to_json()
    assert by_default.to_json()["stray"] == meant
    assert by_default.divergences != other.divergences
