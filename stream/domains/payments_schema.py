"""The payment event and its label, as they come over the wire."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from stream.domains.iso import COUNTRIES, CURRENCIES
from stream.events.fields import (
    Identifier,
    IpAddress,
    Latitude,
    Longitude,
    Moment,
    Number,
    OneOf,
    Scalars,
    Word,
)

MAX_AMOUNT = 1e12

Amount = Annotated[Number, Field(ge=0, le=MAX_AMOUNT)]
Currency = Annotated[str, OneOf(CURRENCIES)]
Country = Annotated[str, OneOf(COUNTRIES)]
CategoryCode = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}$")]

_ID = "a text of 1 to 128 characters without control characters"
_MOMENT = "RFC 3339 with a zone, such as 2026-03-01T12:30:00.250Z, of the years 1990 to 2100"


class Transaction(BaseModel):
    """A payment to be scored. Fields that are not listed here pass through to the outputs untouched."""

    model_config = ConfigDict(extra="allow", strict=True)

    event_id: Identifier = Field(description=f"identity of the event: {_ID}; a repeat is a duplicate")
    account_id: Identifier = Field(description=f"the account or card that pays: {_ID}; also the record's key")
    timestamp: Moment = Field(description=f"when it happened: {_MOMENT}")
    amount: Amount = Field(description=f"a JSON number of major units, from 0 to {MAX_AMOUNT:.0e}")
    currency: Currency = Field(description="an ISO 4217 code in capitals, such as EUR")
    merchant_id: Identifier = Field(description=f"who is paid: {_ID}")
    mcc: CategoryCode = Field(description="the merchant's category: a text of four digits, such as 5411")
    country: Country = Field(description="where: an ISO 3166 alpha-2 code in capitals, such as DE")
    channel: Word = Field(description="how: a lowercase word of up to 32 characters, such as pos or ecommerce")
    terminal_id: Identifier | None = Field(None, description=f"the point of sale: {_ID}, or null")
    device_id: Identifier | None = Field(None, description=f"the payer's device: {_ID}, or null")
    ip: IpAddress | None = Field(None, description="the payer's address: IPv4 or IPv6 as text, or null")
    latitude: Latitude | None = Field(None, description="a JSON number of degrees from -90 to 90, or null")
    longitude: Longitude | None = Field(None, description="a JSON number of degrees from -180 to 180, or null")
    entry_mode: Identifier | None = Field(None, description=f"how the card was read, such as chip: {_ID}, or null")
    card_id: Identifier | None = Field(None, description=f"the card of an account with several: {_ID}, or null")
    attributes: Scalars | None = Field(None, description="an object of texts, numbers and booleans, or null")


class Label(BaseModel):
    """A verdict on an earlier payment. It repeats the payment's identity, so that nothing is looked up."""

    model_config = ConfigDict(extra="allow", strict=True)

    event_id: Identifier = Field(description=f"the payment's event_id: {_ID}")
    account_id: Identifier = Field(description=f"the payment's account_id: {_ID}; also the record's key")
    timestamp: Moment = Field(description=f"the payment's timestamp, not the label's: {_MOMENT}")
    amount: Amount = Field(description=f"the payment's amount: a JSON number from 0 to {MAX_AMOUNT:.0e}")
    currency: Currency = Field(description="the payment's currency: an ISO 4217 code in capitals")
    merchant_id: Identifier = Field(description=f"the payment's merchant_id: {_ID}")
    terminal_id: Identifier | None = Field(None, description=f"the payment's terminal_id: {_ID}, or null")
    device_id: Identifier | None = Field(None, description=f"the payment's device_id: {_ID}, or null")
    ip: IpAddress | None = Field(None, description="the payment's ip: IPv4 or IPv6 as text, or null")
    fraud: bool = Field(description="true for confirmed fraud, false for confirmed genuine; a JSON boolean")
    labelled_at: Moment = Field(description=f"when the verdict became known: {_MOMENT}")
    source: Word = Field(description="who says so: a lowercase word, such as chargeback or analyst")
