"""The profiles and logos that ship with elastic-kernels; data only."""
