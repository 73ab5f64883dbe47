"""The benchmark: peers and inference-pio in the same run. Nothing of inference_pio imports it."""
