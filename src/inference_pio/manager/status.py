"""What is applied to a model, and why what is not is not: as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from inference_pio.configuration.families import family_of_model
from inference_pio.contract.receipt import Receipt
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.manager.counted import counted_by
from inference_pio.manager.session import Session, session_of
from inference_pio.plan.make import name_of
from inference_pio.plan.skeleton import tensor_bytes


def status_of(model: nn.Module, registry: OptimizationRegistry) -> dict[str, Any]:
    """The status of one model: optimizations in registry order, applied ones in the order they stand.

    `model_id` is the name it was loaded by, `held_bytes` the memory that originals take for the undo.
    """
    session = session_of(model)
    receipts = session.receipts if session else ()
    told = {receipt.name: receipt.to_json() for receipt in receipts}
    counted = counted_by(model, session, registry) if session else {}
    weight_bytes = tensor_bytes(model)
    held_bytes = session.held_bytes if session else 0
    return {
        "model": name_of(model),
        "model_id": name_of(model),
        "model_family": str(family_of_model(model)),
        "profile": session.profile if session else None,
        "applied": [receipt.name for receipt in receipts],
        "applied_optimizations": [_applied(receipt, told) | _told(receipt.name, counted) for receipt in receipts],
        "skipped": [left.to_json() for left in session.left] if session else [],
        "total_optimizations_available": len(registry),
        "optimizations": {
            cls.name: _one(cls.name, session, told) | _facts(cls) | _told(cls.name, counted) for cls in registry
        },
        "quality_guard": session.verdict.to_json() if session and session.verdict else None,
        "reversible": _reversible(session),
        "weight_bytes": weight_bytes,
        "held_bytes": held_bytes,
        "parked_bytes": session.parked_bytes if session else 0,
        "resident_bytes": weight_bytes + held_bytes,
        "counters": _counters(receipts, session),
    }


def _told(name: str, counted: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {"counted": counted[name]} if name in counted else {}


def _applied(receipt: Receipt, told: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": receipt.name, "type": receipt.type, "stage": receipt.stage,
        "parameters": receipt.parameters, "receipt": told[receipt.name],
    }  # fmt: skip


def _counters(receipts: Sequence[Receipt], session: Session | None) -> dict[str, int | float]:
    """Sums over what is applied: how many steps, at how many places, at what cost and with what saving."""
    acted = sum(len(receipt.acted) for receipt in receipts)
    return {
        "applied": len(receipts),
        "skipped": len(session.left) if session else 0,
        "sites_acted": acted,
        "sites_skipped": sum(len(receipt.sites) for receipt in receipts) - acted,
        "weight_bytes_saved": sum(receipt.weight_bytes_before - receipt.weight_bytes_after for receipt in receipts),
        "seconds": round(sum(receipt.seconds for receipt in receipts), 6),
    }


def _facts(cls: Any) -> dict[str, Any]:
    return {"type": cls.optimization_type.value, "stage": cls.stage.name.lower(), "summary": cls.summary}


def _one(name: str, session: Session | None, told: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    left = {one.name: one.reason for one in session.left} if session else {}
    entry: dict[str, Any] = {"enabled": bool(session and name in session.target), "applied": name in told}
    if name in told:
        entry["receipt"] = told[name]
    elif name in left:
        entry["reason"] = left[name]
    return entry


def _reversible(session: Session | None) -> str:
    if session is not None and session.irreversible:
        return session.irreversible
    if session is not None and not all(receipt.reversible for receipt in session.receipts):
        return "no: the originals were given up (keep_originals='none')"
    return "yes"
