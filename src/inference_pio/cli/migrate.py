"""`pio migrate`: a configuration in a legacy form, written in today's; what changed is shown, nothing is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inference_pio.cli.options import Debug, Json, Quiet
from inference_pio.cli.output import Output, require_writable
from inference_pio.errors import StorageError

Old = Annotated[Path, typer.Argument(help="The old file, YAML or JSON.", metavar="OLD")]
New = Annotated[
    Path | None, typer.Argument(help="The new file; if not given, beside the old one as OLD.new.", metavar="[NEW]")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the new file where it is there already.")]


def migrate(
    old: Old, new: New = None, overwrite: Overwrite = False, json: Json = None, quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Write OLD, a configuration in a legacy form, in today's form to NEW, and show what changed."""
    target = new or old.parent / f"{old.stem}.new{old.suffix}"
    output = Output(json, quiet=quiet)
    if old.absolute() == target.absolute():
        raise StorageError(f"{target} is the old file itself: choose another name for the new one.")
    require_writable(target)

    from inference_pio.integration.migrating import migrate_file

    migration = migrate_file(old, target, overwrite=overwrite)
    for change in migration.changes:
        output.show(f"changed: {change}")
    for one in migration.unmatched:
        output.warn(f"not carried over: {one}")
    output.show(f"written to {target}")
    output.finish({"old": str(old), "new": str(target), **migration.to_json()})
