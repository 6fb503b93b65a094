"""Classifiers of Hugging Face, made here from configurations and read back from their folders."""

import json
import shutil

import pytest
import torch

import offramp
from offramp import Cascade
from offramp._core.errors import (
    FileFormatError,
    InputError,
    OfframpError,
    UnknownNameError,
    UnsupportedError,
)
from offramp.adapters import from_huggingface
from offramp.models import ModelSpec, build, head_arguments
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from support.zoo import WORDS, photographs, tokenizer_json, wanted

pytestmark = pytest.mark.filterwarnings("ignore")  # the package warns of its own future

TEXTS = ["Good film.", "bad", "Very very bad plots. Very bad films. Good plots.", "film film"]
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
SIZES |= {"intermediate_size": 48}
LABELS = {0: "negative", 1: "neutral", 2: "positive"}
DECODER = {"num_key_value_heads": 1, "head_dim": 16, "bos_token_id": 2, "eos_token_id": 3}


@pytest.fixture(scope="module")
def transformers():
    return wanted("transformers")


@pytest.fixture(scope="module")
def made(transformers, tmp_path_factory):
    """Makes a folder of a model, once for each kind and configuration."""

    def make(kind, *, ending="ForSequenceClassification", beside=None, **config):
        folder = tmp_path_factory.mktemp(kind)
        text = ending == "ForSequenceClassification"
        words = {"vocab_size": len(WORDS), "pad_token_id": 0} if text else {}
        config = {**SIZES, **words, "id2label": LABELS, "num_labels": 3, **config}
        torch.manual_seed(0)  # noqa: TID251  (the package takes no generator)
        net = getattr(transformers, kind + ending)(getattr(transformers, f"{kind}Config")(**config))
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)
        net.eval().save_pretrained(folder)
        beside = beside or (tokenizer(transformers) if text else None)
        if beside is not None:
            beside.save_pretrained(folder)
        return folder

    return make


def tokenizer(transformers, **more):
    from tokenizers import Tokenizer

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json()),
        **{**special, "sep_token": "[SEP]", "model_max_length": 8, **more},
    )


@pytest.fixture(scope="module")
def bert(made):
    return made("Bert", max_position_embeddings=64)


@pytest.fixture(scope="module")
def vit(made, transformers):
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    sizes = {"image_size": 32, "patch_size": 8, "beside": processor}
    return made("ViT", ending="ForImageClassification", **sizes)


KINDS = {
    "Bert": {"max_position_embeddings": 64},
    "ModernBert": {"local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 2}
    | {"sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "Gemma2": {**DECODER, "sliding_window": 4},
    "Llama": DECODER,
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_answered_as_by_the_package_whoever_stands_beside_them(kind, made, transformers):
    folder = made(kind, **KINDS[kind])
    stage = from_huggingface(folder)
    assert stage.class_names == ("negative", "neutral", "positive")
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    take = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        said = stage.run(TEXTS)[0].logits
        for k, text in enumerate(TEXTS):
            alone = net(**take([text], truncation=True, return_tensors="pt")).logits
            torch.testing.assert_close(said[k : k + 1], alone, rtol=0, atol=2e-5)
            torch.testing.assert_close(stage.run([text])[0].logits, alone, rtol=0, atol=2e-5)
    assert said.std(dim=0).min() > 1e-3  # they do differ


def test_tokens_are_those_of_the_package(bert, transformers):
    stage = from_huggingface(bert)
    take = transformers.AutoTokenizer.from_pretrained(bert)
    own = take(TEXTS, padding=True, truncation=True, return_tensors="pt")
    given = stage.prepare(TEXTS)
    assert torch.equal(given["input_ids"], own["input_ids"])
    assert torch.equal(given["attention_mask"], own["attention_mask"])
    assert given["input_ids"].shape[1] == 8
    assert from_huggingface(bert, length=5).prepare(TEXTS)["input_ids"].shape[1] == 5
    with pytest.raises(InputError, match="length must be at most 8"):
        from_huggingface(bert, length=9)


def test_images_come_as_the_processor_makes_them(vit, transformers):
    stage = from_huggingface(vit)
    processor = transformers.AutoImageProcessor.from_pretrained(vit)
    images = photographs()
    theirs = processor(images, return_tensors="pt")["pixel_values"]
    assert (stage.prepare(images) - theirs).abs().max() <= 2 / 255 / 0.5
    net = transformers.AutoModelForImageClassification.from_pretrained(vit).eval()
    with torch.inference_mode():
        wanted = net(stage.prepare(images)).logits
        torch.testing.assert_close(stage.run(images)[0].logits, wanted)


PROCESSORS = {
    "CLIP": {},
    "ConvNext": {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
    "Bit": {"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 40}},
    "Siglip": {"image_mean": [0.4, 0.5, 0.6]},
    "DeiT": {},
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_processors_that_can_be_said(kind, transformers):
    from offramp.adapters.huggingface_pictures import processor_transform

    processor = getattr(transformers, f"{kind}ImageProcessor")(**PROCESSORS[kind])
    made = processor_transform("net", processor)  # which tries it
    assert len(made.steps) == 2


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("MobileViT", {}, "has do_flip_channel_order=True"),
        ("ViT", {"resample": 1}, "has interpolation='1'"),
        ("ViT", {"do_resize": False}, "has do_resize=False"),
        ("Levit", {}, "do not say"),  # it scales by 256/224 first, which no field tells
        ("EfficientNet", {"rescale_offset": True}, "has rescale_offset=True"),
        ("PoolFormer", {}, "has crop_pct=0.9"),
        ("CLIP", {"size": {"longest_edge": 9}}, "has size="),
    ],
)
def test_processors_that_cannot_be_said_are_refused_by_their_field(
    kind, fields, told, transformers
):
    from offramp.adapters.huggingface_pictures import processor_transform

    processor = getattr(transformers, f"{kind}ImageProcessor")(**fields)
    with pytest.raises(UnsupportedError, match=told):
        processor_transform("net", processor)


@pytest.mark.parametrize("which", ["bert", "vit"])
def test_a_bundle_needs_nothing_but_itself(which, tmp_path, request):
    """Neither folder nor hub, and no permission to import."""
    folder = request.getfixturevalue(which)
    stage = from_huggingface(folder, class_names=["positive", "negative", "neutral"])
    cascade = Cascade.from_models({"net": stage})
    rows = TEXTS if which == "bert" else photographs()
    said = cascade(rows)[:, 0]
    plain = from_huggingface(folder).run(rows)[0].logits
    assert torch.equal(said, plain[:, [2, 0, 1]])
    candidate = Candidate.single(cascade.topology, "net", reference="net")
    offramp.save(Adaptive(cascade, candidate), tmp_path / "bundle")
    again = offramp.load(tmp_path / "bundle")
    assert torch.equal(again.cascade.stage("net").run(rows)[0].logits, said)
    assert again.cascade.class_names == ("positive", "negative", "neutral")


@pytest.mark.slow  # two minutes; the bundles above run in make test
@pytest.mark.parametrize(
    ("kind", "pooling", "exits"),
    [
        ("ModernBert", "mean", ["model.layers.0", "model.layers.2"]),
        ("Gemma2", "last", ["model.layers.0", "model.layers.2"]),
    ],
)
def test_exits_of_networks_with_alternating_attention(kind, pooling, exits, made, tmp_path):
    stage = from_huggingface(made(kind, **KINDS[kind]))

    def head(shape, classes):
        more = {"pooling": pooling, "mask": "attention_mask"}
        arguments = head_arguments("token_linear", shape, classes, **more)
        return ModelSpec(name="token_linear", arguments=arguments)

    cascade = Cascade.from_network(
        stage.module,
        exits=2,
        head=head,
        example=TEXTS[2:3],
        transform=stage.transform,
        spec=stage.spec,
        class_names=stage.class_names,
    )
    assert list(cascade.topology.names) == [*exits, "last"]
    said = cascade(TEXTS)
    torch.testing.assert_close(said[:, -1], stage.run(TEXTS)[0].logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(cascade(TEXTS[:1])[0], said[0], rtol=0, atol=2e-5)
    candidate = Candidate.single(cascade.topology, exits[1], reference="last")
    offramp.save(Adaptive(cascade, candidate), tmp_path / "bundle")
    again = offramp.load(tmp_path / "bundle")
    answered = again(TEXTS).log_probs
    torch.testing.assert_close(answered, said[:, 1].log_softmax(dim=1), rtol=0, atol=2e-5)


def test_models_that_are_none_are_refused(made, bert, tmp_path, transformers):
    with pytest.raises(InputError, match="cannot be opened"):
        from_huggingface(tmp_path / "nothing")
    config = transformers.BertConfig(**SIZES, vocab_size=len(WORDS))
    base = tmp_path / "base"
    transformers.BertModel(config).save_pretrained(base)
    with pytest.raises(UnsupportedError, match="must be a classifier"):
        from_huggingface(base)
    said = json.loads((base / "config.json").read_text())
    said["architectures"] = ["BertForSequenceClassification"]
    (base / "config.json").write_text(json.dumps(said))
    with pytest.raises(FileFormatError, match=r"classifier\.bias"):
        from_huggingface(base)  # its head would be random
    for change, told in (
        ({"problem_type": "multi_label_classification"}, "problem_type='multi_label"),
        ({"id2label": {"0": "score"}}, "got 1 labels"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
    ):
        said = json.loads((bert / "config.json").read_text())
        other = tmp_path / told[:6]
        other.mkdir()
        for file in bert.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        (other / "config.json").write_text(json.dumps({**said, **change}))
        with pytest.raises(UnsupportedError, match=told):
            from_huggingface(other)


def test_tokenizers_that_cannot_pad_or_are_slow(made, bert, monkeypatch, transformers):
    mute = tokenizer(transformers, pad_token=None)
    with pytest.raises(UnsupportedError, match="must pad with one token, got pad_token_id=None"):
        from_huggingface(made("Llama", beside=mute, **DECODER))
    other = tokenizer(transformers, pad_token="[UNK]")
    with pytest.raises(UnsupportedError, match="pad_token_id=1 of the tokenizer and 0 of the"):
        from_huggingface(made("Llama", beside=other, **DECODER))
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(UnsupportedError, match="not a fast one"):
        from_huggingface(bert)


def test_what_a_spec_of_others_may_not_do(transformers):
    for config, error in (
        ({"model_type": "bertt"}, UnknownNameError),
        ({"model_type": "timm_wrapper"}, InputError),
        ({"model_type": "bert", "auto_map": {"AutoModel": "x.y"}}, InputError),
        ({"model_type": "bert", "_attn_implementation": "someone/kernel"}, InputError),
        ({"model_type": "sam"}, InputError),
    ):
        with pytest.raises(error):
            build(ModelSpec(name="huggingface", arguments={"task": "text", "config": config}))


def test_code_out_of_a_repository_is_never_run(bert, tmp_path):
    other = tmp_path / "custom"
    other.mkdir()
    said = json.loads((bert / "config.json").read_text())
    said |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own"}}
    (other / "config.json").write_text(json.dumps(said))
    (other / "code.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UnsupportedError, match="never run here"):
        from_huggingface(other)


@pytest.mark.parametrize("length", [0, -1, "x", 3.5, 1, 2])
def test_a_length_that_leaves_nothing_of_a_text_is_refused(bert, length):
    with pytest.raises(InputError, match="length must be"):
        from_huggingface(bert, length=length)


def copied(folder, tmp_path, **changes):
    """A folder with another configuration."""
    there = tmp_path / "copy"
    shutil.copytree(folder, there)
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps({**config, **changes}))
    return there


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {"0": "negative", "2": "positive"}},  # fewer than the head has
        {"id2label": {str(k): str(k) for k in range(5)}},
        {"id2label": ["a", "b", "c"]},
        {"hidden_size": 0},
        {"hidden_size": 64},
        {"num_hidden_layers": "2"},
    ],
)
def test_a_configuration_that_does_not_fit_is_said_of_the_folder(bert, tmp_path, changes):
    there = copied(bert, tmp_path, **changes)
    with pytest.raises(InputError, match=f"{there} cannot be opened"):
        from_huggingface(there)


def test_cut_weights_and_a_missing_tokenizer_are_said_of_the_folder(bert, tmp_path):
    there = copied(bert, tmp_path)
    for file in there.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(OfframpError, match=r"tokenizer|cannot be opened"):
        from_huggingface(there)
    weights = there / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be opened"):
        from_huggingface(there)


@pytest.mark.parametrize(
    "changes",
    [
        {"resample": "bilinear"},
        {"image_mean": 0.5, "image_std": 0.5},
        {"image_mean": None},
        {"rescale_factor": 0},
        {"do_center_crop": True},
        {"size": {"height": 0, "width": 32}},
    ],
)
def test_a_processor_that_cannot_be_read_is_said_of_the_folder(vit, tmp_path, changes):
    there = copied(vit, tmp_path)
    path = there / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UnsupportedError, match=f"The transform of {there}"):
        from_huggingface(there)
