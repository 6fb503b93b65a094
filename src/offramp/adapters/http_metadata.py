"""What a server tells about a model: its inputs and outputs, and its classes.

Layer: adapters.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from offramp._core.errors import InputError

_NAMES_IN = ("class_names", "labels", "classes")  # of a model's parameters
HttpForm = Literal["logits", "probabilities", "confidence"]

#: For each form the types of the outputs that are read.
TYPES: Final[dict[HttpForm, tuple[str, ...]]] = {
    "logits": ("FP",),
    "probabilities": ("FP",),
    "confidence": ("INT", "FP"),
}


def inputs_told(told: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Name and type of each input."""
    try:
        return tuple((str(one["name"]), str(one["datatype"])) for one in told["inputs"])
    except (LookupError, TypeError):
        raise InputError("The metadata of the model do not name its inputs.") from None


def outputs_told(
    told: Mapping[str, Any], output: str | None, form: HttpForm
) -> tuple[tuple[str, ...], int]:
    """Names of the outputs that are read, and how many columns the logits have; 0 if unknown."""
    try:
        shapes = {str(one["name"]): list(one["shape"]) for one in told["outputs"]}
        kinds = {str(one["name"]): str(one.get("datatype", "FP32")) for one in told["outputs"]}
    except (LookupError, TypeError, AttributeError):
        raise InputError("The metadata of the model do not name its outputs.") from None
    if form == "confidence":
        wanted: tuple[str, ...] = ("labels", "confidence")
    elif output is None and form == "probabilities":
        wanted = ("probabilities",)
    elif output is None:
        flat = [n for n, shape in shapes.items() if len(shape) == 2 and kinds[n].startswith("FP")]
        wanted = tuple(name for name in flat if name != "probabilities")
    else:
        wanted = (output,)
    missing = [name for name in wanted if name not in shapes]
    if missing or not wanted or (form != "confidence" and len(wanted) > 1):
        raise InputError(
            f"output must name the logits among the model's outputs {shapes}, got {output!r}; for "
            "form='probabilities' there must be 'probabilities' where it names none, and for "
            "form='confidence' 'labels' and 'confidence'."
        )
    for name, kind in zip(wanted, TYPES[form], strict=True):
        if not is_of(kinds[name], kind):
            raise InputError(
                f"Output {name!r} must be of a type {kind}..., for form={form!r}, got "
                f"{kinds[name]}. Whole numbers are no logits; labels come with form='confidence'."
            )
    last = 0 if form == "confidence" else shapes[wanted[0]][-1]
    return wanted, last if isinstance(last, int) and last > 1 else 0


def is_of(datatype: str, kind: str) -> bool:
    """Whether a datatype is one of floating-point numbers, "FP", or of whole ones, "INT".

    >>> is_of("UINT8", "INT"), is_of("INT64", "FP")
    (True, False)
    """
    return datatype.removeprefix("U").startswith(kind)


def names_told(told: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names out of a model's parameters, where it has some."""
    parameters = told.get("parameters")
    if not isinstance(parameters, Mapping):
        return ()
    for name in _NAMES_IN:
        found = parameters.get(name)
        if isinstance(found, list) and len(found) > 1 and all(isinstance(f, str) for f in found):
            return tuple(found)
    return ()


def count_of(
    model: str, *, classes: int | None, class_names: int, names_told: int, width: int
) -> int:
    """The number of classes, on which all agree who tell it; 0 and None tell nothing."""
    told = {
        "the argument classes": classes,
        "the argument class_names": class_names,
        "the class names in the metadata": names_told,
        "the width of the output in the metadata": width,
    }
    found = {who: count for who, count in told.items() if count}
    if not found:
        raise InputError(f"classes must be given: the metadata of {model!r} do not tell it.")
    if len(set(found.values())) > 1:
        said = ", ".join(f"{count} by {who}" for who, count in found.items())
        raise InputError(
            f"The number of classes of {model!r} must be one, got {said}. Correct the arguments, "
            "or the model's metadata on the server."
        )
    return next(iter(found.values()))
