"""A model that was exported samples in diffusers alone, by its script and by DiTPipeline, as it does here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import registry
from models.diffusion import grids, samplers
from models.diffusion.denoiser import build_network, denoiser, start_time
from models.diffusion.guidance import guided
from models.diffusion.process import EDM, RectifiedFlow, VariancePreserving, make_path, noise_level
from pipeline.data.latents import LatentSpace
from pipeline.generate import diffusers_pipeline, diffusers_read, diffusers_write
from pipeline.generate.exchange import export_diffusers
from pipeline.generate.folder import save_pretrained

diffusers = pytest.importorskip("diffusers")

DIT = {"kind": "dit", "width": 24, "depth": 2, "heads": 2, "patch": 2, "frequency_shift": 1}
UNET = {"kind": "unet", "width": 8, "multipliers": [1, 2], "attention": [False, True], "blocks": 1, "groups": 4,
        "head_width": 8}  # fmt: skip
KL = {"kind": "kl", "width": 8, "multipliers": [1, 2], "blocks": 1, "latent_channels": 3, "groups": 4}
CHANNELS, SIZE, NAMES = 3, 8, ["a", "b", "c", "d"]
SPACE = LatentSpace(torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 2.0, 1.5]))
# Runs scripts as they are, and keeps what an image of 8 bits would hide.
RUN = """
import runpy, sys, torch
for folder in sys.argv[1:]:
    found = runpy.run_path(f"{folder}/sample_with_diffusers.py")
    torch.save({"x": found["x"], "y": found["vae"].decode(found["x"]).sample}, f"{folder}/result.pt")
"""


def fill(model: nn.Module) -> Any:
    """Numbers everywhere, so that no part hides behind a zero; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.3 * noise / max(1, parameter[0].numel()) ** 0.5
    return model.eval()


class Model:
    """A small model of a path, exported; and samples of it by our own solvers."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        prediction: str,
        backbone: dict[str, Any],
        classes: int = 4,
        schedule: str = "cosine",
        **defaults: Any,
    ) -> None:
        torch.manual_seed(1)
        condition = "class" if classes else "none"
        self.network = fill(build_network(backbone, condition, CHANNELS, SIZE, classes))
        self.vae: Any = fill(registry.build("autoencoders", KL, channels=3))
        self.prediction, self.scale, self.classes = prediction, defaults.get("guidance", 1.0), classes
        self.options = {
            "backbone": backbone, "condition": {"kind": condition, "drop": 0.1}, "classes": NAMES[:classes],
            "path": {"kind": kind, "schedule": schedule}, "prediction": prediction,
            "latent": {"channels": CHANNELS, "size": SIZE},
        }  # fmt: skip
        save_pretrained(
            folder / "model", name="a", image={"size": 16, "channels": 3}, options=self.options, autoencoder=KL,
            autoencoder_weights=self.vae.state_dict(), denoiser_weights=self.network.state_dict(), space=SPACE,
            defaults=defaults,
        )  # fmt: skip
        self.out = folder / "out"
        self.said = "\n".join(export_diffusers(str(folder / "model"), self.out, folder))

    @torch.no_grad()
    def sample(self, sampler: str, path: Any, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        condition = {"class": labels} if self.classes else {}
        null = {"class": torch.full_like(labels, self.classes)} if self.classes else {}
        denoise = guided(denoiser(self.network, path, self.prediction), self.scale, null)
        return samplers.sample(sampler, denoise, path, x, times, condition, lambda step: x)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(SPACE.restore(z))


def noise(n: int) -> Tensor:
    return torch.randn(n, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    assert wanted.std() > 0.05
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


SCRIPTS: dict[str, tuple[str, dict[str, Any], str]] = {  # path: prediction, backbone, sampler
    "rectified_flow": ("velocity", DIT, "euler"),
    "edm": ("v", UNET, "dpmpp_2m"),
}


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Guided models by their path; their scripts were run in a process that knows diffusers alone, imported once."""
    models = {
        kind: Model(tmp_path_factory.mktemp(kind), kind, prediction, backbone, guidance=1.5, steps=8)
        for kind, (prediction, backbone, _) in SCRIPTS.items()
    }
    command = [sys.executable, "-c", RUN, *(model.out for model in models.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return models


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_script_makes_our_samples(scripted: dict[str, Model], kind: str) -> None:
    """On the same noise and grid; with guidance."""
    model, path, sampler = scripted[kind], make_path(kind), SCRIPTS[kind][2]
    script = (model.out / "sample_with_diffusers.py").read_text()
    assert len(script.splitlines()) <= 15 and max(map(len, script.splitlines())) <= 120
    imported = {line.split()[1] for line in script.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"pathlib", "torch", "diffusers"}
    assert (model.out / "samples.png").exists()
    found = torch.load(model.out / "result.pt")
    times = grids.time_grid(50) if kind == "rectified_flow" else grids.grid("auto", 8, path)
    start = noise(16) * (80 if kind == "edm" else 1)
    wanted = model.sample(sampler, path, start, times, torch.arange(16) % 4)
    near(found["x"], wanted)
    near(found["y"], model.decode(wanted))


class Floored(RectifiedFlow):
    """diffusers' DPM-Solver cuts timesteps to whole ones on this path."""

    def clock(self, t: Tensor) -> Tensor:
        return torch.floor(1000 * t + 1e-4) / 1000


class Rounded(EDM):
    """diffusers' DPM-Solver rounds timesteps to whole ones on Karras's grid."""

    def clock(self, t: Tensor) -> Tensor:
        return torch.round(1000 * super().clock(t)) / 1000


@pytest.mark.parametrize(
    ("path", "prediction", "classes"),
    [(Floored(), "velocity", 4), (Floored(), "x0", 4), (Rounded(), "v", 4), (Rounded(), "x0", 0),
     (VariancePreserving(), "v", 4), (VariancePreserving("cosine"), "eps", 4)],
)  # fmt: skip
def test_dit_pipeline_makes_our_samples(tmp_path: Path, path: Any, prediction: str, classes: int) -> None:
    """diffusers' own pipeline loads the folder; its noise levels, guidance and decoding are ours."""
    kinds = {Floored: "rectified_flow", Rounded: "edm", VariancePreserving: "variance_preserving"}
    model = Model(
        tmp_path, kinds[type(path)], prediction, DIT, classes, getattr(path, "schedule", "cosine"),
        guidance=1.5 if classes else 1.0, steps=8,
    )  # fmt: skip
    pipe = diffusers.DiffusionPipeline.from_pretrained(model.out)
    assert type(pipe).__name__ == "DiTPipeline" and pipe.labels == {name: i for i, name in enumerate(NAMES[:classes])}
    assert "DiTPipeline: " in model.said
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(4) if classes else torch.zeros(4, dtype=torch.int64)
    made = pipe(labels.tolist(), model.scale, torch.manual_seed(0), 8, output_type="pt").images
    levels = pipe.scheduler.sigmas.double()
    times = levels if isinstance(path, RectifiedFlow) else path.at(levels)
    start = noise(4) * (1 if not isinstance(path, EDM) else (1 + 80**2) ** 0.5)  # plain noise, after scaling
    wanted = model.decode(model.sample("dpmpp_2m", path, start, times, labels))
    near(made, (wanted / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "zero_terminal_snr", "edm"])
@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_the_betas_have_the_levels_of_the_path(schedule: str, prediction: str) -> None:
    path = EDM() if schedule == "edm" else VariancePreserving(schedule)
    betas = torch.tensor(diffusers_pipeline.betas(path, prediction))
    assert (betas >= 0).all() and (betas < 1).all()
    shares = (1 - betas).cumprod(0)  # as diffusers does it, in float32
    clock = torch.arange(1, len(betas), dtype=torch.float64) / 1000
    level = 0.002 * 40000**clock if schedule == "edm" else noise_level(path, clock)
    torch.testing.assert_close(shares[1:].double(), 1 / (1 + level.square()), rtol=1e-4, atol=2e-7)
    last = 1.0 if schedule in ("linear", "edm") else min(0.999, start_time(path, prediction))
    assert clock[-1] == pytest.approx(last, abs=1.1e-3) and clock[-1] <= last


def test_a_model_that_is_not_guided_or_that_diffusers_cannot_sample(tmp_path: Path) -> None:
    plain = Model(tmp_path / "plain", "variance_preserving", "v", UNET, 0, steps=5)
    assert not (plain.out / "model_index.json").exists() and "DiTPipeline" not in plain.said
    times = torch.tensor([*np.linspace(0, 999, 6).round()[:0:-1], 0], dtype=torch.float64) / 1000
    wanted = plain.sample("dpmpp_2m", make_path("variance_preserving", "cosine"), noise(16), times, torch.zeros(16))
    found: dict[str, Any] = {"__name__": "script", "__file__": str(plain.out / "sample_with_diffusers.py")}
    try:
        exec(Path(found["__file__"]).read_text(), found)
    finally:
        torch.set_grad_enabled(True)
    near(found["x"], wanted)
    other = Model(tmp_path / "other", "variance_preserving", "velocity", DIT)
    assert "no scheduler of diffusers knows velocity on variance_preserving: no script" in other.said
    assert {path.name for path in other.out.iterdir()} == {"transformer", "vae", "ldm.json"}
    many = {**other.options, "classes": [str(i) for i in range(1001)]}
    assert diffusers_pipeline.index("transformer", many) is None  # class 1,000 would be its null class


def test_guidance_that_diffusers_does_not_know_is_said(tmp_path: Path) -> None:
    line = "the model's own guidance has no place there: plain, with a scale of"
    auto = Model(tmp_path / "auto", "edm", "v", DIT, guidance=2.0, guidance_kind="autoguidance")
    assert f"{line} 1" in auto.said and "v[16:]" not in (auto.out / "sample_with_diffusers.py").read_text()
    within = Model(tmp_path / "within", "edm", "v", DIT, guidance=2.0, guidance_interval=[0.2, 5.0])
    assert f"{line} 2" in within.said and "v[16:] + 2 *" in (within.out / "sample_with_diffusers.py").read_text()
    assert line not in Model(tmp_path / "plain", "edm", "v", DIT, guidance=2.0).said


def test_shifted_times_are_shifted_once(tmp_path: Path) -> None:
    model = Model(tmp_path, "rectified_flow", "velocity", DIT, grid="shifted", shift=3.0)
    assert "FlowMatchEulerDiscreteScheduler(shift=3.0)" in (model.out / "sample_with_diffusers.py").read_text()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - i / 5 for i in range(5)])
    wanted = grids.grid("shifted", 5, RectifiedFlow(), shift=3.0)
    torch.testing.assert_close(scheduler.sigmas.double(), wanted, rtol=1e-6, atol=1e-7)
    ours = diffusers.DPMSolverMultistepScheduler.from_pretrained(model.out / "scheduler")
    ours.set_timesteps(5)
    plain = 0.999 * (1 - torch.arange(6, dtype=torch.float64) / 5)
    torch.testing.assert_close(ours.sigmas.double(), grids.shifted(plain, 3.0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("quant_conv", [True, False])
def test_normalised_latents_of_the_exported_autoencoder(tmp_path: Path, quant_conv: bool) -> None:
    torch.manual_seed(0)
    model: Any = fill(registry.build("autoencoders", {**KL, "quant_conv": quant_conv}, channels=3))
    described = diffusers_write.normalised(*diffusers_write.describe(model, size=16), SPACE.mean, SPACE.std)
    diffusers_write.write(tmp_path, *described)
    loaded = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    x = noise(2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        mean, logvar = model.encode(x).chunk(2, dim=1)
        found = loaded.encode(x).latent_dist
        near(found.mean, SPACE.normalise(mean), 1e-5)
        near(found.logvar, logvar - 2 * SPACE.std.log().view(1, -1, 1, 1), 1e-5)
        near(loaded.decode(noise(2)).sample, model.decode(SPACE.restore(noise(2))), 1e-5)
    assert loaded.config.latents_mean == [0.0] * 3 and loaded.config.latents_std == [1.0] * 3
    assert diffusers_read.read(tmp_path).options["quant_conv"]
