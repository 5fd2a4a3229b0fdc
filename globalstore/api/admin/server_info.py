"""HealthCheck, GetServerInfo."""

from globalstore.api.context import Handlers
from globalstore.config import host_port
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rpc import Call, fast_path
from globalstore.rules.refusals import Unavailable


class ServerInfoHandlers(Handlers):
    """The calls about the server itself."""

    def _well_fast(self, _: wire.HealthCheckRequest, call: Call) -> wire.HealthCheckResponse | None:
        return None if call.draining.is_set() else self._well()

    @fast_path(_well_fast)
    async def HealthCheck(
        self, message: wire.HealthCheckRequest, request: Call
    ) -> wire.HealthCheckResponse:
        """Answer that the server is there, and of which cluster it is."""
        if request.draining.is_set():
            raise Unavailable("the server is shutting down")
        return self._well()

    def _well(self) -> wire.HealthCheckResponse:
        return wire.HealthCheckResponse(
            status=wire.STATUS_OK, cluster_token=self.context.config.meta.cluster_token
        )

    async def GetServerInfo(
        self, message: wire.GetServerInfoRequest, request: Call
    ) -> wire.GetServerInfoResponse:
        """Tell where the server listens and what it calls itself."""
        info = self.context.info
        if info is None:
            raise Unavailable("the server is starting")
        return wire.GetServerInfoResponse(
            status=wire.STATUS_OK,
            advertise_address=_address(info.advertise_host, info.advertise_port),
            advertise_host=info.advertise_host,
            advertise_port=info.advertise_port,
            listen_address=_address(info.listen_host, info.listen_port),
            listen_host=info.listen_host,
            listen_port=info.listen_port,
            metrics_port=info.metrics_port,
            version=info.version,
            db_file=info.db_file,
            cluster_id=info.cluster_id,
        )


def _address(host: str, port: int) -> str:
    return host_port(host, port) if host and port else ""
