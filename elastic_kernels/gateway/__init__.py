"""The gateway with verified users: Enterprise Gateway, extended, and not forked.

It plugs in twice. In the configuration file of a stock ``jupyter enterprisegateway``::

    from elastic_kernels.gateway import configure
    configure(get_config())

and as an application of ours, ``elastic-kernels gateway``, which takes the same configuration and command line.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, Final

from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp
from prometheus_client import start_http_server
from tornado.ioloop import IOLoop
from traitlets import TraitError
from traitlets.config import Config

from elastic_kernels.errors import ConfigurationError
from elastic_kernels.gateway import audit, room, routes, warming
from elastic_kernels.gateway.managers import ElasticMappingKernelManager
from elastic_kernels.gateway.verified import VERIFIER
from elastic_kernels.identity.verifier import Verifier
from elastic_kernels.settings import ElasticKernels

_ANSWER_SECONDS: Final = 0.2


class ElasticGatewayApp(EnterpriseGatewayApp):  # type: ignore[misc]
    """Enterprise Gateway with our managers and our handlers. It has its name, its configuration file and its settings."""

    # no traits: a running stock application can become one of these (see configure)

    def init_configurables(self) -> None:
        """Called once the configuration is read. A setting of ours that is wrong ends the program with one sentence."""
        try:
            settings = ElasticKernels(parent=self)
            self._verifier = Verifier(settings) if settings.identity_ways else None
            if settings.audit_file:
                audit.to_file(settings.audit_file)
        except (ConfigurationError, TraitError) as error:
            self.log.critical("%s", error)
            self.exit(1)
        room.make()
        super().init_configurables()

    def _create_request_handlers(self) -> list[tuple[Any, ...]]:
        return routes.extended(super()._create_request_handlers(), self.base_url)

    def init_webapp(self) -> None:
        """Called after ``init_configurables``."""
        super().init_webapp()
        self.web_app.settings[VERIFIER] = self._verifier
        if self._verifier is None:
            self.log.warning(
                "No user is verified (the setting identity is trust-client): anybody who reaches this gateway can be anybody, and use "
                "everybody's kernels. That is for one person, or for a migration."
            )
        elif self._verifier.takes_tokens and self.web_app.settings["eg_auth_token"]:
            self.log.warning("EG_AUTH_TOKEN has no effect: the Authorization header says who the user is.")
            self.web_app.settings["eg_auth_token"] = ""

    def start(self) -> None:
        """Run until told to end; kernels that the cluster has are served from the beginning."""
        if isinstance(self.kernel_manager, ElasticMappingKernelManager):
            IOLoop.current().add_callback(self._keep)
        port = ElasticKernels(parent=self).metrics_port
        if port:
            # a thread of its own, which reads numbers only
            start_http_server(port, addr=self.ip or "0.0.0.0")
        super().start()

    def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        self._keeping = (
            loop.create_task(self.kernel_manager.keeper.run(), name="keep kernels"),
            loop.create_task(warming.run(self.kernel_manager, ElasticKernels(parent=self)), name="keep kernels warm"),
        )

    def _signal_stop(self, _number: int, _frame: Any) -> None:
        """Called at SIGTERM."""
        self.io_loop.add_callback_from_signal(self._end_slowly)

    async def _end_slowly(self) -> None:
        """Take no more requests, give the launches under way their time, and stop."""
        self.log.info("The gateway ends; kernels in pods go on")
        self.http_server.stop()
        starting = [start for start in self.kernel_manager._starting_kernels.values() if not start.done()]
        if starting:
            await asyncio.wait(starting, timeout=ElasticKernels(parent=self).drain_time)
            # their answers are on the way
            await asyncio.sleep(_ANSWER_SECONDS)
        self.io_loop.stop()

    def shutdown(self) -> None:
        """Called when the event loop has stopped: kernels in pods go on, those of this machine end with it."""
        kernels = self.kernel_manager
        for keeping in getattr(self, "_keeping", ()):
            keeping.cancel()
        for kernel_id in kernels.list_kernel_ids():
            if getattr(kernels.get_kernel(kernel_id), "elastic_record", None) is not None:
                kernels._kernels.pop(kernel_id)
        super().shutdown()
        if self._verifier is not None:
            self.io_loop.run_sync(self._verifier.close)


def configure(config: Any) -> None:
    """Have the stock application that is reading its configuration file (``get_config()``) verify users.

    Sets defaults that the file may change afterwards. Called again when the file is read again, which changes nothing.
    """
    application = EnterpriseGatewayApp.instance()
    if not isinstance(application, ElasticGatewayApp):
        application.__class__ = ElasticGatewayApp
    config.EnterpriseGatewayApp.kernel_manager_class = ElasticMappingKernelManager
    # profiles decide which of a client's variables reach a kernel
    config.EnterpriseGatewayApp.client_envs = ["*"]
    # a list holds nothing but the caller's own
    config.EnterpriseGatewayApp.list_kernels = True


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the gateway until it is told to end; ``arguments`` are Enterprise Gateway's own."""
    application = ElasticGatewayApp.instance()
    defaults = Config()
    configure(defaults)
    application.update_config(defaults)
    application.initialize(list(sys.argv[1:] if arguments is None else arguments))
    application.start()
