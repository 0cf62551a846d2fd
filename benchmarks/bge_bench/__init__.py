"""Measure parity, latency and throughput against PyTorch and every peer."""
