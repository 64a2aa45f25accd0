"""Folders of whole pipelines: a published DiT, made small by diffusers, samples here as in diffusers; what is missing,
damaged or not known is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.diffusion.process import make_path
from pipeline.artifacts import Artifact
from pipeline.config import _Loader
from pipeline.data.latents import BROUGHT, LatentSpace
from pipeline.data.order import Draw, draw_batch
from pipeline.errors import UserError
from pipeline.generate import diffusers_folder, sampling, told
from pipeline.generate.exchange import export_diffusers, import_diffusers
from pipeline.generate.folder import load_pretrained
from pipeline.networks import load_model

diffusers = pytest.importorskip("diffusers")

SIDE, CHANNELS = 8, 4
KL = {"block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
      "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": CHANNELS, "scaling_factor": 0.18215}  # fmt: skip
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
NAMES = {0: "tench, Tinca tinca", 1: "crane", 517: "crane", 999: "toilet tissue"}


def filled(model: Any) -> Any:
    """Numbers everywhere, so that no part hides behind a zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As facebook/DiT-XL-2-256 is: 1,000 classes and the null class, a learned variance, embeddings that all blocks
    share."""
    torch.manual_seed(0)
    vae = filled(diffusers.AutoencoderKL(**KL, sample_size=2 * SIDE))
    dit = filled(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=CHANNELS, out_channels=2 * CHANNELS, num_layers=2,
            sample_size=SIDE,
        )
    )  # fmt: skip
    dit.transformer_blocks[1].norm1.emb.load_state_dict(dit.transformer_blocks[0].norm1.emb.state_dict())
    folder = tmp_path_factory.mktemp("published") / "dit"
    diffusers.DiTPipeline(dit, vae, diffusers.DDIMScheduler(**BETAS)).save_pretrained(folder)
    old = {"cross_attention_dim": None, "num_vector_embeds": None, "only_cross_attention": False,
           "use_linear_projection": False, "attention_type": "default", "norm_num_groups": 32}  # fmt: skip
    edited("transformer/config.json", _class_name="Transformer2DModel", **old)(folder)
    edited("model_index.json", id2label=NAMES)(folder)  # `save_pretrained` leaves it out
    return folder


@pytest.fixture(scope="module")
def imported(published: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("imported") / "out"
    return out, import_diffusers(published, out)


def sampled(folder: Path, labels: list[int], **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [0, 1] of our generator, and the noise that they began with."""
    generator = load_pretrained(folder, device="cpu")
    request = generator.request(classes=labels, n=len(labels), seed=3, **how)
    condition, null = told.conditions(generator.options, request, range(len(labels)), generator.device)
    rows = range(len(labels))
    z = sampling.latents(generator.network, lambda: generator.network, generator.options, request, rows, [condition],
                         null, generator.device)  # fmt: skip
    noise = draw_batch(3, "sample", rows, [Draw("noise", "normal", (CHANNELS, SIDE, SIDE))])["noise"]
    first = torch.from_numpy(noise) * make_path(**generator.options["path"]).sigma(torch.ones(())).float()
    with torch.no_grad():
        return (generator.autoencoder.decode(generator.space.restore(z)) / 2 + 0.5).clamp(0, 1), first


def test_a_published_dit_samples_as_in_diffusers(
    published: Path, imported: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = imported
    labels = [0, 517, 999]
    ours, noise = sampled(out, labels, steps=10)  # by default DDIM with guidance 4, as there
    pipe = diffusers.DiTPipeline.from_pretrained(published)
    pipe.set_progress_bar_config(disable=True)
    # whole steps from 999 on; its default, "leading", would begin at 900
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: noise)
    theirs = pipe(labels, num_inference_steps=10, output_type="pt").images
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert "variance: these 4 of 8 outputs were left out" in said


def test_the_lines_are_a_config_that_uses_both_networks(published: Path, imported: tuple[Path, str]) -> None:
    out, said = imported
    lines = yaml.load(said, Loader=_Loader)
    assert lines["data"] == {"size": 2 * SIDE, "channels": 3} and lines["latents"] == {"statistics": "autoencoder"}
    section = lines["diffusion"]
    assert section["path"] == {"kind": "variance_preserving", "schedule": "ddpm_linear"}
    assert section["prediction"] == "eps" and section["training"] == {"init_from": str(out)}
    artifact = Artifact.load(lines["autoencoder"]["from"], "autoencoder")
    images = torch.rand(2, 3, 2 * SIDE, 2 * SIDE) * 2 - 1
    vae = diffusers.AutoencoderKL.from_pretrained(published / "vae")
    with torch.no_grad():
        mean = load_model(artifact.path).encode(images).chunk(2, 1)[0]  # type: ignore[operator]
        wanted = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(LatentSpace.load(artifact.path / BROUGHT).normalise(mean), wanted, rtol=1e-5, atol=1e-5)
    names = load_pretrained(out, device="cpu").classes
    assert len(names) == 1000 and [names[i] for i in (0, 1, 2, 517)] == ["tench", "crane (1)", "2", "crane (517)"]


def test_what_is_exported_comes_back_whole(imported: tuple[Path, str], tmp_path: Path) -> None:
    """The scaling factor is in the autoencoder's weights then, so latents differ by it, and images do not."""
    said = export_diffusers(str(imported[0]), tmp_path / "there", tmp_path)
    assert any(line.startswith("timesteps are 1000 t - 1;") for line in said)
    config = json.loads((tmp_path / "there" / "scheduler" / "scheduler_config.json").read_text())
    assert (config["beta_schedule"], config["beta_start"], config["beta_end"]) == ("linear", 1e-4, 0.02)
    import_diffusers(tmp_path / "there", tmp_path / "back")
    back, before = (load_pretrained(folder, device="cpu") for folder in (tmp_path / "back", imported[0]))
    for key in ("latent", "backbone", "condition", "classes", "path", "prediction"):
        assert back.options[key] == before.options[key], key
    wanted, found = sampled(imported[0], [1, 2], steps=3)[0], sampled(tmp_path / "back", [1, 2], steps=3)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_an_unconditional_pipeline_of_a_unet(tmp_path: Path) -> None:
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = diffusers.UNet2DModel(SIDE, CHANNELS, CHANNELS, block_out_channels=(8, 16), layers_per_block=1,
                                 norm_num_groups=4, **kinds)  # fmt: skip
    scaled = diffusers.DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear",
                                     prediction_type="v_prediction")  # fmt: skip
    folder = tmp_path / "ldm"
    diffusers.LDMPipeline(diffusers.AutoencoderKL(**KL), unet, scaled).save_pretrained(folder)
    said = import_diffusers(folder, tmp_path / "out")
    assert "without classes" in said and "its sampler cuts off each x0" in said  # diffusers' default
    generator = load_pretrained(tmp_path / "out", device="cpu")
    path = {"kind": "variance_preserving", "schedule": "ddpm_scaled_linear", "betas": [0.0015, 0.0195]}
    assert generator.options["path"] == path and generator.options["prediction"] == "v"
    assert generator.defaults["guidance"] == 1 and not generator.classes
    assert generator.sample(n=1, steps=2, batch_size=1).shape == (1, 2 * SIDE, 2 * SIDE, 3)


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, **changes}))

    return edit


def pickled(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def damaged(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


SCHEDULER = "scheduler/scheduler_config.json"
MISTAKES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / "model_index.json").unlink(), "neither model_index.json .* give one of its folders: tr"),
    (lambda folder: (folder / "model_index.json").write_text("["), "model_index.json: not the JSON of a pipeline"),
    (edited("model_index.json", _class_name="FluxPipeline"), "a FluxPipeline; expected one of DiTPipeline, LDM"),
    (edited("model_index.json", id2label=["a"]), "`id2label` is not a table from numbers to names"),
    (lambda folder: shutil.rmtree(folder / "vae"), "vae/config.json is missing, a part of this DiTPipeline"),
    (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler/scheduler_config.json is missing"),
    (pickled, r"vae: .*pickles are not read \(diffusion_pytorch_model.bin\): load it in diffusers"),
    (damaged, "transformer/diffusion_pytorch_model.safetensors: not a whole safetensors file"),
    (edited(SCHEDULER, beta_schedule="sigmoid"), "`beta_schedule: sigmoid` of this DDIMScheduler has no place here"),
    (edited(SCHEDULER, num_train_timesteps=50), r"`num_train_timesteps: 50` .*\(expected 1000\)"),
    (edited(SCHEDULER, beta_start="much"), "betas from much to 0.02; expected 0 < beta_start"),
    (edited(SCHEDULER, trained_betas=[0.1]), "`trained_betas: .*has no place here"),
    (edited("transformer/config.json", num_layers="x"), "transformer/config.json: "),
    (edited("transformer/config.json", out_channels=12), "out_channels: 12.*or twice that with a learned variance"),
    (lambda folder: shutil.copytree(folder / "vae", folder / "transformer", dirs_exist_ok=True),
     "transformer: a network of another kind"),
    (lambda folder: (folder / "ldm.json").write_text('{"path": {}}'), "ldm.json: not as `ldm export` writes it"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "says"), MISTAKES, ids=[says[:30] for _, says in MISTAKES])
def test_mistakes_are_one_line(published: Path, tmp_path: Path, spoil: Callable[[Path], Any], says: str) -> None:
    folder, out = tmp_path / "dit", tmp_path / "out"
    shutil.copytree(published, folder)
    spoil(folder)
    with pytest.raises(UserError, match=says) as raised:
        import_diffusers(folder, out)
    assert "\n" not in str(raised.value) and not out.exists()
    assert diffusers_folder.is_pipeline(folder) == (folder / "model_index.json").exists()
