# A JupyterHub on this machine for the tests: anybody who knows the password is whom they say, and servers are local processes.
import os
import re
import sys
from pathlib import Path

c = get_config()  # noqa: F821
directory = Path(os.environ["TEST_DIRECTORY"])
port = int(os.environ["TEST_PORT"])


# what the README shows for a KubeSpawner, with this gateway's address
readme = (Path(__file__).parents[2] / "README.md").read_text()
(shown,) = (text for text in re.findall(r"```python\n(.*?)```", readme, re.S) if "KubeSpawner" in text)
exec(shown, {"c": c})
c.Spawner.environment = {**c.KubeSpawner.environment, "JUPYTER_GATEWAY_URL": os.environ["TEST_GATEWAY"]}

c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = str(directory / "home-{username}")
c.Spawner.cmd = [str(Path(sys.executable).with_name("jupyterhub-singleuser")), "--allow-root", "--ServerApp.answer_yes=True"]
c.Spawner.http_timeout = c.Spawner.start_timeout = 120
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ["TEST_PASSWORD"]
c.Authenticator.allow_all = True
c.JupyterHub.load_groups = {"scientists": {"users": ["ana"]}}
c.JupyterHub.services = [
    {"name": "test", "api_token": os.environ["TEST_TOKEN"]},
    # a service that has a user's name
    {"name": "ana", "api_token": os.environ["TEST_SERVICE_TOKEN"]},
]
c.JupyterHub.load_roles = [{"name": "test", "scopes": ["admin:users", "admin:servers", "tokens", "access:servers"], "services": ["test"]}]
c.JupyterHub.bind_url = f"http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{port + 1}"
c.JupyterHub.db_url = f"sqlite:///{directory}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(directory / "cookie_secret")
c.ConfigurableHTTPProxy.command = [str(Path(sys.executable).with_name("configurable-http-proxy"))]
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 2}"
c.ConfigurableHTTPProxy.pid_file = str(directory / "proxy.pid")
c.JupyterHub.cleanup_servers = c.JupyterHub.cleanup_proxy = True
