"""Look at a model bundle, or verify it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream.cli.context import JsonOption, print_json, print_table

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The bundle's folder.")]


@app.callback()
def bundle() -> None:
    """Look at a model bundle, or verify it."""


@app.command()
def inspect(folder: FolderArgument, json: JsonOption = False) -> None:
    """Show what a bundle is: model, features, thresholds, metrics, where it was trained.

    Checks the manifest's own digest, reads no other file and runs nothing. Exit code 16 if it is refused.

    \b
    Example:
      riskstream bundle inspect bundles/payments
    """
    from stream.scoring.bundle import MANIFEST_FILE, read_manifest

    manifest = read_manifest(_read(folder / MANIFEST_FILE))
    if json:
        print_json(manifest.model_dump(mode="json"))
        return
    training, thresholds = manifest.training, manifest.thresholds
    print_table(
        [
            ("model", manifest.label),
            ("domain", f"{manifest.domain}, spec {manifest.spec_id}"),
            (
                "inputs",
                f"{manifest.sequence_length} steps of {len(manifest.step_columns)} columns, "
                f"{len(manifest.aggregate_columns)} aggregates",
            ),
            ("outputs", ", ".join(output.name for output in manifest.outputs)),
            ("review", f"from probability {thresholds.review:.4f}, {thresholds.review_rate:.3%} of events"),
            ("decline", f"from probability {thresholds.decline:.4f}, {thresholds.decline_rate:.3%} of events"),
            ("trained on", f"{training.train_events:,} events, {training.train_frauds:,} frauds"),
            ("validated on", f"{training.validation_events:,} events, {training.validation_frauds:,} frauds"),
            *((name, "-" if value is None else f"{value:.6g}") for name, value in manifest.metrics.items()),
            ("torch", manifest.torch_version),
            ("signed", "yes" if manifest.signature else "no"),
            ("command", training.command),
        ]
    )


@app.command()
def verify(
    ctx: typer.Context,
    folder: FolderArgument,
    golden: Annotated[bool, typer.Option(help="Run the model on its golden inputs (imports torch).")] = True,
    json: JsonOption = False,
) -> None:
    """Verify a bundle as a worker would before running it: files, hashes, feature definition, golden outputs.

    With scoring.signature_key set, the signature too.

    \b
    Exit codes: 0 good, 16 refused (the message names the file or the check).

    \b
    Examples:
      riskstream bundle verify bundles/payments
      riskstream bundle verify bundles/payments --no-golden
    """
    from stream.app import load_domain
    from stream.cli.settings import settings_from
    from stream.scoring.bundle import verify as verify_bundle

    settings = settings_from(ctx)
    key = settings.scoring.signature_key
    manifest = verify_bundle(
        folder,
        domain=load_domain(settings),
        golden=golden,
        signature_key=None if key is None else key.get_secret_value().encode(),
    ).manifest
    if json:
        print_json({"verified": True, "golden": golden, "model": manifest.label, "spec_id": manifest.spec_id})
    else:
        checked = "files, hashes, features" + (", golden outputs" if golden else "")
        print(f"{manifest.label} is good: {checked}")


@app.command()
def sign(ctx: typer.Context, folder: FolderArgument, json: JsonOption = False) -> None:
    """Sign a bundle with scoring.signature_key, in place. Workers that have the key take no other bundle.

    The bundle is verified first, but for its signature. Signing again with another key replaces the signature.

    \b
    Example:
      riskstream bundle sign bundles/payments
    """
    from stream.cli.settings import settings_from
    from stream.errors import ConfigError
    from stream.scoring.bundle import sign as sign_bundle

    key = settings_from(ctx).scoring.signature_key
    if key is None:
        raise ConfigError("scoring.signature_key is not set (RISKSTREAM_SCORING__SIGNATURE_KEY): nothing to sign with")
    manifest = sign_bundle(folder, key.get_secret_value().encode())
    if json:
        print_json({"signed": True, "model": manifest.label, "digest": manifest.digest})
    else:
        print(f"{manifest.label} is signed")


def _read(file: Path) -> bytes:
    from stream.errors import BundleRefused

    try:
        return file.read_bytes()
    except OSError as error:
        raise BundleRefused(f"{file}: cannot be read ({error.strerror})") from None
