"""What can be wrong with a model is said in one sentence, and nothing of a model is executed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.utils.hub
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from models.random_qwen3 import build_folder
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BertConfig, T5Config

from nsr.cli import main
from nsr.models.registry import load_config, load_policy, load_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("made") / "model", tied=False)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """An untied model folder, for a test to damage."""
    return Path(shutil.copytree(made, tmp_path / "model"))


def refusal(model_id: str | Path, load: Callable[[str], Any] | None = None) -> str:
    """What is said of a model that is refused: one sentence that names the flag and the model."""
    with pytest.raises(ValueError) as caught:
        (load or (lambda name: load_policy(name, device="cpu", dtype=torch.float32)))(str(model_id))
    said = str(caught.value)
    assert said.startswith(f"--model_id {str(model_id)!r} ")
    assert "\n" not in said and said.endswith(".") and ": " in said and len(said) < 700
    return said


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path) -> dict[str, str]:
    """Cut the weights into files with an index; returns which file holds which tensor."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


# Models that are not there


@pytest.mark.parametrize("model_id", ["./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_folder_that_is_not_there(model_id: str) -> None:
    assert "is not a folder" in refusal(model_id)


def test_a_hub_model_without_a_copy_and_without_the_hub() -> None:
    assert "was not found" in refusal("nobody/no-such-model")


def hub_raises(monkeypatch: pytest.MonkeyPatch, error: type[Any], status: int) -> None:
    def download(*args: object, **kwargs: object) -> None:
        response = SimpleNamespace(status_code=status, headers={}, request=None)
        raise error(f"{status} Client Error.\n\nCannot access the repository.", response=response)

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(transformers.utils.hub, name, download)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("load", [load_config, load_tokenizer, None])
def test_a_gated_model(load: Callable[[str], Any] | None, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_raises(monkeypatch, GatedRepoError, status)
    said = refusal("owner/model", load)
    assert "is gated on the hub" in said
    assert "ask for access at https://huggingface.co/owner/model, then run `hf auth login` or set HF_TOKEN" in said


def test_a_model_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_raises(monkeypatch, RepositoryNotFoundError, 404)
    said = refusal("owner/model")
    assert "the hub has no such model, or it is private" in said and "check the name" in said


# Files


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "is a folder without a config.json" in refusal(tmp_path)


def test_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is an adapter (PEFT), not a model: merge it into its base model first" in refusal(tmp_path)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    said = refusal(folder, load_config)
    assert "is a folder without weights" in said and "(it has consolidated.safetensors)" in said


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_a_pickle_is_refused_with_the_reason_and_the_way_out(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / name)
    said = refusal(folder)
    assert "reading a pickle can run code, so nsr does not" in said
    assert "AutoModelForCausalLM as M; M.from_pretrained('FOLDER').save_pretrained('NEW_FOLDER')" in said


def test_the_command_that_converts_a_pickle_works(folder: Path, tmp_path: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    command = re.search(r"python -c \"(.*)\"", refusal(folder))
    assert command is not None
    new = Path(shutil.copytree(folder, tmp_path / "new", ignore=shutil.ignore_patterns("*.bin")))
    exec(command[1].replace("'FOLDER'", repr(str(folder))).replace("'NEW_FOLDER'", repr(str(new))))
    load_policy(str(new), device="cpu", dtype=torch.float32)


def test_a_truncated_file_is_told_from_a_wrong_one(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for cut in (len(whole) - 1, header):
        file.write_bytes(whole[:cut])
        expected = f"has a truncated model.safetensors: its header says {len(whole)} bytes, it has {cut}"
        assert expected in refusal(folder, load_config)
    for cut in (header - 1, 9):
        file.write_bytes(whole[:cut])
        expected = f"has a truncated model.safetensors, of {cut} bytes (its header alone takes {header})"
        assert expected in refusal(folder, load_config)
    for cut in (0, 7):
        file.write_bytes(whole[:cut])
        assert f"has a truncated model.safetensors, of {cut} bytes" in refusal(folder, load_config)
    file.write_bytes(whole + b"\0")
    assert f"is wrong: its header says {len(whole)} bytes, it has {len(whole) + 1}" in refusal(folder, load_config)


@pytest.mark.parametrize(
    "content",
    [
        b"<html><body>404 Not Found</body></html>",
        b"PK\x03\x04" + b"\0" * 100,
        (9).to_bytes(8, "little") + b"{not json",
        (2).to_bytes(8, "little") + b"[]",
        (13).to_bytes(8, "little") + b'{"a": [1, 2]}',
        (26).to_bytes(8, "little") + b'{"a": {"data_offsets": []}',
        (2**63).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_wrong_file(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "has a model.safetensors that is no safetensors file" in refusal(folder, load_config)


def test_a_pointer_of_git_lfs(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "has a pointer of Git LFS in place of model.safetensors: fetch" in refusal(folder, load_config)


def test_a_shard_that_is_missing_or_truncated(folder: Path) -> None:
    files = sorted(set(shard(folder).values()))
    assert len(files) > 2
    load_policy(str(folder), device="cpu", dtype=torch.float32)
    data = (folder / files[1]).read_bytes()
    (folder / files[1]).write_bytes(data[:-10])
    assert f"has a truncated {files[1]}: its header says {len(data)} bytes" in refusal(folder, load_config)
    (folder / files[1]).unlink()
    said = refusal(folder, load_config)
    assert f"lacks 1 of {len(files)} files that its model.safetensors.index.json names; the first is" in said
    assert files[1] in said


def test_an_index_that_is_wrong(folder: Path, tmp_path: Path) -> None:
    places = shard(folder)
    index = folder / "model.safetensors.index.json"
    name, file = next(iter(places.items()))
    other = next(place for place in places.values() if place != file)
    edit_json(index, weight_map={**places, name: other})
    assert f"has a {other} without {name!r}" in refusal(folder, load_config)
    (tmp_path / "outside.safetensors").write_bytes((folder / file).read_bytes())
    edit_json(index, weight_map={**places, name: "../outside.safetensors"})
    assert "names no files beside it" in refusal(folder, load_config)
    for broken in ("{", "[]", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}', "[" * 100_000):
        index.write_text(broken)
        assert "model.safetensors.index.json that cannot be read" in refusal(folder, load_config)


# Tensors


def test_shapes_that_do_not_fit_name_the_first(folder: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        weights["model.norm.weight"] = torch.zeros(7)
        weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 32)

    edit_weights(folder, change)
    said = refusal(folder)
    assert "has 2 tensors of other shapes than its config.json asks for" in said
    assert "the first is 'model.layers.1.mlp.up_proj.weight': [3, 32] in place of [64, 32]" in said


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"])
def test_a_tensor_that_is_missing_is_not_made_up(folder: Path, name: str) -> None:
    edit_weights(folder, lambda weights: weights.pop(name))
    assert f"lacks 1 tensors that its config.json asks for; the first is {name!r}" in refusal(folder)


def test_a_tied_head_is_not_missing_but_one_that_differs_is_refused(folder: Path, tmp_path: Path) -> None:
    tied = build_folder(tmp_path / "tied", tied=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    load_policy(str(tied), device="cpu", dtype=torch.float32)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert "has an output head that differs from its embeddings, but a config.json that ties them" in refusal(folder)


def test_extra_tensors_are_said(
    folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    edit_weights(folder, lambda weights: weights.update(bonus=torch.zeros(2)))
    load_policy(str(folder), device="cpu", dtype=torch.float32)
    expected = "has 1 tensors that its config.json has no place for; they are left out (the first: 'bonus')"
    assert [expected in message for message in caplog.messages] == [True]
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


# Kinds of models


def test_a_model_with_code_of_its_own_is_refused_and_nothing_of_it_runs(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
    (folder / "own.py").write_text(code)
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit_json(folder / "config.json", model_type="own", auto_map=own)
    said = refusal(folder)
    assert "needs Python code that comes with it" in said and "nsr never runs code of a model" in said
    # A type that transformers knows, but a model that it does not.
    edit_json(folder / "config.json", model_type="qwen3", architectures=["OwnForCausalLM"])
    assert "has no 'OwnForCausalLM' built in), and nsr never runs code of a model" in refusal(folder)
    # All of it built in: loads, as what transformers has built in.
    edit_json(folder / "config.json", architectures=["Qwen3ForCausalLM"])
    policy = load_policy(str(folder), device="cpu", dtype=torch.float32)
    assert type(policy.model).__module__ == "transformers.models.qwen3.modeling_qwen3"
    # A tokenizer of its own.
    tokenizer = {"AutoTokenizer": ["own.Tokenizer", None]}
    edit_json(folder / "tokenizer_config.json", auto_map=tokenizer, tokenizer_class="OwnTokenizer")
    (folder / "tokenizer.json").unlink()
    refusal(folder, load_tokenizer)
    assert not marker.exists()


def test_a_type_that_transformers_does_not_know(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="qwen99")
    assert "is of the type 'qwen99', which transformers " in refusal(folder)


def test_an_encoder_decoder(folder: Path) -> None:
    config = T5Config(d_model=8, num_layers=1, num_heads=1, d_ff=8, vocab_size=20)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    assert "is an encoder-decoder (t5), no causal language model" in refusal(folder)


def test_a_model_that_is_not_causal(folder: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8).to_dict()
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    assert "was saved as 'BertForMaskedLM', no causal language model" in refusal(folder)
    edit_json(folder / "config.json", model_type="vit", architectures=["ViTModel"])
    assert "is of the type 'vit', no causal language model" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model_type": 3}', "{}", "\x00\xff", "[" * 100_000])
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refusal(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "large"},
        {"hidden_size": -1},
        {"num_hidden_layers": None},
        {"hidden_act": "no_such_function"},
        {"rope_parameters": {"rope_type": "no_such_type"}},
        {"vocab_size": 0},
    ],
)
def test_a_config_with_values_that_make_no_model(folder: Path, values: dict[str, object]) -> None:
    edit_json(folder / "config.json", **values)
    refusal(folder)


# Tokenizers


def test_a_tokenizer_without_an_end_token(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "has a tokenizer without an end token" in refusal(folder, load_tokenizer)


def test_a_folder_without_a_tokenizer_does_not_get_an_empty_one(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "has no tokenizer: add the files of the model's own" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_cannot_be_read(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    refusal(folder)


# On the command line


def test_no_traceback_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    words = ["baseline", "--model_id", str(folder), "--device", "cpu", "--data", "synthetic", "--eval_puzzles", "2"]
    assert main([*words, "--max_tokens", "8", "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: --model_id") and "lm_head.weight" in said and "\n" not in said
    assert not (tmp_path / "out").exists()
