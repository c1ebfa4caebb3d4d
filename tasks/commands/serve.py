"""The command serve."""

from __future__ import annotations

import re
import shlex
from typing import Any

import click

from tasks.commands.common import Context, main, with_context


class _Address(click.ParamType):  # type: ignore[type-arg]
    """HOST:PORT."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """See click."""
        found = re.fullmatch(r"\[?([^\[\]]+?)\]?:(\d{1,5})", str(value))
        if found is None or int(found[2]) > 65535:
            self.fail(f"{value!r} is not HOST:PORT, such as 127.0.0.1:8085", param, ctx)
        return found[1], int(found[2])


@main.command(short_help="Serves the champion: ranks items for a user over HTTP.")
@click.option("--http", type=_Address(), default="127.0.0.1:8085", show_default=True, metavar="HOST:PORT")
@click.option("--grpc", type=_Address(), metavar="HOST:PORT", help="Serves gRPC there too.  [default: HTTP alone]")
@click.option("--workers", type=click.IntRange(1, 256), default=2, show_default=True, help="Processes that answer.")
@with_context
def serve(context: Context, *, http: tuple[str, int], grpc: tuple[str, int] | None, workers: int) -> None:
    """Serves the champion of the store over HTTP and gRPC, and each later one without a pause.

    It follows the champion log and the states of features: a newer release is loaded beside the one that serves, must
    reproduce the scores of its export, and then takes its place. One that does not never serves.
    """
    from serving.server import Addresses, Server
    from tasks.run.releases import Releases

    def say(event: dict[str, Any]) -> None:
        facts = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in event.items() if name != "event")
        click.echo(f"serve: {event['event']} {facts}", err=True)

    Server(Addresses(http, grpc), workers, Releases(context.scenario, context.store).newest, say).run()
