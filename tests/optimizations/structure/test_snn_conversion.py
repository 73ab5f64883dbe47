"""snn_conversion: spikes equal to their counts on every structure, exactly undone, told as slow, refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from inference_pio.artifact import load, save
from inference_pio.errors import InvalidModel, InvalidSetting, NoEffect, RefusedOnOptimized
from inference_pio.manager import ModularOptimizationManager
from inference_pio.spiking.module import SpikingModule
from inference_pio.spiking.twin import QuantizedTwin
from tests import tiny
from tests.sweep import Case

NAMES = list(tiny.HF_NAMES)
TEXT = [[1 + (place * place + row) % 96 for place in range(32)] for row in range(2)]


def convert(model: nn.Module, **asked: Any) -> Any:
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["snn_conversion"], parameters={"snn_conversion": {"text": TEXT, **asked}})
    return manager.get_receipts(model)[0]


def twins_logits(model: nn.Module, name: str) -> torch.Tensor:
    class Stand(nn.Module):
        parameters = model.parameters

        def forward(self, **given: Any) -> Any:
            return QuantizedTwin(model)(**given)

    return tiny.logits(Stand(), name)


CODES = [("radix", 15), ("radix", 31), ("radix", 255), ("rate", 15)]


@pytest.mark.parametrize("name", NAMES)
def test_spikes_equal_their_counts_to_the_bit(name: str) -> None:
    model = tiny.build(name)
    receipt = convert(model, prove=True)
    assert receipt.decision["proof"]["equal"]
    assert set(receipt.decision["proof"]["numbers"]) == {"logits", "logits of cached steps"}
    spiking = tiny.logits(model, name)
    assert not torch.equal(spiking, tiny.logits(tiny.build(name), name))
    assert torch.equal(spiking, twins_logits(model, name))


@pytest.mark.parametrize(("coding", "levels"), CODES)
@pytest.mark.parametrize("outlier_ratio", [0.0, 0.01])
def test_every_coding_equals_its_counts(coding: str, levels: int, outlier_ratio: float) -> None:
    model = tiny.build("qwen3_moe")
    convert(model, coding=coding, levels=levels, outlier_ratio=outlier_ratio, prove=True)
    assert torch.equal(tiny.logits(model, "qwen3_moe"), twins_logits(model, "qwen3_moe"))


def test_rate_and_radix_are_one_model() -> None:
    one, other = tiny.build("llama"), tiny.build("llama")
    convert(one, coding="rate", levels=15)
    convert(other, coding="radix", levels=15, time_steps=6)
    assert torch.equal(tiny.logits(one, "llama"), tiny.logits(other, "llama"))


def test_many_levels_come_close_to_the_original() -> None:
    name = "qwen3"
    model, ids = tiny.build(name), tiny.inputs(name, tiny.build(name))["input_ids"]
    before = tiny.logits(model, name)
    gaps = []
    for levels in (7, 31, 127):
        changed = tiny.build(name)
        convert(changed, levels=levels, text=ids.tolist(), outlier_ratio=0.01)
        gaps.append(float((tiny.logits(changed, name) - before)[:, :-1].norm() / before[:, :-1].norm()))
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "glm4_moe_lite"])
def test_generate_batches_and_padding_work(name: str) -> None:
    model = tiny.build(name)
    convert(model)
    ids = tiny.inputs(name, model)["input_ids"]
    alone = model.generate(input_ids=ids[:1, 2:], attention_mask=torch.ones_like(ids[:1, 2:]), max_new_tokens=4,
                           do_sample=False)  # fmt: skip
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    padded = model.generate(input_ids=ids * mask, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(padded[0, 2:], alone[0])
    assert torch.equal(
        padded, QuantizedTwin(model).generate(input_ids=ids * mask, attention_mask=mask, max_new_tokens=4,
                                              do_sample=False)
    )  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "glm4_moe_lite"])
def test_what_is_saved_comes_back_without_a_text(name: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    convert(model)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(tiny.logits(again, name), tiny.logits(model, name))


def relu_net(**changed: Any) -> Any:
    net: Any = tiny.build("plain")
    net.act = changed.get("act", nn.ReLU())
    return net


def test_a_plain_net_is_converted_by_its_inputs(tmp_path: Path) -> None:
    net = relu_net()
    images = tiny.inputs("plain", net)["images"]
    before = net(images)
    receipt = convert(net, text=None, inputs=images.tolist(), coding="rate", levels=64, prove=True)
    assert {site.path for site in receipt.acted} == {"conv", "fc1", "fc2"}
    assert torch.equal(net(images), QuantizedTwin(net)(images))
    assert 0 < (net(images) - before).norm() < 0.1 * before.norm()
    save(net, tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved", model=relu_net())(images), net(images))


def test_a_net_of_other_activations_is_refused_by_name() -> None:
    with pytest.raises(NoEffect, match="compute ReLU, and act is a Tanh"):
        convert(relu_net(act=nn.Tanh()), text=None, inputs=[[[[0.0]]]])


def test_a_plain_net_without_inputs_is_refused() -> None:
    net = relu_net()
    with pytest.raises(InvalidSetting, match=r"inputs=batch\.tolist"):
        convert(net, text=None)
    assert "_inference_pio" not in vars(net)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"levels": 15, "time_steps": 3}, "time_steps=3 is too short for levels=15 in radix, which take 4 steps"),
        ({"levels": 15, "coding": "rate", "time_steps": 14}, "take 15 steps"),
        ({"levels": 256}, "less than or equal to 255"),
        ({"text": []}, "calibration must be"),
        ({"inputs": [], "text": None}, "at least 1 item"),
        ({"inputs": [0.0]}, "give one of them"),
        ({"text": [[500, 1]]}, "this model knows"),
    ],
)
def test_bad_settings_are_named_and_refused(asked: dict[str, Any], told: str) -> None:
    case = Case("llama")
    with pytest.raises(InvalidSetting, match=told):
        convert(case.model, **asked)
    case.check_untouched()


def test_inputs_of_nothing_but_zeros_set_no_thresholds() -> None:
    net = relu_net()
    with pytest.raises(InvalidSetting, match="conv was given nothing but zeros"):
        convert(net, text=None, inputs=torch.zeros(2, 3, 8, 8).tolist())


def test_a_proof_in_half_precision_is_refused() -> None:
    case = Case("llama", torch.bfloat16)
    with pytest.raises(InvalidSetting, match=r"the model is in bfloat16, whose rounding hides differences"):
        convert(case.model, prove=True)
    case.check_untouched()
    convert(case.model)
    assert tiny.logits(case.model, "llama").isfinite().all()


def test_weights_that_are_no_numbers_are_refused() -> None:
    case = Case("llama")
    with torch.no_grad():
        case.model.model.layers[1].mlp.up_proj.weight[3, 2] = float("nan")
    with pytest.raises(InvalidModel, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        convert(case.model)


def test_routers_stay_analog_and_targets_and_skips_are_kept_to() -> None:
    model = tiny.build("qwen3_moe")
    receipt = convert(model, targets=["experts", "head"], skip=["model.layers.0.*"])
    kinds = {path: type(module).__name__ for path, module in model.named_modules() if isinstance(module, SpikingModule)}
    assert kinds == {"model.layers.1.mlp.experts": "SpikingExperts", "lm_head": "SpikingLinear"}
    assert any("routers stay analog" in skip["reason"] for skip in receipt.to_json()["skipped"])


def test_a_tied_head_is_converted_beside_its_embedding() -> None:
    case = Case("qwen3")
    embedding = case.model.get_input_embeddings().weight
    convert(case.model, targets=["head"])
    assert case.model.get_input_embeddings().weight is embedding
    assert isinstance(case.model.lm_head, SpikingModule)
    ModularOptimizationManager().remove_optimizations(case.model)
    case.check_untouched()


def test_the_plan_and_the_receipt_say_that_it_is_slower_and_by_how_much() -> None:
    model, manager = tiny.build("llama"), ModularOptimizationManager()
    (step,) = manager.plan(model, ["snn_conversion"]).steps
    assert any("on a CPU or GPU this is no speed-up" in note for note in step.notes)
    receipt = convert(model)
    assert any("times as long as before" in note for note in receipt.notes)


def test_what_fired_is_reported() -> None:
    model = tiny.build("qwen3_moe")
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["snn_conversion"], parameters={"snn_conversion": {"text": TEXT}})
    optimization = manager.registry.create("snn_conversion")
    assert optimization.report(model) == {}  # what calibration and proof did is not counted
    tiny.logits(model, "qwen3_moe")
    told = optimization.report(model)
    assert told["time_steps"] == 4
    assert 0 < told["spikes_per_activation"] < 4
    assert told["energy"]["45nm fp32"]["compute_ratio"] == round(
        0.9 * told["accumulates"] / 4.6 / told["multiplies"], 4
    )


def test_a_backward_pass_is_refused() -> None:
    model = tiny.build("llama")
    convert(model)
    given = tiny.inputs("llama", model)
    loss = model(**given, labels=given["input_ids"]).loss
    with pytest.raises(RefusedOnOptimized, match="spikes have no gradient"):
        loss.backward()


def test_attention_weights_are_refused() -> None:
    model = tiny.build("llama")
    convert(model)
    with pytest.raises(RefusedOnOptimized, match="output_attentions"):
        model(**tiny.inputs("llama", model), output_attentions=True)


@pytest.mark.parametrize("other", ["flash_attention", "kernel_fusion", "tensor_compression", "structured_pruning"])
@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe_lite"])
def test_others_beside_it_leave_the_spikes_or_are_refused(name: str, other: str) -> None:
    case, alone = Case(name), Case(name)
    case.apply("snn_conversion")
    alone.apply("snn_conversion")
    wanted = tiny.logits(alone.model, name)
    if case.apply(other):
        assert any(isinstance(module, SpikingModule) for module in case.model.modules())
        assert (tiny.logits(case.model, name) - wanted).norm() <= 0.3 * wanted.norm()
    else:
        assert torch.equal(tiny.logits(case.model, name), wanted)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


class Named(nn.Module):
    """A net that names what it gives to its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(input=x)
        return out


def test_a_layer_is_given_its_input_by_name_too() -> None:
    x = torch.rand(5, 4)
    net = Named().eval()
    wanted = net(x).detach()
    convert(net, text=None, inputs=x.tolist(), levels=255)
    torch.testing.assert_close(net(x).detach(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("wrong", [(2, 1, 8, 8), (2, 4, 8, 8)])
def test_another_number_of_channels_is_refused(wrong: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    convert(net, text=None, inputs=torch.rand(4, 3, 8, 8).tolist())
    with pytest.raises(InvalidSetting, match="3 channels"):
        net(torch.rand(wrong))
    with pytest.raises(InvalidSetting, match="144 channels"):
        net[3](torch.rand(2, 1))


def test_one_picture_alone_is_calibrated_by_its_channels() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    picture = torch.rand(3, 8, 9) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    wanted = net(picture).detach()
    convert(net, text=None, inputs=picture.tolist(), levels=255)
    torch.testing.assert_close(net(picture).detach(), wanted, rtol=0.02, atol=0.2)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_attention_that_spikes_do_not_know_is_left_by_the_plan(kind: str) -> None:
    sizes: Any = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = CONFIG_MAPPING[kind](vocab_size=128, hidden_size=64, intermediate_size=96, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    receipt = convert(model)
    assert sum("sinks" in str(site.skip) for site in receipt.sites) == 2
    assert any(site.path.endswith("q_proj") for site in receipt.acted)
    tokens = torch.tensor(TEXT)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, QuantizedTwin(model)(tokens).logits)


def test_a_layer_whose_weight_is_read_stays() -> None:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    model = ViTForImageClassification(config).eval()
    receipt = convert(model, text=None, inputs=torch.rand(2, 3, 16, 16).tolist())
    (path,) = [site.path for site in receipt.sites if "reads its weight" in str(site.skip)]
    assert path.endswith("projection")
    assert len(receipt.acted) > 10


def test_nan_that_only_values_show_is_told() -> None:
    case = Case("llama")
    with torch.no_grad():
        case.model.get_submodule("model.layers.1.input_layernorm").get_parameter("weight")[3] = float("nan")
    with pytest.raises(InvalidModel, match="NaN or infinity in calibration"):
        convert(case.model)


def test_a_model_that_hands_out_no_cache_is_proven_as_a_whole() -> None:
    sizes: Any = {"num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 64}
    config = RecurrentGemmaConfig(vocab_size=128, hidden_size=64, intermediate_size=96, **sizes)
    receipt = convert(RecurrentGemmaForCausalLM(config).eval(), prove=True)
    assert list(receipt.decision["proof"]["numbers"]) == ["logits"]
