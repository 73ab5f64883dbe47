from __future__ import annotations

from inference_pio.integration import register_default_optimizations
from inference_pio.manager import get_optimization_manager
from inference_pio.optimizations import built_in


def test_what_ships_is_registered_once_and_comes_back() -> None:
    manager = get_optimization_manager()
    before = manager.get_available_optimizations()
    assert register_default_optimizations() == before
    manager.registry.unregister("flash_attention")
    assert "flash_attention" in register_default_optimizations()
    assert manager.get_available_optimizations() == before
    assert set(built_in().names()) <= set(before)
