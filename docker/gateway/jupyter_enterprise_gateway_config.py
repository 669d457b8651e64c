# Read by `jupyter enterprisegateway` at its start; a file of the same name in JUPYTER_CONFIG_DIR comes after it.
from elastic_kernels import websockets

# JupyterLab in Chrome opens each kernel's websocket twice
websockets.install()

c = get_config()  # noqa: F821
# profiles decide which of a client's variables reach a kernel
c.EnterpriseGatewayApp.client_envs = ["*"]
