"""Models on the hub of Hugging Face: bundles with a card that states what is promised.

A bundle lies at the root of a repository as it is. `ModelHubMixin` brings the conventions; its twin
for PyTorch would fall back to a pickled file. Nothing of this is imported with `offramp`.

Layer: hub, beside project.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np

from offramp._core.checks import check_text
from offramp._core.errors import InputError, MissingExtraError, OfframpError
from offramp.bundle import Manifest, load, read_manifest, save
from offramp.bundle.services import AllowNetwork
from offramp.evaluation.frontier import Frontier
from offramp.runtime import Adaptive, Prediction

try:
    from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
except ImportError as error:
    raise MissingExtraError("huggingface_hub", "hub") from error

PICTURE = "frontier.png"
_TAGS = ["adaptive-inference", "early-exit", "cascade"]
_CARD = """---
{{ card_data }}
---

# {{ title }}

A classifier that spends on each input only what it needs: {{ topology }}. The reference is
{{ reference }}.

## What is promised

{{ promise }}

## What it was tested on

{{ tested_on }}
{% if picture %}
## Cost and accuracy

![Accuracy against cost of the candidates]({{ picture }})
{% endif %}
## How to use it

    pip install 'offramp[hub]'

    from offramp.hub import HubModel

    model = HubModel.from_pretrained("owner/name")
    model(inputs).labels
"""


@final
class HubModel(ModelHubMixin, library_name="offramp", tags=_TAGS):
    """A model with what its card says; `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Args:
        model: What `offramp.save` takes.
        frontier: Of `offramp.fit`, for the picture; None leaves it out.
        tested_on: The data that accuracy and promise were tested on, in words.
        title: Heading of the card.
        input_shape: As for `offramp.save`.

    Raises:
        InputError: If an argument is of another kind.
        MissingExtraError: Without the extra "hub", when this module is imported.
    """

    def __init__(
        self,
        model: Adaptive,
        *,
        frontier: Frontier | None = None,
        tested_on: str = "Its author does not say.",
        title: str = "Adaptive classifier",
        input_shape: Sequence[int] | None = None,
    ) -> None:
        for name, value, kind in (("model", model, Adaptive), ("frontier", frontier, Frontier)):
            if not isinstance(value, kind) and (value is not None or name == "model"):
                raise InputError(f"{name} must be {kind.__name__}, got {type(value).__name__}.")
        for name, text in (("tested_on", tested_on), ("title", title)):
            check_text(name, text)
        self.model = model
        self._frontier, self._tested_on, self._title = frontier, tested_on, title
        self._input_shape = input_shape
        # What config.json holds: the mixin would take a dataclass among the arguments for one.
        self._hub_mixin_config = {"tested_on": tested_on, "title": title}

    def __call__(self, inputs: Any) -> Prediction:  # noqa: ANN401  (what the model takes)
        """What the model says."""
        answer: Prediction = self.model(inputs)
        return answer

    def save_pretrained(self, save_directory: Path | str, **options: Any) -> str | None:  # noqa: ANN401
        """Write the bundle, its card and the picture into a folder.

        Args:
            save_directory: A folder that is empty or not there: nothing is replaced.
            options: Of `ModelHubMixin.save_pretrained`, such as `push_to_hub` and `repo_id`.

        Raises:
            InputError: If there is something in the folder, or as `offramp.save`.
        """
        folder = Path(save_directory)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"save_directory must be empty or not there, got {folder}.")
        found: str | None = super().save_pretrained(folder, **options)
        return found

    def _save_pretrained(self, save_directory: Path) -> None:
        if self._frontier is not None:
            _draw(self._frontier, save_directory / PICTURE)
        with TemporaryDirectory(dir=save_directory) as temporary:
            made = Path(temporary) / "bundle"
            save(self.model, made, input_shape=self._input_shape)
            for file in sorted(made.iterdir(), key=lambda f: f.name == "manifest.json"):
                file.rename(save_directory / file.name)  # the manifest last
        self._card(read_manifest(save_directory)).save(save_directory / "README.md")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path | str,
        **options: Any,  # noqa: ANN401  (of the mixin, and of `load`)
    ) -> "HubModel":
        """Read a model from a folder, or from a repository of the hub.

        Args:
            pretrained_model_name_or_path: A folder of `save_pretrained`, or "owner/name".
            options: Of `ModelHubMixin.from_pretrained`, such as `revision` and `token`; and
                `allow_import`, `allow_network` and `allow_types` of `offramp.load`. What stands in
                the repository cannot give these.

        Raises:
            InputError: If there is no such folder or repository, or its configuration is damaged.
            FileFormatError: As `offramp.load`.
            UnsupportedError: As `offramp.load`.
        """
        place = str(pretrained_model_name_or_path)
        try:
            found: HubModel = super().from_pretrained(place, **options)
        except OfframpError:
            raise
        except Exception as error:  # of the network, and whatever is wrong with files of others
            raise InputError(f"{place} cannot be read as a model of the hub: {error}") from error
        return found

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: Path | str | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        allow_import: bool = False,
        allow_network: AllowNetwork = False,
        allow_types: Collection[str] = (),
        **options: Any,  # noqa: ANN401  (of the configuration that the mixin writes)
    ) -> "HubModel":
        folder = model_id
        if not Path(model_id).is_dir():
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        model = load(
            folder, allow_import=allow_import, allow_network=allow_network, allow_types=allow_types
        )
        return cls(model, **options)

    def _card(self, manifest: Manifest) -> ModelCard:
        data = ModelCardData(library_name="offramp", tags=_TAGS)
        card: ModelCard = ModelCard.from_template(
            data,
            template_str=_CARD,
            title=self._title,
            topology=manifest.topology.describe(),
            reference=manifest.reference,
            promise=manifest.choice.sentence or "Nothing: the policy was given, not chosen.",
            tested_on=self._tested_on,
            picture=None if self._frontier is None else PICTURE,
        )
        return card


def _draw(frontier: Frontier, path: Path) -> None:
    from offramp.drawing import Curve, frontier_figure, save_figure

    front = [point.judged for point in frontier.pareto]
    if not front:
        raise InputError("frontier must have a candidate on its front, got none.")
    curve = Curve(
        name="candidates",
        kind="learned",
        cost_ratio=np.array([judged.cost_ratio for judged in front]),
        accuracy=np.array([judged.accuracy for judged in front]),
    )
    level = front[0].reference_accuracy
    save_figure(frontier_figure([curve], [], reference_accuracy=level), path)
