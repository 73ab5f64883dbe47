from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from inference_pio.configuration import families
from inference_pio.configuration.families import ModelFamily, family_of_model
from inference_pio.errors import InvalidSetting, UnknownName
from tests import tiny


@pytest.fixture
def fresh_families(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(ModelFamily, "_known", dict(ModelFamily._known))
    monkeypatch.setattr(ModelFamily, "PHI", None, raising=False)
    yield
    families._families_by_type.cache_clear()


def test_a_family_is_known_by_name_in_any_case() -> None:
    assert ModelFamily.of("glm") is ModelFamily.of("GLM") is ModelFamily("glm") is ModelFamily.GLM
    assert [family.name for family in ModelFamily.known()] == ["GLM", "QWEN", "LLAMA", "MISTRAL", "OTHER"]


def test_a_family_is_a_word_wherever_words_are_wanted() -> None:
    assert ModelFamily.QWEN == "qwen"
    assert f"{ModelFamily.QWEN}" == ModelFamily.QWEN.value == "qwen"
    assert repr(ModelFamily.QWEN) == "ModelFamily.QWEN"


def test_a_family_stays_itself_when_copied_and_pickled() -> None:
    assert copy.deepcopy(ModelFamily.GLM) is ModelFamily.GLM
    assert pickle.loads(pickle.dumps(ModelFamily.GLM)) is ModelFamily.GLM


@pytest.mark.parametrize("name", ["glmm", "", 3, None])
def test_an_unknown_family_is_told_with_the_known_ones(name: object) -> None:
    with pytest.raises(UnknownName, match="Known: glm, llama, mistral, other, qwen"):
        ModelFamily.of(name)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("llama", ModelFamily.LLAMA),
        ("gpt2", ModelFamily.OTHER),
        ("qwen3", ModelFamily.QWEN),
        ("qwen3_moe", ModelFamily.QWEN),
        ("qwen3_vl", ModelFamily.QWEN),
        ("glm4_moe", ModelFamily.GLM),
        ("glm4_moe_lite", ModelFamily.GLM),
        ("plain", ModelFamily.OTHER),
    ],
)
def test_a_live_model_tells_its_family(name: str, family: ModelFamily) -> None:
    assert family_of_model(tiny.build(name)) is family


def test_what_is_no_model_of_the_library_is_of_no_family() -> None:
    odd = nn.Linear(2, 2)
    odd.config = {"model_type": "glm4"}
    assert family_of_model(odd) is ModelFamily.OTHER
    assert family_of_model(None) is ModelFamily.OTHER


@pytest.mark.usefixtures("fresh_families")
def test_a_new_family_is_registered_with_its_model_types() -> None:
    phi = ModelFamily.register("phi", ["phi", "gpt2"])
    assert ModelFamily.PHI is phi is ModelFamily.of("phi")
    assert family_of_model(tiny.build("gpt2")) is phi
    assert phi.model_types == ["gpt2", "phi"]


@pytest.mark.usefixtures("fresh_families")
def test_families_that_threads_register_while_the_shipped_ones_are_read_are_all_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slowly(path: Path) -> dict[str, list[str]]:
        time.sleep(0.05)
        return {"glm": ["glm4"]}

    monkeypatch.setattr(families, "read_yaml", slowly)
    families._families_by_type.cache_clear()
    threads = [threading.Thread(target=ModelFamily.register, args=("phi", [f"phi{n}"])) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ModelFamily.of("phi").model_types == [f"phi{n}" for n in range(6)]


@pytest.mark.parametrize("name", ["", "Phi", "phi 3", "../phi", 3])
def test_a_family_needs_a_plain_name(name: object) -> None:
    with pytest.raises(InvalidSetting, match="lower case words"):
        ModelFamily.register(name)
