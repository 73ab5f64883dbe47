from __future__ import annotations

import re
from pathlib import Path

from inference_pio.configuration.legacy.words import DOCUMENTED, FLAGS, NAMES, PART_OF_ANOTHER, SWITCHES, VALUES
from inference_pio.manager import get_optimization_manager

SPECIFIED = set(
    """
    use_flash_attention_2 use_sparse_attention sparse_attention_sparsity_ratio enable_disk_offloading offload_folder
    enable_activation_offloading enable_tensor_compression use_quantization quantization_bits enable_kernel_fusion
    use_fused_layer_norm enable_model_surgery use_snn_conversion use_tensor_decomposition use_structured_pruning
    max_memory_ratio""".split()  # noqa: SIM905 - sixteen words read better than sixteen quoted ones
)


def test_every_specified_flag_is_known_and_no_other() -> None:
    assert set(FLAGS) == SPECIFIED


def test_words_lead_to_documented_optimizations() -> None:
    owners = {*SWITCHES.values(), *NAMES.values(), *(name for value in VALUES.values() for name in value.owners)}
    assert owners <= DOCUMENTED
    assert set(PART_OF_ANOTHER) <= set(SWITCHES)
    assert len(DOCUMENTED) == 11


def test_what_ships_is_documented() -> None:
    assert set(get_optimization_manager().get_available_optimizations()) <= DOCUMENTED


def test_every_documented_switch_is_of_the_optimization_that_the_documents_say() -> None:
    told = (Path(__file__).parents[3] / "docs" / "migrating.md").read_text(encoding="utf-8")
    table = {
        flag: now
        for flags, now in re.findall(r"^\| (`.*) \| `(\w+)`", told, re.MULTILINE)
        for flag in re.findall(r"`((?:use|enable)_\w+)`", flags)
    }
    assert table == SWITCHES
