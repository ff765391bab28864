"""Deploy a model to running workers, roll it back, see which one has which role."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream.cli.context import JsonOption

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

RoleOption = Annotated[
    str, typer.Option(metavar="ROLE", help="champion, or challenger-1 to challenger-3 (they score beside it).")
]
LinkOption = Annotated[
    Path | None,
    typer.Option(metavar="LINK", help="Instead of the topic: the symlink that is a worker's scoring.bundle."),
]
AtOption = Annotated[str | None, typer.Option("--at", metavar="TIME", help="From this Kafka timestamp on (RFC 3339).")]
InOption = Annotated[
    str, typer.Option("--in", metavar="SPAN", help="From so long after now on; workers verify it meanwhile.")
]


@app.callback()
def model() -> None:
    """Deploy a model to running workers, roll it back, see which one has which role.

    Fleet-wide: `deploy` copies the bundle into scoring.library, a folder that all workers read, and announces
    it on the models topic. Every worker verifies it in the background, and scores each event whose Kafka
    timestamp is at or after the stated moment with it: all of them change at the same event. A worker that
    refuses it keeps its model, and says so in its log and in riskstream_model_refusals_total.

    One worker: with --link the command moves the symlink that is its scoring.bundle.
    """


@app.command()
def deploy(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="The bundle's folder.")],
    role: RoleOption = "champion",
    link: LinkOption = None,
    at: AtOption = None,
    wait: InOption = "30s",
    json: JsonOption = False,
) -> None:
    """Verify a bundle and give it a role.

    \b
    Examples:
      riskstream model deploy bundles/v2
      riskstream model deploy bundles/v3 --role challenger-1
      riskstream model deploy bundles/v2 --at 2026-03-01T06:00:00Z
      riskstream model deploy bundles/v2 --link /srv/riskstream/bundle
    """
    from stream.cli.deploying import deploy_link, deploy_topic, moment_of
    from stream.cli.settings import settings_from

    settings = settings_from(ctx)
    if link is not None:
        deploy_link(settings, bundle, link, json=json)
    else:
        deploy_topic(settings, bundle, role, moment_of(at, wait), json=json)


@app.command()
def rollback(
    ctx: typer.Context,
    role: RoleOption = "champion",
    link: LinkOption = None,
    at: AtOption = None,
    wait: InOption = "10s",
    json: JsonOption = False,
) -> None:
    """Give a role back to the model that had it before. A second rollback undoes the first.

    \b
    Examples:
      riskstream model rollback
      riskstream model rollback --link /srv/riskstream/bundle
    """
    from stream.cli.deploying import moment_of, rollback_link, rollback_topic
    from stream.cli.settings import settings_from

    settings = settings_from(ctx)
    if link is not None:
        rollback_link(settings, link, json=json)
    else:
        rollback_topic(settings, role, moment_of(at, wait), json=json)


@app.command()
def remove(ctx: typer.Context, role: RoleOption, json: JsonOption = False) -> None:
    """Take a challenger out. The champion cannot be removed, only replaced.

    \b
    Example:
      riskstream model remove --role challenger-1
    """
    from stream.cli.deploying import remove_challenger
    from stream.cli.settings import settings_from

    remove_challenger(settings_from(ctx), role, json=json)


@app.command()
def status(
    ctx: typer.Context,
    worker: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Also ask this worker, http://127.0.0.1:9100; repeatable."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what was deployed, since when it counts, what a rollback leads to, and what workers run.

    \b
    Exit codes: 0, or 1 when a worker that was asked runs another champion than the one that should count.

    \b
    Examples:
      riskstream model status
      riskstream model status --worker http://127.0.0.1:9100 --worker http://127.0.0.1:9101
    """
    from stream.cli.deploying import show_status
    from stream.cli.settings import settings_from

    show_status(settings_from(ctx), worker or [], json=json)
