"""`python benchmarks/first_run.py`: does the decode engine work on this machine, before anything long is measured?

Two layers of each model at its real width, a process each, side by side: level graph of kernel_fusion beside
flash_attention is held against the library, undone, and told in one table. Exit 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# started as a file: its folder is on the path, the repository may not be
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "src")) if path not in sys.path]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import inference_pio  # noqa: E402
from benchmarks import faithful, real_models  # noqa: E402
from benchmarks.arms.decoder import Forced, GenerateDecoder  # noqa: E402
from benchmarks.arms.ours import EngineDecoder, fuse  # noqa: E402
from benchmarks.arms.room import Room  # noqa: E402
from inference_pio.decoding import engine as engine_module  # noqa: E402
from inference_pio.decoding import launches  # noqa: E402
from inference_pio.decoding.takeover import engine_of  # noqa: E402

MODELS = ("qwen3-4b", "qwen3-30b-a3b", "glm-4.7-flash", "qwen3-vl-2b")
LAYERS, PROMPT, NEW, ROWS, MORE_ROWS = 2, 300, 48, 3, 12
"""More rows than our products take, so that torch's are recorded as well."""
ROOM_TOKENS, TINY_ROOM_TOKENS = 900, 300
LEFT_BYTES = 33 << 20
"""Of the GPU's memory, what undoing may leave: the 32 MiB workspace of torch's products on the recording stream, which
stays, since graphs that others have recorded may use it; and a little."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Noise:
    """What noise of rounding's size does to the library, at so many places in all.

    `errors`: of the logits of so many rows together, where it is worst; `gap`: by how many standard deviations a token
    that it would choose is at most worse than the best one.
    """

    places: int
    errors: Mapping[int, float]
    gap: float

    def allowed(self, rows: int) -> float:
        return faithful.tolerance_of(self.errors[rows])

    @property
    def gap_allowed(self) -> float:
        """One token is judged here, so one router that is turned counts whole."""
        return max(faithful.GAP_SIGMAS * self.allowed(MORE_ROWS), faithful.SLACK * self.gap)

    def __str__(self) -> str:
        said = ", ".join(f"{error:.4f} of {rows} rows" for rows, error in self.errors.items())
        return f"at {self.places} places by {said}, and a token by {self.gap:.2f} sigma"


class Checks:
    """What is looked at for one model, in turn: a row for each, also where it breaks."""

    def __init__(self, name: str, device: torch.device, *, tiny: bool = False, exact: bool = False) -> None:
        self.name, self.device, self.tiny, self.exact = name, device, tiny, exact
        self.new, self.most = (6, TINY_ROOM_TOKENS) if tiny else (NEW, ROOM_TOKENS)
        self.rows: list[Row] = []

    def run(self) -> list[Row]:
        """All checks; what needs one that broke breaks too, and says so."""
        steps: list[tuple[str, Callable[[], str]]] = [
            ("library", self.library), ("apply", self.apply), ("first call", self.first_call),
            ("tokens and logits", self.faithful), ("padded rows", self.padded), (f"{MORE_ROWS} rows", self.many),
            ("sampling", self.sampling), ("growing room", self.growing), ("speed", self.speed), ("undo", self.undo),
        ]  # fmt: skip
        for what, step in steps:
            begun = time.perf_counter()
            try:
                said, right = step(), True
            except Exception as error:
                traceback.print_exc()
                said, right = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", False
            taken = round(time.perf_counter() - begun, 2)
            self.rows.append({"model": self.name, "check": what, "right": right, "seconds": taken, "said": said})
            if not right and what in ("library", "apply"):
                break
        return self.rows

    def library(self) -> str:
        """What the library says, before anything is applied."""
        torch.manual_seed(0)
        self.model: Any = real_models.build(self.name, self.device, smoke=self.tiny, layers=LAYERS)
        self.prompt = real_models.prompt(self.model, 24 if self.tiny else PROMPT)
        self.wanted = faithful.reference(self.model, self.prompt, self.new, "rounding")
        self.batches = {rows: self._batch(rows) for rows in (ROWS, MORE_ROWS)}
        self.along = {rows: self._logits(*batch) for rows, batch in self.batches.items()}
        self.noise = self._noise()
        self.plain_ms = self._ms_per_token(GenerateDecoder(self.model))
        self.logits = self._forward()
        self.held = self._held()
        said = f"noise moves its logits by {self.wanted.noise_error:.4f}; {self.noise}"
        return f"{self.plain_ms:.2f} ms/token, {said}"

    def apply(self) -> str:
        fuse(self.model, "graph", exact=self.exact)
        engine = engine_of(self.model)
        receipts = inference_pio.get_optimization_manager().get_receipts(self.model)
        notes = [note for receipt in receipts for note in receipt.notes if "generate" in note]
        if engine is None:
            raise RuntimeError(f"generate was not taken over: {notes}")
        on_gpu, on_cpu = ("torch, recorded", "torch") if self.exact else ("triton", "torch, in few calls")
        name = on_cpu if self.device.type == "cpu" else on_gpu
        if engine.operations.name != name:
            raise RuntimeError(f"steps are computed by {engine.operations.name}, and not by {name}")
        return "; ".join(notes)

    def first_call(self) -> str:
        """Kernels are compiled, launches tuned, steps recorded; then again in fresh room, where all is known."""
        taken = [self._first_token_s()]
        self._engine.close()
        taken.append(self._first_token_s())
        taken.append(self._first_token_s())
        return "first token after {:.2f} s, in fresh room {:.2f} s, then {:.3f} s".format(*taken)

    def faithful(self) -> str:
        verdict = faithful.judge(EngineDecoder(self.model, Room(self.prompt, 0, True)), self.wanted)
        if not verdict.right:
            raise RuntimeError(verdict.reason)
        same = f"{verdict.same_tokens} of {verdict.of_tokens} tokens before the first that differs"
        return f"logits {verdict.error:.4f} off, {verdict.tolerance:.4f} allowed; {same}"

    def padded(self) -> str:
        return self._along(ROWS)

    def many(self) -> str:
        return self._along(MORE_ROWS)

    def sampling(self) -> str:
        """One seed, one text; penalties and least lengths are served on the device."""
        how = {"do_sample": True, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.2, "min_new_tokens": 3}
        said = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            said.append(self._generate(max_new_tokens=self.new, eos_token_id=7, pad_token_id=0, **how))
        if not torch.equal(said[0], said[1]):
            raise RuntimeError("one seed gave two texts")
        return "another seed gives another text" if said[2].tolist() != said[0].tolist() else "ALL SEEDS ALIKE"

    def growing(self) -> str:
        """Room is made while runs are on their way: no token may change by it."""
        most = self.most
        whole, engine = self._generate(max_new_tokens=most), self._engine
        engine.close()
        kept, engine_module.FIRST_ROOM = engine_module.FIRST_ROOM, 8
        try:
            grown, recorded = self._generate(max_new_tokens=most), engine.counts.recorded
        finally:
            engine_module.FIRST_ROOM = kept
        gap, limit = self._gap(grown), self.noise.gap_allowed
        if not gap <= limit:
            raise RuntimeError(f"a token is {gap:.2f} sigma worse than the best one, {limit:.2f} allowed")
        differ = (whole != grown).any(0).nonzero()  # attention is shared out by the room: sums may round otherwise
        alike = int(differ[0]) - self.prompt.shape[1] if len(differ) else most
        told = f"no token over {gap:.2f} sigma worse, {limit:.2f} allowed; {alike} of {most} as in large room"
        return f"{told}, {recorded} recordings"

    def speed(self) -> str:
        ours = self._ms_per_token(EngineDecoder(self.model, Room(self.prompt, 0, True)))
        return f"{ours:.2f} ms/token, {self.plain_ms / ours:.1f}x of the library, beside other processes"

    def undo(self) -> str:
        counts = self._engine.counts
        left, told = dict(counts.left), f"{counts.prompts} prompts recorded, others {dict(counts.prompts_left)}"
        inference_pio.get_optimization_manager().remove_optimizations(self.model)
        if not torch.equal(self._forward(), self.logits):
            raise RuntimeError("the logits are not the library's any more")
        more = self._held() - self.held
        if left:
            raise RuntimeError(f"calls were left to the library: {left}")
        return f"same logits, {told}, {more / 1e6:.1f} MB more held" + (": TOO MUCH" if more > LEFT_BYTES else "")

    @property
    def _engine(self) -> Any:
        return engine_of(self.model)

    def _batch(self, rows: int) -> tuple[Tensor, Tensor]:
        """Rows of which the first begins behind padding, and their mask."""
        tokens = real_models.prompt(self.model, self.prompt.shape[1], rows=rows)
        mask = torch.ones_like(tokens)
        mask[0, :5] = 0
        return tokens, mask

    def _logits(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """float32 [new, rows, vocabulary] along the reference's tokens."""
        out = self.model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=self.new, do_sample=False, output_logits=True,
            return_dict_in_generate=True, logits_processor=[Forced(self.wanted.tokens, tokens.shape[1])],
        )  # fmt: skip
        return torch.stack([row.float().cpu() for row in out.logits])

    def _along(self, rows: int) -> str:
        found, wanted = self._logits(*self.batches[rows]), self.along[rows]
        error, allowed = faithful.relative_error(found, wanted), self.noise.allowed(rows)
        if not error <= allowed:
            places = [[faithful.relative_error(*pair) > allowed for pair in zip(*one, strict=True)]
                      for one in zip(found, wanted, strict=True)]  # fmt: skip
            far = f"{sum(map(sum, places))} of {sum(map(len, places))} places lie further"
            raise RuntimeError(f"logits lie {error:.3f} off, {allowed:.3f} allowed; {far}")
        freely = self._generate(self.batches[rows], max_new_tokens=self.new)
        told = f"logits {error:.4f} off, {allowed:.4f} allowed by noise at {self.noise.places} places"
        return f"{told}; {freely.shape[1] - self.prompt.shape[1]} tokens freely"

    def _noise(self) -> Noise:
        """At as many places as the longest check looks at: a router that noise turns at one of a hundred is in it."""
        clean = self.along[MORE_ROWS]
        draws, errors, gap = -(-self.most // clean[..., 0].numel()), {ROWS: 0.0, MORE_ROWS: 0.0}, 0.0
        for seed in range(draws):
            with faithful.noisy(self.model, faithful.NOISE["rounding"], seed):
                moved = self._logits(*self.batches[MORE_ROWS])
            gap = max(gap, worst_gap(clean, moved.argmax(-1)))
            for rows in errors:  # a few rows may by chance hold all that was turned
                pairs = zip(moved.split(rows, 1), clean.split(rows, 1), strict=True)
                errors[rows] = max(errors[rows], *(faithful.relative_error(*pair) for pair in pairs))
        return Noise(draws * clean[..., 0].numel(), errors, gap)

    def _generate(self, batch: tuple[Tensor, Tensor] | None = None, **how: Any) -> Tensor:
        tokens, mask = batch or (self.prompt, torch.ones_like(self.prompt))
        said: Tensor = self.model.generate(input_ids=tokens, attention_mask=mask, **{"do_sample": False, **how})
        return said.cpu()

    def _first_token_s(self) -> float:
        begun = time.perf_counter()
        self._generate(max_new_tokens=2)
        return time.perf_counter() - begun

    def _ms_per_token(self, decoder: Any) -> float:
        return 1e3 / max(decoder.decode(self.prompt, self.new).tokens_per_s for _ in range(2))

    @torch.no_grad()
    def _gap(self, text: Tensor) -> float:
        """By how many standard deviations a token of a text was at most worse than the best one there."""
        text, first = text.to(self.device), self.prompt.shape[1]
        logits = self.model(input_ids=text[:, :-1], use_cache=False).logits[0, first - 1 :].float()
        return worst_gap(logits, text[0, first:])

    @torch.no_grad()
    def _forward(self) -> Tensor:
        logits: Tensor = self.model(input_ids=self.prompt, use_cache=False).logits
        return logits.cpu()

    def _held(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.synchronize(self.device)
        return torch.cuda.memory_allocated(self.device)


def worst_gap(logits: Tensor, chosen: Tensor) -> float:
    """By how many standard deviations a chosen token was at most worse than the best one: logits [..., vocabulary].

    >>> round(worst_gap(torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]]), torch.tensor([2, 0])), 3)
    1.309
    """
    own = logits.gather(-1, chosen[..., None])[..., 0]
    return float(((logits.amax(-1) - own) / logits.std(-1)).max())


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, help=f"of {', '.join(MODELS)}")
    parser.add_argument("--tiny", action="store_true", help="tiny models on a CPU: does this program work")
    parser.add_argument("--exact", action="store_true", help="the library's roundings, by torch's kernels")
    parser.add_argument("--tuning-s", type=float, default=0.0, help="seconds of tuning a product (0: by rule)")
    parser.add_argument("--seconds", type=float, default=150.0, help="what has not ended then is told as such")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--here", action="store_true", help="in this process, one model after another")
    options = parser.parse_args(words)
    if options.here:
        rows = list(_here(options))
    else:
        rows = _side_by_side(options)
        print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if rows and all(row["right"] for row in rows) else 1


def _here(options: Any) -> Iterator[Row]:
    launches.TUNING_S = options.tuning_s
    device = torch.device("cpu" if options.tiny else "cuda")
    for name in options.models:
        yield from Checks(name, device, tiny=options.tiny, exact=options.exact).run()


def _side_by_side(options: Any) -> list[Row]:
    """A process a model: one that crashes or hangs takes no other along; kernels are compiled at the same time."""
    begun, rows = time.monotonic(), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        # launches tuned on two layers, which fit the cache, are not left for others
        environment = os.environ | {"INFERENCE_PIO_CACHE": folder, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
        environment["PYTHONPATH"] += f":{os.environ.get('PYTHONPATH', '')}"
        words = ["--tiny"] * options.tiny + ["--exact"] * options.exact + ["--tuning-s", str(options.tuning_s)]
        running = {}
        for name in options.models:
            out = Path(folder, f"{name}.json")
            command = [sys.executable, str(Path(__file__)), name, "--here", "--json", str(out), *words]
            with Path(folder, f"{name}.log").open("w") as log:
                running[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log), out, Path(log.name)
        for name, (process, out, log_path) in running.items():
            try:
                process.wait(max(1.0, options.seconds - (time.monotonic() - begun)))
                ended = f"its process ended with code {process.returncode}"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                ended = f"it had not ended after {options.seconds:.0f} s"
            found = json.loads(out.read_text()) if out.exists() else []
            if not found or not all(row["right"] for row in found):
                print(f"--- {name}, the end of its log\n{log_path.read_text()[-4000:]}", flush=True)
            lost = {"model": name, "check": "whole", "right": False, "seconds": 0.0, "said": ended}
            rows += found or [lost]
    return rows


def table(rows: list[Row]) -> str:
    """A line a check.

    >>> print(table([{"model": "m", "check": "undo", "right": False, "seconds": 1.5, "said": "no"}]))
    FAILED  m                undo                  1.5 s  no
    0 of 1 right
    """
    lines = [
        f"{'ok' if row['right'] else 'FAILED':<8}{row['model']:<17}{row['check']:<20}{row['seconds']:5.1f} s  "
        f"{row['said']}"
        for row in rows
    ]
    return "\n".join([*lines, f"{sum(row['right'] for row in rows)} of {len(rows)} right"])


if __name__ == "__main__":
    sys.exit(main())
