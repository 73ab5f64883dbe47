"""A model whose layers stream is an ordinary one: what cannot be honoured is refused, and nobody sees other bytes."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import inference_pio
from inference_pio.errors import RefusedOnOptimized, StreamError
from inference_pio.streaming.hooks import WHY, stream_of, true_values
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.sweep import Case


def streamed(name: str = "llama", *others: str) -> Case:
    case = Case(name)
    assert case.apply("disk_offloading", *others)
    return case


def hold_the_same(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_a_state_dict_holds_true_values_and_leaves_layers_at_rest(name: str) -> None:
    case = streamed(name)
    before = fingerprint(case.model)
    assert hold_the_same(case.model, tiny.build(name))
    assert before.differences(fingerprint(case.model)) == []


def test_a_state_dict_of_compressed_layers_holds_codes_as_every_machine_does() -> None:
    plain = Case("llama")
    plain.apply("tensor_compression")
    assert hold_the_same(streamed("llama", "tensor_compression").model, plain.model)


def test_parameters_that_hold_nothing_are_not_handed_out_as_a_state_dict() -> None:
    case = streamed()
    with pytest.raises(RefusedOnOptimized, match=r"model\.layers\.0 streams from disk.*keep_vars=False"):
        case.model.state_dict(keep_vars=True)
    with true_values(case.model):
        assert list(case.model.state_dict(keep_vars=True)) == list(tiny.build("llama").state_dict())
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_loading_weights_is_refused_before_any_is_loaded() -> None:
    case = streamed()
    other = tiny.build("llama", seed=1)
    for model, given in ((case.model, other), (case.model.model.layers[1], other.model.layers[1])):
        with pytest.raises(RefusedOnOptimized, match="Nothing was loaded"):
            model.load_state_dict(given.state_dict())
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("call", ["half", "double", "bfloat16"])
def test_casting_a_layer_is_refused_as_casting_the_model_is(call: str) -> None:
    case = streamed()
    for part in (case.model, case.model.model, case.model.model.layers[1]):
        with pytest.raises(RefusedOnOptimized):
            getattr(part, call)()
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_calls_that_change_nothing_are_let_through() -> None:
    case = streamed()
    before = fingerprint(case.model)
    assert case.model.to("cpu").float() is case.model
    assert case.model.model.layers[0].cpu() is case.model.model.layers[0]
    assert before.differences(fingerprint(case.model)) == []


def test_training_is_refused_and_evaluating_in_training_mode_is_not() -> None:
    case = streamed()
    case.model.train()
    given = tiny.inputs("llama", case.model)
    with pytest.raises(RefusedOnOptimized, match="cannot be trained"):
        case.model(**given)
    with torch.no_grad():
        case.model(**given)
    case.model.eval()
    assert torch.equal(case.model(**given).logits[:, -1], case.logits[:, -2])
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_a_backward_pass_that_would_need_a_layer_again_is_refused() -> None:
    case = streamed()
    loss = case.model(**tiny.inputs("llama", case.model)).logits.float().sum()
    with pytest.raises(RefusedOnOptimized, match="backward pass"):
        loss.backward()


def test_state_dicts_of_several_threads_are_all_true() -> None:
    case = streamed()
    wanted = {name: tensor.clone() for name, tensor in tiny.build("llama").state_dict().items()}
    wrong: list[str] = []

    def look() -> None:
        for _ in range(12):
            found = case.model.state_dict()
            wrong.extend(name for name, tensor in wanted.items() if not torch.equal(found[name], tensor))

    def compute() -> None:
        for _ in range(30):
            tiny.logits(case.model, "llama")

    threads = [threading.Thread(target=target) for target in (look, look, look, compute)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.equal(tiny.logits(case.model, "llama"), case.logits)


def test_a_part_of_a_layer_that_was_cast_is_told_and_not_taken_back_in_silence() -> None:
    case = streamed()
    layer = case.model.get_submodule(stream_of(case.model).units[0].path)  # type: ignore[union-attr]
    layer.mlp.gate_proj.to(torch.bfloat16)
    with pytest.raises(RefusedOnOptimized, match=r"has become torch\.bfloat16"):
        tiny.logits(case.model, "llama")


def test_a_copy_streams_by_itself_and_outlives_the_first() -> None:
    case = streamed()
    process = psutil.Process()
    threads, files = threading.active_count(), process.num_fds()
    twin: Any = copy.deepcopy(case.model)
    assert torch.equal(tiny.logits(twin, "llama"), case.logits)
    assert stream_of(twin) is not stream_of(case.model)
    assert not {id(one) for one in twin.parameters()} & {id(one) for one in case.model.parameters()}
    assert stream_of(twin).counts.read_bytes > 0
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
    assert torch.equal(tiny.logits(twin, "llama"), case.logits)
    del twin
    gc.collect()
    assert (threading.active_count(), process.num_fds()) < (threads, files)


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_pickling_is_refused_with_the_way_out(how: str) -> None:
    model = streamed().model
    with pytest.raises(RefusedOnOptimized, match=r"inference_pio\.save"):
        pickle.dumps(model) if how == "pickle" else torch.save(model, io.BytesIO())


def test_what_is_saved_are_true_values(tmp_path: Path) -> None:
    case = streamed("llama", "tensor_compression")
    expected = tiny.logits(case.model, "llama")
    before = fingerprint(case.model)
    folder = inference_pio.save(case.model, tmp_path / "saved")
    assert before.differences(fingerprint(case.model)) == []
    loaded = inference_pio.load(folder)
    assert stream_of(loaded) is not None
    assert torch.equal(tiny.logits(loaded, "llama"), expected)


def test_save_pretrained_writes_true_values(tmp_path: Path) -> None:
    case = streamed()
    case.model.save_pretrained(tmp_path / "saved")
    assert hold_the_same(type(case.model).from_pretrained(tmp_path / "saved"), tiny.build("llama"))


def test_compiling_the_model_gives_the_same_logits() -> None:
    case = streamed()
    given = tiny.inputs("llama", case.model)
    compiled = torch.compile(case.model, backend="eager")
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(**given).logits, case.logits[:, :-1])
    torch.compiler.reset()


def test_a_forward_that_raises_leaves_the_layer_at_rest() -> None:
    case = streamed()
    layer = case.model.model.layers[1]
    with pytest.raises(TypeError):
        layer()
    assert layer.mlp.up_proj.weight.isnan().all()
    assert torch.equal(tiny.logits(case.model, "llama"), case.logits)


def test_a_ctrl_c_inside_a_layer_is_no_drift() -> None:
    case = streamed()

    def pressed(*given: Any) -> None:
        raise KeyboardInterrupt

    handle = case.model.model.layers[1].mlp.register_forward_hook(pressed)
    with pytest.raises(KeyboardInterrupt):
        tiny.logits(case.model, "llama")
    handle.remove()
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_recorded_steps_step_aside_and_say_why() -> None:
    case = Case("llama")
    said = tiny.generate(case.model, "llama")
    assert case.apply("disk_offloading", "kernel_fusion")
    assert torch.equal(tiny.generate(case.model, "llama"), said)
    status = case.manager.get_optimization_status(case.model)["optimizations"]
    assert status["kernel_fusion"]["counted"]["decoding"]["left_to_the_library"] == {WHY: 1}
    assert status["disk_offloading"]["counted"]["streaming"]["units"] > 0


def test_a_failing_file_is_told_in_forward_and_the_model_can_be_used_and_taken_back() -> None:
    case = streamed()
    stream = stream_of(case.model)
    assert stream is not None
    (file,) = {piece.file for piece in stream._pieces[1]}
    content = file.read_bytes()
    file.write_bytes(bytes(len(content)))
    with pytest.raises(StreamError, match="damaged"):
        tiny.logits(case.model, "llama")
    with pytest.raises(StreamError, match="damaged"):
        case.manager.remove_optimizations(case.model)
    assert case.manager.get_model_optimizations(case.model) == ["disk_offloading"]
    file.write_bytes(content)
    assert torch.equal(tiny.logits(case.model, "llama"), case.logits)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
