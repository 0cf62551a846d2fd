"""The table of README, and what stands under its chart."""

from __future__ import annotations

from bge_bench.reports.tables import markdown
from docs.generate.conditions import dates, link, machine, model_of
from docs.generate.sources import README, THROUGHPUT, read


def readme_table() -> str:
    """Return four rows about bge-runtime and others, of one run of `bge-bench speed`."""
    document = read(README)
    systems = [*document["baselines"], document["ours"]]
    medians = [system["median"] for system in systems]
    texts = document["texts"]["count"]
    rows = [
        ["", *(f"{_title(system['name'])}, {system['precision']}" for system in systems)],
        [f"{texts} texts", *(f"{each['corpus_s']:.1f} s" for each in medians)],
        ["one query, median", *(f"{_two_digits(each['query_p50_ms'])} ms" for each in medians)],
        ["import to first vector", *(
            f"{_two_digits(each['first_vector_s'])} s" for each in medians
        )],
        ["peak memory", *(f"{each['peak_memory_bytes'] / 1e6:,.0f} MB" for each in systems)],
    ]  # fmt: skip
    where = (
        f"{model_of(document)}, {machine(document)}, {dates(document)}, "
        f"{document['rounds']} rounds of `bge-bench speed` ({link(README, 'raw')})."
    )
    return f"{markdown(rows)}\n\n{where}"


def chart_caption() -> str:
    """Return under which condition the systems of README's chart were measured."""
    raw = ", ".join(link(name, name[:10]) for name in dict.fromkeys(THROUGHPUT.values()))
    return (
        "Every system at its best batch size. Error: as a share of the distance between texts "
        f"({raw})."
    )


def _title(name: str) -> str:
    """Return a system's name with OpenVINO as a user writes it."""
    name = name.replace(" openvino", ", OpenVINO")
    return "**bge-runtime**" if name.startswith("bge-runtime") else name


def _two_digits(value: float) -> str:
    return f"{value:.{2 if value < 1 else int(value < 10)}f}"
