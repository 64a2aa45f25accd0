"""`ldm export` and `ldm import` around diffusers itself: a trained model goes there, what diffusers saves comes back,
and stage 2 trains on it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import yaml

diffusers = pytest.importorskip("diffusers")

BACKBONES = {
    "transformer": "{kind: dit, width: 16, depth: 2, heads: 2, patch: 2, frequency_shift: 1}",
    "unet": "{kind: unet, width: 8, multipliers: [1, 2], attention: [no, yes], blocks: 1, groups: 4, head_width: 8}",
}
CLASSES = {"transformer": "DiTTransformer2DModel", "unet": "UNet2DModel"}


@pytest.mark.parametrize("part", BACKBONES)
def test_out_to_diffusers_and_back_into_training(small: Any, part: str) -> None:
    from pipeline.config import _Loader
    from pipeline.generate.folder import load_pretrained

    backbone = f"diffusion.backbone={BACKBONES[part]}"
    said = small.run("diffusion", backbone)
    assert said.code == 0, said.err
    artifact, out = small.manifests("diffusion")[0].parent, small.folder / "out"
    said = small.ldm("export", str(artifact), "--format", "diffusers", "-o", str(out))
    assert said.code == 0 and CLASSES[part] in said.out and "AutoencoderKL" in said.out, said.err

    # in diffusers: the same reconstruction and the same prediction
    ours = load_pretrained(artifact, device="cpu")
    vae = diffusers.AutoencoderKL.from_pretrained(out / "vae")
    denoiser = getattr(diffusers, CLASSES[part]).from_pretrained(out / part)
    images = torch.randn(2, 3, 8, 8).clamp(-1, 1)
    z, t, labels = torch.randn(3, 2, 4, 4), torch.tensor([0.1, 0.5, 1.0]), torch.tensor([0, 1, 2])  # 2: the null class
    with torch.no_grad():
        expected = ours.autoencoder(images, torch.zeros(2, 2, 4, 4))[0]
        torch.testing.assert_close(vae(images).sample, expected, rtol=1e-5, atol=1e-5)
        predicted = ours.network(z, t, {"class": labels})
        torch.testing.assert_close(denoiser(z, 1000 * t, class_labels=labels).sample, predicted, rtol=1e-5, atol=1e-5)
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    latents = (vae.encode(images).latent_dist.mean - mean.view(1, 2, 1, 1)) / std.view(1, 2, 1, 1)
    wanted = ours.space.normalise(ours.autoencoder.encode(images).chunk(2, dim=1)[0])
    torch.testing.assert_close(latents, wanted, rtol=1e-4, atol=1e-4)
    if part == "transformer":  # one command of diffusers makes images of it
        pipe = diffusers.DiffusionPipeline.from_pretrained(out)
        assert pipe([0, 1], guidance_scale=2.0, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 3)

    # what diffusers saves comes back, with its weights changed there
    for model, name in ((vae, "vae"), (denoiser, part)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        model.save_pretrained(small.folder / "saved" / name)
    said = small.ldm("import", str(small.folder / "saved" / "vae"), "-o", str(small.folder / "autoencoder"))
    assert said.code == 0, said.err
    assert yaml.safe_load(said.out)["autoencoder"] == {"from": str(small.folder / "autoencoder")}
    flags = ["--null-class"] if part == "unet" else []
    begin = small.folder / "denoiser"
    said = small.ldm("import", str(small.folder / "saved" / part), "-o", str(begin), *flags)
    assert said.code == 0, said.err
    lines = yaml.load(said.out, Loader=_Loader)["diffusion"]
    assert lines["training"] == {"init_from": str(begin)} and "for data of 2 classes" in said.out

    # stage 2 trains on it: nothing but the learning rate of the first step lies between the two
    overrides = [f"diffusion.backbone={json.dumps(lines['backbone'])}", f"diffusion.training.init_from={begin}"]
    overrides += [f"autoencoder.from={small.folder / 'autoencoder'}", "diffusion.training.learning_rate=1e-9"]
    said = small.run("diffusion", *overrides)
    assert said.code == 0 and "imported from" in said.out, said.err
    again = next(m.parent for m in small.manifests("diffusion") if m.parent != artifact)
    trained = load_pretrained(again, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(trained.autoencoder(images, torch.zeros(2, 2, 4, 4))[0], vae(images).sample)
        now = trained.network(z, t, {"class": labels})
        torch.testing.assert_close(now, denoiser(z, 1000 * t, class_labels=labels).sample, rtol=1e-4, atol=1e-5)
    assert trained.sample(n=2, steps=2).dtype == np.uint8
    encoded = json.loads(small.manifests("encode")[-1].read_text())
    assert encoded["inputs"]["autoencoder"]["stage"] == "autoencoder"


def test_a_pipeline_is_fine_tuned(small: Any) -> None:
    """A folder of diffusers, by the lines that its import prints: 100 steps in the latents as they were published."""
    from pipeline.config import _Loader
    from pipeline.data.latents import LatentSpace
    from pipeline.generate.folder import load_pretrained

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = diffusers.AutoencoderKL(**kinds, block_out_channels=(8, 16), norm_num_groups=4, scaling_factor=0.5)
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=4, out_channels=8, num_embeds_ada_norm=2
    )
    folder, out = small.folder / "published", small.folder / "imported"
    diffusers.DiTPipeline(dit, vae, diffusers.DDIMScheduler()).save_pretrained(folder)
    imported = small.ldm("import", str(folder), "-o", str(out))
    assert imported.code == 0, imported.err
    said = small.ldm("sample", str(out), "--out", str(small.folder / "samples"), "-n", "1", "--steps", "2")
    assert said.code == 0 and (small.folder / "samples" / "000000.png").exists(), said.err
    said = small.run("diffusion", "latents.statistics=autoencoder")
    assert said.code == 2 and "goes with `autoencoder.from`" in said.err

    config = yaml.safe_load(small.config.read_text())
    for key, section in yaml.load(imported.out, Loader=_Loader).items():
        training = {"training": {**config.get(key, {}).get("training", {}), **section.get("training", {})}}
        config[key] = {**config.get(key, {}), **section, **(training if key in ("autoencoder", "diffusion") else {})}
    config["diffusion"]["training"] |= {"steps": 100, "learning_rate": 3e-3, "validate_every": 10}
    small.config.write_text(yaml.safe_dump(config))
    said = small.run("diffusion")
    assert said.code == 0, said.err
    encode, diffusion = (small.manifests(stage)[-1].parent for stage in ("encode", "diffusion"))
    space = LatentSpace.load(encode / "latents.json")
    assert space.std.tolist() == [2.0] * 4 and space.mean.tolist() == [0.0] * 4  # 1 / 0.5
    before, after = (load_pretrained(folder, device="cpu") for folder in (out, diffusion))
    assert {key: after.options[key] for key in ("path", "prediction", "latent", "classes")} == {
        **{key: before.options[key] for key in ("path", "prediction", "latent")}, "classes": ["a", "b"],
    }  # fmt: skip
    events = map(json.loads, next(diffusion.glob("work/spool/*.jsonl")).read_text().splitlines())
    losses = [e["values"]["diffusion/val_loss"] for e in events if "diffusion/val_loss" in e.get("values", {})]
    assert losses[-1] < 0.9 * losses[0], losses
    said = small.run("encode", "latents.statistics=measured")  # the same moments, another scale
    assert said.code == 0 and ", 0 of 6 shards encoded" in said.out, said.out
    said = small.ldm("lineage", str(out), "--root", str(small.root))
    assert said.code == 0 and f"imported from {folder}" in said.out, said.err


def test_mistakes_are_one_line(small: Any) -> None:
    assert small.run("diffusion").code == 0
    artifact = small.manifests("diffusion")[0].parent
    out = small.folder / "out"
    said = small.ldm("export", str(artifact), "--format", "diffusers", "-o", str(out))
    assert said.code == 2 and said.err.startswith("error: `frequency_shift: 0` (expected 1): no place in diffusers'")
    assert not out.exists()
    autoencoder = small.manifests("autoencoder")[0].parent
    said = small.ldm("export", str(autoencoder), "--format", "diffusers", "-o", str(out))
    assert said.code == 0 and (out / "vae" / "config.json").exists()
    said = small.ldm("import", str(out / "vae"), "-o", str(out))
    assert said.code == 2 and "not an empty folder" in said.err
    said = small.ldm("import", str(out), "-o", str(small.folder / "new"))
    assert said.code == 2 and "give one of its folders: vae" in said.err and not (small.folder / "new").exists()
