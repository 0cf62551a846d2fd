"""Export BGE checkpoints to bundles that run without PyTorch."""
