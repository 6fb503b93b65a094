"""One ONNX file for a whole cascade with its policy: it skips work by itself, wherever it runs.

Layer: bundle.  Source: methods.md 6; peers.md 6.
"""

import json
from collections.abc import Sequence
from typing import Any

from offramp._core.errors import UnsupportedError
from offramp.bundle.onnx.graph import Scope, check_fits
from offramp.bundle.onnx.parts import Parts
from offramp.bundle.onnx.routing import write_cascade


def single_model(parts: Parts, class_names: Sequence[str]) -> Any:  # noqa: ANN401
    """The file's content, an `onnx.ModelProto` that has been checked.

    Args:
        parts: Of the cascade.
        class_names: Kept in its metadata, with the names of the stages.

    Raises:
        UnsupportedError: If it is too large for one file.
    """
    from onnx import checker, helper

    groups = parts.policy.topology.groups
    segments = [parts.segments[groups[j]] for plan in parts.plans.values() for j in plan.segments]
    each = [*segments, *parts.heads.values(), *(part.model for part in parts.decisions.values())]
    check_fits("The cascade", sum(model.ByteSize() for model in each))
    scope = Scope("cascade")
    outputs = write_cascade(parts, scope)
    model = helper.make_model(
        scope.graph(outputs, parts.inputs),
        opset_imports=_opsets(each),
        ir_version=each[0].ir_version,
        producer_name="offramp",
    )
    facts: dict[str, Any] = {
        "stages": parts.policy.topology.names,
        "class_names": tuple(class_names),
    }
    facts |= {"domains": parts.domains} if parts.domains else {}
    helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    checker.check_model(model, full_check=True)
    return model


def _opsets(models: Sequence[Any]) -> list[Any]:
    """The operator sets that all parts use; those that ran elsewhere may be of another version."""
    found: dict[str, Any] = {}
    for each in (opset for model in models for opset in model.opset_import):
        if found.setdefault(each.domain, each).version != each.version:
            raise UnsupportedError(
                f"The stages use the versions {found[each.domain].version} and {each.version} of "
                f"the ONNX operators {each.domain or 'ai.onnx'}, and one file can have one. Make "
                "them anew with this version of offramp, or export a folder."
            )
    return list(found.values())
