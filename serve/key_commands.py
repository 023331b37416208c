"""``broadsheet keys``: a part of the command line. Heavy imports stay inside the commands, as in ``broadsheet.py``."""

from __future__ import annotations

from typing import Literal

import click


@click.group()
def keys() -> None:
    """API keys for the endpoint: who may ask it (serve.keys). A running server follows the file."""


KEY_FILE = click.option(
    "--file", metavar="FILE", default="broadsheet-keys.json", help="A path or URI. [broadsheet-keys.json]"
)


@keys.command("add")
@click.argument("name")
@KEY_FILE
@click.option(
    "--scope",
    type=click.Choice(["classify", "admin"]),
    default="classify",
    help="admin: feedback, metrics and drift, too. [classify]",
)
def keys_add(name: str, file: str, scope: Literal["classify", "admin"]) -> None:
    """Make a key for NAME and print it, this once; the file keeps only a digest."""
    from pipeline.storage import Place
    from serve import keys as store

    click.echo(store.add(Place.of(file), name, scope))
    click.echo(f"kept in {file}, without the key itself: serve with --set serve.keys={file}", err=True)


@keys.command("list")
@KEY_FILE
def keys_list(file: str) -> None:
    """List names, scopes and dates."""
    from pipeline.storage import Place
    from serve import keys as store

    for key in store.read(Place.of(file)):
        click.echo(f"{key.name:<24} {key.scope:<9} {key.created}")


@keys.command("revoke")
@click.argument("name")
@KEY_FILE
def keys_revoke(name: str, file: str) -> None:
    """Take NAME's key away; servers that run know within a second (objects in a store: 10)."""
    from pipeline.storage import Place
    from serve import keys as store

    store.revoke(Place.of(file), name)
    click.echo(f"{name} is revoked", err=True)
