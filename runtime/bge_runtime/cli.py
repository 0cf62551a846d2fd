"""``bge-embed``: texts in, vectors out, from a shell."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_runtime import __version__
from bge_runtime.auto_model import AnyFlagModel, FlagAutoModel
from bge_runtime.errors import BgeError
from bge_runtime.files import read_json
from bge_runtime.icl_model import FlagICLModel
from bge_runtime.m3_model import BGEM3FlagModel, M3Output
from bge_runtime.registry import DECODER_ONLY_ICL

_CHUNK = 8192
"""Texts read, embedded and written at a time, so that memory stays flat."""

_COLBERT_CHARACTERS = 1 << 18
"""Characters of texts whose ColBERT vectors are in memory at a time: with BGE-M3's 4 KB a token,
0.3 GB of English and twice as much of Chinese."""

Record = dict[str, Any]


class _Row(NamedTuple):
    """A text, and where it came from."""

    line: int
    text: str
    fields: Record


Write = Callable[[list[Record], NDArray[np.float32]], object]


class InputError(BgeError):
    """The input cannot be read as asked."""


@click.command(context_settings={"max_content_width": 100})
@click.argument("model")
@click.argument("source", metavar="[INPUT]", default="-")
@click.option(
    "--output", "-o", default="-", help="A .npy or .jsonl file. Default: JSONL on standard output."
)
@click.option(
    "--jsonl", is_flag=True, help="INPUT is JSONL (known by itself from a .jsonl or .ndjson name)."
)
@click.option("--field", default="text", show_default=True, help="Field of JSONL that is embedded.")
@click.option("--query", is_flag=True, help="Texts are queries: put the instruction before each.")
@click.option("--instruction", help="With --query. Default: the one the model's authors recommend.")
@click.option(
    "--examples",
    "examples_file",
    metavar="FILE",
    help="With --query, of bge-en-icl and its like: a JSON list of objects with query, response "
    "and instruct.",
)
@click.option("--max-length", type=click.IntRange(1), help="Tokens of a text. Default: 512.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Texts.")
@click.option("--truncate-dim", type=click.IntRange(1), help="Components to keep.")
@click.option("--no-normalize", is_flag=True, help="Leave vectors at their own length.")
@click.option("--sparse", is_flag=True, help="Of BGE-M3: lexical weights as well, in JSONL.")
@click.option("--colbert", is_flag=True, help="Of BGE-M3: ColBERT vectors as well, in JSONL.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--device", "devices", multiple=True, help="Repeatable. Default: cpu.")
@click.option("--engine", default="auto", show_default=True, help="Name of an engine.")
@click.option("--precision", help="Name of a precision. Default: the fastest one that is proven.")
@click.option("--threads", type=click.IntRange(1), help="Default: all that may be used.")
@click.option("--verbose", "-v", is_flag=True, help="Say which engine is in force.")
@click.version_option(__version__)
def main(
    model: str,
    source: str,
    output: str,
    jsonl: bool,
    field: str,
    query: bool,
    instruction: str | None,
    examples_file: str | None,
    max_length: int | None,
    batch_size: int,
    truncate_dim: int | None,
    no_normalize: bool,
    sparse: bool,
    colbert: bool,
    revision: str | None,
    devices: tuple[str, ...],
    engine: str,
    precision: str | None,
    threads: int | None,
    verbose: bool,
) -> None:
    """Embed INPUT, one text a line, with MODEL.

    MODEL is a folder that bge-export wrote, or the hub id of one; or a checkpoint, in a folder or
    on the hub, which is exported into the cache the first time, where PyTorch is installed.

    INPUT is a file of text lines or of JSONL, or - for standard input. An empty line is
    an empty text. JSONL comes out with the fields it came in with, less the text.
    """
    try:
        if not query and (instruction is not None or examples_file is not None):
            raise InputError(
                "--instruction and --examples are put before queries; pass --query as well"
            )
        if (sparse or colbert) and not (output == "-" or _is_jsonl(output)):
            raise InputError("--sparse and --colbert go into JSONL; name a .jsonl --output")
        write_to = _open_output(output)
        opened = FlagAutoModel.from_finetuned(
            model,
            normalize_embeddings=not no_normalize,
            truncate_dim=truncate_dim,
            devices=list(devices) or None,
            batch_size=batch_size,
            engine=engine,
            precision=precision,
            threads=threads,
            revision=revision,
        )
        if verbose:
            click.echo(f"{model}: {opened.engine.info}", err=True)
        if (sparse or colbert) and not isinstance(opened, BGEM3FlagModel):
            name = opened.bundle.manifest.model.name
            raise InputError(f"--sparse and --colbert are for BGE-M3, and this is {name}")
        if query:
            _prepare_for_queries(opened, instruction, examples_file)
        encode = opened.encode_queries if query else opened.encode_corpus
        kinds = {"return_sparse": True} if sparse else {}
        kinds |= {"return_colbert_vecs": True} if colbert else {}
        with (
            _open_input(source) as lines,
            write_to() as write,
            tqdm(desc="embedding", unit="text", disable=None) as bar,
        ):
            write(*_fields([], encode([])))  # no input is no error, and a file of no rows
            if jsonl or _is_jsonl(source):
                results = ["embedding", *["lexical_weights"] * sparse, *["colbert_vecs"] * colbert]
                read = _read_jsonl(lines, field, results)
            else:
                read = _read_lines(lines)
            for chunk in _chunks(read, _COLBERT_CHARACTERS if colbert else None):
                texts = [row.text for row in chunk]
                try:
                    embedded = encode(
                        texts, max_length=max_length, show_progress_bar=False, **kinds
                    )
                except ValueError as error:
                    first, last = chunk[0].line, chunk[-1].line
                    raise InputError(f"{source}, lines {first} to {last}: {error}") from error
                write(*_fields([row.fields for row in chunk], embedded))
                bar.update(len(chunk))
            sys.stdout.flush()  # while a full disk can still be reported
    except (BgeError, ValueError) as error:
        click.echo(f"bge-embed: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read the output has had enough
            raise
        click.echo(f"bge-embed: {error}", err=True)
        # What could not be written must not be tried again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fields(
    records: list[Record], embedded: NDArray[np.float32] | M3Output
) -> tuple[list[Record], NDArray[np.float32]]:
    """Put what M3 gives besides into the records, and hand the dense vectors on."""
    if not isinstance(embedded, dict):
        return records, embedded
    dense = embedded["dense_vecs"]
    assert dense is not None
    for record, weights in zip(records, embedded["lexical_weights"] or (), strict=False):
        record["lexical_weights"] = {key: float(weight) for key, weight in weights.items()}
    for record, vectors in zip(records, embedded["colbert_vecs"] or (), strict=False):
        record["colbert_vecs"] = vectors
    return records, dense


def _prepare_for_queries(
    model: AnyFlagModel, instruction: str | None, examples_file: str | None
) -> None:
    """Set what is put before each query."""
    card = model.bundle.manifest.model
    if instruction is None:
        # M3 is trained without one.
        instruction = "" if isinstance(model, BGEM3FlagModel) else card.query_instruction
    if instruction is None:
        raise InputError(
            f"nothing says what instruction {card.name} wants before a query; pass "
            "--instruction TEXT, or --instruction '' for none"
        )
    # Without one, none of the words around it either.
    model.query_instruction_for_retrieval = instruction or None
    if examples_file is None:
        return
    if not isinstance(model, FlagICLModel):
        raise InputError(
            f"--examples are for models of class {DECODER_ONLY_ICL}, and {card.name} is of class "
            f"{card.model_class}"
        )
    examples = _read_examples(examples_file)
    try:
        model.set_examples(examples)
    except (TypeError, ValueError) as error:
        raise InputError(f"{examples_file}: {error}") from error


def _read_examples(file: str) -> list[Any]:
    try:
        examples: list[Any] = read_json(
            Path(file),
            error=InputError,
            kind=list,
            remedy="--examples takes a JSON list of objects with query, response and instruct",
            encoding="utf-8-sig",
        )
    except FileNotFoundError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    return examples


def _is_jsonl(name: str) -> bool:
    return name.endswith((".jsonl", ".ndjson"))


@contextlib.contextmanager
def _open_input(source: str) -> Iterator[IO[str]]:
    try:
        with contextlib.ExitStack() as stack:
            if source == "-":
                raw: IO[bytes] = sys.stdin.buffer
            else:
                raw = stack.enter_context(open(source, "rb"))
            # A lone carriage return ends no line: rows must match what `wc -l` counts.
            text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="\n")
            stack.callback(text.detach)  # else the wrapper closes standard input
            yield text
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8: {error}. Convert it, with iconv say") from error
    except OSError as error:
        if error.filename != source:
            raise
        raise InputError(f"cannot read {source}: {error.strerror}") from error


def _read_lines(lines: Iterable[str]) -> Iterator[_Row]:
    for index, line in enumerate(lines):
        yield _Row(index + 1, line.removesuffix("\n").removesuffix("\r"), {"index": index})


def _read_jsonl(lines: Iterable[str], field: str, results: Sequence[str]) -> Iterator[_Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            raise InputError(
                f"line {number} has no string field {field!r}; name the right one with --field"
            )
        text = record.pop(field)
        for name in results:
            if name in record:
                raise InputError(
                    f"line {number} has a field {name!r} already, where a result is to go; "
                    "rename it"
                )
        yield _Row(number, text, record)


def _chunks(rows: Iterator[_Row], characters: int | None) -> Iterator[list[_Row]]:
    """Give rows in lists of so many texts, or of so many characters if that is fewer."""
    chunk: list[_Row] = []
    held = 0
    for row in rows:
        chunk.append(row)
        held += len(row.text)
        if len(chunk) == _CHUNK or (characters is not None and held >= characters):
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _open_output(output: str) -> Callable[[], contextlib.AbstractContextManager[Write]]:
    """Choose the writer by the file's name, before a model is opened.

    Raises:
        InputError: If the name says no known format.
    """
    if output == "-":
        return lambda: contextlib.nullcontext(_jsonl_writer(sys.stdout))
    path = Path(output)
    if _is_jsonl(output):
        return lambda: _whole_file(path, "w", _jsonl_writer)
    if path.suffix == ".npy":
        return lambda: _whole_file(path, "w+b", _npy_writer)
    raise InputError(f"--output {output} is neither a .npy nor a .jsonl file")


@contextlib.contextmanager
def _whole_file(path: Path, mode: str, writer: Callable[[Any], Write]) -> Iterator[Write]:
    """Write to a file beside ``path`` and rename it when all is well.

    Raises:
        InputError: If the file cannot be written.
    """
    draft = None
    try:
        permissions = _mode_of(path)
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield writer(file)
        os.chmod(draft, permissions)  # mkstemp makes it private
        os.replace(draft, path)
        draft = None
    except OSError as error:
        if draft is not None and error.filename not in (None, draft):
            raise  # of the input, say
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if draft is not None:
            os.unlink(draft)


def _mode_of(path: Path) -> int:
    """Give the permissions of a file, or those that a new one would get."""
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return 0o666 & ~mask


def _jsonl_writer(file: IO[str]) -> Write:
    def write(records: list[Record], vectors: NDArray[np.float32]) -> None:
        for record, vector in zip(records, vectors, strict=True):
            # Through str: the shortest text that reads back to the same float32.
            numbers = ", ".join(map(str, vector))
            # Lists of ColBERT's numbers take eight times their memory: one text's at a time.
            fields = json.dumps(record, default=np.ndarray.tolist)[1:-1]
            file.write(f'{{{fields}{", " if fields else ""}"embedding": [{numbers}]}}\n')

    return write


def _npy_writer(file: IO[bytes]) -> Write:
    rows = 0

    def write(records: list[Record], vectors: NDArray[np.float32]) -> None:
        nonlocal rows
        rows += len(records)
        header = {
            "descr": np.lib.format.dtype_to_descr(vectors.dtype),
            "fortran_order": False,
            "shape": (rows, vectors.shape[1]),
        }
        # numpy pads the header so that the first axis can grow in place.
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header)
        file.seek(0, os.SEEK_END)
        vectors.tofile(file)

    return write


if __name__ == "__main__":
    main()
