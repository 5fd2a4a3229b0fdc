"""The metrics as text, made beside the event loop and never more than one at a time."""

import gzip
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

import attrs
import trio
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from globalstore.text.printing import printable

_OPEN_METRICS: Final = "application/openmetrics-text"

# Within this the format writes a float as Python does; beyond it, the way Go does.
_PLAIN_BELOW: Final = 1e6

# 2 MB become a tenth at the lowest level, in a few milliseconds; higher ones gain little more.
_GZIP_LEVEL: Final = 1

Writer: TypeAlias = Callable[[CollectorRegistry], bytes]


class Form(NamedTuple):
    """How a scraper wants the metrics: in which format, and whether compressed."""

    is_open_metrics: bool = False
    is_compressed: bool = False

    @property
    def content_type(self) -> bytes:
        """The value of the header of that name."""
        if self.is_open_metrics:
            return f"{_OPEN_METRICS}; version=1.0.0; charset=utf-8".encode()
        return b"text/plain; version=0.0.4; charset=utf-8"


def form_of(accept: str, accept_encoding: str) -> Form:
    """Return the form that these headers of a request ask for; the plain text if none."""
    return Form(_accepts(accept, _OPEN_METRICS), _accepts(accept_encoding, "gzip"))


def _accepts(header: str, name: str) -> bool:
    """Tell whether a list of names with parameters has this one, and not with the weight 0."""
    for entry in header.lower().split(","):
        first, *parameters = [part.strip().replace(" ", "") for part in entry.split(";")]
        if first == name:
            return not any(
                parameter.startswith("q=") and not parameter[2:].strip("0.")
                for parameter in parameters
            )
    return False


@attrs.define
class _Latest:
    """The latest rendering in one form, and its number."""

    number: int = 0
    body: bytes = b""


class Exposition:
    """Renders a registry.

    A large one takes some 60 ms, so a thread does it. Each value is read on its own: two metrics of
    one scrape may be a moment apart, as two scrapes are. All scrapes in one form that come while a
    rendering runs share the next one, so that any number of them costs no more than two a form.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._turn = trio.Lock()
        self._thread = trio.CapacityLimiter(1)
        self._begun = 0
        self._latest: dict[Form, _Latest] = {}

    def __repr__(self) -> str:
        waiting = self._turn.statistics().tasks_waiting
        return f"<Exposition [renderings: {self._begun}, waiting: {waiting}]>"

    async def render(self, form: Form = Form()) -> bytes:  # noqa: B008 (it is immutable)
        """Return the values as they are now or a little later.

        When cancelled, a rendering that has begun ends in its thread and is thrown away.
        """
        wanted = self._begun + 1
        async with self._turn:
            latest = self._latest.setdefault(form, _Latest())
            if latest.number < wanted:
                self._begun += 1
                number = self._begun
                latest.body = await trio.to_thread.run_sync(
                    _rendered, self._registry, form, abandon_on_cancel=True, limiter=self._thread
                )
                latest.number = number
            return latest.body


def _rendered(registry: CollectorRegistry, form: Form) -> bytes:
    if form.is_open_metrics:
        # Few ask for it, so it is loaded by the first who does.
        from prometheus_client.openmetrics.exposition import generate_latest

        text = generate_latest(_Shown(registry))  # type: ignore[no-untyped-call]
    else:
        text = exposition_text(registry)
    return gzip.compress(text, _GZIP_LEVEL) if form.is_compressed else text


class _Shown:
    """A registry whose labels are as they may be shown."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={k: printable(v) for k, v in sample.labels.items()})
                for sample in family.samples
            ]
            yield family


def exposition_text(registry: CollectorRegistry) -> bytes:
    """Return the registry in the text format 0.0.4.

    Byte for byte what the metrics library writes for counters, gauges and histograms, labels as
    they may be shown, in half the time: a scrape of thousands of series competes with the event
    loop for the interpreter.
    """
    parts: list[str] = []
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        parts.append(f"# HELP {name} {_escaped(family.documentation)}\n")
        parts.append(f"# TYPE {name} {family.type}\n")
        parts.extend([_line(sample) for sample in family.samples])
    return "".join(parts).encode()


def _line(sample: Sample) -> str:
    value = sample.value
    plain = -_PLAIN_BELOW < value < _PLAIN_BELOW
    number = repr(float(value)) if plain else floatToGoString(value)  # type: ignore[no-untyped-call]
    if not sample.labels:
        return f"{sample.name} {number}\n"
    items = sample.labels.items()
    labels = ",".join(
        [f'{k}="{_quoted(v)}"' for k, v in (sorted(items) if len(items) > 1 else items)]
    )
    return f"{sample.name}{{{labels}}} {number}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(printable(text)).replace('"', r"\"")
