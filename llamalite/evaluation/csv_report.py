"""A comparison as CSV."""

from __future__ import annotations

import csv
import io

from llamalite.evaluation.comparison import Comparison


def to_csv(comparison: Comparison) -> str:
    """Return a header line and one line for each model, the reference first; each percentile of Δp is a column."""
    rows = []
    for model in (comparison.reference, *comparison.candidates):
        row = model.to_json()
        percentiles = row.pop("delta_p_percentiles", {})
        rows.append(row | {f"delta_p_{name}": value for name, value in percentiles.items()})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
