"""TODO."""

from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.exporter import export_decoder
from bge_export.decoder.weights import Weight, decoder_weights

__all__ = [
    "DecoderConfig",
    "Weight",
    "decoder_weights",
    "export_decoder",
]
