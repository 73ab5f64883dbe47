from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.errors import InvalidSetting
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal, unwind
from inference_pio.undo.slots import ABSENT
from inference_pio.undo.vault import Vault
from tests import tiny
from tests.undo.help import Doubled, storage_of, take_back


def two_linears(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4, bias=bias), nn.Linear(4, 4, bias=bias))


def on_disk(model: nn.Module, folder: Path) -> Journal:
    return Journal(model, Vault("disk", folder))


# ------------------------------------------------------------------ set and delete


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.scale = 3.0
        self.register_parameter("none", None)
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("passing", torch.ones(3), persistent=False)
        self.register_buffer("nothing", None)
        self.last = nn.Linear(2, 2)


VALUES: dict[str, Any] = {
    "attribute": "fast",
    "none": None,
    "parameter": nn.Parameter(torch.zeros(5)),
    "tensor": torch.zeros(6),
    "module": nn.Identity(),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("name", ["first", "scale", "none", "kept", "passing", "nothing", "last", "new"])
def test_any_name_takes_any_value_and_gives_back_what_it_was(name: str, kind: str) -> None:
    model = Buffered()
    before, keys = fingerprint(model), list(model.state_dict())
    journal = Journal(model)
    with journal.step("set") as frame:
        journal.set(model, name, VALUES[kind])
    assert getattr(model, name) is VALUES[kind]
    assert (
        sum(name in vars(model)[table] for table in ("_parameters", "_buffers", "_modules")) + (name in vars(model))
        == 1
    )
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["first", "scale", "none", "kept", "passing", "nothing", "last"])
def test_a_deleted_name_comes_back_in_its_place(name: str) -> None:
    model = Buffered()
    before, keys = fingerprint(model), list(model.state_dict())
    journal = Journal(model)
    with journal.step("delete") as frame:
        journal.delete(model, name)
    assert not hasattr(model, name)
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []
    assert list(model.state_dict()) == keys


def test_a_name_may_move_through_all_tables_within_one_step() -> None:
    model = Buffered()
    before = fingerprint(model)
    journal = Journal(model)
    with journal.step("move") as frame:
        journal.set(model, "scale", nn.Parameter(torch.ones(1)))
        journal.set(model, "scale", nn.Identity())
        journal.delete(model, "scale")
        journal.register(model, model._buffers, "scale", torch.ones(1))
        journal.set(model, "scale", torch.zeros(1))
        journal.set(model, "scale", None)
    assert model.scale is None
    assert "scale" in model._buffers
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_a_non_persistent_buffer_is_one_again() -> None:
    model = Buffered()
    journal = Journal(model)
    with journal.step("drop") as frame:
        journal.set(model, "passing", "a word")
    assert "passing" not in model._non_persistent_buffers_set
    take_back(journal, frame)
    assert "passing" in model._non_persistent_buffers_set
    assert "passing" not in model.state_dict()


def test_what_is_not_there_cannot_be_deleted() -> None:
    model = two_linears()
    journal = Journal(model)
    with pytest.raises(AttributeError, match="Sequential has no 'missing' to delete"), journal.step("delete"):
        journal.delete(model, "missing")
    assert journal.frames == []


class Renamed:
    """An object as transformers' configurations are: one setting goes by two names, another is computed."""

    def __init__(self) -> None:
        self.n_embd = 4

    @property
    def computed(self) -> int:
        return self.n_embd * 2

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__("n_embd" if name == "hidden_size" else name)


@pytest.mark.parametrize("name", ["computed", "hidden_size"])
def test_a_setting_that_would_have_no_effect_is_refused(name: str) -> None:
    model, settings = two_linears(), Renamed()
    journal = Journal(model)
    with pytest.raises(InvalidSetting, match=f"{name!r} of Renamed is computed or goes by another name"):  # noqa: SIM117
        with journal.step("set"):
            journal.set(settings, name, 10)
    assert vars(settings) == {"n_embd": 4}


def test_a_renamed_setting_of_a_real_configuration_is_refused_too() -> None:
    model = tiny.build("gpt2")
    journal = Journal(model)
    with pytest.raises(InvalidSetting, match="hidden_size"), journal.step("set"):
        journal.set(model.config, "hidden_size", 8)
    assert "hidden_size" not in vars(model.config)


@pytest.mark.parametrize("owner", [nn.Linear, torch, 5, "text"])
def test_only_objects_of_one_model_are_edited(owner: Any) -> None:
    model = two_linears()
    journal = Journal(model)

    def patch() -> None:
        with journal.step("patch"):
            journal.set(model, "label", 1)
            journal.set(owner, "label", 1)

    with pytest.raises(InvalidSetting):
        patch()
    assert not hasattr(model, "label")
    assert not hasattr(owner, "label")


def test_edits_outside_a_step_and_steps_within_steps_are_refused() -> None:
    model = two_linears()
    journal = Journal(model)
    with pytest.raises(InvalidSetting, match="inside a step only"):
        journal.set(model, "label", 1)
    with journal.step("outer"):
        with pytest.raises(InvalidSetting, match="'inner' cannot begin inside step 'outer'"), journal.step("inner"):
            pass
        journal.set(model, "label", 1)
    assert [frame.name for frame in journal.frames] == ["outer"]


# ------------------------------------------------------------------ containers


def test_containers_stay_the_same_objects_and_handles_of_others_work() -> None:
    model = two_linears()
    calls: list[str] = []
    handle = model[0].register_forward_hook(lambda *given: calls.append("theirs"))
    containers = [model[0]._parameters, model[0]._forward_hooks, model._modules, vars(model[0])]
    journal = Journal(model)
    with journal.step("edit") as frame:
        journal.hook(model[0], "forward", lambda *given: calls.append("ours"))
        journal.delete(model[0], "bias")
        journal.register(model[0], model[0]._parameters, "bias", None)
        journal.replace(model[1], nn.Identity())
    now = [model[0]._parameters, model[0]._forward_hooks, model._modules, vars(model[0])]
    assert all(one is other for one, other in zip(containers, now, strict=True))
    take_back(journal, frame)
    now = [model[0]._parameters, model[0]._forward_hooks, model._modules, vars(model[0])]
    assert all(one is other for one, other in zip(containers, now, strict=True))
    model(torch.ones(1, 4))
    handle.remove()
    model(torch.ones(1, 4))
    assert calls == ["theirs"]


def test_a_hook_of_the_user_made_while_ours_stands_stays_when_ours_goes() -> None:
    model = two_linears()
    calls: list[str] = []
    journal = Journal(model)
    with journal.step("hook") as frame:
        journal.hook(model[0], "forward", lambda *given: calls.append("ours"))
    handle = model[0].register_forward_hook(lambda *given: calls.append("theirs"))
    take_back(journal, frame)
    model(torch.ones(1, 4))
    assert calls == ["theirs"]
    handle.remove()
    assert not model[0]._forward_hooks


def test_hooks_take_keyword_arguments_and_their_place_in_the_line() -> None:
    model = nn.Sequential(Doubled(nn.Identity()))
    seen: list[Any] = []
    handle = model[0].register_forward_pre_hook(lambda module, given: seen.append("theirs"))
    before = fingerprint(model)
    journal = Journal(model)
    with journal.step("hooks") as frame:
        journal.hook(model[0], "forward_pre", lambda module, given, named: seen.append(named), with_kwargs=True)
        journal.hook(model[0], "forward_pre", lambda module, given: seen.append("first"), prepend=True)
        journal.hook(model[0], "forward", lambda module, given, named, out: out + 1, with_kwargs=True)
        journal.hook(model[0], "forward", lambda module, given, out: out * 10, prepend=True)
    assert model(torch.ones(1)).item() == 21.0
    assert seen == ["first", "theirs", {}]
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []
    assert model(torch.ones(1)).item() == 2.0
    handle.remove()


def test_a_hook_may_be_called_where_a_forward_raises() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    calls: list[str] = []
    before = fingerprint(model)
    journal = Journal(model)
    with journal.step("hooks") as frame:
        journal.hook(model[0], "forward", lambda *given: calls.append("always"), always_call=True)
        journal.hook(model[0], "forward", lambda *given: calls.append("after"))
    with pytest.raises(RuntimeError):
        model(torch.ones(1, 5))
    assert calls == ["always"]
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_an_entry_registered_twice_and_taken_out_is_as_it_was() -> None:
    model = two_linears()
    table = {"a": 1, "b": 2}
    journal = Journal(model)
    with journal.step("register") as frame:
        journal.register(model, table, "a", 3)
        journal.register(model, table, "a", ABSENT)
        journal.register(model, table, "c", 4)
    assert table == {"b": 2, "c": 4}
    take_back(journal, frame)
    assert list(table.items()) == [("a", 1), ("b", 2)]


def test_what_is_no_mapping_is_refused() -> None:
    model = two_linears()
    journal = Journal(model)
    with pytest.raises(InvalidSetting, match="a ModuleDict is not a mapping"), journal.step("register"):
        journal.register(model, nn.ModuleDict(), "a", nn.Identity())  # type: ignore[arg-type]


# ------------------------------------------------------------------ replace


def test_a_module_is_replaced_under_every_parent_and_comes_back_under_all() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(nn.Identity(), shared)})
    del shared
    before = fingerprint(model)
    journal = Journal(model)
    with journal.step("replace") as frame:
        new = journal.replace(model["a"][0], nn.Identity())
    assert model["a"][0] is model["b"][1] is new
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_a_module_that_is_no_child_cannot_be_replaced() -> None:
    model = two_linears()
    journal = Journal(model)
    for module in (nn.Linear(1, 1), model):
        with pytest.raises(InvalidSetting, match="is not a child of this model"), journal.step("replace"):
            journal.replace(module, nn.Identity())


def test_a_stand_in_takes_the_mode_but_parts_of_the_model_in_it_keep_theirs() -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout(), nn.Dropout())).eval()
    model[0][1].train()
    before = fingerprint(model)
    journal = Journal(model)
    with journal.step("wrap") as frame:
        journal.replace(model[0], Doubled(model[0]))
    assert [part.training for part in model[0].modules()] == [False, False, False, True]
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_train_and_eval_meant_for_a_stand_in_reach_the_original() -> None:
    model = two_linears().eval()
    journal = Journal(model)
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Dropout())
    assert not model[0].training
    model.train()
    take_back(journal, frame)
    assert all(part.training for part in model.modules())


def test_a_module_can_be_edited_where_it_has_moved_to() -> None:
    model = two_linears()
    before = fingerprint(model)
    journal = Journal(model)
    with journal.step("wrap"):
        journal.replace(model[0], Doubled(model[0]))
        journal.set(model[0].inner, "note", 1)
    with journal.step("within") as within:
        journal.set(model[0].inner, "note", 2)
    assert within.stands_on(journal.frames[0])
    take_back(journal, *journal.frames)
    assert before.differences(fingerprint(model)) == []


# ------------------------------------------------------------------ parking


def test_bytes_that_nothing_uses_leave_memory_and_are_counted(tmp_path: Path) -> None:
    model = two_linears()
    journal = on_disk(model, tmp_path)
    memory = storage_of(model[0].weight)
    before, out = fingerprint(model), model(torch.ones(1, 4)).detach()
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Linear(4, 4, bias=False))
    assert memory.expired()
    assert (frame.parked_bytes, frame.held_bytes) == (64 + 16, 0)
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []
    assert torch.equal(model(torch.ones(1, 4)), out)


@pytest.mark.parametrize("edit", ["set", "delete", "attribute", "register", "replace", "parent"])
def test_every_way_out_of_the_model_parks(edit: str, tmp_path: Path) -> None:
    model = nn.Sequential(two_linears(bias=False))
    journal = on_disk(model, tmp_path)
    memory, before = storage_of(model[0][0].weight), fingerprint(model)
    with journal.step(edit) as frame:
        if edit == "set":
            journal.set(model[0][0], "weight", nn.Parameter(torch.zeros(1)))
        elif edit == "delete":
            journal.delete(model[0][0], "weight")
        elif edit == "attribute":
            journal.set(model[0][0], "weight", "gone")
        elif edit == "register":
            journal.register(model[0][0], model[0][0]._parameters, "weight", None)
        elif edit == "replace":
            journal.replace(model[0][0], nn.Identity())
        else:
            journal.set(model, "0", nn.Identity())
    assert memory.expired()
    assert frame.parked_bytes == (128 if edit == "parent" else 64)
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_a_tied_parameter_is_parked_only_when_no_live_user_is_left(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    model[1].weight = model[0].weight
    journal = on_disk(model, tmp_path)
    memory, before = storage_of(model[0].weight), fingerprint(model)
    with journal.step("one") as one:
        journal.replace(model[0], nn.Identity())
    assert not memory.expired()
    assert one.parked_bytes == 0
    assert model(torch.ones(1, 4)).shape == (1, 4)
    with journal.step("two") as two:
        journal.replace(model[1], nn.Identity())
    assert memory.expired()
    assert two.parked_bytes == 64
    assert two.stands_on(one), "taken back alone, the first one would come back empty"
    take_back(journal, one, two)
    assert model[0].weight is model[1].weight
    assert before.differences(fingerprint(model)) == []


def test_a_tied_parameter_is_parked_when_both_users_go_in_one_step(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    model[1].weight = model[0].weight
    journal = on_disk(model, tmp_path)
    memory, before = storage_of(model[0].weight), fingerprint(model)
    with journal.step("both") as frame:
        journal.replace(model[0], nn.Identity())
        journal.set(model[1], "weight", None)
    assert memory.expired()
    assert frame.parked_bytes == 64
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_a_module_that_stays_under_one_parent_keeps_its_bytes(tmp_path: Path) -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    del shared
    out = model["b"](torch.ones(1, 4)).detach()
    journal = on_disk(model, tmp_path)
    with journal.step("one parent") as frame:
        journal.set(model["a"], "0", nn.Identity())
    assert frame.parked_bytes == 0
    assert torch.equal(model["b"](torch.ones(1, 4)), out)
    with journal.step("the other") as other:
        journal.delete(model["b"], "0")
    assert other.parked_bytes == 80


def test_a_shared_module_tied_to_a_third_leaves_the_third_its_bytes(tmp_path: Path) -> None:
    shared = nn.Linear(4, 4, bias=False)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared), "c": nn.Linear(4, 4, bias=False)})
    model["c"].weight = shared.weight
    del shared
    out = model["c"](torch.ones(1, 4))
    journal = on_disk(model, tmp_path)
    with journal.step("replace") as frame:
        journal.replace(model["a"][0], nn.Identity())
    assert frame.parked_bytes == 0
    assert torch.equal(model["c"](torch.ones(1, 4)), out)


def test_views_of_one_storage_are_parked_as_a_unit_and_share_it_again(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    whole = torch.arange(32.0).reshape(8, 4)
    model[0].weight, model[1].weight = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])
    del whole
    journal = on_disk(model, tmp_path)
    memory, before = storage_of(model[0].weight), fingerprint(model)
    with journal.step("first") as first:
        journal.replace(model[0], nn.Identity())
    assert (first.parked_bytes, memory.expired()) == (0, False)
    with journal.step("second") as second:
        journal.replace(model[1], nn.Identity())
    assert (second.parked_bytes, memory.expired()) == (128, True)
    assert second.stands_on(first), "taken back alone, the first one would come back empty"
    take_back(journal, second, first)
    assert before.differences(fingerprint(model)) == []
    memory = storage_of(model[0].weight)
    with journal.step("both") as both:
        journal.replace(model[0], nn.Identity())
        journal.replace(model[1], nn.Identity())
    assert (both.parked_bytes, memory.expired()) == (128, True)
    take_back(journal, both)
    assert before.differences(fingerprint(model)) == []
    assert model[0].weight.untyped_storage().data_ptr() == model[1].weight.untyped_storage().data_ptr()


def test_a_new_parameter_on_the_old_bytes_keeps_them(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    journal = on_disk(model, tmp_path)
    value = model[0].weight.detach().clone()
    with journal.step("view") as frame:
        journal.set(model[0], "weight", nn.Parameter(model[0].weight.detach().t()))
    assert frame.parked_bytes == 0
    assert torch.equal(model[0].weight, value.t())


HOLDERS = ["variable", "module", "other model", "shared parent", "optimizer", "closure", "graph"]


@pytest.mark.parametrize("holder", HOLDERS)
def test_bytes_that_somebody_else_holds_stay_and_are_counted(holder: str, tmp_path: Path) -> None:
    model = nn.Sequential(two_linears(bias=False))
    journal = on_disk(model, tmp_path)
    value, given = model[0][0].weight.detach().clone(), torch.ones(2, 4)
    holders: dict[str, Any] = {
        "variable": lambda: model[0][0].weight,
        "module": lambda: model[0][0],
        "other model": lambda: nn.Sequential(model[0][0], nn.Identity()),
        "shared parent": lambda: nn.Sequential(model[0]),
        "optimizer": lambda: torch.optim.SGD([model[0][0].weight]),
        "closure": lambda: (lambda weight: lambda: weight)(model[0][0].weight),
        "graph": lambda: model[0][0](given).sum(),
    }
    held = holders[holder]()
    with journal.step("replace") as frame:
        journal.set(model, "0", nn.Identity())
    assert frame.parked_bytes == (64 if holder not in ("shared parent",) else 0)
    assert frame.held_bytes == 128 - frame.parked_bytes
    if holder == "other model":
        assert torch.equal(held[0].weight, value)
        assert torch.equal(held(given), given @ value.T)
    if holder == "shared parent":
        assert held(given).shape == (2, 4)
    if holder == "graph":
        held.backward()
    take_back(journal, frame)
    assert torch.equal(model[0][0].weight, value)


def test_a_buffer_that_is_a_view_of_a_larger_tensor_keeps_it_and_counts_all_of_it(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("mask", torch.ones(10, 4).tril()[:2])
    before = fingerprint(model)
    journal = on_disk(model, tmp_path)
    with journal.step("drop") as frame:
        journal.delete(model, "mask")
    assert (frame.held_bytes, frame.parked_bytes) == (160, 0)
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_a_variable_that_takes_a_parameter_within_the_step_keeps_its_bytes(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    journal = on_disk(model, tmp_path)
    with journal.step("keep") as frame:
        mine = model[0].weight
        journal.set(model[0], "weight", None)
    assert mine.numel() == 16
    assert (frame.held_bytes, frame.parked_bytes) == (64, 0)


def test_a_handle_on_a_module_that_stays_does_not_keep_what_is_replaced_in_it(tmp_path: Path) -> None:
    model = nn.Sequential(two_linears(bias=False))
    backbone = model[0]
    journal = on_disk(model, tmp_path)
    with journal.step("replace") as frame:
        journal.replace(model[0][0], nn.Identity())
    assert frame.parked_bytes == 64
    assert backbone(torch.ones(1, 4)).shape == (1, 4)


def test_a_parked_original_cannot_come_back_within_its_step(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    before = fingerprint(model)
    journal = on_disk(model, tmp_path)

    def badly() -> None:
        with journal.step("badly"):
            journal.replace(model[0], Doubled(nn.Identity()))
            journal.set(model[0], "inner", journal.frame.entries[0].before)  # type: ignore[attr-defined]

    with pytest.raises(InvalidSetting, match="Put the new module together first"):
        badly()
    assert before.differences(fingerprint(model)) == []


def test_a_module_moves_elsewhere_when_the_new_one_holds_it_from_the_start(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    before, out = fingerprint(model), model[0](torch.ones(1, 4))
    journal = on_disk(model, tmp_path)
    with journal.step("well") as frame:
        journal.replace(model[0], Doubled(model[0]))
    assert torch.equal(model[0](torch.ones(1, 4)), out * 2)
    assert (frame.parked_bytes, frame.held_bytes) == (0, 0)
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_new_weights_of_one_step_are_parked_by_the_next_one(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    before = fingerprint(model)
    journal = on_disk(model, tmp_path)
    with journal.step("one"):
        journal.replace(model[0], nn.Linear(4, 4, bias=False))
        journal.set(model[1], "weight", nn.Parameter(torch.ones(4, 4)))
        journal.hook(model[1], "forward", print)
    memories = [storage_of(model[0].weight), storage_of(model[1].weight)]
    with journal.step("two") as two:
        journal.replace(model[0], nn.Identity())
        journal.replace(model[1], nn.Identity())
    assert [memory.expired() for memory in memories] == [True, True]
    assert two.parked_bytes == 128
    take_back(journal, *journal.frames)
    assert before.differences(fingerprint(model)) == []


def test_meta_and_empty_tensors_are_neither_parked_nor_counted(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, device="meta"), nn.Module())
    model[1].register_buffer("nothing", torch.zeros(0, 7))
    journal = on_disk(model, tmp_path)
    before = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Identity())
        journal.replace(model[1], nn.Identity())
    assert (frame.parked_bytes, frame.held_bytes) == (0, 0)
    take_back(journal, frame)
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == before
    assert model[1].nothing.shape == (0, 7)


# ------------------------------------------------------------------ rehouse


def test_tensors_move_into_one_and_come_back_apart(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    before = fingerprint(model)
    journal = on_disk(model, tmp_path)
    old = storage_of(model[0].weight)
    merged = torch.cat([model[0].weight.detach(), model[1].weight.detach()])
    with journal.step("merge") as frame:
        journal.rehouse({model[0].weight: merged[:4], model[1].weight: merged[4:]})
    assert model[1].weight.data_ptr() == merged[4:].data_ptr()
    assert old.expired()
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []
    assert model[0].weight.untyped_storage().nbytes() == 64


def test_tensors_of_one_storage_move_in_one_call_or_not_at_all() -> None:
    model = two_linears(bias=False)
    whole = torch.arange(32.0).reshape(8, 4)
    model[0].weight, model[1].weight = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])
    before = fingerprint(model)
    journal = Journal(model)
    with pytest.raises(InvalidSetting, match=r"1\.weight shares its memory with 0\.weight"), journal.step("one"):
        journal.rehouse({model[0].weight: whole[:4].clone()})
    with journal.step("both") as frame:
        journal.rehouse({model[0].weight: whole[:4].clone(), model[1].weight: whole[4:].clone()})
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_a_rehoused_tensor_keeps_its_identity_and_its_ties() -> None:
    model = tiny.build("gpt2")
    tied = model.lm_head.weight
    before, out = fingerprint(model), tiny.logits(model, "gpt2")
    journal = Journal(model)
    with journal.step("move") as frame:
        journal.rehouse({tied: tied.detach().clone()})
    assert model.transformer.wte.weight is model.lm_head.weight is tied
    assert torch.equal(tiny.logits(model, "gpt2"), out)
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_bytes_that_are_put_away_come_back_in_a_merged_tensor_too(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    before = fingerprint(model)
    journal = on_disk(model, tmp_path)
    merged = torch.cat([model[0].weight.detach(), model[1].weight.detach()])
    with journal.step("merge") as merge:
        journal.rehouse({model[0].weight: merged[:4], model[1].weight: merged[4:]})
    memory = storage_of(merged)
    del merged
    weights = [model[0].weight, model[1].weight]
    with journal.step("away") as away:
        with pytest.raises(InvalidSetting, match=r"1\.weight shares its memory with 0\.weight"):
            journal.put_away(weights[:1], journal.vault.park(weights, {}), lambda: None)
        journal.put_away(weights, journal.vault.park(weights, {}), lambda: None)
        assert [journal._survey.users.sharing(weight) for weight in weights] == [{id(weight)} for weight in weights]
    assert {str(slot) for slot in away.writes} == {"0.weight", "1.weight"}
    assert memory.expired()
    assert away.stands_on(merge)
    assert model(torch.ones(1, 4)).isnan().all()
    assert away.parked_bytes == 128
    take_back(journal, away)
    assert model[0].weight.untyped_storage().data_ptr() == model[1].weight.untyped_storage().data_ptr()
    take_back(journal, merge)
    assert before.differences(fingerprint(model)) == []


def test_a_home_with_other_values_is_refused_and_nothing_has_moved() -> None:
    model = two_linears(bias=False)
    before = fingerprint(model)
    journal = Journal(model)
    with pytest.raises(Exception, match=r"rehousing 0\.weight would change its bytes"), journal.step("wrong"):
        journal.rehouse({model[1].weight: model[1].weight.detach().clone(), model[0].weight: torch.zeros(4, 4)})
    assert before.differences(fingerprint(model)) == []


def test_moving_on_and_parking_free_the_home_in_between(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    before = fingerprint(model)
    journal = on_disk(model, tmp_path)
    with journal.step("first"):
        journal.rehouse({model[0].weight: model[0].weight.detach().clone()})
    first_home = storage_of(model[0].weight)
    with journal.step("second"):
        journal.rehouse({model[0].weight: model[0].weight.detach().clone()})
    assert first_home.expired()
    second_home = storage_of(model[0].weight)
    with journal.step("third") as third:
        journal.replace(model[0], nn.Identity())
    assert second_home.expired()
    assert third.parked_bytes == 64
    take_back(journal, *journal.frames)
    assert before.differences(fingerprint(model)) == []


def test_one_of_several_views_in_a_home_may_be_replaced_alone(tmp_path: Path) -> None:
    model = two_linears(bias=False)
    before, out = fingerprint(model), model[1](torch.ones(1, 4))
    journal = on_disk(model, tmp_path)
    with journal.step("merge") as merge:
        merged = torch.cat([model[0].weight.detach(), model[1].weight.detach()])
        journal.rehouse({model[0].weight: merged[:4], model[1].weight: merged[4:]})
        del merged
    with journal.step("replace") as replaced:
        journal.replace(model[0], nn.Identity())
    assert replaced.parked_bytes == 0
    assert torch.equal(model[1](torch.ones(1, 4)), out)
    take_back(journal, replaced)
    assert model[0].weight.untyped_storage().data_ptr() == model[1].weight.untyped_storage().data_ptr()
    take_back(journal, merge)
    assert before.differences(fingerprint(model)) == []


# ------------------------------------------------------------------ steps that fail, and leaks


def test_a_failed_step_leaves_no_frame_no_file_and_nothing_open(tmp_path: Path) -> None:
    model = two_linears()
    before = fingerprint(model)
    journal = on_disk(model, tmp_path)
    log: list[str] = []

    def fail() -> None:
        with journal.step("fails"):
            journal.defer(lambda: log.append("first"))
            journal.replace(model[0], nn.Identity())
            journal.defer(lambda: log.append("second"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert before.differences(fingerprint(model)) == []
    assert journal.frames == []
    assert log == ["second", "first"]
    assert list(tmp_path.rglob("*.bin")) == []


def test_a_failure_in_an_added_part_of_the_base_leaves_its_first_part() -> None:
    model = two_linears()
    journal = Journal(model)
    with journal.step("(base)", into=journal.base):
        journal.set(model, "label", 1)

    def fail() -> None:
        with journal.step("(base)", into=journal.base):
            journal.set(model, "label", 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.label == 1
    assert len(journal.base.entries) == 1
    unwind(journal.base)
    assert not hasattr(model, "label")


def test_nothing_of_a_step_outlives_its_undo(tmp_path: Path) -> None:
    model = two_linears()
    journal = on_disk(model, tmp_path)
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Sequential(nn.Linear(4, 4)))
        journal.rehouse({model[1].weight: model[1].weight.detach().clone()})
    gone = [weakref.ref(model[0]), weakref.ref(model[0][0]), weakref.ref(model[0][0].weight)]
    home = storage_of(model[1].weight)
    take_back(journal, frame)
    gc.collect()
    assert [one() for one in gone] == [None, None, None]
    assert home.expired()


def test_a_deleted_model_is_freed_with_its_journal(tmp_path: Path) -> None:
    model = two_linears()
    model.journal = on_disk(model, tmp_path)
    with model.journal.step("replace"):
        model.journal.replace(model[0], nn.Linear(4, 4))
        model.journal.hook(model[1], "forward", print)
    gone = weakref.ref(model)
    assert len(list(tmp_path.iterdir())) == 1
    del model
    gc.collect()
    assert gone() is None
    assert list(tmp_path.iterdir()) == []


def test_a_hundred_rounds_leave_no_object_behind(tmp_path: Path) -> None:
    model = two_linears()
    journal = on_disk(model, tmp_path)

    def round_trip() -> None:
        with journal.step("replace") as frame:
            journal.replace(model[0], nn.Linear(4, 4))
            journal.set(model, "label", [1])
            journal.rehouse({model[1].weight: model[1].weight.detach().clone()})
        take_back(journal, frame)

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    for _ in range(5):
        round_trip()
    before = objects()
    for _ in range(100):
        round_trip()
    assert objects() - before < 50
