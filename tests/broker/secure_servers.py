"""Kafka and Redis as they should stand in production: TLS, passwords, rights. Keys live in the test's folder."""

from __future__ import annotations

import datetime
import ssl
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import redis
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    KafkaAdminClient,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)
from kafka.admin._acls import ACLResourcePatternType
from kafka.admin._users import ScramMechanism, UserScramCredentialUpsertion

from stream.rights import PASSWORD as PLACEHOLDER
from stream.rights import KafkaRight
from stream.stack import ApacheKafka
from stream.stack.process import HOST, free_port

PASSWORD = "s3cret-w0rd-zq7"
_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
_OPERATIONS = {
    "Read": ACLOperation.READ,
    "Write": ACLOperation.WRITE,
    "Describe": ACLOperation.DESCRIBE,
    "DescribeConfigs": ACLOperation.DESCRIBE_CONFIGS,
}


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: the CA's certificate, and for each server key and certificate in one file."""

    ca: Path
    other_ca: Path
    good: Path
    expired: Path
    other_host: Path
    client: Path
    client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """A CA with certificates of this host, of another one, and of yesterday; and a CA that nobody knows."""
    ca, other = trustme.CA(), trustme.CA()
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    client = ca.issue_cert("worker@riskstream.test")
    made = Certificates(
        *(
            folder / f"{name}.pem"
            for name in ("ca", "other-ca", "good", "expired", "other-host", "client", "client-key")
        )
    )
    ca.cert_pem.write_to_path(made.ca)
    other.cert_pem.write_to_path(made.other_ca)
    _write(ca.issue_cert(HOST), made.good)
    _write(ca.issue_cert(HOST, not_after=past), made.expired)
    _write(ca.issue_cert("elsewhere.riskstream.test"), made.other_host)
    client.cert_chain_pems[0].write_to_path(made.client)
    client.private_key_pem.write_to_path(made.client_key)
    return made


def _write(certificate: trustme.LeafCert, file: Path) -> None:
    """Key and chain in one file; Kafka takes keys in the form of PKCS 8 only."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(pkcs8 + b"".join(pem.bytes() for pem in certificate.cert_chain_pems))


class SecureKafka:
    """One broker with a listener for the tests' administrator and one per certificate, all with SCRAM and ACLs."""

    LISTENERS = ("good", "expired", "otherhost")

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        ports = {"kafka": free_port(), "controller": free_port()}
        self.secure = {name: f"{HOST}:{free_port()}" for name in self.LISTENERS}
        files = dict(
            zip(self.LISTENERS, (certificates.good, certificates.expired, certificates.other_host), strict=True)
        )
        listeners = [f"PLAINTEXT://{HOST}:{ports['kafka']}", f"CONTROLLER://{HOST}:{ports['controller']}"]
        listeners += [f"{name.upper()}://{address}" for name, address in self.secure.items()]
        protocols = ["PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT"]
        protocols += [f"{name.upper()}:SASL_SSL" for name in self.LISTENERS]
        properties = {
            "listeners": ",".join(listeners),
            "listener.security.protocol.map": ",".join(protocols),
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "allow.everyone.if.no.acl.found": "false",
        }
        for name, file in files.items():
            prefix = f"listener.name.{name}"
            module = "org.apache.kafka.common.security.scram.ScramLoginModule"
            properties[f"{prefix}.scram-sha-512.sasl.jaas.config"] = f"{module} required;"
            properties[f"{prefix}.ssl.keystore.type"] = "PEM"
            properties[f"{prefix}.ssl.keystore.location"] = str(file)
        self.server = ApacheKafka(folder, ports=ports, properties=properties)
        self._admin: KafkaAdminClient | None = None

    def start(self) -> SecureKafka:
        self.server.start()
        self._admin = KafkaAdminClient(bootstrap_servers=self.server.bootstrap)
        return self

    def stop(self) -> None:
        if self._admin is not None:
            self._admin.close()
        self.server.kill()

    def add_user(self, name: str, rights: Sequence[KafkaRight]) -> None:
        """A user with PASSWORD and exactly these rights."""
        assert self._admin is not None
        user = UserScramCredentialUpsertion(name, ScramMechanism.SCRAM_SHA_512, PASSWORD)
        self._admin.alter_user_scram_credentials([user])
        if rights:
            outcome = self._admin.create_acls([_acl(name, right) for right in rights])
            assert not outcome["failed"], outcome
        self._wait_until_known(name, len(rights))

    def _wait_until_known(self, name: str, count: int) -> None:
        assert self._admin is not None
        every = ACLFilter(
            f"User:{name}", "*", ACLOperation.ANY, ACLPermissionType.ANY, ResourcePatternFilter(
                ResourceType.ANY, None, ACLResourcePatternType.ANY
            )
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while len(self._admin.describe_acls(every)[0]) < count:
            assert time.monotonic() < deadline, "the broker does not know the rights that it was given"
            time.sleep(0.05)


def _acl(user: str, right: KafkaRight) -> ACL:
    pattern = ACLResourcePatternType.PREFIXED if right.prefixed else ACLResourcePatternType.LITERAL
    return ACL(
        f"User:{user}",
        "*",
        _OPERATIONS[right.operation],
        ACLPermissionType.ALLOW,
        ResourcePattern(_RESOURCES[right.resource], right.name, pattern),
    )


class SecureRedis:
    """redis-server that speaks TLS only, and asks for a user."""

    def __init__(self, folder: Path, certificate: Path, certificates: Certificates) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self._certificates = free_port(), certificates
        options = {
            "port": "0",
            "tls-port": str(self.port),
            "bind": HOST,
            "dir": str(folder),
            "save": "",
            "tls-cert-file": str(certificate),
            "tls-key-file": str(certificate),
            "tls-ca-cert-file": str(certificates.ca),
            "tls-auth-clients": "no",
            "requirepass": PASSWORD,
            "maxmemory-policy": "noeviction",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)

    def url(self, user: str, password: str = PASSWORD) -> str:
        return f"rediss://{user}:{password}@{HOST}:{self.port}/0"

    def administrator(self) -> redis.Redis:
        """Once it answers. Does not look at the certificate, which a test may have spoilt."""
        client = redis.Redis(host=HOST, port=self.port, password=PASSWORD, ssl=True, ssl_cert_reqs=ssl.CERT_NONE)
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                return client
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.02)

    def add_user(self, rule: str) -> None:
        """By the line that `riskstream rights` prints."""
        words = rule.replace(PLACEHOLDER, PASSWORD).split()
        with self.administrator() as client:
            client.execute_command(*words)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
