from __future__ import annotations

import json

import yaml

from inference_pio.configuration import ModelFamily, ModelOptimizationConfig
from inference_pio.configuration.legacy import Change, Migration, Unmatched

DOCUMENT = {"family": "glm", "optimizations": ["one"], "defaults": {"one": {"a": 1}}}
MIGRATION = Migration(DOCUMENT, (Change("old: true", "one on"),), (Unmatched("odd", 3, "it is not there"),))


def test_a_migration_is_settings_a_file_and_a_line_of_python() -> None:
    assert MIGRATION.config == ModelOptimizationConfig(**DOCUMENT)
    assert yaml.safe_load(MIGRATION.yaml) == DOCUMENT
    names = {"ModelOptimizationConfig": ModelOptimizationConfig}
    assert eval(MIGRATION.call, names) == MIGRATION.config
    assert MIGRATION.config.family is ModelFamily.GLM


def test_a_migration_tells_what_changed_and_what_is_not_carried_over() -> None:
    assert str(MIGRATION) == "changed: old: true -> one on\nnot carried over: odd = 3: it is not there"
    assert MIGRATION.not_carried_over == "Not carried over: odd = 3: it is not there."
    assert Migration(DOCUMENT).not_carried_over == ""
    assert json.loads(json.dumps(MIGRATION.to_json()))["unmatched"] == [
        {"key": "odd", "value": 3, "reason": "it is not there"}
    ]
