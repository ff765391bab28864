"""Online quality: the join against its slow twin, planted label delays and drift, bounded memory, restarts."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.kafka.port import TopicPartition
from stream.quality import checkpoint
from stream.quality.book import CELL_MS, Book, LabelColumns, ScoreColumns
from stream.quality.delay import BINS, BINS_PER_MATURITY, LEAST, LabelDelay
from stream.quality.figures import LEAST_DRIFT_EVENTS, Figures, Quality, figures, psi
from stream.scoring.reference import Distribution, Reference
from tests.unit.naive_quality import Score, Verdict, naive_counts, naive_delay_distribution

DAY_MS = 86_400_000
START_MS = 20_000 * DAY_MS
MATURITY_MS = 5 * DAY_MS


def new_book(most_entries: int = 10**6, days: int = 20) -> Book:
    return Book(maturity_ms=MATURITY_MS, horizon_ms=days * DAY_MS, most_entries=most_entries)


def score_columns(scores: list[Score]) -> ScoreColumns:
    return ScoreColumns(
        identity=np.array([score.identity for score in scores], np.uint64),
        time_ms=np.array([score.time_ms for score in scores], np.int64),
        amount_minor=np.array([score.amount_minor for score in scores], np.int64),
        probability=np.array([score.probability for score in scores], np.float64),
        decision=np.array([score.decision for score in scores], np.int64),
        models=[score.model for score in scores],
        features=[None] * len(scores),
    )


def label_columns(labels: list[Verdict]) -> LabelColumns:
    return LabelColumns(
        identity=np.array([label.identity for label in labels], np.uint64),
        time_ms=np.array([label.time_ms for label in labels], np.int64),
        known_ms=np.array([label.known_ms for label in labels], np.int64),
        fraud=np.array([label.fraud for label in labels], np.bool_),
    )


# --- the join against its twin


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Score], list[Verdict], list[int]]:
    """Scores of ten days, labels (repeated, revised, some of no event, some before their score), and where to cut."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 120))
    times = START_MS + np.sort(random.integers(0, 10 * DAY_MS, count))
    scores = [
        Score(
            identity=int(random.integers(1, 2**63)),
            time_ms=int(time),
            amount_minor=int(random.integers(0, 100_000)),
            probability=float("nan") if random.random() < 0.1 else float(random.random() ** 4),
            decision=int(random.choice(3, p=[0.6, 0.25, 0.15])),
            model=str(random.choice(["a@1", "b@2"])),
        )
        for time in times.tolist()
    ]
    labels = []
    for score in scores:
        for _ in range(int(random.choice(4, p=[0.4, 0.4, 0.1, 0.1]))):
            # All long before the clock: nothing is left to be estimated.
            known = score.time_ms + int(random.integers(0, DAY_MS))
            labels.append(Verdict(score.identity, score.time_ms, known, bool(random.random() < 0.7)))
    labels += [Verdict(int(random.integers(1, 2**63)), START_MS + 5, START_MS + 9, True) for _ in range(3)]
    order = random.permutation(len(labels))
    cuts = draw(st.lists(st.integers(0, len(scores) + len(labels)), max_size=6))
    return scores, [labels[i] for i in order], cuts


def fed(scores: list[Score], labels: list[Verdict], cuts: list[int], **options: Any) -> Book:
    """A book that got scores and labels in turns, cut somewhere; labels often come before their scores."""
    book = new_book(**options)
    bounds = sorted({0, *cuts, len(scores) + len(labels)})
    for start, end in itertools.pairwise(bounds):
        book.add_labels(label_columns(labels[min(start, len(labels)) : min(end, len(labels))]))
        shift = len(labels)
        book.add_scores(score_columns(scores[max(start - shift, 0) : max(end - shift, 0)]))
    return book


@settings(max_examples=60, deadline=None)
@given(streams())
def test_the_join_is_that_of_the_slow_twin(stream: tuple[list[Score], list[Verdict], list[int]]) -> None:
    scores, labels, cuts = stream
    book = fed(scores, labels, cuts)
    without_correction = LabelDelay(MATURITY_MS)
    book.delay = without_correction
    got = figures(book, ("1d", "7d"))
    for window, length in (("1d", DAY_MS), ("7d", 7 * DAY_MS)):
        for model in ("a@1", "b@2"):
            expected = naive_counts(scores, labels, maturity_ms=MATURITY_MS, window_ms=length, model=model)
            quality = got.quality.get((model, window))
            if quality is None:
                assert expected["scored"] == 0
                continue
            counts = quality.counts
            assert {name: counts[name] for name in counts if name in expected} == {
                name: pytest.approx(expected[name]) for name in counts if name in expected
            }
            assert quality.amounts["fraud"] == pytest.approx(expected["fraud_amount"])
            assert quality.amounts["caught"] == pytest.approx(expected["caught_amount"])
            assert quality.with_model.tolist() == expected["with_model"]
            assert quality.predicted.tolist() == pytest.approx(expected["predicted"])
            assert quality.observed.tolist() == pytest.approx(expected["observed"])
    outcomes = book.outcomes
    assert outcomes["scores", "counted"] == len(scores)
    applied = sum(outcomes["labels", name] for name in ("joined", "repeated", "revised"))
    known = {score.identity for score in scores}
    # A label that waits is overwritten by a later one of the same event.
    assert applied <= sum(label.identity in known for label in labels)
    assert outcomes["labels", "joined"] == len({label.identity for label in labels if label.identity in known})
    assert outcomes["labels", "unsampled"] == outcomes["labels", "too_old"] == 0


@settings(max_examples=30, deadline=None)
@given(streams())
def test_how_the_stream_is_cut_changes_nothing(stream: tuple[list[Score], list[Verdict], list[int]]) -> None:
    scores, labels, cuts = stream
    one, other = fed(scores, labels, cuts), fed(scores, labels, [len(labels)])
    assert shown(figures(one, ("7d",))) == close(shown(figures(other, ("7d",))))


def shown(found: Figures) -> dict[Any, float]:
    flat: dict[Any, float] = dict(enumerate(found.completeness.tolist()))
    for key, quality in found.quality.items():
        flat |= {(*key, name): value for name, value in quality.counts.items()}
        flat |= {(*key, "amount", name): value for name, value in quality.amounts.items()}
    return flat


def close(values: dict[Any, float]) -> dict[Any, Any]:
    return {key: pytest.approx(value) for key, value in values.items()}


# --- planted label delays


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=60), st.integers(0, 130))
def test_the_delay_distribution_is_that_of_the_slow_twin(delays: list[tuple[int, int]], now_step: int) -> None:
    estimate = LabelDelay(MATURITY_MS)
    step = estimate.step_ms
    times = np.array([cohort * step for cohort, _ in delays], np.int64)
    known = times + np.array([delay * step for _, delay in delays], np.int64)
    estimate.add(times, known, np.zeros(len(delays), np.int64), np.ones(len(delays)))
    expected = naive_delay_distribution([d for d in delays if d[1] < BINS], now_step, BINS)
    got = estimate.distribution(now_step * step)[0]
    # A product that passes through 0 and back is 0 in both; above it they agree.
    assert got.tolist() == pytest.approx(expected)


def planted(
    book: Book, *, mean_delay_ms: tuple[float, float], days: int = 40, per_day: int = 2_000, seed: int = 5
) -> tuple[Quality, float]:
    """Feeds a stream whose frauds are labelled after exponential delays; the truth, had all labels come by magic.

    `mean_delay_ms`: of approved and of suspicious frauds. Returns the truth over the last mature 7 days and the
    share of the approved frauds in it that are labelled by the end.
    """
    random = np.random.default_rng(seed)
    count = days * per_day
    time = START_MS + np.sort(random.integers(0, days * DAY_MS, count))
    fraud = random.random(count) < 0.05
    suspicious = np.where(fraud, random.random(count) < 0.6, random.random(count) < 0.01)
    amount = np.where(fraud, random.integers(5_000, 50_000, count), random.integers(100, 20_000, count))
    probability = np.where(suspicious, 0.6, 0.02)
    mean = np.where(suspicious, mean_delay_ms[1], mean_delay_ms[0])
    known = time + random.exponential(mean).astype(np.int64)
    identity = random.integers(1, 2**64, count, dtype=np.uint64)
    end = time[-1]
    for day in range(days):
        here = np.flatnonzero((time - START_MS) // DAY_MS == day)
        book.add_scores(
            ScoreColumns(
                identity[here], time[here], amount[here], probability[here], suspicious[here].astype(np.int64) * 2,
                ["m@1"] * len(here), [None] * len(here),
            )
        )  # fmt: skip
        arrived = np.flatnonzero(fraud & ((known - START_MS) // DAY_MS == day) & (known <= end))
        book.add_labels(LabelColumns(identity[arrived], time[arrived], known[arrived], fraud[arrived]))
    last = (end - book.maturity_ms) // CELL_MS
    chosen = (time // CELL_MS < last) & (time // CELL_MS >= last - 7 * 24)
    truth = Quality()
    decision = suspicious[chosen].astype(np.int64) * 2
    truth.events = np.bincount(decision, minlength=3)
    truth.fraud = np.bincount(decision, fraud[chosen], minlength=3)
    truth.fraud_amount = np.bincount(decision, fraud[chosen] * amount[chosen] / 100, minlength=3)
    late = chosen & fraud & ~suspicious
    return truth, float((known[late] <= end).mean())


def test_labels_that_cannot_have_arrived_are_made_up_for() -> None:
    book = new_book(days=40)
    # A third of the approved frauds is not labelled after the maturity; analysts are ten times quicker.
    truth, labelled = planted(book, mean_delay_ms=(0.7 * MATURITY_MS, 0.07 * MATURITY_MS))
    assert 0.6 < labelled < 0.95
    found = figures(book, ("7d",))
    got = found.quality["m@1", "7d"]
    for measure, tolerance in (("precision", 0.03), ("recall", 0.03), ("money_recall", 0.03)):
        assert got.ratios[measure] == pytest.approx(truth.ratios[measure], abs=tolerance), measure
    assert got.ratios["false_positive_rate"] == pytest.approx(truth.ratios["false_positive_rate"], rel=0.1)
    assert got.ratios["alert_rate"] == truth.ratios["alert_rate"]
    # The share labelled at the maturity, of delays up to twice the maturity.
    assert found.completeness[0] == pytest.approx((1 - np.exp(-1 / 0.7)) / (1 - np.exp(-2 / 0.7)), abs=0.03)
    assert found.completeness[1] == pytest.approx(1.0, abs=0.01)
    # Without the correction recall looks better than it is: the check can fail.
    book.delay = LabelDelay(MATURITY_MS)
    assert figures(book, ("7d",)).quality["m@1", "7d"].ratios["recall"] > truth.ratios["recall"] + 0.03


def test_young_events_do_not_count_as_genuine() -> None:
    book = new_book()
    times = [START_MS + day * DAY_MS for day in range(8)]
    book.add_scores(score_columns([Score(n + 1, time, 100, 0.9, 2, "m@1") for n, time in enumerate(times)]))
    counts = figures(book, ("30d",)).quality["m@1", "30d"].counts
    # Days 0 and 1 are older than five days at day 7; day 2 is just as old as the maturity.
    assert counts["scored"] == counts["false_alarm"] == 2
    assert figures(new_book(), ("1d",)).quality == {}


def test_the_estimate_has_a_floor_and_a_whole() -> None:
    delay = LabelDelay(MATURITY_MS)
    assert delay.distribution(START_MS).tolist() == np.ones((2, BINS)).tolist()
    age = np.array([0, delay.step_ms // 2, delay.step_ms * BINS_PER_MATURITY, 10 * MATURITY_MS])
    assert delay.completeness(START_MS, age)[0].tolist() == [0.2, 0.5, 1.0, 1.0]


# --- bounded memory


def test_a_full_book_samples_and_stays_unbiased() -> None:
    exact, small = new_book(days=40), new_book(days=40, most_entries=6_000)
    planted(exact, mean_delay_ms=(0.2 * MATURITY_MS,) * 2)
    truth, _ = planted(small, mean_delay_ms=(0.2 * MATURITY_MS,) * 2)
    assert exact.stored > 70_000
    assert exact.halvings == 0
    assert small.halvings >= 3
    assert small.stored <= 6_000
    assert small.outcomes["labels", "unsampled"] > 500
    assert not small.waiting_labels
    want = figures(exact, ("30d",)).quality["m@1", "30d"].ratios
    got = figures(small, ("30d",)).quality["m@1", "30d"].ratios
    for measure in ("precision", "alert_rate"):
        assert got[measure] == pytest.approx(want[measure], rel=1e-6), measure
    assert got["false_positive_rate"] == pytest.approx(want["false_positive_rate"], rel=0.1)
    assert got["recall"] == pytest.approx(want["recall"], abs=0.06)
    assert want["recall"] == pytest.approx(0.6, abs=0.05)
    assert truth.events.sum() > 0


def test_when_even_suspicious_events_are_too_many_the_oldest_cannot_be_labelled() -> None:
    book = new_book(most_entries=1_000)
    scores = [Score(n + 1, START_MS + n * 60_000, 100, 0.9, 2, "m@1") for n in range(3_000)]
    for start in range(0, 3_000, 500):
        book.add_scores(score_columns(scores[start : start + 500]))
    assert book.stored <= 1_000
    newest = scores[-1]
    book.add_labels(label_columns([Verdict(newest.identity, newest.time_ms, newest.time_ms, True)]))
    assert book.outcomes["labels", "joined"] == 1


def test_what_leaves_the_horizon_is_forgotten() -> None:
    book = new_book(days=20)
    book.add_scores(score_columns([Score(1, START_MS, 100, 0.9, 2, "m@1")]))
    book.add_labels(label_columns([Verdict(77, START_MS, START_MS, True), Verdict(1, START_MS, START_MS, True)]))
    assert (book.stored, len(book.waiting_labels)) == (1, 1)
    book.add_scores(score_columns([Score(2, START_MS + 30 * DAY_MS, 100, 0.9, 0, "m@1")]))
    assert book.stored == 1
    assert not book.waiting_labels
    assert book.outcomes["labels", "unmatched"] == 1
    book.add_scores(score_columns([Score(3, START_MS, 100, 0.9, 0, "m@1")]))
    book.add_labels(label_columns([Verdict(1, START_MS, START_MS, True)]))
    assert book.outcomes["scores", "too_old"] == 1
    assert book.outcomes["labels", "too_old"] == 1
    assert len(book.cells) == 1
    assert len(book.delay.state()[0]) == 0


@pytest.mark.parametrize("shift_ms", [-400 * DAY_MS, 0, 40_000 * DAY_MS], ids=["long past", "now", "far future"])
def test_labels_of_events_that_nobody_scored_take_bounded_room_and_change_no_figure(
    shift_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.quality.book._MOST_WAITING", 2_000)
    book = new_book()
    planted(book, mean_delay_ms=(0.2 * MATURITY_MS,) * 2)
    before, known = close(shown(figures(book, ("7d",)))), book.outcomes.total()
    random, count = np.random.default_rng(1), 20_000
    foreign = LabelColumns(
        identity=random.integers(1, 2**63, count).astype(np.uint64),
        time_ms=book.clock_ms + shift_ms - random.integers(0, 3 * DAY_MS, count),
        known_ms=random.integers(-(2**60), 2**60, count),  # before the event, or after ages
        fraud=random.random(count) < 0.5,
    )
    for start in range(0, count, 1_000):
        book.add_labels(foreign.take(np.arange(start, start + 1_000)))
    assert shown(figures(book, ("7d",))) == before
    assert len(book.waiting_labels) <= 2_000
    assert book.outcomes.total() - known + len(book.waiting_labels) == count, "each is counted or waits"
    assert book.outcomes["labels", "too_old"] == (count if shift_ms < 0 else 0)


@pytest.mark.parametrize("known_ms", [-(2**60), START_MS, 2**60], ids=["before the event", "at once", "after ages"])
def test_a_verdict_that_flips_without_end_ends_as_its_last(known_ms: int) -> None:
    book = new_book()
    book.add_scores(score_columns([Score(n + 1, START_MS, 100, 0.9, 2, "m@1") for n in range(50)]))
    flips = [Verdict(7, START_MS, known_ms, bool(turn % 2)) for turn in range(2_001)]
    for batch in (flips[:1_000], flips[1_000:]):
        book.add_labels(label_columns(batch))
    book.add_scores(score_columns([Score(99, START_MS + MATURITY_MS + DAY_MS, 100, 0.9, 0, "m@1")]))
    counts = figures(book, ("7d",)).quality["m@1", "7d"].counts
    assert (counts["labelled_fraud"], counts["labelled_genuine"], counts["fraud"]) == (0, 1, 0)
    assert book.outcomes["labels", "revised"] == 2_000
    book.add_labels(label_columns([flips[1]]))
    found = figures(book, ("7d",)).quality["m@1", "7d"]
    assert found.counts["labelled_fraud"] == 1
    assert 1 <= found.counts["fraud"] <= 1 / LEAST, "one fraud, as many as its delay suggests at most"
    assert found.amounts["caught"] <= 100 / LEAST


def test_models_without_end_are_one() -> None:
    book = new_book()
    book.add_scores(score_columns([Score(n + 1, START_MS, 1, 0.5, 0, f"m@{n}") for n in range(300)]))
    assert len(book.models) == 201
    assert book.models[-1] == "other"


# --- drift

REFERENCE = Reference(
    from_ms=0,
    to_ms=1,
    events=10_000,
    score=Distribution(kind="number", edges=(0.1, 0.5), shares=(0.8, 0.15, 0.05)),
    columns={
        "amount": Distribution(kind="number", edges=(10.0, 100.0), shares=(0.3, 0.5, 0.1), missing=0.1),
        "mcc": Distribution(kind="category", codes=(3, 7), shares=(0.3, 0.5, 0.2)),
    },
)


def drifting(shift: float, count: int = 4_000, *, sampled: float = 1.0, model: str = "m@1") -> Book:
    """A book with events drawn from the reference, `shift` of them from elsewhere."""
    random = np.random.default_rng(3)
    book = new_book()
    book.use({"m@1": REFERENCE})
    moved = random.random(count) < shift
    probability = random.choice([0.05, 0.3, 0.7], p=[0.8, 0.15, 0.05], size=count)
    amount = random.choice([5.0, 50.0, 500.0, np.nan], p=[0.3, 0.5, 0.1, 0.1], size=count)
    mcc = random.choice([7.0, 3.0, 99.0], p=[0.5, 0.3, 0.2], size=count)
    probability[moved], amount[moved], mcc[moved] = 0.7, 1e6, 55.0
    features = [
        {"amount": None if np.isnan(a) else a, "mcc": c, "unknown": 1.0} if random.random() < sampled else None
        for a, c in zip(amount.tolist(), mcc.tolist(), strict=True)
    ]
    columns = score_columns([Score(n + 1, START_MS + n, 1, float(p), 0, model) for n, p in enumerate(probability)])
    book.add_scores(dataclasses.replace(columns, features=features))
    return book


def test_planted_drift_is_found_and_no_drift_is_not() -> None:
    still = figures(drifting(0.0), ("1d",)).drift["m@1", "1d"]
    assert set(still.psi) == {"probability", "amount", "mcc"}
    assert max(still.psi.values()) < 0.01
    moved = figures(drifting(0.3), ("1d",)).drift["m@1", "1d"]
    assert min(moved.psi.values()) > 0.25
    assert moved.events == {"probability": 4_000, "amount": 4_000, "mcc": 4_000}
    slight = figures(drifting(0.1), ("1d",)).drift["m@1", "1d"]
    assert all(still.psi[name] < slight.psi[name] < moved.psi[name] for name in still.psi)


def test_psi_is_the_sum_of_its_definition() -> None:
    counts, expected = np.array([10, 70, 0, 20]), np.array([0.25, 0.25, 0.0, 0.5])
    pairs = [(0.1, 0.25), (0.7, 0.25), (1e-4, 1e-4), (0.2, 0.5)]
    assert psi(counts, expected) == pytest.approx(sum((a - e) * np.log(a / e) for a, e in pairs))
    assert np.isnan(psi(np.zeros(3, np.int64), np.ones(3) / 3))


def test_too_few_events_have_no_psi_and_unknown_models_no_drift() -> None:
    few = figures(drifting(0.0, LEAST_DRIFT_EVENTS * 2, sampled=0.1), ("1d",)).drift["m@1", "1d"]
    assert set(few.psi) == {"probability"}
    assert 0 < few.events["amount"] < LEAST_DRIFT_EVENTS
    assert figures(drifting(0.0, model="other@9"), ("1d",)).drift == {}


def test_another_reference_of_the_same_model_begins_anew() -> None:
    book = drifting(0.0)
    other = REFERENCE.model_copy(update={"columns": {}})
    book.use({"m@1": other})
    assert figures(book, ("1d",)).drift == {}


# --- restarts


@settings(max_examples=20, deadline=None)
@given(stream=streams())
def test_a_checkpoint_goes_on_where_it_stood(
    tmp_path_factory: pytest.TempPathFactory, stream: tuple[list[Score], list[Verdict], list[int]]
) -> None:
    path = tmp_path_factory.mktemp("quality") / "book.npz"
    scores, labels, _ = stream
    half, middle = len(labels) // 2, len(scores) // 2
    through, first, second = new_book(), new_book(), new_book()
    for book in (through, first):
        book.add_labels(label_columns(labels[:half]))
        book.add_scores(score_columns(scores[:middle]))
    positions = {TopicPartition("risk-scores", 0): 5, TopicPartition("labels", 1): 7}
    checkpoint.save(path, first, positions)
    assert checkpoint.load(path, second) == positions
    for book in (through, second):
        book.add_scores(score_columns(scores[middle:]))
        book.add_labels(label_columns(labels[half:]))
    assert shown(figures(second, ("1d", "7d"))) == close(shown(figures(through, ("1d", "7d"))))
    assert +second.outcomes == +through.outcomes


def test_a_checkpoint_keeps_drift(tmp_path: Path) -> None:
    book, other = drifting(0.3), new_book()
    checkpoint.save(tmp_path / "book.npz", book, {})
    checkpoint.load(tmp_path / "book.npz", other)
    other.use({"m@1": REFERENCE})
    assert figures(other, ("1d",)).drift == figures(book, ("1d",)).drift


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.npz"
    checkpoint.save(path, drifting(0.0), {})
    with pytest.raises(ValueError, match="other settings"):
        checkpoint.load(path, new_book(days=21))
    content = path.read_bytes()
    for damaged in (b"", b"PK", content[:-100], content[:200] + b"\0" * 50 + content[250:]):
        path.write_bytes(damaged)
        book = new_book()
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.load(path, book)
        assert not book.cells
