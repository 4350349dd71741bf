"""Embedding models of the sentence-transformers library, loaded by this process.

The only module that imports torch, in its worker thread and when the model is first needed: an idle service stays
small.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from services.llm.backends.batching import Batches, Encoded
from services.llm.backends.hub import FindFile
from services.llm.domain.errors import ModelMisconfiguredError, UnsupportedError
from services.llm.domain.model import Generation, Message, Piece, Vectors

log = structlog.get_logger(__name__)


class SentenceTransformers:
    """An embedding model. Vectors have length one. Calls at the same time share batches (`batching`)."""

    kind = "sentence_transformers"
    context_length = 0

    def __init__(self, name: str, find_folder: FindFile, *, threads: int) -> None:
        """`find_folder` gives the model's folder; `threads` are torch's, for all models of the process."""
        self._name = name
        self._find_folder = find_folder
        self._threads = threads
        self._dimension = 0
        self._model: Any = None
        self._loading: asyncio.Task[None] | None = None
        # One thread: a batch uses all of torch's threads by itself.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"embed-{name}")
        self._batches = Batches(self._encode)

    @property
    def dimension(self) -> int:
        """Known once the model is loaded."""
        return self._dimension

    async def load(self) -> None:
        """Load the model; callers share one loading, which goes on when one of them gives up."""
        if self._model is not None:
            return
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
            self._loading.add_done_callback(self._loaded)
        await asyncio.shield(self._loading)

    async def check(self) -> bool:
        """Loaded, or its folder is there."""
        if self._model is None:
            await self._find_folder()
        return True

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length one; texts longer than the model reads are cut. Loads the model when need be."""
        await self.load()
        encoded = await self._batches.submit(texts)
        return Vectors(b"".join(one.vector for one in encoded), self._dimension, sum(one.tokens for one in encoded))

    async def count_tokens(self, content: str | tuple[Message, ...]) -> int:
        """Tokens of a text, before any cut. Messages have no meaning here."""
        if not isinstance(content, str):
            raise UnsupportedError(self._name, "read messages, only text: it is an embedding model")
        await self.load()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._count, content)

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Raise UnsupportedError."""
        raise UnsupportedError(self._name, "write text: it is an embedding model")
        yield Piece()  # what makes this a generator

    async def close(self) -> None:
        """Drop what waits. A batch or a loading under way is not waited for."""
        if self._loading is not None:
            self._loading.cancel()
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> None:
        folder = await self._find_folder()
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        self._model = await loop.run_in_executor(self._worker, self._load_here, folder)
        self._dimension = int(self._model.get_embedding_dimension())
        log.info("model_loaded", model=self._name, seconds=round(time.monotonic() - started, 3))

    def _loaded(self, task: asyncio.Task[None]) -> None:
        self._loading = None
        if not task.cancelled() and task.exception() is not None:
            log.warning("model_not_loaded", model=self._name, error=str(task.exception()))

    def _load_here(self, folder: Path) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(self._threads)
        try:
            return SentenceTransformer(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelMisconfiguredError(
                self._name, f"{folder} holds no model that sentence-transformers can load: {str(error)[:300]}"
            ) from error

    async def _encode(self, texts: list[str]) -> list[Encoded]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._encode_here, texts)

    def _encode_here(self, texts: list[str]) -> list[Encoded]:
        vectors = self._model.encode(
            texts, batch_size=len(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        rows = vectors.astype("<f4", copy=False)
        limit = self._model.max_seq_length
        counts = [len(ids) for ids in self._model.tokenizer(texts)["input_ids"]]
        return [
            Encoded(row.tobytes(), min(count, limit) if limit else count)
            for row, count in zip(rows, counts, strict=True)
        ]

    def _count(self, text: str) -> int:
        return len(self._model.tokenizer(text)["input_ids"])
