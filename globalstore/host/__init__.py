"""What the operating system gives and refuses: files, and refusals in an operator's words."""

from globalstore.host.access import Access, access_by_others
from globalstore.host.errors import causes, cure, is_host_error, may_pass, reason
from globalstore.host.files import (
    check_directories,
    check_file_to_write,
    identity_of,
    make_directories,
    read_bounded,
    sync_directory,
)
from globalstore.host.steps import HostRefused, host_step, told

__all__ = [
    "Access",
    "HostRefused",
    "access_by_others",
    "causes",
    "check_directories",
    "check_file_to_write",
    "cure",
    "host_step",
    "identity_of",
    "is_host_error",
    "make_directories",
    "may_pass",
    "read_bounded",
    "reason",
    "sync_directory",
    "told",
]
