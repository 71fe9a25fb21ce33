"""What a bucket's server or the network said, in the words of our errors.

obstore has one class for most failures; the status, the server's own code and the kind of a failed
request stand in its text. All that is known of that text is here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from blobstore.errors import (
    BlobStoreError,
    IncompatibleStoreError,
    InvalidKeyError,
    KeyNotFoundError,
    NotSupportedError,
    Outcome,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>|\(code: (\w+)\)")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_KIND = re.compile(
    r"HttpError \{\s*kind: (?!Unknown\b)(\w+)|\b(error sending request|response body)"
)
_CAUSE = re.compile(r'message: "([^"]+)"')
_NO_RETRY = re.compile(r"retries: 0,")

_DENIED = {
    "AccessDenied": "the credentials do not allow it: check the policy of the bucket and the user",
    "InvalidAccessKeyId": "the server does not know this access key: check s3_access_key",
    "SignatureDoesNotMatch": "the secret key is not that of the access key: check s3_secret_key",
    "ExpiredToken": "the credentials have expired: get new ones, and make a new store",
    "InvalidToken": "the session token is not valid: check session_token",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "AuthorizationHeaderMalformed": "the request was signed for another region: check region",
}
_NO_CREDENTIALS = (
    "no credentials were found: give s3_access_key and s3_secret_key, a profile_name or a client, or "
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
_BUSY = {"SlowDown", "ServiceUnavailable", "TooManyRequests", "RequestLimitExceeded", "ServerBusy"}
_UNAVAILABLE = _BUSY | {"InternalError", "RequestTimeout", "OperationAborted"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}
_CREDENTIAL_SERVICE = ("169.254.169.254", "metadata.google.internal", "/latest/api/token")


@dataclass(frozen=True, slots=True)
class Doing:
    """What was being done when something failed, for the message.

    Attributes
    ----------
    what : str
        "reading 'key'".
    place : str
        "the bucket 'b' at http://...".
    key : str or None
    writes : bool
        Whether the bucket may have been changed by it.
    """

    what: str
    place: str
    key: str | None = None
    writes: bool = False


class ConditionRefusedError(StorageError):
    """The object is not as a conditional request demanded; the store says what that means."""


class RangeRefusedError(StorageError):
    """The object is there, and has no bytes at the range that was asked for."""


class Reply:
    """What can be read from the text of an error of obstore.

    Attributes
    ----------
    status : int or None
        Of HTTP.
    code : str or None
        The server's own.
    kind : str or None
        How a request failed that got no reply.
    """

    __slots__ = ("_text", "code", "kind", "status")

    def __init__(self, exc: BaseException) -> None:
        self._text = text = str(exc)
        status, code = _STATUS.search(text), _CODE.search(text)
        kind = _KIND.search(text)
        self.status = int(status.group(1)) if status else None
        self.code = next(filter(None, code.groups())) if code else None
        # An upload's errors have no such details, only the words.
        self.kind = (kind.group(1) or "Request") if kind and not status else None

    @property
    def is_missing(self) -> bool:
        """Whether there is no such object, or no such bucket: a reply without a text cannot tell."""
        return self.status == 404 and self.code in (
            None,
            "NoSuchKey",
            "NoSuchBucket",
            "BlobNotFound",
        )

    @property
    def is_refused_condition(self) -> bool:
        """Whether the object is not as the request demanded."""
        return self.status in (304, 409, 412) and self.code not in _UNAVAILABLE | _FULL

    def translate(self, doing: Doing) -> BlobStoreError:
        """The error to raise in place of obstore's."""
        if self.is_refused_condition:
            return ConditionRefusedError(self._say(doing, ""), location=doing.key)
        if self.status == 416:
            return RangeRefusedError(self._say(doing, ""), location=doing.key)
        known = self._known(doing) or self._denied(doing) or self._of_place(doing)
        if known is not None:
            return known
        if self._is_unavailable():
            return UnavailableError(
                self._say(doing, "try again later, or check endpoint_url and the network"),
                location=doing.key,
                outcome=self._outcome(doing),
            )
        return StorageError(self._say(doing, ""), location=doing.key)

    def _known(self, doing: Doing) -> BlobStoreError | None:
        code = self.code
        if code in ("NoSuchBucket", "ContainerNotFound"):
            return StorageError(
                f"{doing.what} failed: there is no {doing.place.removeprefix('the ')}. Create it, or "
                "check its name, endpoint_url and region",
                location=doing.key,
            )
        if self.is_missing and doing.key is not None:
            return KeyNotFoundError(f"there is no object {doing.key!r}", location=doing.key)
        if code == "NoSuchUpload":
            gone = "its parts are gone, removed by somebody or by a lifecycle rule: write it again"
            return StorageError(self._say(doing, gone), location=doing.key)
        if code == "KeyTooLongError":
            return InvalidKeyError(self._say(doing, "shorten the key"), location=doing.key)
        if code in _FULL or self.status == 507:
            return OutOfSpaceError(self._say(doing, "free some space"), location=doing.key)
        if self.status == 501:
            return NotSupportedError(self._say(doing, "this server has no such call"))
        return None

    def _denied(self, doing: Doing) -> PermissionDeniedError | None:
        if _names_credentials(self._text):
            return PermissionDeniedError(self._say(doing, _NO_CREDENTIALS), location=doing.key)
        unknown = self.status in (401, 403) or "valid authentication" in self._text
        if self.code in _DENIED or unknown:
            hint = _DENIED.get(self.code or "", "check the credentials and what they allow")
            return PermissionDeniedError(self._say(doing, hint), location=doing.key)
        return None

    def _of_place(self, doing: Doing) -> StorageError | None:
        if "redirect" in self._text or self.code == "PermanentRedirect":
            return StorageError(
                self._say(doing, "the bucket is in another region: check region and endpoint_url"),
                location=doing.key,
            )
        if "invalid path" in self._text:
            return IncompatibleStoreError(
                f"{doing.what} failed: another program has put an object into {doing.place} whose "
                f"name cannot be listed here ({self._reason()}). Rename it, or give the store a prefix "
                "of its own"
            )
        return None

    def _is_unavailable(self) -> bool:
        status = self.status
        if self.code in _UNAVAILABLE or self.kind is not None:
            return True
        return status is not None and (status in (408, 429) or status >= 500)

    def _outcome(self, doing: Doing) -> Outcome:
        """Whether a change may have landed; an earlier try of several is not known to have failed."""
        if not doing.writes:
            return "failed"
        refused = self.kind == "Connect" or self.code in _BUSY or self.status in (429, 503)
        return "failed" if refused and _NO_RETRY.search(self._text) else "unknown"

    def _say(self, doing: Doing, hint: str) -> str:
        return f"{doing.what} in {doing.place} failed: {self._reason()}" + (
            f": {hint}" if hint else ""
        )

    def _reason(self) -> str:
        message, cause = _MESSAGE.search(self._text), _CAUSE.search(self._text)
        if self.code is not None:
            said = message.group(1).strip().rstrip(".")[:200] if message else ""
            return f"{said} ({self.code})" if said else self.code
        if self.status is not None:
            return f"the server answered {self.status}"
        if self.kind == "Timeout" or "TimedOut" in self._text:
            return "no answer in time"
        if cause is not None:
            return cause.group(1)
        if self.kind is not None:
            return "the connection failed"
        return self._text.partition("\n")[0][:300]


def _names_credentials(text: str) -> bool:
    """Whether it was a service for credentials that failed, and not the bucket."""
    return any(service in text for service in _CREDENTIAL_SERVICE)
