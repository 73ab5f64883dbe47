"""`python benchmarks/against_float32.py qwen3-4b`: is what a profile computes as near to float32 as bfloat16 is anyway?

Along the library's own greedy tokens, the logits of the library and of a profile are both held against those of the
same weights in float32. Then the profile's own greedy tokens, from recorded steps, are held against those of the same
steps called one by one. Exit 1 if the profile's error is over 1.2 times the library's, or a token differs.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
# started as a file: its folder is on the path, the repository may not be
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "src")) if path not in sys.path]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import inference_pio  # noqa: E402
from benchmarks import real_models  # noqa: E402
from benchmarks.arms.decoder import GenerateDecoder  # noqa: E402
from benchmarks.faithful import check_sane, relative_error  # noqa: E402
from inference_pio.decoding import runner  # noqa: E402
from inference_pio.decoding.takeover import engine_of  # noqa: E402
from inference_pio.measure import describe_machine  # noqa: E402

MOST = 1.2
"""Times the error of the library's own bfloat16."""

Told = dict[str, Any]


def errors(found: Tensor, exact: Tensor) -> Told:
    """Of logits [tokens, vocabulary]: all together, the median and the worst of a token's, and the best tokens shared.

    >>> errors(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 4.0]]))
    {'relative': 0.5, 'median': 0.5, 'worst': 0.5, 'same_best': 1.0}
    """
    each = torch.tensor([relative_error(*pair) for pair in zip(found, exact, strict=True)])
    return {
        "relative": relative_error(found, exact), "median": float(each.median()), "worst": float(each.max()),
        "same_best": float((found.argmax(-1) == exact.argmax(-1)).float().mean()),
    }  # fmt: skip


def measured(model: nn.Module, prompt: Tensor, tokens: int, profile: str) -> Told:
    """The errors of the library and of a profile, and where tokens of recorded steps and of the same steps differ."""
    torch.backends.cuda.matmul.allow_tf32 = False
    plain = GenerateDecoder(model).decode(prompt, tokens, logits=True)
    wanted = _logits(copy.deepcopy(model).float(), prompt, plain.tokens)
    check_sane(wanted)
    library = errors(_logits(model, prompt, plain.tokens), wanted)
    inference_pio.optimize(model, profile)
    ours = errors(_logits(model, prompt, plain.tokens), wanted)
    recorded = GenerateDecoder(model).decode(prompt, tokens).tokens
    engine = engine_of(model)
    if engine is not None:
        engine.close()  # what was recorded is made anew
    with mock.patch.object(runner, "choose_runner", return_value="eager"):
        called = GenerateDecoder(model).decode(prompt, tokens).tokens
    left = {} if engine is None else dict(engine.counts.left)
    differ = (recorded != called).nonzero()
    return {
        "profile": profile, "tokens": tokens, "library": library, "ours": ours,
        "ratio": ours["relative"] / max(library["relative"], 1e-12), "recorded": engine is not None and not left,
        "left_to_the_library": left, "first_that_differs": int(differ[0, 0]) if len(differ) else None,
    }  # fmt: skip


def _logits(model: nn.Module, prompt: Tensor, along: Tensor) -> Tensor:
    found = GenerateDecoder(model).decode(prompt, len(along), forced=along, logits=True).logits
    assert found is not None
    return found


def table(told: Told) -> str:
    """Both systems, a line each, then what follows."""
    lines = [
        f"{name:10} {one['relative']:.5f} off float32, a token {one['median']:.5f}, {one['worst']:.5f} at worst, "
        f"the best token float32's in {one['same_best']:.1%}"
        for name, one in (("library", told["library"]), (told["profile"], told["ours"]))
    ]
    place = told["first_that_differs"]
    same = f"equal for {told['tokens']}" if place is None else f"differ at {place}"
    how = "recorded steps" if told["recorded"] else "NO RECORDED STEPS"
    return "\n".join(
        [*lines, f"{told['ratio']:.3f} times the library's error; {how} and the same steps called: tokens {same}"]
    )


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="one of benchmarks/real_models.py")
    parser.add_argument("--profile", default="lossless")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--smoke", action="store_true", help="a tiny model on a CPU: does this program work")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="what is measured, where no repository tells it")
    options = parser.parse_args(words)
    device = torch.device("cpu" if options.smoke else "cuda")
    model = real_models.build(options.model, device, smoke=options.smoke)
    told = measured(model, real_models.prompt(model, options.prompt), options.tokens, options.profile)
    print(table(told))
    if options.json:
        machine = describe_machine(device.type).to_json()
        where = {"model": options.model, "commit": options.commit or machine.pop("commit"), "machine": machine}
        options.json.write_text(json.dumps(where | told, indent=1) + "\n")
    wrong = not told["ratio"] <= MOST or told["first_that_differs"] is not None
    return int(wrong or (device.type == "cuda" and not told["recorded"]))


if __name__ == "__main__":
    sys.exit(main())
