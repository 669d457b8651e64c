"""A cluster on one machine: the Kubernetes API over HTTP, and pods as local processes. For trying things and for tests."""
