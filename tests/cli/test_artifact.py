"""``globalstore artifact``: what it prints of a running server."""

import json
from pathlib import Path

from server_process import running
from test_key import INDEX, command, describe, key

from globalstore.rules import multihash


def test_an_artifact_is_shown_with_what_points_at_it(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        describe(process, "model-a", "model-b", "other")
        key(process, "set", "live", "model-a")
        code, out, _ = command("artifact", process, "show", "model-a")
        assert code == 0
        facts = dict(line.split(":", 1) for line in out.splitlines())
        facts = {name: value.strip() for name, value in facts.items()}
        assert facts.pop("created") == facts.pop("updated")
        assert facts == {
            "artifact": "model-a",
            "index": multihash.of(INDEX),
            "index size": f"{len(INDEX)} bytes",
            "replicas": "0, 0 of them available",
            "keys": "live",
        }
        code, out, _ = command("artifact", process, "show", "model-a", "--output=json")
        shown = json.loads(out)
        assert shown["keys"] == ["live"]
        assert shown["artifact"]["index_size"] == len(INDEX)

        code, out, _ = command("artifact", process, "list", "model-")
        head, *rows = [line.split() for line in out.splitlines()]
        assert head == ["artifact", "kind", "index", "size", "replicas"]
        assert rows == [[name, "-", "stored", "-", "0/0"] for name in ("model-a", "model-b")]
        _, out, _ = command("artifact", process, "list", "--limit=2", "--output=json")
        assert [each["artifact_id"] for each in json.loads(out)] == ["model-a", "model-b"]
        _, out, error = command("artifact", process, "list", "--limit=2")
        assert len(out.splitlines()) == 3
        assert error == "artifact list: there are more; these are 2 of them\n"

        code, out, error = command("artifact", process, "show", "unknown")
        assert (code, out) == (1, "")
        assert error == "artifact show: NOT_FOUND: nothing is known of an artifact 'unknown'\n"
