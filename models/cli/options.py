"""The options that several of the commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FileArgument = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="History: CSV or Parquet.")]
MappingOption = Annotated[
    Path | None, typer.Option(metavar="M", help="Which column of FILE is what (examples/sparkov.yaml).")
]
SimulatedOption = Annotated[
    int | None, typer.Option(metavar="EVENTS", help="Instead of FILE: so many simulated payments.")
]
AccountsOption = Annotated[
    int, typer.Option(help="Accounts of the simulated history; each pays about three times a day.")
]
FraudRateOption = Annotated[float, typer.Option(help="Fraud rate of the simulated history.")]
StartOption = Annotated[str | None, typer.Option(metavar="TIME", help="Start of the simulated history.")]
DelayOption = Annotated[
    str | None, typer.Option(metavar="SPAN", help="How long a label takes, such as 7d; else the mapping's.")
]
SegmentOption = Annotated[
    list[str] | None,
    typer.Option("--segment", metavar="FIELD", help="Split the report by this field or attribute too. Repeatable."),
]
PartitionsOption = Annotated[
    int, typer.Option(min=1, help="As many as the topic has; it decides little: entities are seen whole.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Torch threads; small nets gain little from more.")]
ArchitectureOption = Annotated[str, typer.Option(help="Of the net; a wrong name lists what there is (docs/models.md).")]
EnsembleOption = Annotated[
    int, typer.Option(min=1, help="Seeds averaged in one bundle; each costs as much again per event.")
]
AnomalyOption = Annotated[bool, typer.Option(help="Add the component `anomaly`: an autoencoder that needs no labels.")]
PretrainOption = Annotated[
    int, typer.Option(min=0, metavar="EPOCHS", help="First learn from all events, labelled or not.")
]
ReadUntilOption = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Read the history up to then.")]
ExcludeOption = Annotated[
    bool, typer.Option(help="Leave events of accounts with a fraud that was confirmed before out of the test.")
]
PageOption = Annotated[Path, typer.Option(metavar="PAGE", help="The report; its JSON appears beside it.")]
