"""The engine behind `generate`: whole steps at addresses that stay, recorded once where the device can."""
