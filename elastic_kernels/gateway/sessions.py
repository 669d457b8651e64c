"""One caller's view of the sessions that Enterprise Gateway keeps: theirs, and nobody else's."""

from __future__ import annotations

from typing import Any

from enterprise_gateway.services.sessions.sessionmanager import SessionManager
from tornado import web

from elastic_kernels.gateway.managers import ElasticMappingKernelManager
from elastic_kernels.identity import Caller


class OwnSessions:
    """Stands in for the session manager while one request is handled. A session is whose kernel's it is."""

    def __init__(self, sessions: SessionManager, caller: Caller) -> None:
        self._sessions = sessions
        self._caller = caller
        self._kernels: ElasticMappingKernelManager = sessions.kernel_manager

    def session_exists(self, path: str) -> bool:
        """Tell whether the caller has a session for ``path``."""
        return any(row["path"] == path for row in self._own())

    async def create_session(self, path: str | None = None, kernel_name: str | None = None, **_: Any) -> dict[str, Any]:
        """Start a kernel for the caller, and a session with it. Raises HTTPError."""
        # no environment comes with a session, so that a service has no way to say for whom it acts
        user = self._caller.on_behalf_of(None)
        kernel_id = await self._kernels.start_kernel(path=path, kernel_name=kernel_name, user=user)
        model: dict[str, Any] = self._sessions.save_session(self._sessions.new_session_id(), path=path, kernel_id=kernel_id)
        return model

    async def get_session(self, **column: str) -> dict[str, Any]:
        """Return a session of the caller's, by ``session_id`` or ``path``. Raises HTTPError 404."""
        ((name, value),) = column.items()
        for row in self._own():
            if row[name] == value:
                model: dict[str, Any] = self._sessions.row_to_model(row)
                return model
        raise web.HTTPError(404, f"Session not found: {value}")

    def list_sessions(self) -> list[dict[str, Any]]:
        """Return all sessions of the caller's."""
        return [self._sessions.row_to_model(row) for row in self._own()]

    async def update_session(self, session_id: str, **changes: Any) -> None:
        """Change a session of the caller's, to a kernel of the caller's. Raises HTTPError 404."""
        await self.get_session(session_id=session_id)
        kernel_id = changes.get("kernel_id")
        if kernel_id is not None and not self._may_use(kernel_id):
            raise web.HTTPError(404, f"Kernel does not exist: {kernel_id}")
        self._sessions.update_session(session_id, **changes)

    async def delete_session(self, session_id: str) -> None:
        """End a session of the caller's, and its kernel. Raises HTTPError 404."""
        await self.get_session(session_id=session_id)
        await self._sessions.delete_session(session_id)

    def _own(self) -> list[dict[str, Any]]:
        """Return the caller's rows; those whose kernel has gone are taken out, as Enterprise Gateway does one at a time."""
        rows = self._sessions._sessions
        rows[:] = [row for row in rows if row["kernel_id"] in self._kernels]
        return [row for row in rows if self._may_use(row["kernel_id"])]

    def _may_use(self, kernel_id: str) -> bool:
        user = self._kernels.user_of(kernel_id)
        return user is not None and self._caller.may_use(user.name, user.service)
