from __future__ import annotations

from pathlib import Path

import pytest

from inference_pio.configuration import ModelFamily
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.errors import InvalidSetting, StorageError, UnknownName
from inference_pio.integration import migrate, migrate_file
from inference_pio.integration.migrating import migrate_call


def test_the_shared_registry_is_asked_if_none_is_given() -> None:
    assert migrate({"use_quantization": True}).document["optimizations"] == ["tensor_compression"]
    (unmatched,) = migrate({"use_quantization": True}, OptimizationRegistry()).unmatched
    assert unmatched.key == "use_quantization"


def test_a_file_is_migrated_by_its_names_endings(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"use_quantization": true, "quantization_bits": 8}')
    migration = migrate_file(tmp_path / "old.json", str(tmp_path / "new.yaml"))
    assert (tmp_path / "new.yaml").read_text() == migration.yaml
    assert migrate_file(str(tmp_path / "old.json")) == migration
    with pytest.raises(StorageError, match="is there already"):
        migrate_file(tmp_path / "old.json", tmp_path / "new.yaml")
    with pytest.raises(InvalidSetting, match="must end in"):
        migrate_file(tmp_path / "old.json", tmp_path / "new.toml")
    with pytest.raises(InvalidSetting, match=r"absent\.yaml cannot be read"):
        migrate_file(tmp_path / "absent.yaml")


def test_flags_of_a_call_take_its_family_and_stand_alone() -> None:
    assert migrate_call(ModelFamily.GLM, None, {"use_quantization": True}).document["family"] == "glm"
    with pytest.raises(InvalidSetting, match="use_quantization cannot stand beside 'balanced'"):
        migrate_call(ModelFamily.GLM, "balanced", {"use_quantization": True})
    with pytest.raises(UnknownName, match=r"unknown argument 'profile'\. Did you mean 'profile_name'"):
        migrate_call(ModelFamily.GLM, None, {"profile": "balanced"})
