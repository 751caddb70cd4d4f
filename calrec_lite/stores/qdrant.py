"""A Qdrant collection: a server's, or a folder in the client's local mode. Extra `[qdrant]`."""

import os
import re
import uuid
from collections.abc import Iterable, Sequence

import pyarrow as pa

from calrec_lite.stores.rows import COLUMNS
from calrec_lite.stores.store import foreign, missing_extra, reaching

PAYLOAD = {*COLUMNS} - {"vector"}
POINTS = 256  # sent at once: below the server's 32 MB
NAMES = 10_000  # read, or removed, at once
HOST = re.compile(r"[\w.-]+:\d+")
NAMESPACE = uuid.UUID("5b0a1d5e-8f6c-5e0f-9d8b-6f1c1b7c4a52")  # of points' ids


def point_id(item: str) -> str:
    """A point's id: Qdrant takes numbers and UUIDs only. The item's own id is in the payload."""
    return str(uuid.uuid5(NAMESPACE, item))


class QdrantStore:
    """See `store.Store`. All columns but the vector are the payload; a key is taken from QDRANT_API_KEY."""

    def __init__(self, to: str, where: str, table: str) -> None:
        try:
            from qdrant_client import QdrantClient, models
            from qdrant_client.http.exceptions import ApiException
        except ImportError:
            raise missing_extra(to, "qdrant") from None
        self.to, self.name, self.models, self.error = to, table, models, ApiException
        self.size: int | None = None
        url = f"http://{where}" if HOST.fullmatch(where) else where if "://" in where else None
        with reaching(to, ApiException):
            if url:
                self.client = QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60)
            else:
                self.client = QdrantClient(path=where)
            if self.client.collection_exists(table):
                self.size = self._size()

    def _size(self) -> int:
        vectors = self.client.get_collection(self.name).config.params.vectors
        points, _ = self.client.scroll(self.name, limit=1)
        if not isinstance(vectors, self.models.VectorParams) or any(set(p.payload or ()) != PAYLOAD for p in points):
            self.client.close()
            raise foreign(self.to)
        return vectors.size

    def known(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.size is None:
            return found
        at = None
        while True:
            with reaching(self.to, self.error):
                points, at = self.client.scroll(
                    self.name, limit=NAMES, offset=at, with_payload=["id", "fingerprint"], with_vectors=False
                )
            found |= {(p.payload or {})["id"]: (p.payload or {})["fingerprint"] for p in points}
            if at is None:
                return found

    def update(self, chunks: Iterable[pa.Table], changed: Sequence[str], gone: Sequence[str]) -> None:
        for chunk in chunks:
            with reaching(self.to, self.error):
                if self.size is None:
                    self.size = chunk.schema.field("vector").type.list_size
                    params = self.models.VectorParams(size=self.size, distance=self.models.Distance.COSINE)
                    self.client.create_collection(self.name, vectors_config=params)
                for batch in chunk.to_batches(POINTS):
                    self._upsert(batch)
        for at in range(0, len(gone), NAMES):
            points = [point_id(item) for item in gone[at : at + NAMES]]
            with reaching(self.to, self.error):
                self.client.delete(self.name, self.models.PointIdsList(points=points))

    def _upsert(self, rows: pa.RecordBatch) -> None:
        vectors = rows["vector"].to_pylist()
        payloads = rows.drop_columns(["vector"]).to_pylist()
        points = [point_id(payload["id"]) for payload in payloads]
        self.client.upsert(self.name, self.models.Batch(ids=points, vectors=vectors, payloads=payloads))

    def close(self) -> None:
        self.client.close()
