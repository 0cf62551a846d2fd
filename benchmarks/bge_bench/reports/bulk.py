"""The table of a job over files."""

from __future__ import annotations

from bge_bench.reports.rows import Document
from bge_bench.reports.text import busy_notes
from bge_runtime.system import format_table


def bulk_table(document: Document) -> str:
    """Return rates and memory of a job and of `encode`."""
    rows = [["", "texts/s", "of encode", "peak memory", "precision", "min cosine"]]
    parity = document["parity"]
    for side, label in (("encode", "encode, in memory"), ("job", "a job, Parquet to Parquet")):
        rate = document[f"{side}_texts_per_s"]
        peak = max(found[side]["peak_memory_bytes"] for found in document["rounds"])
        rows.append(
            [
                label,
                f"{rate:,.1f}",
                f"{rate / document['encode_texts_per_s']:.1%}",
                f"{peak / 1e6:,.0f} MB",
                document["opened"][side]["engine"]["precision"],
                f"{parity['min_cosine']:.6f}" if parity and side == "job" else "",
            ]
        )
    first, last = (document["rounds"][at]["job"]["peak_memory_bytes"] for at in (0, -1))
    share = document["rows"] // len(document["rounds"])
    memory = (
        f"{document['rows']:,} rows. Peak memory of the job after {share:,} rows: "
        f"{first / 1e6:,.0f} MB, after all: {last / 1e6:,.0f} MB."
    )
    size = (
        f"{document['output_bytes'] / document['rows']:,.0f} bytes a row. A run with nothing left "
        f"to do takes {document['nothing_to_do_s']:.2f} s."
    )
    return "\n".join([format_table(rows), "", memory, size, *busy_notes(document["busy_percent"])])
