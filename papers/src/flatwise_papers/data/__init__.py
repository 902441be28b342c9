"""The papers' data sets, as tensors."""
