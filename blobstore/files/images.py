"""Pictures: whatever Pillow writes, read whole and within a limit of size."""

from __future__ import annotations

from typing import Any, ClassVar

from PIL import Image

from blobstore.errors import StorageError, UnsupportedTypeError
from blobstore.files.options import reading, refuse_options
from blobstore.files.trust import growth_limit
from blobstore.limits import bomb, check_pixels
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Sink, Source

_EXACT_IN_PNG = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
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
        with sink.path().open("wb") as file:
            try:
                obj.save(file, _NAMES[context.extension])
            except (OSError, ValueError, KeyError) as exc:
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
                if width * height * len(image.getbands()) > limit:
                    raise bomb(repr(context.key), limit)
                image.load()
                return image.copy()
