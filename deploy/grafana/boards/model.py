"""Model: is it right, and does it still see what it was trained on?"""

from __future__ import annotations

from deploy.grafana.boards.queries import SCORED
from deploy.grafana.panels import Board, Panel, Row, Variable

MODEL = Variable("model", "model", "label_values(riskstream_quality_events, model)", many=True)
WINDOW = Variable("window", "window", "label_values(riskstream_quality_events, window)")


_QUALITY = 'model=~"$model", window="$window"'


def _measure(name: str) -> str:
    return f'max by (model) (riskstream_quality_ratio{{measure="{name}", {_QUALITY}}})'


def _kind(metric: str, kinds: str) -> str:
    return f'max by (model, kind) (riskstream_quality_{metric}{{kind=~"{kinds}", {_QUALITY}}})'


BOARD = Board(
    uid="riskstream-model",
    title="riskstream / Model",
    description="Does the model still see what it was trained on, and is it right? Quality counts events older than "
    "quality.maturity_days only, over the window chosen.",
    variables=[MODEL, WINDOW],
    window="now-7d",
    rows=[
        Row(
            "Which model",
            [
                Panel(
                    "Models",
                    "Who scores, by role and worker. Bad: workers with different champions long after a deployment.",
                    [('count by (role, name, version) (riskstream_model_info{name!=""})', "")],
                    kind="table",
                    height=6,
                ),
                Panel(
                    "Review due in",
                    "Time left until the bundle's review date. Bad: negative: nobody looked whether the model still "
                    "serves.",
                    [
                        (
                            'min by (model) (riskstream_model_review_by_timestamp_seconds{role="champion"}) - time()',
                            "{{model}}",
                        )
                    ],
                    unit="s",
                    kind="stat",
                    height=6,
                    warn=604_800,
                    bad=0,
                    less_is_worse=True,
                ),
                Panel(
                    "Changes, refusals, failures",
                    "Models that took a role, bundles refused, models that failed. Bad: any refusal or failure.",
                    [
                        ("sum by (role) (increase(riskstream_model_changes_total[1h]))", "changed {{role}}"),
                        ("sum by (role) (increase(riskstream_model_refusals_total[1h]))", "refused {{role}}"),
                        ("sum(increase(riskstream_model_failures_total[1h]))", "failed"),
                    ],
                    height=6,
                ),
            ],
        ),
        Row(
            "What it says",
            [
                Panel(
                    "Scores",
                    "Distribution of the scores, 0 to 999. Bad: a shape that differs from the bundle's report, or a "
                    "seam at the hour of a deployment.",
                    [("sum by (le) (increase(riskstream_score_bucket[$__rate_interval]))", "{{le}}")],
                    kind="heatmap",
                ),
                Panel(
                    "Bands",
                    "Share of the scored events by band. Bad: a high band that swells without more fraud.",
                    [
                        (
                            f"sum by (band) (rate(riskstream_bands_total[$__rate_interval])) / scalar({SCORED} > 0)",
                            "{{band}}",
                        )
                    ],
                    unit="percentunit",
                    stacked=True,
                ),
                Panel(
                    "Alert rate and what was promised",
                    "Share of events that are suspicious, beside the share that the thresholds gave when the bundle was "
                    "validated. Bad: apart by a factor of 3.",
                    [
                        ("riskstream:alerts:ratio1h", "now"),
                        (
                            'max by (model) (riskstream_model_expected_alert_ratio{role="champion"})',
                            "promised {{model}}",
                        ),
                        (
                            "sum by (decision) (increase(riskstream_alerts_total[1h])) / scalar(sum(increase("
                            'riskstream_events_total{outcome="scored"}[1h])) > 0)',
                            "{{decision}}",
                        ),
                    ],
                    unit="percentunit",
                ),
            ],
        ),
        Row(
            "Drift",
            [
                Panel(
                    "Drift of the score",
                    "PSI of the probability against the bundle's reference. Bad: above 0.25.",
                    [
                        (
                            f'max by (model) (riskstream_drift_psi{{column="probability", {_QUALITY}}})',
                            "{{model}}",
                        )
                    ],
                    warn=0.1,
                    bad=0.25,
                ),
                Panel(
                    "Drift of the features",
                    "PSI of the features that matter most. Bad: above 0.25; one feature alone is often a changed "
                    "producer, all together a changed world.",
                    [
                        (
                            f'max by (model, column) (riskstream_drift_psi{{column!="probability", {_QUALITY}}})',
                            "{{model}} {{column}}",
                        )
                    ],
                    warn=0.1,
                    bad=0.25,
                ),
                Panel(
                    "Events behind the drift",
                    "Bad: below 500 no PSI is given. None for features: set records.features=sample at the workers.",
                    [
                        (
                            f"max by (model, column) (riskstream_drift_events{{{_QUALITY}}})",
                            "{{model}} {{column}}",
                        )
                    ],
                ),
            ],
        ),
        Row(
            "Is it right?",
            [
                Panel(
                    "Precision",
                    "Share of suspicious events that were fraud. Bad: falling: the case team works for nothing.",
                    [(_measure("precision"), "{{model}}")],
                    unit="percentunit",
                    width=6,
                    maximum=1,
                ),
                Panel(
                    "Recall",
                    "Share of frauds that were suspicious, late labels made up for. Bad: falling: fraud passes.",
                    [(_measure("recall"), "{{model}}")],
                    unit="percentunit",
                    width=6,
                    maximum=1,
                ),
                Panel(
                    "Money recall",
                    "Share of the fraudulent money in suspicious events. Bad: below recall: large frauds pass.",
                    [(_measure("money_recall"), "{{model}}")],
                    unit="percentunit",
                    width=6,
                    maximum=1,
                ),
                Panel(
                    "False positive rate",
                    "Share of genuine events that were suspicious. Bad: rising: customers are bothered.",
                    [(_measure("false_positive_rate"), "{{model}}")],
                    unit="percentunit",
                    width=6,
                ),
                Panel(
                    "Numerators and denominators",
                    "What the ratios are made of. Bad: fewer than about 30 frauds: the ratios are noise.",
                    [
                        (
                            _kind("events", "suspicious|fraud|caught|missed|false_alarm|genuine|scored|declined"),
                            "{{model}} {{kind}}",
                        )
                    ],
                    kind="bars",
                ),
                Panel(
                    "Money",
                    "Fraud caught and missed, in the base currency. Bad: missed above caught.",
                    [(_kind("amount", "fraud|caught|missed"), "{{model}} {{kind}}")],
                    kind="bars",
                ),
                Panel(
                    "Calibration by bin",
                    "Frauds that the probabilities promise and frauds that came, by bin of probability (its upper edge). "
                    "Bad: bars of a pair that differ by more than chance: calibrate anew.",
                    [
                        (
                            f'max by (bin, kind) (riskstream_quality_calibration_events{{kind=~"predicted|fraud", {_QUALITY}}})',
                            "{{bin}} {{kind}}",
                        )
                    ],
                    kind="bars",
                ),
                Panel(
                    "Calibration",
                    "Frauds per predicted fraud, and the calibration error. Bad: far from 1; error above 0.01.",
                    [
                        (_measure("calibration"), "{{model}} frauds per predicted"),
                        (_measure("calibration_error"), "{{model}} error"),
                    ],
                ),
                Panel(
                    "Labels at maturity",
                    "Share of frauds that are labelled when their event is mature, estimated. Bad: below 0.8: raise "
                    "quality.maturity_days.",
                    [("max by (group) (riskstream_quality_label_completeness_ratio)", "{{group}}")],
                    unit="percentunit",
                    maximum=1,
                    warn=0.8,
                    less_is_worse=True,
                ),
                Panel(
                    "Labels that came",
                    "Labels of mature events, as they are. Bad: none of fraud: nothing above means anything.",
                    [(_kind("events", "labelled_fraud|labelled_genuine"), "{{model}} {{kind}}")],
                ),
            ],
        ),
        Row(
            "Challengers",
            [
                Panel(
                    "Where a challenger decides otherwise",
                    "Events per second on which champion and challenger differ. Bad: before a promotion, many whose "
                    "labels nobody has looked at.",
                    [
                        (
                            "sum by (role, champion, challenger) (rate(riskstream_shadow_decisions_total[$__rate_interval]))",
                            "{{role}}: {{champion}} / {{challenger}}",
                        )
                    ],
                    unit="eps",
                    width=12,
                ),
                Panel(
                    "Mean difference of probabilities",
                    "Bad: a jump: one of the two has drifted, or was changed.",
                    [
                        (
                            "sum by (role) (rate(riskstream_shadow_difference_total[$__rate_interval])) "
                            "/ sum by (role) (rate(riskstream_shadow_decisions_total[$__rate_interval]))",
                            "{{role}}",
                        )
                    ],
                    width=12,
                ),
            ],
        ),
        Row(
            "riskstream quality itself",
            [
                Panel(
                    "Behind",
                    "Records not yet read. Bad: growing; figures are then of the past.",
                    [("max(riskstream_quality_lag_events)", "records")],
                    width=6,
                ),
                Panel(
                    "Clock and turn",
                    "Age of the newest event, and of the last turn. Bad: the first grows while events come; the second "
                    "above a minute.",
                    [
                        ("time() - max(riskstream_quality_clock_timestamp_seconds)", "newest event"),
                        ("time() - max(riskstream_quality_last_turn_timestamp_seconds)", "last turn"),
                    ],
                    unit="s",
                    width=6,
                ),
                Panel(
                    "Remembered events",
                    "Events that labels can find, and labels that found none. Bad: waiting labels that grow.",
                    [
                        ("max(riskstream_quality_stored_events)", "events"),
                        ("max(riskstream_quality_labels_waiting)", "labels that wait"),
                    ],
                    width=6,
                ),
                Panel(
                    "Share remembered",
                    "Of approved events. Bad: below 1 %: recall is noisy; raise quality.max_events.",
                    [("min(riskstream_quality_sample_ratio)", "share")],
                    unit="percentunit",
                    width=6,
                    maximum=1,
                ),
            ],
        ),
    ],
)
