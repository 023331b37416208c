"""The certificate of the endpoint: checked before anything starts, and trusted by this command's own requests."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from pipeline.errors import UserError

BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def check(cert: str, key: str) -> None:
    """Make sure that a server with this pair can be talked to, by a handshake in memory.

    Raises:
        UserError: a file is missing or not PEM, the two do not belong together, or the certificate is out of date.
    """
    for name, file in (("serve.tls_cert", cert), ("serve.tls_key", key)):
        try:
            _path(file).read_bytes()
        except OSError as e:
            raise UserError(f"{name}: cannot read {file}: {e.strerror}") from None
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(_path(cert), _path(key), password=_no_password)
    except _Encrypted:
        raise UserError(f"serve.tls_key: {key} asks for a passphrase: give a key without one, mode 0600") from None
    except (ssl.SSLError, ValueError) as e:
        reason = getattr(e, "reason", None) or e
        raise UserError(
            f"serve.tls_cert, serve.tls_key: {cert} and {key} are not a certificate and its key, in PEM ({reason})"
        ) from None
    try:
        _handshake(server, trusting(cert))
    except ssl.SSLError as e:
        reason = getattr(e, "verify_message", "") or e.reason
        raise UserError(f"serve.tls_cert: {cert} cannot be used: {reason}") from None


def trusting(cert: str) -> ssl.SSLContext:
    """For a client that takes exactly this certificate, whoever signed it and whatever name it is for.

    Raises:
        UserError: there is no certificate in the file.
    """
    text = _path(cert).read_text(encoding="utf-8", errors="replace")
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise UserError(f"serve.tls_cert: there is no certificate in {cert}: it must be in PEM")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the URL says 127.0.0.1
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be a root
    context.load_verify_locations(cadata=text[begin : end + len(END)])
    return context


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    """Instead of OpenSSL's question on the terminal."""
    raise _Encrypted


def _path(file: str) -> Path:
    return Path(os.path.expanduser(file))


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(10):  # messages go to and fro a few times
        waiting = 0
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
        if not waiting:
            return
