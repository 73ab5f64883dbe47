from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.walk import experts, linears
from inference_pio.calibration import CalibrationSource, InputStatistics, collect_inputs
from inference_pio.calibration import input_pass as module
from inference_pio.errors import InvalidModel, InvalidSetting, UnknownName
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.calibration.help import inputs_for


def source_for(name: str, count: int = 3) -> CalibrationSource:
    return CalibrationSource("test", tuple(inputs_for(name) for _ in range(count)))


def naive_inputs(model: nn.Module, source: CalibrationSource) -> dict[str, torch.Tensor]:
    """Every row that each linear layer is given, kept whole."""
    rows: dict[str, list[torch.Tensor]] = {}
    handles = [
        child.register_forward_pre_hook(
            lambda _, args, path=path: rows.setdefault(path, []).append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for path, child, _ in linears(model)
    ]
    with torch.no_grad():
        for batch in source.batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    return {path: torch.cat(parts) for path, parts in rows.items()}


def by_reader(found: list[InputStatistics]) -> dict[str, InputStatistics]:
    return {reader: one for one in found for reader in one.readers}


@pytest.mark.parametrize("name", list(tiny.TINY))
@pytest.mark.parametrize("budget_bytes", [2**30, 1])
def test_statistics_are_those_of_all_rows_and_the_model_stays_as_it_was(name: str, budget_bytes: int) -> None:
    model, source = tiny.build(name), source_for(name)
    before, truth = fingerprint(model), naive_inputs(model, source)
    paths = list(truth)
    found = by_reader(list(collect_inputs(model, source, paths, budget_bytes=budget_bytes)))
    assert set(found) == set(paths)
    for path, rows in truth.items():
        exact = rows.double()
        assert found[path].count == len(rows)
        torch.testing.assert_close(found[path].gram, exact.T @ exact, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found[path].mean, exact.mean(0), rtol=1e-5, atol=1e-6)
        assert torch.equal(found[path].absmax, rows.abs().amax(0))
    assert before.differences(fingerprint(model)) == []


def test_layers_that_read_one_tensor_share_one_answer() -> None:
    found = list(collect_inputs(tiny.build("qwen3"), source_for("qwen3")))
    layer = "model.layers.0."
    assert tuple(f"{layer}self_attn.{name}_proj" for name in "qkv") in [one.readers for one in found]
    assert (f"{layer}mlp.gate_proj", f"{layer}mlp.up_proj") in [one.readers for one in found]


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "glm4_moe_lite"])
def test_each_expert_is_counted_for_the_tokens_that_are_sent_to_it(name: str) -> None:
    model, source = tiny.build(name), source_for(name)
    path, layer, _ = next(experts(model))
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = layer.register_forward_pre_hook(lambda _, args: given.append((args[0].flatten(0, -2), args[1])))
    with torch.no_grad():
        for batch in source.batches:
            model(**batch)
    handle.remove()
    found = by_reader(list(collect_inputs(model, source, [path])))
    hidden, chosen = (torch.cat(parts) for parts in zip(*given, strict=True))
    used = chosen.unique().tolist()
    assert set(found) == {f"{path}.{stack}[{e}]" for stack in ("gate_up_proj", "down_proj") for e in used}
    for expert in used:
        rows = hidden[(chosen == expert).any(-1)]
        gate, up = (rows @ layer.gate_up_proj[expert].T).chunk(2, -1)
        inner = (nn.functional.silu(gate) * up).double()
        one, other = (found[f"{path}.{stack}[{expert}]"] for stack in ("gate_up_proj", "down_proj"))
        assert one.count == other.count == len(rows)
        torch.testing.assert_close(one.gram, rows.double().T @ rows.double(), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(other.gram, inner.T @ inner, rtol=1e-4, atol=1e-4)


def test_padding_is_left_out() -> None:
    model = tiny.build("llama")
    ids = torch.randint(1, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    padded = CalibrationSource("padded", ({"input_ids": ids, "attention_mask": mask},))
    found = by_reader(list(collect_inputs(model, padded)))
    assert {one.count for path, one in found.items() if path != "lm_head"} == {14}


def test_a_run_ends_where_its_group_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny.build("llama"), [0]
    model.model.layers[2].register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    list(collect_inputs(model, source_for("llama", 4), ["model.layers.0.mlp.down_proj"]))
    assert calls[0] == 1  # the first batch alone runs to the end


def test_finished_groups_are_kept_and_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, source, runs = tiny.build("llama"), source_for("llama"), [0]
    run = module._run

    def counting(*given: Any) -> Any:
        runs[0] += 1
        return run(*given)

    monkeypatch.setattr(module, "_run", counting)
    how: dict[str, Any] = {"budget_bytes": 400_000, "work": tmp_path}
    cut_off = collect_inputs(model, source, **how)
    first = next(cut_off)
    assert runs[0] == 1
    found = list(collect_inputs(model, source, **how))
    total = runs[0]
    assert total == len(list(tmp_path.iterdir())) > 1
    assert torch.equal(found[0].gram, first.gram)
    again = list(collect_inputs(model, source, **how))
    assert runs[0] == total
    assert [one.readers for one in again] == [one.readers for one in found]
    assert all(torch.equal(a.gram, b.gram) for a, b in zip(again, found, strict=True))
    list(collect_inputs(model, source_for("llama", 2), **how))  # other text: nothing of the first is taken
    assert runs[0] == 2 * total


def test_a_damaged_file_is_taken_anew(tmp_path: Path) -> None:
    model, source = tiny.build("llama"), source_for("llama")
    found = list(collect_inputs(model, source, ["lm_head"], work=tmp_path))
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-7])
    again = list(collect_inputs(model, source, ["lm_head"], work=tmp_path))
    assert torch.equal(again[0].gram, found[0].gram)


class Moody(nn.Module):
    """Gives its two layers one tensor, or two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, rows: torch.Tensor, alike: bool) -> torch.Tensor:
        return self.a(rows) + self.b(rows if alike else rows * 2)


def test_layers_that_share_now_and_then_are_counted_apart() -> None:
    rows = torch.eye(3)
    source = CalibrationSource("moody", ({"rows": rows, "alike": True}, {"rows": rows, "alike": False}))
    found = by_reader(list(collect_inputs(Moody(), source)))
    assert found["a"].gram.trace() == 6
    assert found["b"].gram.trace() == 15


def test_progress_goes_up_to_one() -> None:
    told: list[float] = []
    list(collect_inputs(tiny.build("llama"), source_for("llama"), budget_bytes=1, progress=lambda _, s: told.append(s)))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_wrong_paths_and_layers_that_are_not_reached_are_told() -> None:
    model = tiny.build("llama")
    with pytest.raises(UnknownName, match="lm_haed"):
        list(collect_inputs(model, source_for("llama"), ["lm_haed"]))
    source = CalibrationSource("one", ({"rows": torch.eye(3), "alike": True},))
    idle = Moody()
    idle.c = nn.Linear(3, 2)
    with pytest.raises(InvalidSetting, match="no calibration batch reaches c"):
        list(collect_inputs(idle, source))


def test_hooks_go_even_where_a_forward_fails() -> None:
    model = Moody()
    before = fingerprint(model)
    with pytest.raises(RuntimeError):
        list(collect_inputs(model, CalibrationSource("bad", ({"rows": torch.ones(2, 7), "alike": True},))))
    assert before.differences(fingerprint(model)) == []


def test_experts_of_another_layout_are_refused() -> None:
    odd = nn.Module()
    odd.experts = nn.Module()
    odd.experts.stack = nn.Parameter(torch.ones(2, 3, 4))
    with pytest.raises(InvalidModel, match="holds experts as stack"):
        list(collect_inputs(odd, CalibrationSource("none", ())))
