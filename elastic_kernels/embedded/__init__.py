"""A cluster on one machine: the Kubernetes API over HTTP, and pods as local processes. For trying things and for tests."""

from elastic_kernels.embedded.cluster import NODES, EmbeddedCluster, node
from elastic_kernels.embedded.faults import Fault, Faults

__all__ = ["NODES", "EmbeddedCluster", "Fault", "Faults", "node"]
