from tests.conftest import Backend
from tests.cluster.conftest import connected
async def test_pod(backend: Backend) -> None:
    async with connected(backend.kubeconfig) as core:
        await core.create_namespaced_pod(backend.namespace, {"metadata": {"name": "good"}, "spec": {"containers": [{"name": "c", "image": "elastic-kernels/kernel-python:dev", "command": ["python", "-c", "print('some log'); import time; time.sleep(60)"]}]}})
