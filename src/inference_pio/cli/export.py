"""`pio export`: a compressed or pruned model as a checkpoint that transformers, vLLM and others read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inference_pio.cli.bars import Bars, working
from inference_pio.cli.opening import open_shown
from inference_pio.cli.options import Assign, Debug, Device, Dtype, DtypeOption, Json, Model, Quiet, Trust, ask, given
from inference_pio.cli.output import Output, require_exportable
from inference_pio.errors import ArtifactError, InvalidSetting, MissingExtra

if TYPE_CHECKING:
    from inference_pio.artifact.export import Export
    from inference_pio.sources import OpenedModel


class Format(StrEnum):
    """The layouts there are."""

    compressed_tensors = "compressed-tensors"
    hf = "hf"


class Int4(StrEnum):
    """What int4 becomes in a layout that has no middles."""

    wide = "wide"
    symmetric = "symmetric"
    asymmetric = "asymmetric"


Folder = Annotated[Path, typer.Argument(help="Where to write the checkpoint: a new or an empty folder.")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="Codes (compressed-tensors), or plain weights, of smaller sizes (hf).")
]
Int4Option = Annotated[
    Int4,
    typer.Option(
        "--int4",
        help="int4 weights: as they are, in 8 bits (wide); or rounded anew to 4 bits (symmetric; asymmetric, which not "
        "every version of transformers reads).",
    ),
]
Check = Annotated[
    bool | None,
    typer.Option("--check/--no-check", help="Read it back by transformers and compare answers; else where it can be."),
]
CHECKED_TOKENS, WINDOW = 2048, 256
OPENING = ("assign", "dtype", "trust_remote_code")


def export(
    context: typer.Context, model: Model, folder: Folder, format: FormatOption = Format.compressed_tensors,
    int4: Int4Option = Int4.wide, check: Check = None, assign: Assign = None, dtype: DtypeOption = Dtype.bfloat16,
    device: Device = None, trust_remote_code: Trust = False, json: Json = None, quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Write MODEL, compressed by tensor_compression or (hf) pruned by structured_pruning as much in each layer, to
    FOLDER; MODEL may also be what `pio optimize` saved."""
    output = Output(json, quiet=quiet)
    require_exportable(folder)

    from inference_pio.artifact.export import export as write
    from inference_pio.integration.saved import is_saved

    if check and format is Format.compressed_tensors:
        from inference_pio.artifact.check_export import require_reader

        require_reader()
    if is_saved(model):
        if found := given(context, OPENING):
            raise InvalidSetting(f"{model} is exported as it was saved: leave {', '.join(found)} out.")
        opened = _saved(model, device, quiet)
    else:
        opened = _smaller(format, ask(model, "balanced", None, None, assign, dtype, device, trust_remote_code), quiet)
    with working(f"writing {folder}", quiet):
        made = write(opened.model, folder, format.value, int4=int4.value, tokenizer=opened.tokenizer)
    _tell(made, output)
    quality = None if check is False else _checked(opened, made, output)
    output.finish({**made.to_json(), "quality": quality})


def _saved(folder: str, device: str | None, quiet: bool) -> OpenedModel:
    from inference_pio.integration.saved import open_saved

    with working(f"reading {folder}", quiet):
        return open_saved(folder, device)


def _smaller(format: Format, asked: Any, quiet: bool) -> OpenedModel:
    from inference_pio.integration.compressing import compress, prune

    opened = open_shown(asked, quiet)
    if format is Format.hf:
        with working("choosing what goes", quiet):
            prune(opened.model, asked.changes.parameters)
    else:
        with working("compressing weights", quiet):
            compress(opened.model, asked.changes.parameters)
    return opened


def _tell(made: Export, output: Output) -> None:
    plain = made.format == Format.hf.value
    for scheme, count in made.formats.items():
        output.show(f"{count} {'tensors' if plain else 'modules'} in {scheme}")
    if not plain:
        kept = f"{', '.join(made.kept[:3])}{' ...' if len(made.kept) > 3 else ''}"
        output.show(f"{len(made.kept)} kept as they are: {kept}")
    for note in made.notes:
        output.warn(note)
    if made.weights_moved is not None:
        output.warn(f"int4 weights have moved by {made.weights_moved:.2%} (root mean square)")
    output.show(f"{made.weight_bytes / 1e6:.1f} MB written to {made.folder}")


def _checked(opened: OpenedModel, made: Export, output: Output) -> dict[str, Any] | None:
    from inference_pio.artifact.check_export import check_export
    from inference_pio.measure.text import evaluation_tokens

    if reason := _why_unchecked(opened, made):
        output.warn(f"not checked: {reason}")
        return None
    known = opened.model.config.get_text_config().vocab_size
    tokens = evaluation_tokens(opened.tokenizer, known, CHECKED_TOKENS, WINDOW)
    bars = Bars(output.quiet)
    try:
        with bars:
            quality = check_export(opened.model, made.folder, tokens, bars("reading it back"))
    except ArtifactError as error:
        if not made.has_zeros:
            raise
        output.warn(f"not checked: {error}")
        return None
    output.show(
        f"read back by transformers: KL {quality.kl_nats_per_token:.5f} nats a token from this model, "
        f"top-1 agreement {quality.top1_agreement:.3f} on {quality.tokens} tokens"
    )
    return quality.to_json()


def _why_unchecked(opened: OpenedModel, made: Export) -> str | None:
    from inference_pio.artifact.check_export import require_reader

    try:
        if made.format != Format.hf.value:
            require_reader()
    except MissingExtra as error:
        return str(error)
    return None if opened.tokenizer else "the model has no tokenizer, and on random tokens answers mean nothing"
