"""Make what pages show from raw files: `python -m docs.generate`."""
