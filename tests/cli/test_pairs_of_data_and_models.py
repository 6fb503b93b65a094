"""Which model takes which data is known when the configuration is read, not when it is trained."""

import pytest

from offramp._core.errors import InputError
from offramp.data import SOURCES
from offramp.project.config.config import load_config
from offramp.project.config.pairs import FIRST, ROWS
from offramp.stages.transforms import TRANSFORMS

IMAGES, TEXTS, TABLE = ("digits", "cifar10", "cifar100", "imagenet32", "folder"), "texts", "table"
WITH_COLUMNS = '\ntransform = { kind = "columns", names = ["a"] }'
FOREST = 'sklearn = "sklearn.ensemble:RandomForestClassifier"'
WORDS = 'sklearn = ["sklearn.feature_extraction.text:CountVectorizer", "sklearn.svm:SVC"]'
#: Of each kind of model the data that it takes; None where nobody can know.
TAKES = {
    'model = "small_cnn"': IMAGES,
    'model = "resnet20"': IMAGES,
    'model = "preresnet62"': IMAGES,  # of any depth, registered or not
    'model = "timm"\narguments = { architecture = "resnet18" }': IMAGES,
    'model = "torchvision"\narguments = { architecture = "resnet18" }': IMAGES,
    'model = "huggingface"\narguments = { task = "image" }': IMAGES,
    'model = "huggingface"\narguments = { task = "text" }': (TEXTS,),
    'model = "nets:mine"': None,
    'function = "functions:mine"': None,
    'http = { url = "http://localhost:1", model = "a" }': None,
    'openai = { url = "http://localhost:1", model = "a", prompt = "b" }': (TEXTS, TABLE),
    FOREST + WITH_COLUMNS: (TABLE,),
    WORDS: (TEXTS,),
    'sklearn = "mine:Classifier"' + WITH_COLUMNS: (TABLE,),  # as columns says
}


def config_of(tmp_path, kind, stage):
    (tmp_path / "data").mkdir(exist_ok=True)
    path = "" if kind == "digits" else 'path = "data"'
    text = f'[data]\nkind = "{kind}"\n{path}\n[cost]\nunit = "seconds"\n'
    text += f'[[stage]]\nname = "one"\n{stage}\n'
    (tmp_path / "run.toml").write_text(text)
    return tmp_path / "run.toml"


def test_every_kind_of_data_has_its_rows_but_for_what_holds_anything():
    assert set(SOURCES) - set(ROWS) == {"npz"}


def test_every_transform_says_what_it_reads_but_for_those_that_follow_others():
    assert set(TRANSFORMS) - set(FIRST) == {"pad"}


@pytest.mark.parametrize("stage", TAKES)
@pytest.mark.parametrize("kind", [*IMAGES, TEXTS, TABLE, "npz"])
def test_a_stage_takes_what_it_can_read_and_nothing_else(tmp_path, kind, stage):
    path = config_of(tmp_path, kind, stage)
    if TAKES[stage] is None or kind in TAKES[stage] or kind == "npz":
        load_config(path)
        return
    with pytest.raises(InputError, match=rf"stage\[0\]\.\w+: .* reads .*, and '{kind}' holds"):
        load_config(path)


@pytest.mark.parametrize(
    ("kind", "transform", "reads"),
    [
        ("digits", '{ kind = "decode" }', "'decode' reads image files, and 'digits' holds images"),
        ("texts", '{ kind = "normalize" }', "'normalize' reads images, and 'texts' holds texts"),
        ("folder", '{ kind = "columns", names = ["a"] }', "'columns' reads columns of a table"),
        ("table", '[{ kind = "resize", size = 8 }, { kind = "normalize" }]', "'resize' reads imag"),
    ],
)
def test_the_first_transform_reads_the_data(tmp_path, kind, transform, reads):
    path = config_of(tmp_path, kind, f'model = "nets:mine"\ntransform = {transform}')
    with pytest.raises(InputError, match=reads):
        load_config(path)


def test_a_table_goes_to_scikit_learn_by_named_columns(tmp_path):
    with pytest.raises(InputError, match=r'transform: is missing: { kind = "columns"'):
        load_config(config_of(tmp_path, "table", FOREST))


def test_a_network_that_gets_exits_is_looked_at_as_well(tmp_path):
    path = config_of(tmp_path, "texts", 'function = "a:b"')
    text = path.read_text().partition("[[stage]]")[0]
    path.write_text(f'{text}[network]\nmodel = "small_cnn"\n[exits]\nevery = 1\n')
    with pytest.raises(InputError, match=r"network\.model: 'small_cnn' reads images.*TfidfVector"):
        load_config(path)


def test_a_kind_of_ones_own_holds_what_its_owner_knows(tmp_path):
    load_config(config_of(tmp_path, "mine", 'model = "small_cnn"'))
