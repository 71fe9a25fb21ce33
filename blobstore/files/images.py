"""Pictures: whatever Pillow writes, read whole and within a limit of size."""

from __future__ import annotations

import struct
from typing import Any, ClassVar

from PIL import Image

from blobstore.errors import StorageError, UnsupportedTypeError
from blobstore.files.options import lent, reading, refuse_options
from blobstore.files.trust import growth_limit
from blobstore.handlers.image import load_pixels
from blobstore.limits import bomb, check_pixels
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Sink, Source

_EXACT_IN_PNG = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
_OF_ONE_BYTE = {"1", "L", "P"}
"""Modes of which a pixel takes a byte in memory; in all others it takes up to four."""
_NAMES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


_LOST_IN = {
    ".bmp": ("RGBA", "LA", "PA"),
    ".gif": ("I", "F", "I;16"),
    ".webp": ("I", "F", "I;16"),
}
"""What a format takes and does not hold: transparency, and values of more than 8 bits."""

_WITH_EXIF = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


class ImageFormat(FileFormat):
    """A Pillow image: PNG, or what the key says. JPEG and the like change the pixels a little."""

    name = "image"
    extensions = tuple(_NAMES)
    priority = 60
    type_names: ClassVar[tuple[str, ...]] = (
        "PIL.Image.Image",
        "PIL.JpegImagePlugin.JpegImageFile",
        "PIL.WebPImagePlugin.WebPImageFile",
        "PIL.PngImagePlugin.PngImageFile",
        "PIL.TiffImagePlugin.TiffImageFile",
        "PIL.BmpImagePlugin.BmpImageFile",
        "PIL.GifImagePlugin.GifImageFile",
    )

    def can_handle(self, obj: Any) -> bool:
        """Any picture."""
        return isinstance(obj, Image.Image)

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the picture in the format of the extension.

        Raises
        ------
        StorageError
            It has several frames, of which all but one would be lost, in a pickle too.
        """
        frames = getattr(obj, "n_frames", 1)
        if frames > 1 and obj.format != "MPO":  # a photograph, whose second picture is a helper
            raise StorageError(
                f"{context.key!r}: a picture of {frames} frames, of which only one would be kept: "
                "store the bytes of its file, or a copy() of the frame that you mean",
                key=context.key,
            )
        if context.extension == ".png" and obj.mode not in _EXACT_IN_PNG:
            raise UnsupportedTypeError(
                f"{context.key!r}: PNG does not hold a picture of the mode {obj.mode!r}: convert it, "
                "or name it .tiff"
            )
        load_pixels(obj)
        if obj.mode in _LOST_IN.get(context.extension, ()):
            raise UnsupportedTypeError(
                f"{context.key!r}: a {context.extension} file would lose part of a picture of the mode "
                f"{obj.mode!r}: convert it, or name it .png or .tiff"
            )
        with lent(sink, context) as path, path.open("wb") as file:
            try:
                obj.save(file, _NAMES[context.extension], **_notes(obj, context))
            except (OSError, ValueError, KeyError, TypeError) as exc:
                raise UnsupportedTypeError(
                    f"{context.key!r}: a picture of the mode {obj.mode!r} cannot be written as "
                    f"{context.extension}: {exc}"
                ) from exc

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the picture, pixels and all."""
        refuse_options(context, options)
        with reading(context, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            file = source.open()
            with file, Image.open(file, formats=[_NAMES[context.extension]]) as image:
                width, height = image.size
                check_pixels(width, height)
                limit = growth_limit(context, source.size)
                if width * height * (1 if image.mode in _OF_ONE_BYTE else 4) > limit:
                    raise bomb(repr(context.key), limit)
                image.load()
                return image.copy()


def _exif(obj: Any) -> Any:
    """What the camera noted; as it was read, if Pillow cannot take it apart."""
    try:
        exif = obj.getexif()
        return exif.tobytes() if exif else None
    except (SyntaxError, ValueError, TypeError, KeyError, OverflowError, struct.error):
        return obj.info.get("exif")


def _notes(obj: Any, context: FileContext) -> dict[str, Any]:
    """What is kept beside the pixels: which way is up, and whatever else the camera noted; colours."""
    notes: dict[str, Any] = {}
    if context.extension in _WITH_EXIF and (exif := _exif(obj)):
        notes["exif"] = exif
    if "icc_profile" in obj.info:
        notes["icc_profile"] = obj.info["icc_profile"]
    if "dpi" in obj.info:
        notes["dpi"] = obj.info["dpi"]
    return notes
