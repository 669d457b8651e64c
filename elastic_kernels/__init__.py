"""Jupyter kernels in Kubernetes pods: a process proxy for Jupyter Enterprise Gateway, and what it is made of."""

__version__ = "0.1.0"
