"""Train one reference model and write its folder: `python scripts/train_reference_models.py qwen3 --out tests/models`.

A run is resumable: the same command goes on from its last checkpoint in --work, which is at most a minute old.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from reference import architectures, card, export, prepared, train
from reference.batches import PICTURES_PER_STEP, TOKENS_PER_STEP, Maker
from reference.feeder import Feeder
from reference.schedule import OTHER_STAGES, STAGES, Schedule

SEED = 0


def main() -> None:
    """Prepare the text, train, export, evaluate, write the card."""
    options = _options()
    started = time.monotonic()
    torch.backends.cuda.enable_cudnn_sdp(False)  # its plans are made per shape, and a graph may not wait for that
    ready = prepared.prepare(options.work)
    model = architectures.build(options.name, SEED).to(options.device)
    pictures = min(PICTURES_PER_STEP, options.tokens_per_step // 256)
    maker = Maker(ready.tokenizer, ready.train, SEED, options.name == "qwen3_vl", options.tokens_per_step, pictures)
    feeder = Feeder(maker, options.workers)
    stages = OTHER_STAGES.get(options.name, STAGES)
    schedule = Schedule(options.minutes * 60, longest=options.longest, stages=stages)
    progress = train.train(
        model, feeder, schedule, options.work / options.name / "checkpoint.safetensors", options.stop_after * 60
    )
    feeder.close()
    print(f"trained {progress.step} steps, {time.monotonic() - started:.0f} s in this call", flush=True)
    folder = options.out / options.name
    export.export(model, ready.tokenizer, folder)
    card.write(options.name, folder, ready, progress, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=architectures.NAMES)
    parser.add_argument("--out", type=Path, default=Path("tests/models"), help="a folder NAME is written in here")
    parser.add_argument("--work", type=Path, default=Path("build/reference"), help="text, tokenizer and checkpoints")
    parser.add_argument("--minutes", type=float, default=9.0, help="training time in all, over every call")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="minutes of training in this call")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="evaluate on very little: to try the script out")
    parser.add_argument("--longest", type=int, default=10240, help="tokens per row at most")
    parser.add_argument("--tokens-per-step", type=int, default=TOKENS_PER_STEP)
    parser.add_argument("--workers", type=int, default=2 if torch.cuda.is_available() else 0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
