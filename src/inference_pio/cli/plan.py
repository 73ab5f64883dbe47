"""`pio plan`: what would be done to a model; nothing is touched."""

from __future__ import annotations

from inference_pio.cli.options import Assign, Device, Disable, Dtype, DtypeOption, Enable, Json, Model, Profile, ask
from inference_pio.cli.output import Output


def plan(
    model: Model, profile: Profile = "balanced", enable: Enable = None, disable: Disable = None, assign: Assign = None,
    dtype: DtypeOption = Dtype.bfloat16, device: Device = None, json: Json = None,
) -> None:  # fmt: skip
    """Show what would be done to MODEL: the steps, their places, what is passed over and why."""
    output = Output(json)
    asked = ask(model, profile, enable, disable, assign, dtype, device)

    from inference_pio.measure import Report

    opened = asked.open()
    made = asked.plan(opened)
    output.show(str(made))
    output.finish(Report(model=opened.name, profile=profile, plan=made.to_json(), notes=opened.notes).to_json())
