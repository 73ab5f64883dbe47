"""Random walks over a live model: whatever is applied, changed, taken off, saved and loaded, in whatever order, the
status tells what stands, what is exact says what the original says, and the last step gives the original back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from inference_pio import artifact
from inference_pio.errors import ArtifactError, PlanError
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.sweep import NAMES, Case, turn_of_this_commit

MODELS = ["llama", "qwen3_moe", "glm4_moe_lite"]
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "disk_offloading": [{"host_budget": "60%"}],
    "flash_attention": [{"use_triton": True}],
    "kernel_fusion": [{"exact": True}, {"level": "merged"}],
    "model_surgery": [{"edits": ["patch_linear", "latent_decode", "dead_modules"]}],
    "snn_conversion": [{"levels": 31}],
    "tensor_compression": [{"format": "int4", "group_size": 32}, {"format": "fp8"}, {"kv_cache": "int8"}],
}
"""Other settings than the first ones, under which an optimization is made anew."""
FEW = settings(
    deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink]
)
NAME = st.sampled_from(NAMES)
DEED = st.one_of(
    st.tuples(st.just("apply"), NAME),
    st.tuples(st.just("tune"), st.sampled_from(list(PARAMETERS)), st.integers(0, 2)),
    st.tuples(st.just("remove"), NAME),
    st.tuples(st.just("target"), st.lists(NAME, max_size=3, unique=True)),
    st.tuples(st.just("generate")),
    st.tuples(st.just("save and load")),
)


class Walk:
    """A model, what should stand on it with which parameters, and what it said at first."""

    def __init__(self, name: str, folder: Path) -> None:
        self.case, self.folder = Case(name), folder
        self.said = tiny.generate(self.case.model, name)
        self.standing: dict[str, Mapping[str, Any]] = {}

    def take(self, deed: tuple[Any, ...]) -> None:
        kind, *about = deed
        model, manager = self.case.model, self.case.manager
        if kind == "apply":
            self._reach({**self.standing, about[0]: {}}, [about[0]])
        elif kind == "tune":
            given = PARAMETERS[about[0]][about[1] % len(PARAMETERS[about[0]])]
            self._reach({**self.standing, about[0]: given}, [about[0]], {about[0]: given})
        elif kind == "remove":
            manager.remove_optimizations(model, [about[0]])
            self.standing.pop(about[0], None)
        elif kind == "target":
            self._reach({name: {} for name in about[0]}, about[0], whole=True)
        elif kind == "generate":
            self._generate()
        else:
            self._save_and_load()
        self.check()

    def _reach(
        self, wanted: dict[str, Mapping[str, Any]], names: list[str], given: Any = None, whole: bool = False
    ) -> None:
        model, manager = self.case.model, self.case.manager
        before = fingerprint(model)
        try:
            if whole:
                manager.set_target(model, names)
            else:
                manager.apply_optimizations(model, names, parameters=given)
        except PlanError:
            assert before.differences(fingerprint(model)) == []
        else:
            self.standing = wanted

    def _generate(self) -> None:
        said = tiny.generate(self.case.model, self.case.name)
        assert said.shape == self.said.shape
        if self._is_exact():
            assert torch.equal(said, self.said)

    def _save_and_load(self) -> None:
        if not self.standing:
            with pytest.raises(ArtifactError, match="not optimized"):
                artifact.save(self.case.model, self.folder)
            return
        loaded = artifact.load(artifact.save(self.case.model, self.folder))
        manager = self.case.manager
        assert manager.get_model_optimizations(loaded) == manager.get_model_optimizations(self.case.model)
        assert torch.equal(self._logits(loaded), self._logits())

    def _is_exact(self) -> bool:
        """Edits of surgery are, of those here, where they were asked for: it takes layers away else."""
        exactness = {name: self.case.manager.registry.get(name).exactness for name in self.standing}
        return all(
            exactness[name] in ("exact", "exact up to rounding") or "edits" in given
            for name, given in self.standing.items()
        )

    def _logits(self, model: Any = None) -> torch.Tensor:
        return tiny.logits(self.case.model if model is None else model, self.case.name)

    def check(self) -> None:
        """The status is the truth, and what the model says is near the original where it should be."""
        manager, model = self.case.manager, self.case.model
        told = [one["name"] for one in manager.get_optimization_status(model)["applied_optimizations"]]
        assert told == manager.get_model_optimizations(model)
        assert set(told) == set(self.standing)
        logits = self._logits()
        assert bool(logits.isfinite().all())
        if self._is_exact():
            torch.testing.assert_close(logits, self.case.logits, rtol=1e-4, atol=1e-4)

    def end(self) -> None:
        """By whatever way a target was reached, it is that target; and then nothing is left of it."""
        if self.standing:
            anew = Case(self.case.name)
            wanted = [anew.manager.wanted(name, given) for name, given in self.standing.items()]
            anew.manager.set_target(anew.model, wanted)
            assert torch.equal(self._logits(anew.model), self._logits())
        self.case.manager.remove_optimizations(self.case.model)
        self.case.check_untouched()


@pytest.mark.parametrize("walks", [6, pytest.param(150, marks=pytest.mark.slow)])
def test_any_sequence_of_edits_ends_where_it_began(walks: int, tmp_path: Path) -> None:
    @seed(turn_of_this_commit())  # another hand of walks in each commit
    @settings(FEW, max_examples=walks)
    @given(st.sampled_from(MODELS), st.lists(DEED, min_size=4, max_size=9))
    def check(name: str, deeds: list[tuple[Any, ...]]) -> None:
        walk = Walk(name, tmp_path / "saved")
        for deed in deeds:
            walk.take(deed)
        walk.end()

    check()
