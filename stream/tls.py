"""What a failed TLS handshake means: which certificate or setting is wrong, in words. No vendor is named here."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The names of the settings that decide a TLS connection, for messages."""

    address: str
    switch: str
    """What turns TLS on or off."""
    ca_file: str
    cert_file: str
    key_file: str


KAFKA_TLS = TlsSettings(
    "kafka.bootstrap_servers",
    "kafka.security_protocol",
    "kafka.ssl_ca_file",
    "kafka.ssl_cert_file",
    "kafka.ssl_key_file",
)
REDIS_TLS = TlsSettings("redis.url", "redis.url", "redis.ssl_ca_file", "redis.ssl_cert_file", "redis.ssl_key_file")

_OUR_CERTIFICATE = re.compile(
    r"alert (?:certificate|bad certificate|unknown ca|access denied|decrypt error|handshake failure|unsupported certif)"
    r"|ALERT_(?:BAD_)?CERTIFICATE|ALERT_UNKNOWN_CA|CERTIFICATE_REQUIRED|peer did not return a certificate",
    re.IGNORECASE,
)
_NO_TLS = re.compile(r"WRONG_VERSION_NUMBER|wrong version number|UNKNOWN_PROTOCOL|HTTP_REQUEST", re.IGNORECASE)
_VERSIONS = re.compile(r"UNSUPPORTED_PROTOCOL|PROTOCOL_VERSION|NO_SHARED_CIPHER|NO_PROTOCOLS", re.IGNORECASE)
_FILES = re.compile(r"NO_CERTIFICATE_OR_CRL|NO_START_LINE|KEY_VALUES_MISMATCH|BAD_BASE64|\[PEM|\[X509", re.IGNORECASE)


def tls_problem(error: BaseException, names: TlsSettings) -> str | None:
    """What is wrong with certificates or with TLS itself, and what to correct; None if it is something else.

    Looks at the error, its causes and its arguments, and at its text: some clients keep nothing else. An end of
    the stream in the middle of a handshake is no finding: a server that restarts does the same.
    """
    text = "; ".join(_texts(error))
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return _of_server_certificate(text, names)
    if _OUR_CERTIFICATE.search(text):
        return (
            f"the server refuses our certificate, or asks for one: give one that its CA signed and that has not "
            f"expired ({names.cert_file}, {names.key_file})"
        )
    if _NO_TLS.search(text):
        return f"the server does not speak TLS on this port: correct {names.address} or {names.switch}"
    if _VERSIONS.search(text):
        return "client and server share no version of TLS or no cipher: allow TLS 1.2 or later on the server"
    if _FILES.search(text):
        files = f"{names.ca_file}, {names.cert_file} and {names.key_file}"
        return f"a certificate file cannot be used: {files} must be PEM, and key and certificate must belong together"
    return None


def _of_server_certificate(text: str, names: TlsSettings) -> str:
    for sign, problem in (
        ("certificate has expired", "the server's certificate has expired: renew it on the server"),
        ("not yet valid", "the server's certificate is not valid yet: correct a clock, or the certificate"),
        ("ismatch", f"the server's certificate is of another host: write the host that it names into {names.address}"),
        ("revoked", "the server's certificate has been revoked: renew it on the server"),
    ):
        if sign in text:
            return problem
    return f"the server's certificate was signed by an unknown CA: {names.ca_file} must hold the CA that signed it"


def _texts(error: BaseException) -> list[str]:
    """The texts of all TLS errors in the chain, and of the error itself."""
    found, waiting, seen = [str(error)], [error], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, ssl.SSLError):
            found.append(f"{each.reason or ''} {each}")
        waiting += [
            other for other in (each.__cause__, each.__context__, *each.args) if isinstance(other, BaseException)
        ]
    return found
