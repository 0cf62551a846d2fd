"""Instructions in front of texts, and the tokens that they take."""

from __future__ import annotations

from collections.abc import Sequence

from bge_runtime.bundle import Model
from bge_runtime.encoding import TextTokenizer, type_name
from bge_runtime.sources import ENCODER_ONLY_M3

_NUMBERS = {2: "two", 3: "three"}


def join_instruction(instruction_format: str, *parts: str) -> str:
    r"""Return a format filled with texts; a literal ``\n`` in it is a newline."""
    return instruction_format.replace("\\n", "\n").format(*parts)


def choose_query_instruction(model: Model, instruction: str | None) -> str | None:
    """Return the instruction to put before queries; None for none.

    Args:
        model: What the bundle says of the model.
        instruction: What a user asks for: ``""`` for none, None for what its authors recommend.

    Raises:
        ValueError: If nothing is asked for or recommended.
    """
    if instruction is None:
        # M3 is trained without instructions.
        is_m3 = model.model_class == ENCODER_ONLY_M3
        instruction = "" if is_m3 else model.query_instruction
    if instruction is None:
        raise ValueError(
            f"{model.name} has no recommended instruction for queries; pass instruction='TEXT', "
            "or instruction='' for none"
        )
    # None also leaves out the text of the format around the instruction.
    return instruction or None


def text_before_sentence(instruction_format: str, instruction: str) -> str:
    """Return the part of an instructed text that does not depend on the sentence."""
    return join_instruction(instruction_format, instruction, "\0sentence").partition("\0sentence")[
        0
    ]


def check_format(template: str | None, places: Sequence[str]) -> None:
    """Check that a format has as many places as there are texts to fill in.

    Args:
        template: The format.
        places: Names of the texts. All but the first must have a place.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it has other places.
    """
    example = "{}" * len(places)
    if not isinstance(template, str):
        raise TypeError(
            f"{places[0]} needs an instruction_format, such as {example!r}, not "
            f"{type_name(template)}"
        )
    marks = [f"\0{place}" for place in places]
    try:
        joined = template.format(*marks)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"instruction format {template!r} cannot be filled in "
            f"({type(error).__name__}: {error}); it needs {_NUMBERS[len(places)]} places, such as "
            f"{example!r}"
        ) from error
    lost = [place for place, mark in zip(places, marks, strict=True) if mark not in joined]
    if set(lost) & set(places[1:]):
        raise ValueError(
            f"instruction format {template!r} has no place for {' and '.join(lost)}, so that every "
            f"text would be lost; it needs {_NUMBERS[len(places)]}, for {', '.join(places[:-1])} "
            f"and {places[-1]}, such as {example!r}"
        )


def explain_no_room(
    tokenizer: TextTokenizer, before: str, *, room: int, max_length: int, model_length: int
) -> str | None:
    """Return why an instruction leaves no token for the text after it; None if it leaves some.

    Args:
        tokenizer: The model's tokenizer.
        before: The instruction, and whatever else is in front of the text.
        room: Tokens for both.
        max_length: The length that leaves this room.
        model_length: Maximum tokens that the model can read.
    """
    # A token has at least one character, except where a normalizer expands characters that are
    # not ASCII.
    if before.isascii() and len(before) + 8 < room:
        return None
    # A space at the end may become part of the next word's first token.
    (tokens,) = tokenizer.encode_bare([before.rstrip()])
    if len(tokens) < room:
        return None
    least = max_length - room + len(tokens) + 1
    longer = least <= model_length
    return (
        f"max_length={max_length} leaves {max(room, 0)} tokens for instruction and text, and "
        f"the instruction alone takes {len(tokens)}, so that nothing of any text would be read "
        "and all vectors would be the same. Pass "
        + (f"max_length={least} at least, or " if longer else "")
        + "a shorter instruction"
    )
