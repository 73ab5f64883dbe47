"""`pio plan`: what would be done to a model; nothing is touched."""

from __future__ import annotations

from inference_pio.cli.opening import open_shown, plan_shown
from inference_pio.cli.options import (
    Assign,
    Debug,
    Device,
    Disable,
    Dtype,
    DtypeOption,
    Enable,
    Hardware,
    HtmlFile,
    Json,
    Model,
    Profile,
    Quiet,
    Trust,
    ask,
)  # fmt: skip
from inference_pio.cli.output import Output


def plan(
    model: Model, profile: Profile = "balanced", enable: Enable = None, disable: Disable = None, assign: Assign = None,
    hardware: Hardware = None, dtype: DtypeOption = Dtype.bfloat16, device: Device = None,
    trust_remote_code: Trust = False, json: Json = None, report: HtmlFile = None, quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Show what would be done to MODEL: the steps, their places, what is passed over and why."""
    output = Output(json, html_file=report, quiet=quiet)
    asked = ask(model, profile, enable, disable, assign, dtype, device, trust_remote_code, hardware=hardware)

    from inference_pio.measure import Report

    opened = open_shown(asked, quiet)
    made = plan_shown(asked, opened, quiet)
    output.show(str(made))
    output.finish(Report(model=opened.name, profile=asked.profile, plan=made.to_json(), notes=opened.notes).to_json())
