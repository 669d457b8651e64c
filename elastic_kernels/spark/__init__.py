"""Spark in a kernel's pod: the driver there, its executors in pods of their own.

``part`` is what a profile says of it, ``wishes`` what a client may ask for within that, ``configuration`` what both come to: the
settings that the launcher gives to Spark, and the pod that Spark makes executors from. All of it is pure.
"""
