"""What runs inside a kernel's pod. Nothing here imports elastic_kernels: a launcher travels to the pod as one file."""
