"""Show the settings in effect, and where each came from."""

from __future__ import annotations

import typer

from stream.cli.context import JsonOption, print_json, print_table

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def show(
    ctx: typer.Context,
    json: JsonOption = False,
    changed: bool = typer.Option(False, "--changed", help="Only settings that somebody has set."),
    describe: bool = typer.Option(False, "--describe", help="With what each setting means and allows."),
) -> None:
    """Show the settings in effect, and where each came from. Secrets are masked.

    Later wins: default, file (--config or $RISKSTREAM_CONFIG), environment, --set. Nothing is contacted.
    A wrong setting ends with exit code 2 and names the field and what it allows.

    \b
    Examples:
      riskstream config --changed
      RISKSTREAM_BATCH__MAX_EVENTS=1024 riskstream config --json
      riskstream --set kafka.group=fraud config --describe
    """
    from stream.cli.settings import loaded_from

    settings = loaded_from(ctx).describe()
    if changed:
        settings = [setting for setting in settings if setting.origin != "default"]
    if json:
        print_json({setting.field: setting._asdict() for setting in settings})
    elif describe:
        for setting in settings:
            print(f"{setting.field} = {setting.value}  ({setting.origin})")
            print(f"    {setting.description}. Allowed: {setting.allowed}")
    else:
        print_table([(s.field, s.value, s.origin) for s in settings], ("setting", "value", "from"))
