"""A disk that is full: the system itself refuses, for a limit on the size of files stands for the end of the disk."""

import io
import resource
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file can become larger for a while; progress bars go elsewhere, for pytest captures them in a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
