from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from inference_pio.errors import ModelDrift
from inference_pio.undo.configs import own_configs
from inference_pio.undo.drift import check_drift, config_drifts
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from inference_pio.undo.transaction import Transaction
from inference_pio.undo.vault import Vault
from tests import tiny
from tests.undo.help import Doubled, take_back


def scene(folder: Path) -> tuple[nn.Sequential, Journal]:
    """A model with two nested blocks, and one step that edits it in every way."""
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)]
    model = nn.Sequential(*blocks)
    model[2].register_buffer("passing", torch.ones(2), persistent=False)
    del blocks
    journal = Journal(model, Vault("disk", folder))
    with journal.step("edit"):
        journal.replace(model[0][0], nn.Linear(4, 4))
        journal.set(model[0][1], "scale", 2.0)
        journal.set(model[1], "label", "fast")
        journal.hook(model[1][0], "forward", lambda *given: None)
        journal.rehouse({model[1][1].weight: model[1][1].weight.detach().clone()})
        journal.set(model[2], "passing", 1)
    return model, journal


def put_away(model: nn.Sequential, journal: Journal) -> None:
    weight = model[2][0].weight
    with journal.step("away"):
        journal.put_away([weight], journal.vault.park([weight], {}), lambda: None)


def wrap(model: nn.Sequential) -> None:
    model[0][0] = Doubled(model[0][0])


def give_data(model: nn.Sequential) -> None:
    model[1][1].weight.data = torch.ones(4, 4)


CHANGES: dict[str, tuple[Callable[[nn.Sequential], object], str]] = {
    "a wrapped module": (wrap, r"0\.0 \(of edit\) holds a Doubled where a Linear was written"),
    "an edited attribute": (lambda m: setattr(m[1], "label", "slow"), "holds 'slow' where 'fast' was written"),
    "a number of another type": (lambda m: setattr(m[0][1], "scale", 2), r"holds 2 where 2\.0 was written"),
    "a deleted attribute": (lambda m: delattr(m[1], "label"), "holds nothing where 'fast' was written"),
    "a removed hook": (lambda m: m[1][0]._forward_hooks.clear(), "holds nothing where a function was written"),
    "a removed module": (lambda m: m.__setitem__(1, nn.Identity()), "lies in a Sequential that was taken out"),
    "a deleted child": (lambda m: delattr(m[0], "0"), "holds nothing where a Linear was written"),
    "new data": (give_data, r"1\.1\.weight \(of edit\) was given new data"),
    "a member of a set": (
        lambda m: m[2]._non_persistent_buffers_set.add("passing"),
        r"2\.passing \(of edit\) was changed",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_somebody_else_has_changed_is_named_and_nothing_is_touched(kind: str, tmp_path: Path) -> None:
    model, journal = scene(tmp_path)
    change, message = CHANGES[kind]
    change(model)
    standing = fingerprint(model)
    with pytest.raises(ModelDrift, match=message) as told:
        take_back(journal, *journal.frames)
    assert "on_drift='discard'" in str(told.value)
    assert standing.differences(fingerprint(model)) == []


@pytest.mark.parametrize("kind", [kind for kind in CHANGES if kind not in ("a removed module",)])
def test_discarding_gives_the_original_back(kind: str, tmp_path: Path) -> None:
    blocks = tmp_path / "unused"
    model, journal = scene(tmp_path)
    twin = fingerprint(model)
    assert twin.differences(fingerprint(model)) == []
    before = dict(model.named_modules())
    weight = model[1][1].weight.detach().clone()
    CHANGES[kind][0](model)
    take_back(journal, *journal.frames, on_drift="discard")
    assert not hasattr(model[1], "label")
    assert not hasattr(model[0][1], "scale")
    assert torch.equal(model[1][1].weight, weight)
    assert model[0][0] is not before["0.0"]
    assert type(model[0][0]) is nn.Linear
    assert list(dict(model[2].named_buffers())) == ["passing"]
    assert "passing" not in model.state_dict()
    assert not blocks.exists()


def test_a_parked_original_that_was_given_data_is_told(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    value = model[0].weight.detach().clone()
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("replace"):
        journal.replace(model[0], nn.Identity())
    journal.frames[0].entries[0].before.weight.data = torch.ones(2)  # type: ignore[attr-defined]
    with pytest.raises(ModelDrift, match=r"the parked original 0\.weight \(of replace\) was given new data"):
        take_back(journal, *journal.frames)
    take_back(journal, *journal.frames, on_drift="discard")
    assert torch.equal(model[0].weight, value)


def test_many_changes_are_counted_and_a_few_are_shown(tmp_path: Path) -> None:
    model = nn.Module()
    journal = Journal(model)
    with journal.step("many"):
        for number in range(20):
            journal.set(model, f"x{number}", number)
    for number in range(20):
        setattr(model, f"x{number}", "y" * 200)
    with pytest.raises(ModelDrift, match="and 15 more") as told:
        check_drift(journal, journal.frames)
    assert str(told.value).count(" holds ") == 5
    assert len(str(told.value)) < 900


def test_equal_plain_values_are_no_drift() -> None:
    model = nn.Module()
    journal = Journal(model)
    with journal.step("set"):
        journal.set(model, "size", 10**6)
        journal.set(model, "shape", (1, 2))
    model.size, model.shape = int("1000000"), tuple(range(1, 3))
    check_drift(journal, journal.frames)


@pytest.mark.parametrize("undone", [[0], [1], [0, 1]])
def test_what_a_later_step_wrote_over_an_earlier_one_is_no_drift(undone: list[int], tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model.register_buffer("passing", torch.ones(2), persistent=False)
    before = fingerprint(model)
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("one"):
        journal.set(model, "label", 1)
        journal.rehouse({model[0].weight: model[0].weight.detach().clone()})
        journal.rehouse({model[1].weight: model[1].weight.detach().clone()})
        journal.set(model, "passing", None)
    with journal.step("two"):
        journal.set(model, "label", 2)
        journal.rehouse({model[0].weight: model[0].weight.detach().clone()})
        journal.replace(model[1], nn.Identity())
    check_drift(journal, [journal.frames[number] for number in undone])
    take_back(journal, *journal.frames)
    assert before.differences(fingerprint(model)) == []


def test_our_own_modules_that_a_later_step_replaced_are_known(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    before = fingerprint(model)
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("one"):
        journal.replace(model[0], nn.Sequential(nn.Linear(4, 4)))
        journal.set(model[0][0], "note", 1)
    with journal.step("two"):
        journal.replace(model[0], nn.Identity())
    take_back(journal, *journal.frames)
    assert before.differences(fingerprint(model)) == []


def test_a_module_put_together_before_it_comes_into_the_model_is_known() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    journal = Journal(model)
    with journal.step("build"):
        new = nn.Sequential(nn.Identity())
        journal.set(new, "note", 1)
        journal.set(new[0], "note", 2)
    check_drift(journal, journal.frames)


# ------------------------------------------------------------------ configurations


def optimized(name: str) -> tuple[nn.Module, Journal, Callable[[], None]]:
    model = tiny.build(name)
    journal = Journal(model)
    with journal.step("(base)", into=journal.base):
        owned = own_configs(journal, model)
    with journal.step("attention"):
        journal.set(model.config, "_attn_implementation_internal", "ours")

    def reset() -> None:
        transaction = Transaction(journal)
        transaction.undo([journal.base, *journal.frames], owned=owned)
        transaction.commit()

    return model, journal, reset


def test_an_untouched_configuration_has_not_drifted_even_with_not_a_number_in_it() -> None:
    model = tiny.build("llama")
    model.config.odd = float("nan")
    journal = Journal(model)
    with journal.step("(base)", into=journal.base):
        owned = own_configs(journal, model)
    assert config_drifts(journal, owned) == []


def test_using_the_model_is_no_drift() -> None:
    for name in ("llama", "qwen3_vl"):
        model, _, reset = optimized(name)
        model.config._attn_implementation_internal = "sdpa"
        tiny.generate(model, name)
        model.config._attn_implementation_internal = "ours"
        reset()


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("llama", lambda m: setattr(m.config, "use_cache", False), "config.use_cache holds False where True stood"),
        ("llama", lambda m: setattr(m.config, "mine", [1]), "config.mine holds a list where nothing stood"),
        ("llama", lambda m: delattr(m.config, "vocab_size"), "config.vocab_size holds nothing where 131 stood"),
        ("qwen3_vl", lambda m: setattr(m.config.text_config, "use_cache", False), "config.use_cache holds False"),
        ("qwen3_vl", lambda m: setattr(m.config.vision_config, "depth", 99), "config.depth holds 99 where 2 stood"),
        ("llama", lambda m: setattr(m.config, "_attn_implementation_internal", "eager"), "holds 'eager' where 'ours'"),
        ("llama", lambda m: setattr(m, "config", type(m.config)()), "config .*holds a LlamaConfig where a LlamaConfig"),
    ],
)
def test_an_edited_configuration_is_told_before_it_would_be_lost(
    name: str, edit: Callable[[nn.Module], None], message: str
) -> None:
    model, _, reset = optimized(name)
    edit(model)
    with pytest.raises(ModelDrift, match=message):
        reset()


def test_data_given_to_a_tensor_that_is_put_away_are_seen(tmp_path: Path) -> None:
    model, journal = scene(tmp_path)
    put_away(model, journal)
    check_drift(journal, journal.frames)
    model[2][0].weight.data = torch.zeros(4, 4)
    with pytest.raises(ModelDrift, match=r"2\.0\.weight \(of away\) was given new data"):
        check_drift(journal, journal.frames)
