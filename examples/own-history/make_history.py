"""Writes a payment history as a bank's own export may look: other column names, local times, cents.

    python examples/own-history/make_history.py own-history.csv

The payments are simulated. The columns are foreign on purpose: mapping.yaml says which is what.
"""

from __future__ import annotations

import argparse
import csv
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from stream.history.batch import HistoryBatch
from stream.simulate.simulation import Simulation

SHOP_KINDS = {
    "5411": "groceries",
    "5812": "restaurant",
    "5814": "snack bar",
    "5541": "petrol",
    "5912": "pharmacy",
    "5311": "department store",
    "4111": "local transport",
    "7832": "cinema",
    "5732": "electronics",
    "7011": "hotel",
    "6011": "cash machine",
    "5944": "jewellery",
    "5735": "music",
    "4816": "internet service",
    "5691": "clothing",
    "4722": "travel",
    "5816": "games",
    "5734": "software",
}
"""Everything else is "other"."""

COLUMNS = (
    "Ref", "Card token", "Booked", "Cents", "Ccy", "Shop", "Shop kind", "Land", "Way", "Till", "Handset", "Net address",
    "Reclaimed", "Reclaimed on",
)  # fmt: skip
ZONE = ZoneInfo("Europe/Berlin")
WAYS = {"pos": "COUNTER", "atm": "CASH", "ecommerce": "WEB"}


def rows(history: HistoryBatch) -> list[tuple[str, ...]]:
    """The history in the bank's columns."""
    written = []
    for row, event in enumerate(history.events()):
        reclaimed = history.fraud[row] == 1
        written.append(
            (
                event["event_id"],
                event["account_id"],
                _local(int(history.time_ms[row])).strftime("%d/%m/%Y %H:%M:%S"),
                f"{round(event['amount'] * 100)}",
                event["currency"],
                event["merchant_id"],
                SHOP_KINDS.get(event["mcc"], "other"),
                event["country"],
                WAYS[event["channel"]],
                event.get("terminal_id", ""),
                event.get("device_id", ""),
                event.get("ip", ""),
                "yes" if reclaimed else "",
                _local(int(history.known_ms[row])).date().isoformat() if reclaimed else "",
            )
        )
    return written


def _local(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms // 1000, UTC).astimezone(ZONE)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a simulated payment history in a bank's own columns.")
    parser.add_argument("out", type=Path, help="the CSV file to write")
    parser.add_argument("--events", type=int, default=40_000, help="rows (default 40000: about 80 days of 160 cards)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    history = Simulation(accounts=160, seed=arguments.seed, fraud_rate=0.02).generate(arguments.events)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(COLUMNS)
        writer.writerows(rows(history))
    print(f"{arguments.out}: {len(history)} payments, {int((history.fraud == 1).sum())} reclaimed")


if __name__ == "__main__":
    main()
