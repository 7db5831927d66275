"""Requests to a store that may fail: which errors are worth another try, and how long to wait for it.

Requests are repeated after 5xx answers, timeouts, stalls and short reads, with exponential backoff and full jitter;
every repetition is logged and counted. Messages are cleaned of every credential that the environment holds.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)

ATTEMPTS = 8
"""Times a request is tried before its error is raised."""
BACKOFF_S = 0.2
"""Longest first pause; each further one may be twice as long, up to `MAX_PAUSE_S`."""
MAX_PAUSE_S = 10.0
REMOTE_ADVICE = "Check the bucket, AWS_ENDPOINT_URL and the AWS credentials."
SECRETS = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"),
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)

_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s\"']+(?=@)")
_PERMANENT = re.compile(
    r"HTTP status (?!408|429)4\d\d|ACCESS_DENIED|NO_SUCH_BUCKET|RESOURCE_NOT_FOUND"
    r"|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN|MISSING_AUTHENTICATION"
    r"|NoSuchBucket|AccessDenied|Path does not exist|[Bb]ucket .* not found"
)
_count = 0
_count_lock = threading.Lock()


class StorageError(ValueError):
    """A place that cannot be read or written; two lines: what happened, what to do next."""


class ShortReadError(OSError):
    """Fewer bytes arrived than the store announced; worth another try."""


def is_remote(uri: str) -> bool:
    """Whether a URI names an object store."""
    return uri.startswith("s3://")


def retries() -> int:
    """Requests repeated so far by this process, and by others that told it (`add_retries`)."""
    return _count


def add_retries(count: int) -> None:
    """Count requests that another process repeated on this one's behalf."""
    global _count
    with _count_lock:
        _count += count


def redact(text: str) -> str:
    """Text without the values of the credentials that the environment holds, or that stand in an address."""
    for name in SECRETS:
        secret = os.environ.get(name, "")
        if len(secret) >= 4:
            text = text.replace(secret, f"<{name}>")
    return _IN_ADDRESS.sub("<credentials>", text)


def with_retries(action: Callable[[], T], verb: str, uri: str) -> T:
    """Run a request; repeat it where the store, not the caller, is at fault.

    Args:
        action: the request.
        verb: what it does, for messages.
        uri: what it does it to; local files are never tried twice.

    Raises:
        FileNotFoundError: no such file.
        StorageError: the store refused or kept failing.
    """
    attempt = 1
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise FileNotFoundError(f"no such file: {uri}") from None
        except OSError as error:
            message = redact(" ".join(str(error).split()))
            if not is_remote(uri) or isinstance(error, PermissionError):
                final = True
            else:
                final = bool(_PERMANENT.search(message)) or attempt >= ATTEMPTS
            if final:
                raise StorageError(
                    f"cannot {verb} {uri}: {message[:300]}\n" + _advice(uri, attempt)
                ) from None
            add_retries(1)
            # The pause decides no result, so it may come from the system's own randomness.
            pause = random.SystemRandom().uniform(
                0, min(MAX_PAUSE_S, BACKOFF_S * 2 ** (attempt - 1))
            )
            log.warning("retry %d of %s %s in %.2f s: %s", attempt, verb, uri, pause, message[:120])
            time.sleep(pause)
            attempt += 1


def _advice(uri: str, attempt: int) -> str:
    if is_remote(uri) and attempt >= ATTEMPTS:
        return f"The store failed {attempt} times; check that it is reachable and start again."
    local = "Check the path, its permissions and the free space."
    return REMOTE_ADVICE if is_remote(uri) else local
