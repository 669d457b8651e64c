"""What runs inside a kernel's pod. Nothing here imports elastic_kernels: the launchers travel to the pod, and lie there side by side."""
