"""Section ``observability``."""

# ruff: noqa: RUF009 (setting() and section() only declare a field)

import attrs

from globalstore.config.kinds import Headers, Int32, LogLevel, OTelProtocol, enum_short_name
from globalstore.config.schema._settings import section, setting


@attrs.frozen
class Logging:
    """What is written down, and where."""

    level: LogLevel = setting(
        LogLevel.LOG_LEVEL_INFO,
        "DEBUG: every call; INFO: every change of state; WARN and ERROR: what needs a look.",
    )
    file: str = setting("", "Also append the lines to this file. Empty: standard error only.")
    otel_context_enabled: bool = setting(
        False, "Add trace and span id to each line while tracing is on.", has_effect=False
    )
    sink_file: str = setting("", "Also append one JSON object per event to this file. Empty: off.")
    vlog_level: Int32 = setting(
        0, "With level DEBUG, further steps of detail that are written; costs time and space."
    )

    @property
    def level_name(self) -> str:
        """DEBUG, INFO, WARN or ERROR."""
        return enum_short_name(self.level)


@attrs.frozen
class OTel:
    """Export of traces; the other keys are read only when it is enabled."""

    enabled: bool = setting(
        False, "Export traces.", not_built="this version exports no traces; set it to false"
    )
    exporter_otlp_endpoint: str = setting("", "URL of the collector.")
    exporter_protocol: OTelProtocol = setting(
        OTelProtocol.O_TEL_PROTOCOL_GRPC, "GRPC or HTTP_PROTOBUF."
    )
    service_name: str = setting("", "Resource attribute service.name; empty: tensorcast.")
    sampler: str = setting(
        "",
        "Which traces are kept: always_on, always_off, traceidratio, or one of them with "
        "parentbased_ before it. Empty: parentbased_always_on.",
    )
    sampler_arg: str = setting("", "Share kept by a traceidratio sampler, 0 to 1. Empty: 1.")


@attrs.frozen
class OTelCxx:
    """Settings of native daemons, accepted so that one file can serve both; unused here."""

    sdk_disabled: bool = setting(False, "Accepted and unused.")
    exporter_insecure: bool = setting(False, "Accepted and unused.")
    exporter_headers: Headers = setting(
        Headers(()), "Map of text to text; accepted and unused.", secret=True
    )
    console_exporter: bool = setting(False, "Accepted and unused.")


@attrs.frozen
class Tracing:
    """Trace files for a browser's trace viewer."""

    chrome_trace_dir: str = setting(
        "",
        "Directory for trace files; empty: off.",
        not_built="this version writes no trace files; leave it empty",
    )


@attrs.frozen
class Observability:
    """Logs and traces."""

    logging: Logging = section(Logging, "What is written down, and where.")
    otel: OTel = section(
        OTel, "Export of traces; other keys count only when enabled.", has_effect=False
    )
    otel_cxx: OTelCxx = section(OTelCxx, "Settings of native daemons; unused here.")
    tracing: Tracing = section(
        Tracing, "Trace files for a browser's trace viewer.", has_effect=False
    )
