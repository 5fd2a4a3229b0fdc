"""The modules of the program as texts."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "globalstore"

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
OURS = sorted(name for name in MODULES if not name.startswith("globalstore.gen"))


def texts_of(tree: ast.AST) -> Iterator[str]:
    """Yield every text of a module, what an f-string puts in left out; docstrings are texts too."""
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                inside.update(values)
                yield "".join(each.value for each in values if isinstance(each, ast.Constant))
            case ast.Constant(value=str(text)) if node not in inside:
                yield text
