"""The card of a model: everything measured about it, as data and as a page, and the hash that freezes it."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from inference_pio.calibration import CalibrationSource, collect_attention_mass

from .baselines import losses
from .caption_quality import caption_quality
from .corpus import HELD_OUT
from .evaluate import LENGTHS, needle, needle_grid, text_quality
from .export import WEIGHTS, load, sha256
from .prepared import SEED, Prepared
from .retrieval import Lines
from .train import CURVE, Progress


@dataclass(frozen=True)
class Effort:
    """How much is evaluated: slices of text, needle lengths and needles per cell, rows per draw, pictures."""

    slices: int = 128
    lengths: tuple[int, ...] = LENGTHS
    per_cell: int = 8
    rows_per_draw: int = 16
    pictures: int = 128


QUICK = Effort(slices=2, lengths=(1024,), per_cell=1, rows_per_draw=1, pictures=4)


def measure(name: str, folder: Path, ready: Prepared, device: str, effort: Effort) -> dict[str, Any]:
    """All figures of the exported model."""
    model = load(folder, device)
    lines = Lines.of(ready.tokenizer)
    facts: dict[str, Any] = {
        "text": text_quality(model, ready.held_out, ready.train, ready.held_out_bytes, effort.slices),
        "needles_in_text": needle_grid(model, lines, ready.held_out, False, effort.lengths, effort.per_cell),
        "needles_among_lines": needle_grid(model, lines, ready.held_out, True, effort.lengths, effort.per_cell),
        "blocks_for_95_percent": _blocks(model, lines, ready.held_out, max(effort.lengths)),
    }
    if name == "qwen3_vl":
        facts["captions"] = caption_quality(model, ready.tokenizer, effort.pictures)
    facts["baselines"] = losses(model, ready.held_out, lines, effort.rows_per_draw, effort.lengths[-2:][0])
    return facts


def _blocks(model: Any, lines: Lines, held_out: np.ndarray, length: int) -> dict[str, Any]:
    prompt = needle(length, 0.5, lines, held_out, np.random.default_rng(5), others=False).prompt
    source = CalibrationSource("one needle", ({"input_ids": torch.from_numpy(prompt[None])},))
    shares = [layer.blocks_needed().tolist() for layer in collect_attention_mass(model, source)]
    return {"length": length, "block": 64, "mean": float(np.mean(shares)), "heads": np.round(shares, 4).tolist()}


def write(name: str, folder: Path, ready: Prepared, progress: Progress, options: argparse.Namespace) -> dict[str, Any]:
    """Measure, then write card.json and MODEL_CARD.md beside the weights."""
    facts = {
        "name": name,
        "sha256": sha256(folder / WEIGHTS),
        "weight_bytes": (folder / WEIGHTS).stat().st_size,
        "command": f"python scripts/train_reference_models.py {name} --minutes {options.minutes:g}",
        "seed": SEED,
        "training": _training(progress, options.device),
        "data": {
            "text": "the standard library of the running Python, and pydoc_data.topics",
            "python": ready.python,
            "training_tokens": len(ready.train),
            "held_out_tokens": len(ready.held_out),
            "held_out": sorted(HELD_OUT),
        },
        **measure(name, folder, ready, options.device, QUICK if options.quick else Effort()),
    }
    (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(page(facts), encoding="utf-8")
    return facts


def _training(progress: Progress, device: str) -> dict[str, Any]:
    on_gpu = device.startswith("cuda")
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.elapsed_s, 1),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "plateau": plateau(progress.curve),
        "curve_columns": list(CURVE),
        "curve": [[round(value, 4) for value in row] for row in progress.curve[:: max(1, len(progress.curve) // 100)]],
    }


def plateau(curve: list[list[float]]) -> dict[str, float]:
    """The text loss over the last quarter of the run: its two halves, and how much the second is below the first."""
    last = np.array([row[3] for row in curve[len(curve) * 3 // 4 :]] or [0.0])
    first, second = float(last[: (len(last) + 1) // 2].mean()), float(last[len(last) // 2 :].mean())
    return {"first_half": first, "second_half": second, "fall": first - second}


def page(facts: dict[str, Any]) -> str:
    """The card for readers."""
    text, training, blocks = facts["text"], facts["training"], facts["blocks_for_95_percent"]
    side = f"{blocks['block']}x{blocks['block']}"
    rows = [
        f"# {facts['name']}: a reference model for tests",
        "",
        f"Trained by `{facts['command']}` (seed {facts['seed']}) on {facts['data']['text']}"
        f" (Python {facts['data']['python']}), and on generated documents of key-value lines"
        + (" and generated pictures with captions." if "captions" in facts else "."),
        f"{training['steps']} steps, {training['tokens'] / 1e6:.0f} million tokens, {training['seconds']:.0f} s on"
        f" {training['device']}. It knows nothing beyond that text: it is made for tests, not for use.",
        "",
        "| figure | value |",
        "|---|---|",
        f"| held-out perplexity per token | {text['held_out_perplexity']:.3f} |",
        f"| bits per byte | {text['bits_per_byte']:.3f} |",
        f"| gap to training text, nats per token | {text['gap_nats']:.3f} |",
        f"| fall of the text loss within the last quarter, nats | {training['plateau']['fall']:.3f} |",
        f"| blocks of {side} that hold 95% of attention at {blocks['length']} | {blocks['mean']:.1%} |",
        f"| SHA-256 of the weights | `{facts['sha256']}` |",
        "",
    ]
    for grid, title in (("needles_in_text", "in held-out text"), ("needles_among_lines", "among other lines")):
        rows += [f"Needles found {title}, by length and depth:", "", *_grid(facts[grid]), ""]
    if "captions" in facts:
        rows += [
            "Captions, share of fields (and whole captions) told rightly:",
            "",
            "| picture | fields | whole |",
            "|---|---|---|",
        ]
        rows += [
            f"| {way} | {part['fields']:.1%} | {part['whole']:.1%} |" for way, part in facts["captions"].items()
        ] + [""]
    rows += ["Baseline methods, mean and largest over the draws:", "", *_baselines(facts["baselines"]), ""]
    rows += [f"Held out: {', '.join(f'`{name}`' for name in facts['data']['held_out'])}.", ""]
    return "\n".join(rows)


def _grid(grid: dict[str, dict[str, float]]) -> list[str]:
    depths = list(next(iter(grid.values())))
    rows = [f"| tokens | {' | '.join(depths)} |", "|---" * (len(depths) + 1) + "|"]
    return rows + [
        f"| {length} | {' | '.join(f'{cell:.2f}' for cell in cells.values())} |" for length, cells in grid.items()
    ]


def _baselines(table: dict[str, dict[str, list[float]]]) -> list[str]:
    rows = ["| method | KL, nats | largest | perplexity ratio | top-1 | needles |", "|---|---|---|---|---|---|"]
    for method, figures in table.items():
        mean = {name: float(np.mean(values)) for name, values in figures.items()}
        rows.append(
            f"| {method} | {mean['kl_nats']:.4f} | {max(figures['kl_nats']):.4f} | {mean['perplexity_ratio']:.3f}"
            f" | {mean['top1']:.3f} | {mean['needles']:.2f} |"
        )
    return rows
