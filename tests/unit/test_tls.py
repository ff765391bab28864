"""A failed handshake in words: what is wrong, and which setting to correct."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from stream.tls import KAFKA_TLS, REDIS_TLS, tls_problem

HOST = "127.0.0.1"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@contextmanager
def serving(context: ssl.SSLContext | None) -> Iterator[int]:
    """A server that shakes hands with everyone; without a context it answers in plain text."""
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    if context is None:
                        connection.recv(4096)
                        connection.sendall(b"-ERR plain text here\r\n")
                    else:
                        with context.wrap_socket(connection, server_side=True) as secure:
                            secure.recv(1)
                except OSError:
                    pass
                finally:
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def failure(port: int, context: ssl.SSLContext) -> Exception:
    """What a client meets that connects, shakes hands, and waits for an answer."""
    with socket.create_connection((HOST, port), 5) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=HOST) as secure:
                secure.sendall(b"x")
                secure.recv(1)
        except (OSError, ssl.SSLError) as error:
            # As a client of Kafka or Redis would hand it on.
            wrapped = ConnectionError(f"Handshake failed: {error}")
            wrapped.__context__ = error
            return wrapped
    raise AssertionError("nothing failed")


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def client_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    return context


def test_certificates_that_are_not_good(ca: trustme.CA) -> None:
    for certificate, words in (
        (ca.issue_cert(HOST, not_after=NOW - DAY), "has expired"),
        (ca.issue_cert(HOST, not_before=NOW + DAY, not_after=NOW + 2 * DAY), "not valid yet"),
        (ca.issue_cert("elsewhere.test"), "kafka.bootstrap_servers"),
        (trustme.CA().issue_cert(HOST), "kafka.ssl_ca_file"),
    ):
        with serving(server_context(certificate)) as port:
            problem = tls_problem(failure(port, client_context(ca)), KAFKA_TLS)
        assert problem is not None
        assert words in problem


def test_a_server_that_does_not_speak_tls(ca: trustme.CA) -> None:
    with serving(None) as port:
        problem = tls_problem(failure(port, client_context(ca)), REDIS_TLS)
    assert problem is not None
    assert "does not speak TLS" in problem
    assert "redis.url" in problem


def test_a_server_with_another_version_of_tls(ca: trustme.CA) -> None:
    client = client_context(ca)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    server = server_context(ca.issue_cert(HOST))
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    with serving(server) as port:
        assert "TLS 1.2 or later" in (tls_problem(failure(port, client), KAFKA_TLS) or "")


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLError) as caught:
        context.load_verify_locations(tmp_path / "empty.pem")
    assert "PEM" in (tls_problem(caught.value, KAFKA_TLS) or "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required", "kafka.ssl_cert_file"),
        ("error:0A000416:SSL routines::sslv3 alert certificate unknown", "kafka.ssl_cert_file"),
        (
            "SSL handshake failed: certificate verify failed: broker certificate could not be verified",
            "kafka.ssl_ca_file",
        ),
        ("EOF occurred in violation of protocol (_ssl.c:997)", None),
        ("Connection refused", None),
        ("socket disconnected", None),
    ],
)
def test_clients_that_keep_nothing_but_the_text(text: str, words: str | None) -> None:
    problem = tls_problem(ConnectionError(text), KAFKA_TLS)
    assert (problem is None) if words is None else (words in (problem or ""))
