"""What must be right before anything listens: who can reach the endpoint, and what they must show."""

from __future__ import annotations

import os

from pipeline.cluster import is_loopback as is_loopback
from pipeline.config import ServeConfig
from pipeline.errors import UserError
from pipeline.storage import Place
from serve import haproxy, keys, tls

KEY_VARIABLE = "BROADSHEET_KEY"


def check(config: ServeConfig, joins: bool) -> None:
    """Refuse what would be open without having been asked for, or cannot be done, before there is a Ray.

    Args:
        config: the serve section.
        joins: whether the endpoint goes to a Ray that is there already.

    Raises:
        UserError: with the way out.
    """
    if config.keys is not None:
        if not keys.read(Place.of(config.keys)):
            raise UserError(f"there is no key in {config.keys}: add one with {_adding(config.keys)}")
    elif not is_loopback(config.host) and not config.insecure:
        raise UserError(
            f"--host {config.host} lets others reach the endpoint: make a key with {_adding(keys.DEFAULT_FILE)} and "
            f"add --set serve.keys={keys.DEFAULT_FILE}, or let everybody in with --insecure"
        )
    if config.tls_cert is not None and config.tls_key is not None:
        tls.check(config.tls_cert, config.tls_key)
        if joins:
            raise UserError(
                "serve.tls_cert is for a Ray that this command starts: on a cluster, let the load balancer in front "
                "end TLS"
            )
    if config.rate_limit and config.keys is None and joins:
        raise UserError(
            "serve.rate_limit without serve.keys counts by client address, which does not arrive at replicas of a "
            "cluster: use keys"
        )


def check_front(config: ServeConfig) -> None:
    """Refuse what HAProxy would have to do and cannot. The environment is that of the Ray to come.

    Raises:
        UserError: with the way out.
    """
    if not haproxy.active():
        return
    front = haproxy.front()
    if front is None and (config.tls_cert or (config.rate_limit and config.keys is None)):
        key = "serve.tls_cert" if config.tls_cert else "serve.rate_limit without serve.keys"
        raise UserError(
            f"{key} needs the script {haproxy.SCRIPT} next to this Python: install the project with "
            "'pip install', or do without HAProxy: --set serve.haproxy=false"
        )
    if front is not None and not front.serves(config):
        raise UserError(
            f"this Ray was started for an endpoint on {front.host} with {front.cert or 'no certificate'}: "
            "start another one for other settings"
        )


def own_key(config: ServeConfig) -> str | None:
    """The key with which this command asks its own endpoint; None where none is needed.

    Raises:
        UserError: one is needed, and the environment has none that the server will know.
    """
    if config.keys is None:
        return None
    secret = os.environ.get(KEY_VARIABLE, "")
    if keys.find(keys.read(Place.of(config.keys)), secret.encode()) is None:
        raise UserError(
            f"'run' asks the endpoint two texts, and serve.keys is set: put a key of {config.keys} into {KEY_VARIABLE}"
        )
    return secret


def _adding(file: str) -> str:
    more = "" if file == keys.DEFAULT_FILE else f" --file {file}"
    return f"'broadsheet keys add NAME{more}'"
