"""An async class for each class of stores, made on first use; and the way there and back.

A store given to a constructor is replaced by one without ``await``: a face by the store that it is
the face of, so that one hop serves a whole stack; a native asynchronous store by a bridge.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import io
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from typing import Any, BinaryIO, ClassVar, TypeGuard, cast

from blobstore.aio.bridge import SyncBridge
from blobstore.aio.face import AsyncFace
from blobstore.aio.face_streams import ThreadReader
from blobstore.aio.store import AsyncObjectStore
from blobstore.aio.threads import DEFAULT_LIMIT, Threads
from blobstore.errors import ConfigError
from blobstore.protocols import ObjectStore

_HOOKS = frozenset(
    {"transform", "reverse_transform"}
    | {"transform_key", "reverse_transform_key", "transform_prefix"}
)
"""What the bases of wrappers let their subclasses write; it does no I/O."""


class AsyncClass(AsyncFace):
    """Base of the classes that `async_class` makes: takes what the class of the store takes.

    Parameters
    ----------
    *args, **kwargs
        Those of `sync_class`; stores among them may be asynchronous ones, in lists, tuples and
        dictionaries too. They are taken over.
    limit : int
        Calls that are done at once.

    Attributes
    ----------
    sync_class : type
        The class whose face it is.

    Notes
    -----
    The constructor itself is not awaited. Where it looks at a file that may be slow to reach, call
    it in a thread: ``await asyncio.to_thread(AsyncZipStore, path)``.
    """

    sync_class: ClassVar[type[ObjectStore]]
    _store_takes_limit: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        limit = DEFAULT_LIMIT
        if not self._store_takes_limit:  # then it is for the store, and `over` takes the face's
            limit = kwargs.pop("limit", limit)
        taken = Taken()
        store = self.sync_class(*taken.replace(args), **taken.replace(kwargs))
        self._set_up(store, limit, bridges=taken.bridges.values(), inner=taken.threads)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is async_class(self.sync_class):
            return _blank, (self.sync_class,), self.__getstate__()
        return super().__reduce_ex__(protocol)

    async def _extra(self, name: str, args: Any, kwargs: Any) -> Any:
        """Call a method that only this kind of store has."""
        work = self._extra_work(name, args, kwargs)
        result = await self._threads.run(work, undo=_let_go)
        return ThreadReader(self._threads, result) if _is_file(result) else result

    def _extra_work(self, name: str, args: Any, kwargs: Any) -> Callable[[], Any]:
        taken = Taken(self._bridges)
        args, kwargs = taken.replace(args), taken.replace(kwargs)
        self._look_after(taken.bridges.values(), taken.threads)
        return lambda: getattr(self.sync_store, name)(*args, **kwargs)


class Taken:
    """Replaces stores that are awaited, and collects what has to be looked after.

    Parameters
    ----------
    bridges : iterable of SyncBridge
        Those that there are already.

    Attributes
    ----------
    bridges : dict of int to SyncBridge
        By the identity of the store that each is made of.
    threads : list of Threads
        Of the faces that were replaced.
    """

    def __init__(self, bridges: Iterable[SyncBridge] = ()) -> None:
        self.bridges = {id(bridge.async_store): bridge for bridge in bridges}
        self.threads: list[Threads] = []

    def replace(self, value: Any) -> Any:
        """Replace a store, or those inside a list, tuple, dictionary or generator."""
        if isinstance(value, AsyncFace):
            return self._take_face(value)
        if isinstance(value, AsyncObjectStore):
            # The same one twice is the same store.
            return self.bridges.setdefault(id(value), SyncBridge(value))
        if isinstance(value, SyncBridge):
            self.bridges.setdefault(id(value.async_store), value)
        elif isinstance(value, Generator):
            return map(self.replace, value)
        elif isinstance(value, dict):
            return _same_unless_changed(
                value, {name: self.replace(item) for name, item in value.items()}
            )
        elif isinstance(value, list):
            return _same_unless_changed(value, [self.replace(item) for item in value])
        elif isinstance(value, tuple):
            return _same_unless_changed(value, tuple(self.replace(item) for item in value))
        return value

    def _take_face(self, face: AsyncFace) -> ObjectStore:
        store, bridges, threads = face.give_away()
        for bridge in bridges:
            self.bridges.setdefault(id(bridge.async_store), bridge)
        self.threads += threads
        return store


def _same_unless_changed(before: Any, after: Any) -> Any:
    """Keep what has no store in it, which may be of a class of its own."""
    old = before.values() if isinstance(before, dict) else before
    new = after.values() if isinstance(after, dict) else after
    return before if all(a is b for a, b in zip(old, new, strict=True)) else after


# --- making classes --------------------------------------------------------------------------------

_made: dict[type[ObjectStore], type[AsyncClass]] = {}
_making = threading.Lock()


def async_class(cls: type[ObjectStore]) -> type[AsyncClass]:
    """The async face of a class of stores: takes the same arguments, and `limit`.

    Public methods that the class has beyond the interface are there too, to be awaited; those that
    its attribute `not_io` names are called as they are. Generators become asynchronous ones, and
    files that are opened become an `AsyncReader`.

    Parameters
    ----------
    cls : type
        A subclass of `ObjectStore`.

    Returns
    -------
    type
        Always the same one; a subclass of `AsyncFace` with `sync_class`.

    Raises
    ------
    ConfigError
        It is no such class.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> class CountingStore(DictStore):
    ...     def count(self):
    ...         return len(list(self.keys()))
    >>> async def main():
    ...     async with async_class(CountingStore)() as store:
    ...         await store.put("key", b"1")
    ...         return await store.count()
    >>> asyncio.run(main())
    1
    """
    candidate: object = cls
    if not (isinstance(candidate, type) and issubclass(candidate, ObjectStore)):
        raise ConfigError(f"async_class takes a subclass of ObjectStore, not {cls!r}")
    with _making:
        found = _made.get(cls)
        if found is None:
            found = _made[cls] = _make(cls)
        return found


def _make(cls: type[ObjectStore]) -> type[AsyncClass]:
    ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    namespace: dict[str, Any] = {
        "__doc__": _describe(cls),
        "__module__": __package__ if ours else cls.__module__,
        "__signature__": _signature(cls),
        "sync_class": cls,
        "_store_takes_limit": "limit" in inspect.signature(cls).parameters,
    }
    direct = _HOOKS.union(*(vars(base).get("not_io", ()) for base in cls.__mro__))
    for name in dir(cls):
        if not name.startswith("_") and not hasattr(ObjectStore, name):
            extra = _extra(cls, name, is_direct=name in direct)
            if extra is not None and not hasattr(AsyncClass, name):
                namespace[name] = extra
    made = type(f"Async{cls.__name__}", (AsyncClass,), namespace)
    return cast("type[AsyncClass]", made)


def _extra(cls: type[ObjectStore], name: str, *, is_direct: bool) -> Any:
    """What the face has for an attribute of the class; None for what stays with the store."""
    attribute = inspect.getattr_static(cls, name)
    if isinstance(attribute, property):
        return property(lambda self: getattr(self.sync_store, name), doc=attribute.__doc__)
    if isinstance(attribute, classmethod):
        return classmethod(_class_method(attribute.__func__, name))
    if isinstance(attribute, staticmethod):
        return attribute
    if not inspect.isfunction(attribute):
        return None
    if is_direct:
        return _direct_method(attribute, name)
    if inspect.isgeneratorfunction(attribute):
        return _generator_method(attribute, name)
    return _awaited_method(attribute, name)


def _awaited_method(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    async def awaited(self: AsyncClass, /, *args: Any, **kwargs: Any) -> Any:
        return await self._extra(name, args, kwargs)

    return awaited


def _generator_method(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def iterated(self: AsyncClass, /, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        work: Callable[[], Iterator[Any]] = self._extra_work(name, args, kwargs)
        return self._threads.iterate(work)

    return iterated


def _direct_method(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def direct(self: AsyncClass, /, *args: Any, **kwargs: Any) -> Any:
        return self._extra_work(name, args, kwargs)()

    return direct


def _class_method(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def of_class(cls: type[AsyncClass], /, *args: Any, **kwargs: Any) -> Any:
        taken = Taken()
        result = getattr(cls.sync_class, name)(*taken.replace(args), **taken.replace(kwargs))
        if not isinstance(result, ObjectStore):
            return result
        face = cls.__new__(cls)
        face._set_up(  # noqa: SLF001 - one of us
            result, DEFAULT_LIMIT, bridges=taken.bridges.values(), inner=taken.threads
        )
        return face

    return of_class


def _describe(cls: type[ObjectStore]) -> str:
    what = (inspect.getdoc(cls) or "").partition("\n")[0]
    return (
        f"`{cls.__name__}`, awaited. {what}\n\n"
        f"Takes the arguments of `{cls.__name__}`, and `limit`: calls that are done at once. Stores "
        "among them may be asynchronous ones."
    )


def _signature(cls: type[ObjectStore]) -> inspect.Signature:
    signature = inspect.signature(cls)
    limit = inspect.Parameter(
        "limit", inspect.Parameter.KEYWORD_ONLY, default=DEFAULT_LIMIT, annotation=int
    )
    parameters = {"limit": limit, **signature.parameters}
    ordered = sorted(parameters.values(), key=lambda parameter: parameter.kind)
    return signature.replace(parameters=ordered)


def _is_file(result: object) -> TypeGuard[BinaryIO]:
    return isinstance(result, io.IOBase)


def _let_go(result: object) -> None:
    if _is_file(result):
        result.close()


def _blank(cls: type[ObjectStore]) -> AsyncClass:
    made = async_class(cls)
    return made.__new__(made)


# --- there and back --------------------------------------------------------------------------------


def to_async(store: ObjectStore | AsyncFace, *, limit: int = DEFAULT_LIMIT) -> AsyncFace:
    """Make the async face of a store that there is already.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with the face. A face is returned as it is.
    limit : int
        Calls that are done at once.

    Raises
    ------
    ConfigError
        `store` is no object store, or is awaited without being a face.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> to_async(DictStore())
    AsyncDictStore()
    """
    if isinstance(store, AsyncFace):
        return store
    if not isinstance(store, ObjectStore):
        raise ConfigError(f"to_async takes an ObjectStore without await, not {store!r}")
    return async_class(type(store)).over(store, limit=limit)


def to_sync(
    store: AsyncObjectStore | ObjectStore, loop: asyncio.AbstractEventLoop | None = None
) -> ObjectStore:
    """Make an object store without ``await`` of one that is awaited.

    A face gives the store that it is the face of. The calls of any other are done on its event
    loop, and have to be made in other threads than the loop's own.

    Parameters
    ----------
    store : AsyncObjectStore
        Taken over: it is closed with the result.
    loop : asyncio.AbstractEventLoop, optional
        Where it runs; by default where the store around it is awaited.

    Raises
    ------
    ConfigError
        It is no store.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> to_sync(to_async(DictStore()))
    DictStore()
    """
    if isinstance(store, ObjectStore):
        return store
    if isinstance(store, AsyncFace):
        return store.sync_store
    return SyncBridge(store, loop)
