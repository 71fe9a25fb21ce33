"""Images of Pillow: PNG for the modes that it holds exactly, else the pixels as they are.

An image comes back of its own class (that of the file format it was opened from, too), with its mode,
size, palette, pixels and `info`. Of an animation the frame that it shows is kept.
"""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from PIL import Image, ImageFile, PngImagePlugin

from blobstore.digest import Canonical
from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.handlers.options import refuse_options
from blobstore.handlers.sink_file import SinkFile
from blobstore.handlers.stream import StreamPart, read_stream
from blobstore.handlers.tree import Tree, decode_plain
from blobstore.limits import bomb, check_pixels
from blobstore.protocols import Encoding, Handler, Plan, PlannedPart, StoredPart, WriteOptions
from blobstore.streams import Hasher, Sink

_PNG_MODES = frozenset({"1", "L", "LA", "RGB", "RGBA", "I;16"})
_WITH_PALETTE = frozenset({"P", "PA"})
_PLUGIN = re.compile(r"PIL\.\w+ImagePlugin")
_MAX_INFO = 1 << 16
_LOADING = threading.Lock()
"""An image that is read from its file by two threads at once is damaged."""

_COMMON_STATE = 5
"""Items of the state that all images have; more are of the class."""

_MALFORMED = (OSError, ValueError, SyntaxError, TypeError, KeyError, OverflowError, EOFError)
"""What Pillow raises for what is no image."""


class ImageHandler(Handler):
    """`PIL.Image.Image`, and images that Pillow opened from files.

    Examples
    --------
    >>> plan = ImageHandler().plan(Image.new("RGB", (640, 480)), WriteOptions())
    >>> plan.info["mode"], plan.info["size"], plan.parts[0].encoding().extension
    ('RGB', [640, 480], '.png')
    """

    name: ClassVar[str] = "image"
    type_names: ClassVar[tuple[str, ...]] = ()
    base_names: ClassVar[tuple[str, ...]] = ("PIL.Image.Image",)

    def can_handle(self, obj: Any) -> bool:
        """Whether it is an image of Pillow's own classes."""
        cls = type(obj)
        return cls is Image.Image or (isinstance(obj, Image.Image) and _class_of(cls) is cls)

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Load the pixels, if they were not yet.

        Raises
        ------
        UnsupportedTypeError
            Something in its `info` has no exact form as JSON, or is large; or the pixels cannot be
            read, or are so many that `read` would refuse them.
        """
        if not self.can_handle(obj):
            raise UnsupportedTypeError(f"{type(obj)!r} is no image")
        load_pixels(obj)
        try:
            check_pixels(*obj.size)
        except DecodeError as exc:  # `read` would refuse it; a pickle is signed, and has no limit
            raise UnsupportedTypeError(str(exc)) from exc
        info = {
            "class": f"{type(obj).__module__}.{type(obj).__qualname__}",
            "mode": obj.mode,
            "size": list(obj.size),
            "info": _plain(obj.info, options),
            "palette": _plain(_palette(obj), options),
        }
        if type(obj) is not Image.Image:
            info["state"] = _plain(obj.__getstate__()[_COMMON_STATE:], options)
        if obj.mode in _PNG_MODES and all(obj.size):
            part: PlannedPart = _PngPart(obj, info, options)
        else:
            data = obj.tobytes()
            part = StreamPart(
                self.name,
                "data",
                (data,),
                options,
                extension=".pixels",
                digest=lambda hasher: _digest(hasher, info, data),
            )
        return Plan("image", info, (part,))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Rebuild an image.

        Raises
        ------
        DecodeError
            The part is no image, or another one than `info` says; or it has more pixels than the
            reader allows.
        """
        refuse_options(self, options)
        try:
            part, mode = parts["data"], str(info["mode"])
            width, height = map(int, info["size"])
            size = (width, height)
            if not part.trust.everything:
                check_pixels(width, height)
            cls = _named(info["class"])
            palette, notes = decode_plain(info["palette"]), decode_plain(info["info"])
            state = decode_plain(info.get("state", []))
        except (KeyError, TypeError, ValueError) as exc:
            raise DecodeError(f"an image was stored with a wrong description: {exc}") from exc
        try:
            found = _read_pixels(part, mode, size)
            if palette is not None:
                found.putpalette(palette["colours"], palette["mode"])
            made = found if cls is Image.Image else _of_class(cls, found, palette, state)
            made.info = notes
        except _MALFORMED as exc:
            raise DecodeError(f"what is stored is no image: {exc}") from exc
        return made


def load_pixels(image: Any) -> None:
    """Read the pixels of an image that was only opened; threads may share it.

    Raises
    ------
    UnsupportedTypeError
    """
    try:
        with _LOADING:
            image.load()
    except _MALFORMED as exc:
        raise UnsupportedTypeError(f"the image cannot be read: {exc}") from exc


class _PngPart(PlannedPart):
    """Pixels about to become a PNG file."""

    handler = ImageHandler.name

    def __init__(self, image: Any, info: Mapping[str, Any], options: WriteOptions) -> None:
        self._image = image
        self._info = info
        self._packs = options.codec != "none"
        self._level = options.level if self._packs else 0
        width, height = image.size
        self.size_hint = width * height * len(image.getbands())

    def digest(self, hasher: Hasher) -> None:
        """Feed the description and the pixels."""
        _digest(hasher, self._info, self._image.tobytes())

    def encoding(self) -> Encoding:
        """PNG compresses by itself, like gzip."""
        return Encoding("gzip" if self._packs else "none", ".png")

    def write(self, sink: Sink) -> None:
        """Write the file, without anything but the pixels in it."""
        bare = self._image.copy()
        bare.info = {}
        bare.save(SinkFile(sink), "PNG", compress_level=self._level)


def _digest(hasher: Hasher, info: Mapping[str, Any], pixels: bytes) -> None:
    Canonical(hasher).add(("blobstore.image", 1, dict(info)))
    hasher.update(pixels)


def _plain(value: Any, options: WriteOptions) -> Any:
    tree = Tree(value, options)
    if tree.parts or tree.names_classes or len(json.dumps(tree.root)) > _MAX_INFO:
        raise UnsupportedTypeError("what comes with the image is too large or no plain values")
    return tree.root


def _palette(image: Any) -> dict[str, Any] | None:
    palette = image.palette
    if image.mode not in _WITH_PALETTE:
        if palette is not None:
            raise UnsupportedTypeError(f"an image of the mode {image.mode} with a palette")
        return None
    mode = "RGBA" if palette is not None and palette.mode == "RGBA" else "RGB"
    return {"mode": mode, "colours": bytes(image.getpalette(mode))}


def _class_of(cls: type) -> Any:
    """The class of that name in Pillow, if it has one: of no other library is any imported."""
    if not _PLUGIN.fullmatch(cls.__module__):
        return None
    return getattr(importlib.import_module(cls.__module__), cls.__qualname__, None)


def _named(name: str) -> Any:
    module, _, word = name.rpartition(".")
    if (module, word) == ("PIL.Image", "Image"):
        return Image.Image
    if not _PLUGIN.fullmatch(module):
        raise DecodeError(f"an image is stored as {name!r}, which is none of Pillow's classes")
    try:
        found = getattr(importlib.import_module(module), word, None)
    except ImportError as exc:
        raise DecodeError(f"an image is stored as {name!r}, which this Pillow has not") from exc
    if not (isinstance(found, type) and issubclass(found, ImageFile.ImageFile)):
        raise DecodeError(f"an image is stored as {name!r}, which is none of Pillow's classes")
    return found


def _of_class(cls: Any, image: Any, palette: Any, state: list[Any]) -> Any:
    """The same image as one that was opened from a file; this is what Pillow unpickles it by."""
    made = cls.__new__(cls)
    made.__setstate__([{}, image.mode, image.size, None, image.tobytes(), *state])
    if palette is not None:
        made.putpalette(palette["colours"], palette["mode"])
    return made


def _read_pixels(part: StoredPart, mode: str, size: tuple[int, int]) -> Any:
    with part.source.open() as file:
        if mode not in _PNG_MODES or not all(size):
            data = read_stream(part)
            return Image.frombytes(mode, size, data)
        # Not by Image.open, which knows more formats, and warns of images of a certain size.
        with PngImagePlugin.PngImageFile(file) as image:
            if (image.mode, image.size) != (mode, size):
                raise DecodeError(f"an image of {image.mode} {image.size} is not {mode} {size}")
            width, height = image.size
            limit = part.trust.growth_limit(part.source.size)
            if width * height * len(image.getbands()) > limit:
                raise bomb("an image", limit)
            image.load()
            return image.copy()
