"""Graphs in 8 bits: calibration texts, rounding, and where static scales hold."""

from bge_export.encoder.int8.quantize import Quantization, quantize_model
from bge_export.encoder.int8.texts import calibration_tokens

__all__ = ["Quantization", "calibration_tokens", "quantize_model"]
