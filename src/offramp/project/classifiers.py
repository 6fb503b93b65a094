"""Classifiers of scikit-learn that `offramp train` fits: a file beside the run, and what they are.

In the file each is what skops writes, bytes under the name of its stage; what else there is to know
is JSON in the metadata. Nothing is unpickled.

Layer: project.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from offramp._core import optional
from offramp._core.errors import FileFormatError, InputError, UnsupportedError
from offramp._core.files import read_plain
from offramp._core.schema import to_json
from offramp._core.types import Split
from offramp.adapters import from_sklearn
from offramp.data import Dataset
from offramp.models import imported
from offramp.models.estimator import Estimator, opened, rows_of, stored, untrusted
from offramp.project.config.sections import RunConfig, StageSection
from offramp.project.networks import importing_from
from offramp.stages import Columns, Stage
from offramp.train.checkpoint import read_file, write_file

CLASSIFIERS = "classifiers.safetensors"
_PART: Split = "train"  # the split that they are fitted on
_SEED = 0


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    version: Literal[1]
    classifiers: dict[str, dict[str, Any]]  # what is fitted on what, by stage
    class_names: list[str]
    data: str  # fingerprint of the examples that they are fitted on


def fit_classifiers(
    config: RunConfig, examples: Dataset, told: Callable[[str, int, float], None]
) -> dict[str, Tensor]:
    """Fit the classifiers of a configuration on the part `train` of its examples.

    A `random_state` that is not set is 0, so that the same configuration gives the same answers.

    Args:
        config: With such stages.
        examples: With splits.
        told: Called with name, number of examples and seconds as each is fitted.

    Returns:
        Each as skops writes it, bytes by the name of its stage.

    Raises:
        InputError: If there is no part `train`, it lacks a class, or a classifier refuses its
            arguments or the examples.
        UnsupportedError: If a class cannot be imported, or skops cannot write it.
        MissingExtraError: Without the extra "sklearn".
    """
    for package in ("sklearn", "skops"):
        optional.imported(package, "sklearn")
    part = _part(config, examples)
    missing = sorted(set(range(part.classes)) - set(part.labels.tolist()))
    if missing:
        raise InputError(
            f"The split {_PART!r} has no example of the class "
            f"{examples.class_names[missing[0]]!r}, so no classifier could learn it. Give it more "
            "examples, or leave that class out."
        )
    found = {}
    for stage in config.stage:
        if stage.to_fit:
            found[stage.name], seconds = _fitted(stage, config.file.parent, part)
            told(stage.name, len(part), seconds)
    return found


def save_classifiers(
    path: Path, classifiers: Mapping[str, Tensor], config: RunConfig, examples: Dataset
) -> None:
    """Write fitted classifiers, whole or not at all."""
    write_file(path, classifiers, _facts(config, examples))


def check_fitted(config: RunConfig, examples: Dataset) -> None:
    """Make sure that the classifiers were fitted for this configuration and on none of its rest.

    Args:
        config: With such stages.
        examples: All of them, with splits.

    Raises:
        InputError: If nobody has fitted them yet, or for other classifiers, or on other examples:
            those might be among the ones that a promise is tested on.
    """
    found, _ = _read(config)
    if found.data != _part(config, examples).fingerprint:
        raise InputError(
            f"The classifiers in {config.folder / CLASSIFIERS} were fitted on other examples than "
            f"the split {_PART!r} holds now. {_again(config)}"
        )


def classifier_stages(config: RunConfig, class_names: tuple[str, ...]) -> dict[str, Stage]:
    """The stages of a configuration that are classifiers of scikit-learn, fitted, by name.

    Raises:
        InputError: If nobody has fitted them yet, or they are others than the configuration says;
            or if one of a file was fitted on other classes or columns.
        FileFormatError: If a file is damaged.
        UnsupportedError: If a file holds types that skops does not trust; they are named.
    """
    sections = [stage for stage in config.stage if stage.sklearn is not None]
    held: Mapping[str, Tensor] = {}
    if any(stage.to_fit for stage in sections):
        _, held = _read(config)
    return {
        stage.name: _fitted_stage(stage, held[stage.name], class_names)
        if stage.to_fit
        else _given_stage(stage, class_names)
        for stage in sections
    }


def types_to_allow(cascade: Iterable[Stage]) -> list[str]:
    """Types in the classifiers of a cascade that whoever loads its bundle has to allow, by name."""
    parts = [part for stage in cascade for part in stage.modules() if isinstance(part, Estimator)]
    return sorted({name for part in parts if part.content for name in untrusted(part.content)})


def _fitted(stage: StageSection, folder: Path, part: Dataset) -> tuple[Tensor, float]:
    """A fitted classifier as skops writes it, and the seconds that fitting took."""
    try:
        estimator = _made(stage, folder)
        given = part.inputs if stage.transform is None else stage.transform(part.inputs)
        started = time.perf_counter()
        estimator.fit(rows_of(given), part.labels.numpy())
        seconds = time.perf_counter() - started
    except (TypeError, ValueError) as error:  # what scikit-learn raises for wrong input
        raise InputError(f"Stage {stage.name!r} cannot be fitted: {error}") from error
    return torch.frombuffer(bytearray(stored(estimator)), dtype=torch.uint8), seconds


def _made(stage: StageSection, folder: Path) -> Any:  # noqa: ANN401  (an estimator)
    """An estimator, or a pipeline of several, with the arguments of the stage."""
    with importing_from(folder):
        steps = [imported(name)() for name in stage.sklearn]
    if len(steps) == 1:
        (estimator,) = steps
    else:
        from sklearn.pipeline import make_pipeline

        estimator = make_pipeline(*steps)
    estimator.set_params(**{name: _value(value) for name, value in stage.arguments.items()})
    seeds = {
        name: _SEED
        for name, value in estimator.get_params().items()
        if name.rpartition("__")[2] == "random_state" and value is None
    }
    return estimator.set_params(**seeds)


def _value(value: object) -> object:
    """A value of TOML as scikit-learn takes it: numbers of a range are a tuple there."""
    numbers = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
    return tuple(value) if numbers else value  # type: ignore[arg-type]


def _fitted_stage(section: StageSection, content: Tensor, names: tuple[str, ...]) -> Stage:
    # The configuration imports these packages, so what they made may be made again.
    trusted = {"sklearn", "numpy", *(re.split("[.:]", name)[0] for name in section.sklearn)}
    data = content.numpy().tobytes()
    types = [name for name in untrusted(data) if name.partition(".")[0] in trusted]
    stage: Stage = from_sklearn(opened(data, types), labels=names, name=section.name)
    return stage.replaced(transform=section.transform)


def _given_stage(section: StageSection, class_names: tuple[str, ...]) -> Stage:
    """The stage of a file that somebody wrote with skops."""
    path = Path(section.sklearn)
    try:
        estimator = opened(read_plain(path), section.allow_types)
    except UnsupportedError as error:
        where = f"allow_types = [...] in the stage {section.name!r}"
        raise UnsupportedError(f"{path}: {error} In a configuration: {where}.") from error
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    _check_columns(section, estimator)
    try:
        stage: Stage = from_sklearn(
            estimator,
            labels=section.labels or None,
            class_names=class_names or None,
            name=section.name,
        )
    except InputError as error:
        raise InputError(
            f"Stage {section.name!r}: {error} In a configuration: labels = [...] of the stage."
        ) from error
    return stage.replaced(transform=section.transform)


def _check_columns(section: StageSection, estimator: Any) -> None:  # noqa: ANN401
    """Raise `InputError` where a classifier was fitted on columns in another order."""
    own = getattr(estimator, "feature_names_in_", None)
    if own is None or not isinstance(section.transform, Columns):
        return
    if not isinstance(section.transform.names, tuple):
        return
    if list(own) != list(section.transform.names):
        raise InputError(
            f"Stage {section.name!r} was fitted on the columns {list(own)}, in this order, and "
            f"its transform gives {list(section.transform.names)}. Name them in its order."
        )


def _part(config: RunConfig, examples: Dataset) -> Dataset:
    try:
        return examples.subset(_PART)
    except InputError as error:
        raise InputError(
            f"Classifiers are fitted on the split {_PART!r}, which these data do not have: give it "
            "a share in data.splits, such as { train = 0.4, fit = 0.25, calibrate = 0.2, test = "
            "0.15 }."
        ) from error


def _read(config: RunConfig) -> tuple[_Facts, dict[str, Tensor]]:
    """What was fitted; raises unless it is what the configuration says."""
    path = config.folder / CLASSIFIERS
    if not path.exists():
        raise InputError(
            f"The classifiers are not fitted yet: {path} is missing. Run `offramp train -c "
            f"{config.file}` first."
        )
    found, held = read_file(path, _Facts, what="classifiers", repair=_again(config))
    wanted = _described(config)
    for name in [*wanted, *found.classifiers]:
        if found.classifiers.get(name) != wanted.get(name):
            raise InputError(
                f"The classifier {name!r} in {path} was fitted for another configuration: as "
                f"{found.classifiers.get(name)}, here it is {wanted.get(name)}. {_again(config)}"
            )
    return found, held


def _facts(config: RunConfig, examples: Dataset) -> _Facts:
    return _Facts(
        version=1,
        classifiers=_described(config),
        class_names=list(examples.class_names),
        data=_part(config, examples).fingerprint,
    )


def _described(config: RunConfig) -> dict[str, dict[str, Any]]:
    return {
        stage.name: {
            "sklearn": stage.sklearn,
            "arguments": stage.arguments,
            "transform": None if stage.transform is None else to_json(stage.transform),
        }
        for stage in config.stage
        if stage.to_fit
    }


def _again(config: RunConfig) -> str:
    return f"Run `offramp train -c {config.file}` again."
