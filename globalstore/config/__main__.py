"""Print the documented example: ``python -m globalstore.config > configs/global_store.yaml``."""

from globalstore.config.rendering import SHIPPED_CHANGES, example

print(example(SHIPPED_CHANGES), end="")
