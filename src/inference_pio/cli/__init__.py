"""`pio`, the command line: one small file a command; it asks and prints, and decides nothing."""

from inference_pio.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """The entry point of the script `pio`."""
    app()
