"""Honest numbers of one model on one machine: speed, memory, quality, and what stands beside them in a report."""

from inference_pio.measure.comparison import Comparison, compare_measurements
from inference_pio.measure.machine import Machine, describe_machine
from inference_pio.measure.measurement import Measurement
from inference_pio.measure.memory import Peak, peak_bytes, resident_bytes, weight_bytes
from inference_pio.measure.probe import probe, probe_original
from inference_pio.measure.probe_settings import ProbeSettings
from inference_pio.measure.quality import Perplexity, Quality, compare, measure_perplexity
from inference_pio.measure.reference import Reference
from inference_pio.measure.report import Report
from inference_pio.measure.speed import Speed, SpeedArms, measure_speed, measure_speed_interleaved
from inference_pio.measure.text import calibration_text, evaluation_text, evaluation_tokens

__all__ = [
    "Comparison",
    "Machine",
    "Measurement",
    "Peak",
    "Perplexity",
    "ProbeSettings",
    "Quality",
    "Reference",
    "Report",
    "Speed",
    "SpeedArms",
    "calibration_text",
    "compare",
    "compare_measurements",
    "describe_machine",
    "evaluation_text",
    "evaluation_tokens",
    "measure_perplexity",
    "measure_speed",
    "measure_speed_interleaved",
    "peak_bytes",
    "probe",
    "probe_original",
    "resident_bytes",
    "weight_bytes",
]
