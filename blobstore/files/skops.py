"""Estimators of scikit-learn, as skops writes them: a zip of JSON and arrays that runs nothing."""

from __future__ import annotations

from typing import Any

from blobstore.files.options import refuse_options
from blobstore.files.trust import FileTrust, ZipSigner
from blobstore.handlers.skops import SkopsHandler
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import BytesSource, MemorySink, Sink, Source

_PLAIN = WriteOptions("none", 1)


class SkopsFormat(FileFormat):
    """An estimator, pipelines and searches too; what skops would change is left to pickle.

    A file that is not the reader's own loads what skops knows to be harmless, and trusted types.
    """

    name = "skops"
    extensions = (".skops",)
    priority = 22

    def can_handle(self, obj: Any) -> bool:
        """Whether it is an estimator; writing finds out whether skops takes it."""
        return SkopsHandler().can_handle(obj)

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the file, and what the reader will know it by.

        Raises
        ------
        UnsupportedTypeError
            skops is not installed, or would not give it back as it is.
        """
        (part,) = SkopsHandler().plan(obj, _PLAIN).parts
        with MemorySink() as written:
            part.write(written)
        signer = ZipSigner(sink, FileTrust.of(context), context.key)
        signer.write(written.content)
        signer.finish()

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the estimator."""
        refuse_options(context, options)
        held = BytesSource(source.read())  # once: what is loaded is what was checked
        trust = FileTrust.of(context).trust_in(held, context.key, "an estimator", zipped=True)
        handler = SkopsHandler()
        part = StoredPart("data", held, "none", handler.name, handler.format_version, trust=trust)
        return handler.read({"data": part}, {})
