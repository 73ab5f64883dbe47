from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from inference_pio.configuration import ConfigManager
from inference_pio.configuration.legacy_file import migrate_document, read_family_config
from inference_pio.errors import InvalidSetting, StorageError
from tests.configuration.legacy.later import today

OLD = "model_family: glm\noptimizations:\n- name: flash_attention\n- name: snn\n"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    return path


def test_a_legacy_file_is_read_with_one_warning_that_shows_the_new_one(old: Path) -> None:
    manager = ConfigManager()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = manager.load_model_config(old)
    (one,) = caught
    assert one.filename == __file__
    assert "family: glm\noptimizations:\n- flash_attention" in str(one.message)
    assert config.member("flash_attention").enabled


def test_without_a_registry_a_legacy_file_is_refused_with_the_way_out(old: Path) -> None:
    with pytest.raises(InvalidSetting, match="pio migrate"):
        read_family_config(old)


def test_the_new_document_is_written_and_reads_back(old: Path, tmp_path: Path) -> None:
    for name in ("new.yaml", "new.json"):
        migration = migrate_document(old, tmp_path / name, today())
        assert read_family_config(tmp_path / name) == migration.config
        assert [one.key for one in migration.unmatched] == ["optimizations.1"]
    assert old.read_text() == OLD


def test_without_a_place_nothing_is_written(old: Path, tmp_path: Path) -> None:
    assert migrate_document(old, None, today()).document["family"] == "glm"
    assert list(tmp_path.iterdir()) == [old]


def test_a_file_that_is_there_is_not_overwritten_unless_it_may_be(old: Path) -> None:
    with pytest.raises(StorageError, match="is there already"):
        migrate_document(old, old, today())
    assert old.read_text() == OLD
    migrate_document(old, old, today(), overwrite=True)
    assert old.read_text().startswith("family: glm\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("family: glm\n", "in today's form already"),
        ("famly: glm\n", "unknown parameter 'famly'"),
        ("model_family: glmm\noptimizations: []\n", "Did you mean 'glm'"),
        ("optimizations: [{name: flash_atention}]\n", "Did you mean 'flash_attention'"),
        ("use_quantization: 'true'\n", "use_quantization must be true or false"),
    ],
)
def test_what_is_wrong_is_told_with_the_file_and_nothing_is_written(old: Path, text: str, told: str) -> None:
    old.write_text(text)
    with pytest.raises(InvalidSetting, match=told) as caught:
        migrate_document(old, old.with_name("new.yaml"), today())
    assert str(old) in str(caught.value)
    assert not old.with_name("new.yaml").exists()
