# Read by `jupyter enterprisegateway` at its start; a file of the same name in JUPYTER_CONFIG_DIR comes after it.
from elastic_kernels.gateway import configure

configure(get_config())  # noqa: F821
