"""Certificates for tests, by OpenSSL's command line."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest


def self_signed(folder: Path, name: str = "server", host: str = "news.example") -> tuple[str, str]:
    """A certificate and its key in PEM. Without 127.0.0.1: who asks there must know the certificate itself."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
        "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}", "-keyout", str(key), "-out", str(cert),
    )  # fmt: skip
    return str(cert), str(key)


def signed(folder: Path, authority: tuple[str, str]) -> tuple[str, str]:
    """A certificate of an authority, with the authority's own behind it, as files of a chain are."""
    cert, key = folder / "leaf.pem", folder / "leaf.key"
    request, extra = folder / "leaf.csr", folder / "leaf.ext"
    extra.write_text("subjectAltName=DNS:news.example\n")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=leaf", "-keyout", str(key), "-out", str(request))
    openssl(
        "x509", "-req", "-in", str(request), "-CA", authority[0], "-CAkey", authority[1], "-CAcreateserial",
        "-days", "30", "-extfile", str(extra), "-out", str(cert),
    )  # fmt: skip
    cert.write_text(cert.read_text() + Path(authority[0]).read_text())
    return str(cert), str(key)


def expire(cert: Path, key: Path) -> None:
    """Replace a certificate by one that was good for a day, long ago. OpenSSL's command line makes none such."""
    pytest.importorskip("cryptography", reason="cryptography comes with ray[serve]")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    secret: Any = serialization.load_pem_private_key(key.read_bytes(), None)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    made = x509.CertificateBuilder(name, name, secret.public_key(), 1, datetime(2020, 1, 1), datetime(2020, 1, 2))
    cert.write_bytes(made.sign(secret, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def openssl(*arguments: str) -> None:
    """Run it."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
