"""Tables of servers under load."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from bge_bench.reports.rows import Document, Rows, failures, struck
from bge_bench.reports.text import busy_notes
from bge_runtime.bundle import Parity

_ANSWERED = "200"
_MEANING = {"0": "lost", "-1": "unanswered"}


def serving_rows(document: Document) -> Rows:
    """Return a row for each load and server: rates, percentiles of latency, what went wrong."""
    measures = ("texts/s", "without clients", "of encode", "p50", "p95", "p99", "errors")
    rows = [["load", "", *measures, "peak memory", "precision", "min cosine"]]
    encode = document["encode"]
    rate = statistics.median(encode["texts_per_s"])
    about = ["", encode["precision"], ""]
    empty = [""] * (len(measures) - 1)
    rows.append(["all texts at once", "encode, no server", f"{rate:.1f}", *empty, *about])
    in_process = [_ms(encode["query"][f"p{at}_ms"]) for at in (50, 95, 99)]
    rows.append(["a query at a time", "encode, no server", "", "", "", *in_process, "", *about])
    for load, server, point in _points(document):
        texts = document["bulk_texts"] if load.startswith("bulk") else 1
        closed = load.endswith(("client", "clients"))
        without = point["without_clients_per_s"]
        cells = [
            server["label"],
            f"{point['texts_per_s'] * texts:.1f}",
            f"{without:.1f}" if closed else "",
            f"{without / rate:.0%}" if closed else "",
            *(_ms(point[f"p{at}_ms"]) for at in (50, 95, 99)),
            _errors(point),
            f"{server['peak_memory_bytes'] / 1e6:,.0f} MB",
            server["precision"],
            f"{Parity.from_json(server['parity']).min_cosine:.6f}",
        ]
        rows.append([load, *(struck(cells) if failures(server) else cells)])
    return rows


def _points(document: Document) -> Iterator[tuple[str, Document, Document]]:
    """Yield the name of each load, and each server with its figures."""
    rows = document["rows"]
    for clients in document["clients"]:
        for row in rows:
            yield f"{clients} {_clients(clients)}", row, row["closed"][str(clients)]
    for load in document["loads"]:
        for row in rows:
            offered = load / 100 * row["capacity_per_s"]
            yield f"{load} % ({offered:.0f}/s)", row, row["open"][str(load)]
    for name, title in (
        ("query", "a query at a time"),
        ("queries_alone", "queries at 80 %"),
        ("queries_beside_bulk", "queries at 80 %, beside bulk"),
        ("bulk", "bulk beside them"),
    ):
        for row in rows:
            yield title, row, row[name]


def _clients(number: int) -> str:
    return "client" if number == 1 else "clients"


def serving_notes(document: Document) -> list[str]:
    """Return notes on what was in force, how it was measured, and what a figure means."""
    rows = document["rows"]
    said = [f"encode: {document['encode']['in_force']}"]
    said += [f"{row['label']}: {row['name']}, {row['in_force']}" for row in rows]
    used = [
        each["client_cpu_s"] / point["seconds"]
        for row in rows
        for point in row["closed"].values()
        for each in point["rounds"]
    ]
    late = [
        each["late_p99_ms"] or 0
        for row in rows
        for point in row["open"].values()
        for each in point["rounds"]
    ]
    said.append(
        f"{document['threads']} threads each; {document['processors']} processors, which clients "
        f"and server share, no side pinned. Clients are {document['client_processes']} process(es) "
        f"that used {min(used):.0%} to {max(used):.0%} of one processor with a given number of "
        "clients. 'Without clients' is texts/s x processors / (processors - what the clients "
        "used): the rate had their time been the server's. 'Of encode' is of that rate."
    )
    said.append(
        "A percentage is of what that server does at its best with a given number of clients; "
        "requests come at random times (Poisson), and latency counts from when a request was due, "
        f"of all that came within {document['seconds']:.0f} s. Requests were sent at most "
        f"{max(late, default=0):.1f} ms late (p99). At more than 100 % a server that refuses "
        "nothing is as late as the run is long."
    )
    said.append(
        f"One text a request, {document['text_count']} texts in turn, base64. Medians of "
        f"{document['rounds']} round(s), percentiles over all of them. Bulk is requests of "
        f"{document['bulk_texts']} passages by clients that never pause; 80 % is of the queries "
        "that a server does for the most clients. Cosine is to encode in fp32."
    )
    for engine, found in document["infinity_engines"].items():
        rate = f"{found.get('texts_per_s', 0):.1f} texts/s with 64 clients"
        said.append(f"infinity's engine {engine}: {found['failed'] or rate}")
    said += [
        f"{row['label']} is struck out: {'; '.join(failures(row))}" for row in rows if failures(row)
    ]
    said += [f"Left out: {system}, since {why}" for system, why in document["left_out"].items()]
    return said + busy_notes(document["busy_percent_before"])


def overload_rows(document: Document) -> Rows:
    """Return a row for each tenth of the time: accepted requests, their latency, memory."""
    rows = [["time", "accepted/s", "p50", "p95", "p99", "memory"]]
    found = document["overload"]
    length = found["seconds"] / len(found["parts"])
    held = found["held_bytes"]
    for number, part in enumerate(found["parts"]):
        end = min(len(held), round((number + 1) * length)) - 1
        rows.append(
            [
                f"{number * length:g} to {(number + 1) * length:g} s",
                f"{part['accepted'] / length:.1f}",
                *(_ms(part[f"p{at}_ms"]) for at in (50, 95, 99)),
                f"{held[end] / 1e6:,.0f} MB" if end >= 0 else "",
            ]
        )
    return rows


def overload_notes(document: Document) -> list[str]:
    """Return what a server refused, and how it was one second after."""
    found = document["overload"]
    counts = found["statuses"]
    server_errors = sum(count for status, count in counts.items() if status.startswith("5"))
    named = ", ".join(
        f"{_MEANING.get(status, status)}: {count:,}" for status, count in sorted(counts.items())
    )
    after = found["after_per_s"]
    server = document["server"]
    said = [f"{found['label']}: {server['name']}, {server['in_force']}"]
    said.append(
        f"Requests of one text at {found['offered_per_s']:.1f}/s for {found['seconds']:.0f} s, at "
        f"random times: {found['percent']} % of the {found['capacity_per_s']:.1f}/s that it did "
        f"for {found['clients']} clients. By status: {named}. Server errors (5xx): "
        f"{server_errors}. Answers of 429 without Retry-After: {found['no_retry_after']}."
    )
    said.append(
        f"The last answer came {found['drained_after_s']:.2f} s after the end. From "
        f"{found['pause_s']:.0f} s after it {found['clients']} clients asked again; texts answered "
        f"in each second, what still waited among them: "
        f"{', '.join(f'{rate:.0f}' for rate in after)}."
    )
    said.append(
        f"The clients used {found['client_cpu_s'] / found['seconds']:.0%} of one processor, of the "
        f"{document['processors']} that they share with the server."
    )
    return said + busy_notes(document["busy_percent_before"])


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms"


def _errors(point: Document) -> str:
    """Return how many requests of each kind failed, in percent where there are many."""
    statuses: dict[str, Any] = point["statuses"]
    failed = {name: count for name, count in statuses.items() if name != _ANSWERED}
    return ", ".join(f"{count} {_MEANING.get(name, name)}" for name, count in failed.items()) or "0"
