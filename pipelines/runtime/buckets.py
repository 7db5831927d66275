"""Buckets: whether one is there and may be used, and making one: `python -m pipelines.runtime.buckets s3://NAME`.

boto3 serves for this only, because it says what is wrong; files go through `dri_iqa.storage`.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import urlsplit

from dri_iqa.retrying import ATTEMPTS, REMOTE_ADVICE, StorageError, is_remote, redact


def check_bucket(uri: str) -> None:
    """Ask the store for the bucket of a URI; local places pass.

    Raises:
        StorageError: no such bucket, no permission, or no answer; the second line says what to do.
    """
    if is_remote(uri):
        _call("head_bucket", uri)


def make_bucket(uri: str) -> None:
    """Create the bucket of a URI where it is missing.

    Raises:
        StorageError: the name is taken or refused, or no answer.
    """
    _call("create_bucket", uri)


def _call(request: str, uri: str) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    name = urlsplit(uri).netloc
    own_endpoint = bool(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
    options: dict[str, Any] = {"retries": {"mode": "standard", "total_max_attempts": ATTEMPTS}}
    if own_endpoint:
        options["s3"] = {"addressing_style": "path"}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    client: Any = boto3.Session().client(  # with the credentials of now
        "s3",
        region_name=region or ("us-east-1" if own_endpoint else None),
        config=Config(connect_timeout=10, read_timeout=10, **options),
    )
    try:
        getattr(client, request)(Bucket=name)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("404", "NoSuchBucket"):
            raise StorageError(
                f"the bucket {name} does not exist\n"
                f"Create it: python -m pipelines.runtime.buckets s3://{name}"
            ) from None
        if code != "BucketAlreadyOwnedByYou":
            raise StorageError(
                f"the bucket {name} cannot be used: {redact(str(error))}\n{REMOTE_ADVICE}"
            ) from None
    except BotoCoreError as error:
        raise StorageError(
            f"the bucket {name} cannot be reached: {redact(str(error))}\n{REMOTE_ADVICE}"
        ) from None
    finally:
        client.close()


if __name__ == "__main__":
    try:
        for place in sys.argv[1:]:
            make_bucket(place)
    except StorageError as problem:
        head, _, rest = str(problem).partition("\n")
        sys.exit(f"error: {head}\nnext: {rest}")
