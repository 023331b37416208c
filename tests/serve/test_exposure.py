"""What is refused before anything listens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from certificates import self_signed

from pipeline.config import Config, ServeConfig
from pipeline.errors import UserError
from pipeline.storage import Place
from serve import exposure, haproxy, keys


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
        ("::", False), ("10.0.0.1", False), ("localhost.example", False), ("", False), ("127.0.0.1.example", False),
    ],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert exposure.is_loopback(host) is loopback
    if loopback:
        exposure.check(ServeConfig(host=host), joins=False)
        return
    for joins in (False, True):
        with pytest.raises(UserError, match=r"'broadsheet keys add NAME' and add --set serve\.keys=.*--insecure"):
            exposure.check(ServeConfig(host=host), joins=joins)
        exposure.check(ServeConfig(host=host, insecure=True), joins=joins)


def test_keys_open_the_door_if_there_is_one(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    for host in ("127.0.0.1", "0.0.0.0"):
        for insecure in (False, True):
            config = ServeConfig(host=host, keys=file, insecure=insecure)
            Path(file).unlink(missing_ok=True)
            with pytest.raises(UserError, match="no such file of keys"):
                exposure.check(config, joins=False)
            secret = keys.add(Place.of(file), "ana")
            exposure.check(config, joins=False)
            keys.revoke(Place.of(file), "ana")
            with pytest.raises(UserError, match=f"there is no key in {file}: add one with 'broadsheet keys add NAME "):
                exposure.check(config, joins=False)
            assert secret not in Path(file).read_text()


def test_run_needs_a_key_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "keys.json")
    secret = keys.add(Place.of(file), "ana")
    assert exposure.own_key(ServeConfig()) is None
    for wrong in (None, "", "bs_other"):
        monkeypatch.delenv(exposure.KEY_VARIABLE, raising=False)
        if wrong is not None:
            monkeypatch.setenv(exposure.KEY_VARIABLE, wrong)
        with pytest.raises(UserError, match=f"put a key of {file} into BROADSHEET_KEY"):
            exposure.own_key(ServeConfig(keys=file))
    monkeypatch.setenv(exposure.KEY_VARIABLE, secret)
    assert exposure.own_key(ServeConfig(keys=file)) == secret


def test_certificates(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    config = ServeConfig(tls_cert=cert, tls_key=key)
    exposure.check(config, joins=False)
    with pytest.raises(UserError, match="load balancer"):
        exposure.check(config, joins=True)
    with pytest.raises(UserError, match=r"serve\.tls_cert: cannot read"):
        exposure.check(ServeConfig(tls_cert=cert + "x", tls_key=key), joins=False)
    for half in ("serve.tls_cert", "serve.tls_key"):
        with pytest.raises(UserError, match="tls_cert and tls_key go together"):
            Config().updated({half: cert})


def test_client_addresses_do_not_reach_replicas_of_a_cluster() -> None:
    exposure.check(ServeConfig(rate_limit=1), joins=False)
    with pytest.raises(UserError, match=r"serve\.rate_limit without serve\.keys"):
        exposure.check(ServeConfig(rate_limit=1), joins=True)


@pytest.mark.parametrize("more", [{"tls_cert": "c", "tls_key": "k"}, {"rate_limit": 1.0}])
def test_haproxy_without_the_stand_in_cannot_do_all(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig(**more)
    monkeypatch.delenv(haproxy.FRONT, raising=False)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    exposure.check_front(ServeConfig())
    with pytest.raises(UserError, match=r"needs the script broadsheet-haproxy .*serve\.haproxy=false"):
        exposure.check_front(config)
    monkeypatch.setenv(haproxy.FRONT, json.dumps(haproxy.wanted(config)._asdict()))
    exposure.check_front(config)
    with pytest.raises(UserError, match="was started for an endpoint on"):
        exposure.check_front(config.model_copy(update={"host": "10.0.0.1"}))
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    exposure.check_front(config)
