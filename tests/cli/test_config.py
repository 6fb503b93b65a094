from pathlib import Path

import pytest

from offramp._core.errors import FileFormatError, InputError
from offramp.project.build import dataset_of
from offramp.project.config.config import load_config


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


GOOD = """
[data]
kind = "digits"
splits = { fit = 0.5, calibrate = 0.25, test = 0.25 }
[[stage]]
name = "small"
model = "small_cnn"
[[stage]]
name = "large"
model = "resnet20"
"""


def test_a_small_file_is_enough_and_defaults_are_filled_in(tmp_path):
    config = load_config(write(tmp_path, GOOD), needs=("data", "stage"))
    assert [stage.name for stage in config.stage] == ["small", "large"]
    assert config.data.splits == {"fit": 0.5, "calibrate": 0.25, "test": 0.25}
    assert (config.cascade.edges, config.cost.unit, config.fit.policy) == (
        "full",
        "flops",
        ["learned"],
    )


def test_all_problems_are_named_at_once_with_their_place(tmp_path):
    path = write(
        tmp_path,
        """
[data]
kind = 3
splits = { fit = -1, tset = 0.5 }
[[stage]]
name = "a"
model = "small_cnn"
[[stage]]
model = "resnet20"
wieghts = "w.npz"
weights = "nowhere.npz"
transform = { kind = "normalize", mean = "x" }
[cascade]
edges = [["a"]]
[fitt]
[fit]
max_drop = 2.0
risk = "excees"
[cost]
batch_size = 0
""",
    )
    with pytest.raises(InputError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path} has {len(lines) - 1} problems:"
    wanted = {
        "data.kind": "got 3",
        "data.splits.fit": "got -1",
        "data.splits.tset": "'tset'",
        "stage[1].name": "is missing",
        "stage[1].wieghts": "Did you mean 'weights'?",
        "stage[1].weights": str(tmp_path / "nowhere.npz"),
        "stage[1].transform": "mean: ",
        "cascade.edges": "pairs of stage names, got [['a']]",
        "fitt": "Did you mean 'fit'?",
        "fit.max_drop": "got 2.0",
        "fit.risk": "got 'excees'",
        "cost.batch_size": "got 0",
    }
    for place, text in wanted.items():
        assert any(line.startswith(f"  {place}") and text in line for line in lines), (place, lines)
    assert len(lines) - 1 == len(wanted)


def test_contradictions_between_sections_are_found(tmp_path):
    text = GOOD + (
        '[[stage]]\nname = "small"\nmodel = "resnet8"\n[cascade]\nedges = [["small", "larg"]]\n'
        '[fit]\nreference = "huge"\nmax_drop = 0.1\nmax_cost = 0.5\ndelta = "none"\n'
        '[cost]\nunit = "usd"\n'
        "given = { small = 1.0, tiny = 2.0 }\n"
    )
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, text))
    said = str(caught.value)
    for problem in (
        "stage[2].name: 'small' is the name of an earlier stage",
        "cascade.edges[0]: there is no stage 'larg'",
        "fit.reference: there is no stage 'huge'",
        "fit.max_cost: give either",
        "cost.given.tiny: there is no stage 'tiny'",
        "cost.given: stage 'large' has no cost",
    ):
        assert problem in said


def test_a_unit_that_cannot_be_measured_needs_given_costs(tmp_path):
    with pytest.raises(InputError, match=r"cost\.unit: 'usd' cannot be measured"):
        load_config(write(tmp_path, '[cost]\nunit = "usd"\n'))


def test_sections_that_a_command_needs_are_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"has 2 problems(.|\n)*data: this section is missing"):
        load_config(write(tmp_path, ""), needs=("data", "stage"))


@pytest.mark.parametrize("text", ["a = [", "\xff", "[fit]\n[fit]\n"])
def test_a_file_that_is_no_toml_is_named(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileFormatError, match=r"run\.toml cannot be read as TOML"):
        load_config(path)
    with pytest.raises(FileFormatError, match=r"other\.toml is missing"):
        load_config(tmp_path / "other.toml")


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "w.npz").touch()
    write(
        tmp_path / "deep",
        '[[stage]]\nname = "a"\nmodel = "m"\nweights = "w.npz"\n[output]\ndir = "x"\n',
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("deep/run.toml"))
    assert Path(config.stage[0].weights) == (tmp_path / "deep" / "w.npz").resolve()
    assert Path(config.output.dir) == (tmp_path / "deep" / "x").resolve()


EXITS = """
[data]
kind = "digits"
[network]
model = "small_cnn"
[exits]
at = ["features.0", "features.2"]
heads = { linear = { kind = "gap_linear" }, deep = { kind = "conv_head", filters = 32 } }
[train]
epochs = 3
"""


def test_one_network_with_exits_takes_the_place_of_several(tmp_path):
    config = load_config(write(tmp_path, EXITS), needs=("data", "stage"))
    assert (config.network.name, config.stage) == ("last", [])
    assert config.exits.heads == {
        "linear": ("gap_linear", {}),
        "deep": ("conv_head", {"filters": 32}),
    }
    assert config.exits.names("features.0") == ["features.0/linear", "features.0/deep"]
    assert (config.train.part, config.train.validation) == ("train", 0.1)
    assert config.folder == Path("runs") / "run"


@pytest.mark.parametrize(
    ("heads", "wanted"),
    [
        ('"gap_linear"', {"": ("gap_linear", {})}),
        ('{ kind = "pool_mlp", grid = 4 }', {"": ("pool_mlp", {"grid": 4})}),
        (
            '{ a = "gap_linear", b = "conv_head" }',
            {"a": ("gap_linear", {}), "b": ("conv_head", {})},
        ),
    ],
)
def test_heads_may_be_one_for_all_or_several_by_label(tmp_path, heads, wanted):
    text = f'[network]\nmodel = "small_cnn"\n[exits]\nheads = {heads}\n'
    assert load_config(write(tmp_path, text)).exits.heads == wanted


def test_contradictions_about_exits_are_named_at_once(tmp_path):
    text = EXITS.replace("epochs = 3", 'augment = "crop_flip"\ncache = true')
    text = text.replace('"features.2"]', '"features.0"]\nevery = 2\nquantiles = 3')
    text = text.replace('"gap_linear"', '"gap_liner"').replace("filters", "filtres")
    text += '[[stage]]\nname = "a"\nmodel = "resnet8"\n[cascade]\nedges = "full"\n'
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, text))
    said = str(caught.value).splitlines()
    wanted = [
        "network: give either [[stage]], several networks, or [network]",
        "cascade.edges: exits run one after the other",
        "train.cache: augmented examples differ",
        "exits.every: at names the layers",
        "exits.quantiles: at names the layers",
        "exits.at[1]: 'features.0' stands there twice",
        "exits.quantiles: give either every or quantiles",
        "exits.heads.linear: there is no head 'gap_liner'. Did you mean 'gap_linear'?",
        "exits.heads.deep.filtres: 'conv_head' has no such option. Known: filters",
    ]
    for problem in wanted:
        assert any(line.startswith(f"  {problem}") for line in said), (problem, said)
    assert len(said) - 1 == len(wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[exits]\nevery = 2\n", r"exits: belongs to a \[network\]"),
        ("[train]\nepochs = 2\n", r"train: belongs to a \[network\]"),
        (EXITS + '[fit]\nreference = "lst"\n', "fit.reference: there is no stage 'lst'"),
        (
            EXITS.replace("[network]", '[network]\nname = "features.0/deep"'),
            "is the name of an exit",
        ),
        (EXITS.replace('{ kind = "gap_linear" }', "3"), "exits.heads: must be the kind of a head"),
        (EXITS.replace("linear =", '"a/b" ='), "labels without '/'.*'a/b' is none"),
        (EXITS.replace("epochs = 3", "validation = 1.5"), r"train\.validation: .*got 1\.5"),
        (EXITS.replace('at = ["features.0", "features.2"]', "every = 0"), r"exits\.every: .*got 0"),
    ],
)
def test_what_is_wrong_about_exits_is_named(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        load_config(write(tmp_path, text))


def test_data_are_split_by_position_or_at_random_but_not_both(tmp_path):
    data = '[data]\nkind = "digits"\nranges = { train = [0, 900], fit = [900, 1200] }\n'
    found = dataset_of(load_config(write(tmp_path, data)))
    assert found.subset("fit").ids.tolist() == list(range(900, 1200))
    with pytest.raises(InputError, match=r"data\.ranges: give either splits, at random, or ranges"):
        load_config(write(tmp_path, data + "splits = { fit = 0.5 }\n"))
    with pytest.raises(InputError, match=r"data\.ranges\.fit: .*got \[900\]"):
        load_config(write(tmp_path, data.replace("[900, 1200]", "[900]")))


def test_a_network_needs_exits_where_a_cascade_is_built(tmp_path):
    path = write(tmp_path, '[network]\nmodel = "small_cnn"\n')
    assert load_config(path, needs=("network",)).exits is None
    with pytest.raises(InputError, match="exits: this section is missing"):
        load_config(path, needs=("stage",))
