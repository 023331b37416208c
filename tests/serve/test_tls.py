"""The certificate: what is refused before anything starts, and what a client of ours trusts."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from certificates import expire, openssl, self_signed, signed

from pipeline.errors import UserError
from serve import tls


def test_a_pair_that_works(tmp_path: Path) -> None:
    pair = self_signed(tmp_path)
    tls.check(*pair)
    tls.check(*signed(tmp_path, pair))


def test_exactly_this_certificate_is_trusted(tmp_path: Path) -> None:
    authority = self_signed(tmp_path, "authority")
    leaf = signed(tmp_path, authority)
    other = self_signed(tmp_path, "other")
    for pair, fits in ((leaf, True), (other, False), (authority, False)):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(*pair)
        if fits:
            tls._handshake(server, tls.trusting(leaf[0]))
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                tls._handshake(server, tls.trusting(leaf[0]))


def test_what_is_refused(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    _, other = self_signed(tmp_path, "other")
    with pytest.raises(UserError, match=r"serve\.tls_key: cannot read .*none\.key: No such file"):
        tls.check(cert, str(tmp_path / "none.key"))
    with pytest.raises(UserError, match=r"not a certificate and its key, in PEM .*MISMATCH"):
        tls.check(cert, other)
    with pytest.raises(UserError, match="not a certificate and its key"):
        tls.check(key, cert)
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(UserError, match="not a certificate and its key"):
        tls.check(str(tmp_path / "text.pem"), key)
    with pytest.raises(UserError, match="there is no certificate in"):
        tls.trusting(key)
    locked = str(tmp_path / "locked.key")
    openssl("ec", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
    with pytest.raises(UserError, match="asks for a passphrase: give a key without one"):
        tls.check(cert, locked)


def test_a_certificate_out_of_date(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    expire(Path(cert), Path(key))
    with pytest.raises(UserError, match="cannot be used: certificate has expired"):
        tls.check(cert, key)
