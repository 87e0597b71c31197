"""The store in an S3 bucket, or anything that speaks S3 (MinIO, Ceph RGW), through boto3."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from trainer.object_store import TEMPORARY, ConflictError, MissingError, StoreError, WholeFile, safe_key

LARGEST_PUT = 5 * 2**30
"""Bytes that one PUT may carry (S3's limit). What is larger goes in parts, after a look whether the key is taken."""


class S3Store:
    """Keys below `prefix` in one bucket.

    `put` uses a conditional PUT (`If-None-Match: *`), which is atomic. Where a service refuses the header, and for
    files above LARGEST_PUT, the key is looked up first: not atomic, for another writer may come between asking and
    writing. Attempts write under their own number, so nobody does.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        client: Any = None,
        **session: Any,
    ):
        self.bucket, self.prefix = bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self.conditional = True
        self.client = client or _client(endpoint_url, session)

    def put(self, key: str, data: bytes) -> None:
        self._put(key, data, (len(data), hashlib.sha256(data).hexdigest()))

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            file.seek(0)
            if size <= LARGEST_PUT:
                self._put(key, file, (size, digest))
            elif not self._same(key, (size, digest)):
                self.client.upload_fileobj(file, self.bucket, self.prefix + safe_key(key))

    def _put(self, key: str, body: Any, digest: tuple[int, str]) -> None:
        name = self.prefix + safe_key(key)
        for _ in range(5):
            if not self.conditional and self._same(key, digest):
                return
            condition = {"IfNoneMatch": "*"} if self.conditional else {}
            try:
                self.client.put_object(Bucket=self.bucket, Key=name, Body=body, **condition)
                return
            except self.client.exceptions.ClientError as error:
                status, code = _status(error)
                if hasattr(body, "seek"):
                    body.seek(0)
                if (status == 412 or code == "PreconditionFailed") and self._same(key, digest):
                    return
                if condition and (status == 501 or code in ("NotImplemented", "InvalidArgument")):
                    self.conditional = False
                elif status not in (409, 412):  # 409: another conditional PUT of this key is under way
                    raise self._refused(key, "write", error) from error
        raise StoreError(f"{key}: {self.uri} is being written by somebody else")

    def _same(self, key: str, digest: tuple[int, str]) -> bool:
        """True if the object exists with these bytes, False if it does not exist; ConflictError otherwise."""
        try:
            found = self.digest(key)
        except MissingError:
            return False
        if found != digest:
            raise ConflictError(f"{key}: exists in {self.uri} with other bytes")
        return True

    def _open(self, key: str, **condition: str) -> Any:
        try:
            return self.client.get_object(Bucket=self.bucket, Key=self.prefix + safe_key(key), **condition)["Body"]
        except self.client.exceptions.ClientError as error:
            raise self._missing(key, error) from None

    def _missing(self, key: str, error: Any) -> StoreError:
        status, code = _status(error)
        if code != "NoSuchBucket" and (status == 404 or code == "NoSuchKey"):
            return MissingError(f"{key}: not in {self.uri}")
        return self._refused(key, "read", error)

    def _refused(self, key: str, what: str, error: Any) -> StoreError:
        if _status(error)[1] == "NoSuchBucket":
            return StoreError(f"{self.uri}: no such bucket; create it first")
        return StoreError(f"{key}: {self.uri} refused the {what}: {error}")

    def get(self, key: str) -> bytes:
        return self._open(key).read()

    def exists(self, key: str) -> bool:
        try:
            self.client.head_object(Bucket=self.bucket, Key=self.prefix + safe_key(key))
        except self.client.exceptions.ClientError as error:
            if isinstance(reason := self._missing(key, error), MissingError):
                return False
            raise reason from None
        return True

    def entries(self, prefix: str = "") -> list[tuple[str, int, str]]:
        """(key, bytes, ETag) of all objects whose key begins with `prefix`, sorted; an object that is replaced gets
        another ETag."""
        lister = self.client.get_paginator("list_objects_v2")
        pages = lister.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
        items = [item for page in pages for item in page.get("Contents", ())]
        found = [(item["Key"].removeprefix(self.prefix), item["Size"], item["ETag"]) for item in items]
        return sorted(item for item in found if not item[0].rpartition("/")[2].startswith(TEMPORARY))

    def list(self, prefix: str = "") -> list[str]:
        return [key for key, _, _ in self.entries(prefix)]

    def fetch(self, key: str, path: str | os.PathLike[str], etag: str | None = None) -> None:
        """As of `Store`; with `etag` only the object that has it, StoreError where another has taken its place."""
        body = self._open(key, IfMatch=etag) if etag else self._open(key)
        with WholeFile(path) as temporary, Path(temporary).open("wb") as out:
            for block in body.iter_chunks(1 << 20):
                out.write(block)

    def tags_are_md5(self, key: str) -> bool:
        """Whether an ETag of 32 hex digits is the MD5 of the object: not where a key service encrypts it."""
        head = self.client.head_object(Bucket=self.bucket, Key=self.prefix + safe_key(key))
        return not head.get("ServerSideEncryption", "").startswith("aws:kms") and "SSECustomerAlgorithm" not in head

    def link(self, key: str, seconds: int) -> str:
        """An address that gives the object to whoever has it, for so long."""
        named = {"Bucket": self.bucket, "Key": self.prefix + safe_key(key)}
        return self.client.generate_presigned_url("get_object", Params=named, ExpiresIn=seconds)

    def digest(self, key: str) -> tuple[int, str]:
        size, sha256 = 0, hashlib.sha256()
        for block in self._open(key).iter_chunks(1 << 20):
            size += len(block)
            sha256.update(block)
        return size, sha256.hexdigest()


def _client(endpoint_url: str | None, session: dict[str, Any]) -> Any:
    import boto3  # 0.3 s to import, so only where S3 is used
    from botocore.config import Config

    endpoint = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        signature_version="s3v4",  # boto3 signs links by the older way, which AWS's newer regions refuse
        # boto3's default checksum trailers are refused by many S3-compatible services.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "max_attempts": 5},
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    session.setdefault("region_name", region or "us-east-1")
    return boto3.client("s3", endpoint_url=endpoint, config=config, **session)


def _status(error: Any) -> tuple[int, str]:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return (int(code) if re.fullmatch(r"\d{3}", code) else status), code
