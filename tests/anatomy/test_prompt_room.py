"""Prompts in pieces whose cache has its own room: the library's bits and layout at the end, each token written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, DynamicLayer

from inference_pio.anatomy.compiled_layer import compiled_forward
from inference_pio.anatomy.prompt_room import PromptRoom, PromptRooms, _as_the_librarys, prompt_rooms
from inference_pio.measure.allocations import peak_allocated
from tests import tiny
from tests.anatomy.test_prompt_in_pieces import in_pieces
from tests.cache.walks import prompt


class Copied(TorchDispatchMode):
    """Bytes that `torch.cat` joined along the tokens, that were copied into tensors that stood, and into new ones."""

    joined = written = moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.cat.default and args[1:] in ((-2,), (2,)):
            self.joined += out.nbytes
        if func is torch.ops.aten.copy_.default:
            self.written += args[1].nbytes
        if func is torch.ops.aten.clone.default:
            self.moved += out.nbytes
        return out


@contextmanager
def the_librarys_way() -> Iterator[None]:
    """Somebody listens to updates, so that no layer is given room."""
    update, DynamicLayer.update = DynamicLayer.update, lambda *given, **how: update(*given, **how)  # type: ignore[method-assign]
    try:
        yield
    finally:
        DynamicLayer.update = update  # type: ignore[method-assign]


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same_layers(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert type(one) is type(other)
        assert sorted(vars(one)) == sorted(vars(other))
        for name in ("keys", "values"):
            got, wanted = getattr(one, name), getattr(other, name)
            assert torch.equal(got, wanted)
            assert (got.dtype, got.stride()) == (wanted.dtype, wanted.stride())
            assert got.untyped_storage().nbytes() <= wanted.untyped_storage().nbytes()


@pytest.fixture(params=[True, False], ids=["by tokens", "by heads"])
def lies_by_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As rooms lie on a GPU, and as they lie here."""
    monkeypatch.setattr("inference_pio.anatomy.prompt_room.by_tokens", lambda device: request.param)
    return bool(request.param)


def caches() -> list[Callable[[Any], Any]]:
    return [lambda model: None, lambda model: DynamicCache(config=model.config), lambda model: DynamicCache()]


@pytest.mark.usefixtures("lies_by_tokens")
@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("make", caches(), ids=["none", "of the model", "of no model"])
@pytest.mark.parametrize(("padding", "before"), [((0,), 0), ((0,), 9), ((0, 7), 0), ((3, 0), 11)])
@torch.no_grad()
def test_what_stands_in_the_cache_is_what_the_library_would_hold(
    name: str, make: Any, padding: tuple[int, ...], before: int
) -> None:
    model: Any = tiny.build(name)
    given = prompt(len(padding), 41, padding)
    in_pieces(model, 8 * len(padding))

    def answer() -> tuple[torch.Tensor, Any]:
        cache = make(model)
        ids, mask = given["input_ids"], given["attention_mask"]
        if before:
            first = model(input_ids=ids[:, :before], attention_mask=mask[:, :before], past_key_values=cache)
            ids, cache = ids[:, before:], first.past_key_values
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cache)
        return out.logits, out.past_key_values

    with the_librarys_way():
        wanted, theirs = answer()
    with Copied() as copied:
        logits, ours = answer()
    assert torch.equal(logits, wanted)
    assert_same_layers(ours, theirs)
    first_piece = sum(layer.keys.nbytes + layer.values.nbytes for layer in ours.layers) * 9 // 41
    assert copied.joined <= first_piece  # where the library makes the cache, with the first piece
    with torch.inference_mode():
        assert torch.equal(answer()[0], wanted)


@pytest.mark.usefixtures("lies_by_tokens")
@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite"])
@torch.no_grad()
def test_what_comes_after_finds_the_librarys_cache(name: str) -> None:
    model: Any = tiny.build(name)
    given = prompt(2, 30, (0, 4))
    in_pieces(model, 12)

    def answer() -> tuple[torch.Tensor, Any]:
        cache = DynamicCache(config=model.config)
        model(**given, past_key_values=cache)
        cache.crop(-3)
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 3, 1]))
        mask = torch.nn.functional.pad(given["attention_mask"][[1, 0, 1], :27], (0, 1), value=1)
        out = model(input_ids=torch.tensor([[5], [6], [7]]), attention_mask=mask, past_key_values=cache)
        return out.logits, cache

    with the_librarys_way():
        wanted, theirs = answer()
    logits, ours = answer()
    assert torch.equal(logits, wanted)
    assert_same_layers(ours, theirs)


@torch.no_grad()
def test_sliding_windows_keep_the_librarys_way_beside_rooms() -> None:
    config: Any = tiny.CONFIGS["qwen3"]()
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    config.use_sliding_window, config.sliding_window = True, 7
    model: Any = tiny.build("qwen3", config=config)
    in_pieces(model, 9)
    with the_librarys_way():
        wanted = model(**prompt(1, 40))
    roomy = list[bool]()
    cache = DynamicCache(config=config)
    hook = model.model.norm.register_forward_hook(
        lambda *_: roomy.extend("update" in vars(layer) for layer in cache.layers)
    )
    found = model(**prompt(1, 40), past_key_values=cache)
    hook.remove()
    assert roomy == [False, True, False] * 5
    assert torch.equal(found.logits, wanted.logits)
    assert_same_layers(cache, wanted.past_key_values)


@pytest.mark.parametrize("where", ["layer", "cache"])
@torch.no_grad()
def test_who_listens_to_a_cache_hears_of_every_piece(where: str) -> None:
    model: Any = tiny.build("llama")
    in_pieces(model, 8)
    cache, heard = DynamicCache(config=model.config), list[int]()
    listened: Any = cache.layers[0] if where == "layer" else cache
    update = listened.update
    listened.update = lambda *given, **how: heard.append(given[0].shape[2]) or update(*given, **how)
    found = model(**prompt(1, 20), past_key_values=cache)
    assert heard == [8, 8, 4] if where == "layer" else [8, 8, 8, 8, 8, 8, 4, 4, 4]
    assert "update" in vars(listened)
    with the_librarys_way():
        assert torch.equal(found.logits, model(**prompt(1, 20)).logits)


@pytest.mark.parametrize("name", ["llama", "glm4_moe_lite"])
@pytest.mark.usefixtures("lies_by_tokens")
@torch.no_grad()
def test_a_call_that_fails_leaves_layers_of_their_own_memory(name: str) -> None:
    model: Any = tiny.build(name)
    in_pieces(model, 8)
    cache, calls = DynamicCache(config=model.config), list[int]()

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("in the third piece")

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the third piece"):
        model(**prompt(1, 40), past_key_values=cache)
    hook.remove()
    assert [layer.keys.shape[2] for layer in cache.layers] == [24] + [16] * (len(cache.layers) - 1)
    for layer in cache.layers:
        assert "update" not in vars(layer)
        for held in (layer.keys, layer.values):
            assert held.is_contiguous()
            assert held.untyped_storage().nbytes() == held.nbytes


def test_no_memory_for_a_layer_of_its_own_is_not_what_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DynamicCache()
    cache.layers += [DynamicLayer(), DynamicLayer()]

    def lack(*_: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    def fill() -> None:
        with prompt_rooms(9) as rooms:
            rooms.open(cache)
            for number in (0, 1):
                cache.update(some(1, 2, 4, 3), some(1, 2, 4, 3), number)
            monkeypatch.setattr("inference_pio.anatomy.prompt_room._as_the_librarys", lack)
            raise KeyError("what happened")

    with pytest.raises(KeyError, match="what happened"):
        fill()
    assert [layer.keys.shape[2] for layer in cache.layers] == [4, 4]
    assert not any("update" in vars(layer) for layer in cache.layers)


def test_whatever_is_raised_at_one_layer_the_others_leave_their_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, left = DynamicCache(), _as_the_librarys
    cache.layers += [DynamicLayer(), DynamicLayer(), DynamicLayer()]

    def interrupted(held: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        if held is cache.layers[1].keys:
            raise KeyboardInterrupt
        return left(held, room)

    monkeypatch.setattr("inference_pio.anatomy.prompt_room._as_the_librarys", interrupted)
    rooms = PromptRooms(9)
    rooms.open(cache)
    for number in (0, 1, 2):
        cache.update(some(1, 2, 4, 3), some(1, 2, 4, 3), number)
    with pytest.raises(KeyboardInterrupt):
        rooms.leave()
    assert not any("update" in vars(layer) for layer in cache.layers)
    assert [layer.keys.is_contiguous() for layer in cache.layers] == [True, False, True]
    assert all(torch.equal(layer.keys, some(1, 2, 4, 3)) for layer in cache.layers)


@pytest.mark.parametrize("change", ["dtype", "more tokens", "width of values", "gradients", "somebody's tensor"])
def test_tokens_of_another_kind_are_the_librarys_to_join(change: str) -> None:
    ours, theirs = DynamicLayer(), DynamicLayer()
    room = PromptRoom(ours, 7)
    for layer in (ours, theirs):
        layer.update(some(1, 2, 4, 3), some(1, 2, 4, 5, seed=1))
    keys, values = some(1, 2, 3, 3, seed=2), some(1, 2, 3, 5, seed=3)
    if change == "dtype":
        keys = keys.double()
    elif change == "more tokens":
        keys, values = some(1, 2, 4, 3, seed=2), some(1, 2, 4, 5, seed=3)
    elif change == "gradients":
        keys.requires_grad_()
    elif change == "somebody's tensor":
        for layer in (ours, theirs):
            layer.keys = layer.keys.clone() + 1
    else:
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            ours.update(keys, values[..., :2])
        return
    found, wanted = ours.update(keys, values), theirs.update(keys, values)
    assert "update" not in vars(ours)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
        assert (one.dtype, one.requires_grad) == (other.dtype, other.requires_grad)
    room.leave()
    assert ours.keys is found[0]


def test_each_token_is_written_once_and_moved_once_at_most(lies_by_tokens: bool) -> None:
    layer = DynamicLayer()
    room = PromptRoom(layer, 64)
    with Copied() as copied:
        for number in range(8):
            layer.update(some(2, 3, 8, 4, seed=number), some(2, 3, 8, 4, seed=number))
        room.leave()
    held = layer.keys.nbytes + layer.values.nbytes
    assert (copied.joined, copied.written, copied.moved) == (0, held, held if lies_by_tokens else 0)
    assert torch.equal(layer.keys, torch.cat([some(2, 3, 8, 4, seed=number) for number in range(8)], 2))


def test_on_a_gpu_no_stride_tells_how_many_tokens_come(lies_by_tokens: bool) -> None:
    strides = set()
    for tokens in (8, 96):
        layer = DynamicLayer()
        PromptRoom(layer, tokens)
        strides |= {one.stride() for one in layer.update(some(2, 3, 8, 4), some(2, 3, 8, 4))}
    assert len(strides) == (1 if lies_by_tokens else 2)


@torch.no_grad()
def test_layers_that_are_compiled_see_no_room() -> None:
    model: Any = tiny.build("llama")
    in_pieces(model, 8)
    model.model.layers[1].forward = compiled_forward.__get__(model.model.layers[1])
    seen = list[bool]()
    cache = DynamicCache(config=model.config)
    model.model.layers[0].register_forward_hook(lambda *_: seen.append("update" in vars(cache.layers[0])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference_pio.anatomy.compiled_layer.COMPILER", "eager")
        model(**prompt(1, 20), past_key_values=cache)
    assert seen == [False] * 3


@pytest.mark.usefixtures("lies_by_tokens")
def test_a_layer_moves_into_its_room_tensor_by_tensor() -> None:
    before, new = some(1, 8, 4096, 16), some(1, 8, 64, 16)

    def peak(roomy: bool) -> int:
        layer = DynamicLayer()
        with peak_allocated(torch.device("cpu")) as found:
            layer.update(before, before)
            room = PromptRoom(layer, 4160) if roomy else None
            layer.update(new, new)
        if room is not None:
            room.leave()
        return found.peak_bytes - found.start_bytes

    assert peak(True) <= 1.01 * peak(False)


@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_no_more_memory_is_taken_at_once_than_by_the_librarys_way(rows: int) -> None:
    model: Any = tiny.build("qwen3")
    given = prompt(rows, 1024)
    in_pieces(model, 128 * rows)

    def peak() -> int:
        cache = DynamicCache(config=model.config)
        with peak_allocated(torch.device("cpu")) as found:
            model(**given, past_key_values=cache, logits_to_keep=1)
        return found.peak_bytes - found.start_bytes

    with the_librarys_way():
        theirs = peak()
    assert peak() <= theirs


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_the_cache_is_the_librarys_too() -> None:
    model: Any = tiny.build("qwen3").to("cuda", torch.bfloat16)
    given = {name: one.cuda() for name, one in prompt(1, 3000).items()}
    in_pieces(model, 1024)
    with the_librarys_way():
        wanted = model(**given)
    found = model(**given)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=2e-2, atol=2e-2)
    for ours, theirs in zip(found.past_key_values.layers, wanted.past_key_values.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=2e-2, atol=2e-2)
        assert ours.keys.stride() == theirs.keys.stride()
        assert ours.values.untyped_storage().nbytes() == ours.values.nbytes
