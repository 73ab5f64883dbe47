"""What a model does on text it may learn from: statistics of inputs, routers and attention, taken in bounded memory."""

from inference_pio.calibration.attention_pass import AttentionMass, collect_attention_mass
from inference_pio.calibration.input_pass import collect_inputs
from inference_pio.calibration.input_statistics import InputStatistics
from inference_pio.calibration.router_counts import collect_router_counts
from inference_pio.calibration.source import CalibrationSource, calibration_source

__all__ = [
    "AttentionMass",
    "CalibrationSource",
    "InputStatistics",
    "calibration_source",
    "collect_attention_mass",
    "collect_inputs",
    "collect_router_counts",
]
