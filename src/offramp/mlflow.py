"""Models in MLflow: a bundle as artifacts, and code that loads it; nothing is pickled.

The flavour is "models from code": MLflow keeps the bundle of `offramp.save` beside a short script,
and its `pyfunc`, servers and registries read it like any other model. Nothing of this is imported
with `offramp`.

Layer: mlflow, beside project.
"""

import sys
from collections.abc import Collection, Mapping
from importlib.metadata import version as package_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

from offramp._core.batch import is_table
from offramp._core.checks import check_known
from offramp._core.errors import FileFormatError, MissingExtraError
from offramp.bundle import load, save
from offramp.runtime import Adaptive, Prediction

try:
    import mlflow
    import pandas as pd
    from mlflow.models import Model
    from mlflow.pyfunc import PythonModel, PythonModelContext
except ImportError as error:
    raise MissingExtraError("mlflow", "mlflow") from error

FLAVOR = "offramp"
_BUNDLE = "bundle"  # name of the artifact
_CODE = """from mlflow.models import set_model

from offramp.mlflow import OfBundle

set_model(OfBundle())
"""
_VERSION = package_version("offramp")
#: How a bundle is loaded; MLflow lets those change what is named here only.
_CONFIG = {"allow_import": False, "allow_types": (), "allow_network": False}


def save_model(
    model: Adaptive,
    path: Path | str,
    *,
    column: str | None = None,
    mlflow_model: Any = None,  # noqa: ANN401  (of mlflow)
    model_config: Mapping[str, Any] | None = None,
    **options: Any,  # noqa: ANN401  (of mlflow)
) -> None:
    """Write a model as a folder that MLflow reads.

    Args:
        model: What `offramp.save` takes.
        path: A folder that is not there yet.
        column: Where rows are one column of the tables that come, such as "text"; by default tables
            go to the model as they are.
        mlflow_model: As for `mlflow.pyfunc.save_model`.
        model_config: How the bundle is loaded where whoever loads it says nothing else:
            `allow_import`, `allow_types` and `allow_network` of `offramp.load`.
        options: Others of `mlflow.pyfunc.save_model`, such as `signature` and `input_example`. The
            requirements are this version of offramp unless `pip_requirements` says otherwise.

    Raises:
        UnknownNameError: If `model_config` has another name.
        InputError: As `offramp.save`.
        mlflow.MlflowException: If the folder is there.
    """
    config = {**_CONFIG, **(model_config or {}), "column": column}
    for option in config:
        check_known("option of the model", option, (*_CONFIG, "column"))
    about = Model() if mlflow_model is None else mlflow_model
    about.add_flavor(FLAVOR, offramp_version=_VERSION, bundle=f"artifacts/{_BUNDLE}")
    options.setdefault("pip_requirements", [f"offramp[mlflow]=={_VERSION}"])
    with TemporaryDirectory() as temporary:
        folder, script = Path(temporary) / _BUNDLE, Path(temporary) / "model.py"
        save(model, folder)
        script.write_text(_CODE)
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(script),
            artifacts={_BUNDLE: str(folder)},
            model_config=config,
            mlflow_model=about,
            **options,
        )


def log_model(model: Adaptive, name: str, **options: Any) -> Any:  # noqa: ANN401  (of mlflow)
    """Log a model to the active run; returns MLflow's `ModelInfo`, which has its `model_uri`.

    Args:
        model: What `offramp.save` takes.
        name: Of the model.
        options: Those of `save_model`, and of MLflow's `Model.log`, such as
            `registered_model_name`.

    Raises:
        InputError: As `offramp.save`.
    """
    this = sys.modules[__name__]
    return Model.log(artifact_path=None, flavor=this, name=name, model=model, **options)


def load_model(
    model_uri: str,
    *,
    allow_import: bool = False,
    allow_types: Collection[str] = (),
    **options: Any,  # noqa: ANN401  (of `offramp.load`)
) -> Adaptive:
    """Read a model back, as `offramp.load` gives it.

    Args:
        model_uri: Its address: "runs:/...", "models:/...", or a folder.
        allow_import: As for `offramp.load`.
        allow_types: As for `offramp.load`.
        options: The others of `offramp.load`.

    Raises:
        FileFormatError: If it is no model of this flavour, or as `offramp.load`.
    """
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=str(model_uri)))
    flavors = Model.load(str(folder)).flavors
    if FLAVOR not in flavors:
        raise FileFormatError(
            f"{model_uri} is a model of {', '.join(sorted(flavors))}, not of {FLAVOR!r}; "
            "offramp.mlflow.log_model writes such."
        )
    return load(
        folder / str(flavors[FLAVOR][_BUNDLE]),
        allow_import=allow_import,
        allow_types=allow_types,
        **options,
    )


@final
class OfBundle(PythonModel):  # type: ignore[misc]  # Any, where mlflow is not installed
    """What `mlflow.pyfunc` runs; the configuration of the model says how the bundle is loaded.

    Whoever loads it says what it may do: `mlflow.pyfunc.load_model(uri,
    model_config={"allow_import": True})`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle."""
        config = dict(context.model_config)
        self._column = config.pop("column", None)
        self._model = load(context.artifacts[_BUNDLE], **config)

    def predict(  # type: ignore[no-untyped-def]
        self,
        context,  # noqa: ANN001  (MLflow takes annotations for the types of columns)
        model_input,  # noqa: ANN001
        params=None,  # noqa: ANN001
    ) -> "pd.DataFrame":
        """A table with a row for each example: `label`, `confidence`, `stage`, `reason`, `cost`.

        Args:
            context: Of MLflow.
            model_input: Arrays, tables, lists of texts or of other rows: what the model takes.
            params: None are known.

        Raises:
            InputError: If there is no such column, or the model cannot read it.
        """
        return table(self._model(self._rows(model_input)), self._model.class_names)

    def _rows(self, given: Any) -> Any:  # noqa: ANN401
        if self._column is None or not is_table(given):
            return given
        check_known("column", self._column, map(str, given.columns))
        return given[self._column].tolist()


def table(said: Prediction, class_names: Collection[str] = ()) -> "pd.DataFrame":
    """A prediction as a table; without an answer there is no label.

    Where there are class names labels are these, also numbers where one is no class. Of tasks
    without classes the numbers that the stage gave stand under `value_0`, `value_1`...
    """
    names = tuple(class_names)
    valid = said.valid.tolist()
    columns: dict[str, Any] = {}
    if said.values is None:
        known = enumerate(said.labels.tolist())
        columns["label"] = [
            None if not valid[k] else names[v] if 0 <= v < len(names) else v for k, v in known
        ]
    else:
        columns |= {f"value_{k}": v.tolist() for k, v in enumerate(said.values.unbind(dim=1))}
    if said.confidence is not None and said.values is None:
        columns["confidence"] = said.confidence.tolist()
    columns["stage"] = [said.stage_names[k] for k in said.stage.tolist()]
    columns["reason"] = said.reasons
    if said.cost is not None:
        columns["cost"] = said.cost.tolist()
    return pd.DataFrame(columns)
