"""Check everything around a worker, and say what to mend."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.context import JsonOption, coloured, end_with, print_json

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def doctor(
    ctx: typer.Context,
    golden: Annotated[bool, typer.Option(help="Run the bundle's model on its golden inputs (imports torch).")] = False,
    json: JsonOption = False,
) -> None:
    """Check everything around a worker, and say what to do about what is wrong.

    Brokers, topics and their partition counts, replication and sizes, rights, the group's offsets; Redis:
    reachable, noeviction, persistence, memory; the model bundle. Nothing is changed.

    \b
    Exit codes: 0 no error found (warnings may be), 1 at least one error, 2 a setting is wrong.

    \b
    Examples:
      riskstream doctor
      riskstream --config production.yaml doctor --json
    """
    from stream.cli.examining import examine_all
    from stream.cli.settings import settings_from

    findings = examine_all(settings_from(ctx), golden=golden)
    errors = sum(finding.level == "error" for finding in findings)
    if json:
        names = ("subject", "level", "message", "remedy")
        print_json([{name: getattr(finding, name) for name in names} for finding in findings])
    else:
        for finding in findings:
            print(f"{coloured(finding.level.ljust(7), finding.level)}  {finding.subject}: {finding.message}")
            if finding.remedy:
                print(f"         → {finding.remedy}")
        warnings = sum(finding.level == "warning" for finding in findings)
        print(f"{errors} errors, {warnings} warnings")
    end_with(errors == 0)
