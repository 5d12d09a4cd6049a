"""Removing secrets from the URLs of a text, before it reaches a file, a log, MLflow or the screen."""

from __future__ import annotations

import re

HIDDEN = "***"
"""Stands for a value that was removed."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}://\S*")
_BETWEEN_URLS = re.compile(
    r"(::|[,;|\"'<>(){}\[\]]{1,9})(?=(?:https?|file|s3a?|gs|gcs|abfss?|az|adl|wasbs?|hdfs|s?ftp|memory|zip|tar"
    r"|sqlite|postgres(?:ql)?|mysql|mssql)(?:\+\w+)?://)"
)
"""Separators of two URLs without white space between them: in fsspec's chains, in lists, in JSON."""
_PUNCTUATION = "\"'<>)]},;.:"
"""Characters of the text that may follow a URL directly."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?")
_LOCAL_HOST = re.compile(r"localhost|\d{1,3}(?:\.\d{1,3}){3}|\[[0-9A-Fa-f:.]+\]")
_CONTAINER = re.compile(r"(?:abfs|wasb)s?://[a-z0-9-]+@[\w.-]+(?:/|$)")
"""Azure's form CONTAINER@ACCOUNT, which has no secret before its "@"."""
_STORES = re.compile(r"file|s3a?|gs|gcs|az|adl|abfss?|wasbs?|hdfs|memory|sqlite\S*")
"""Schemes whose URLs begin with the name of a bucket or with a path."""

_SECRET_KEY = re.compile(
    r"token|sig|secret|key|pass|pwd|cred|auth|jwt|session|code|policy|hmac|hash|md5|sas|user|^x-|^s[a-z]$|^(?:pw|uid)$",
    re.IGNORECASE,
)
_PLAIN_KEYS = frozenset({"dbname", "endpoint_override", "host", "hostaddr", "port", "region", "scheme", "sslmode"})
"""Query parameters that say where something is, so their values stay."""
_PLAIN_VALUE = re.compile(r"\d{1,6}|[A-Za-z]{1,16}(?:[_-][A-Za-z]{1,16})?")
"""A number or a word, which is no secret under a harmless key."""
_SIGNED = re.compile(r"(?:^|[&;])(?:sig|signature|x-amz-signature|x-goog-signature)=", re.IGNORECASE)


def redact(text: str) -> str:
    """Remove the secrets from every URL in a text.

    A URL keeps its scheme, host and path. It loses its user and password, its fragment, and the values of its query
    that could be secret; "***" stands for the latter two. A password may contain the characters "@", "/", "#", "?" and
    ":", which should have been escaped. If a URL can be read in two ways, the reading that hides more is chosen.

    Args:
        text: any text. A URL in it ends at white space.

    Returns:
        The text, unchanged if no URL in it could have a secret. A second call changes nothing.
    """
    return _URL.sub(lambda match: _redact_run(match.group()), text) if "://" in text else text


def _redact_run(run: str) -> str:
    """Redact one or more URLs that no white space separates."""
    parts = _BETWEEN_URLS.split(run)  # URLs, and in between the separators
    return "".join(part if number % 2 else _redact_url(part) for number, part in enumerate(parts))


def _redact_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    bare = rest.rstrip(_PUNCTUATION)
    end = rest[len(bare) :]
    if not _CONTAINER.match(url):
        bare = bare[_end_of_user(scheme.lower(), bare) :]
    place, hashtag, _ = bare.partition("#")
    place, _, query = place.partition("?")
    place = re.sub(r";([^=/;]+)=[^/;]*", lambda m: f";{m[1]}={HIDDEN}" if _SECRET_KEY.search(m[1]) else m[0], place)
    shown = f"{scheme}://{place}"
    if query:
        shown += f"?{_redact_query(query)}"
    if hashtag:
        shown += f"#{HIDDEN}"
    return shown + end


def _end_of_user(scheme: str, rest: str) -> int:
    """Return the position after user and password in the part of a URL behind "://"; 0 if there are none."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    is_host = _is_host(scheme, authority) if authority else bool(_STORES.fullmatch(scheme))
    return 0 if is_host else rest.rfind("@") + 1


def _is_host(scheme: str, authority: str) -> bool:
    """Tell whether the text before the first "/", "?" or "#" can only be a host, even if an "@" follows later."""
    match = _HOST.fullmatch(authority)
    if not match:
        return False
    name, port = match.groups()
    if _LOCAL_HOST.fullmatch(name):
        return True
    # NAME:12345/ may as well be a user and the beginning of a password, and NAME/ the beginning of a token.
    return not port and ("." in name or bool(_STORES.fullmatch(scheme)))


def _redact_query(query: str) -> str:
    signed = bool(_SIGNED.search(query))

    def shown(pair: str) -> str:
        key, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[\w.~-]{1,64}", key):
            return HIDDEN
        if key.lower() in _PLAIN_KEYS:
            return f"{key}={redact(value)}"
        plain = not signed and not _SECRET_KEY.search(key) and _PLAIN_VALUE.fullmatch(value)
        return pair if plain else f"{key}={HIDDEN}"

    return "&".join(shown(pair) for pair in query.split("&"))
