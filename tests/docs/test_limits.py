"""The page of limits says what the server does."""

import attrs
from limits_page import PAGE, page

from globalstore.api.bounds.fields import COUNTS, MESSAGES, SIZES
from globalstore.rpc.limits import Limits


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text() == page(), "uv run python tests/docs/limits_page.py > docs/limits.md"


def test_every_bound_and_every_limit_is_on_the_page() -> None:
    text = PAGE.read_text()
    for full_name in (*SIZES, *COUNTS, *MESSAGES):
        assert f"{full_name.rpartition('.')[2]}`" in text
    for limit in attrs.fields(Limits):
        assert f"| `{limit.name}` |" in text


def test_every_limit_has_its_reason() -> None:
    for line in PAGE.read_text().splitlines():
        if line.startswith("| "):
            assert line.count("|  |") <= 1
            assert line.endswith(" |")
