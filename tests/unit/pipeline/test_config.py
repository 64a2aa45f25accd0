"""The config: what is read, and the one line that each kind of mistake gives."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config
from pipeline.errors import UserError
from pipeline.planning import fits
from pipeline.schema.diffusion import Diffusion
from pipeline.schema.section import result_fields

ROOT = Path(__file__).parents[3]
MINIMAL = """\
run: {name: small}
data:
  source: {kind: digits}
autoencoder:
  training: {steps: 10, learning_rate: 1e-3}
diffusion:
  training: {steps: 20}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(MINIMAL)
    return file


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config.load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pinned_autoencoder_needs_no_training(path: Path) -> None:
    path.write_text(MINIMAL.replace("  training: {steps: 10, learning_rate: 1e-3}", "  from: some/where"))
    assert config.load(path).autoencoder.from_ == "some/where"
    assert "`autoencoder.training` is missing" in message(path, "autoencoder.from=null")


def test_reads_numbers_as_numbers(path: Path) -> None:
    read = config.load(path, ["diffusion.training.learning_rate=2e-4", "autoencoder.from=some/where"])
    assert read.autoencoder.training.learning_rate == 1e-3
    assert read.diffusion.training.learning_rate == 2e-4
    assert read.autoencoder.from_ == "some/where"
    assert isinstance(read.autoencoder.training.steps, int)


def test_dump_is_read_back(path: Path, tmp_path: Path) -> None:
    read = config.load(path)
    (tmp_path / "again.yaml").write_text(config.dump(read))
    assert config.load(tmp_path / "again.yaml") == read


@pytest.mark.parametrize("file", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(file: Path) -> None:
    fits.check_models(config.load(file))


@pytest.mark.parametrize(
    ("text", "expected"),  # of the message
    [
        ("run: {name: small}\nrun: {name: b}\n", "run.yaml:2: the key `run` is given twice"),
        ("run: [\n", "run.yaml:2: not valid YAML"),
        ("- a\n", "expected a mapping"),
        (MINIMAL.replace("learning_rate", "learnin_rate"), "run.yaml:5: unknown key `autoencoder.training.learnin_"),
        (MINIMAL.replace("learning_rate", "learnin_rate"), "did you mean `learning_rate`?"),
        (MINIMAL.replace("steps: 10", "steps: ten"), "run.yaml:5: `autoencoder.training.steps`"),
        (MINIMAL.replace("steps: 10, ", ""), "run.yaml:5: `autoencoder.training.steps` is missing"),
        (MINIMAL.replace("kind: digits", "kind: digit"), "run.yaml:3: `data.source.kind` is 'digit'; expected"),
        (MINIMAL.replace("name: small", "name: ../x"), "run.yaml:1: `run.name`"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert expected in message(tmp_path / "run.yaml")


def test_mistakes_in_overrides(path: Path) -> None:
    assert "override `run.seed=-1`" in message(path, "run.seed=-1")
    assert "expected KEY=VALUE" in message(path, "run.seed")
    assert "`run.name.x`" not in message(path, "run.name.x=3") and "not a section" in message(path, "run.name.x=3")
    assert "not a stretch of whole batches" in message(path, "diffusion.training.skip=[[1, 130]]")
    assert "`column` is given if and only if" in message(path, "data.split.by=column")
    assert "`guidance_interval` [2.0, 1.0]: expected" in message(path, "evaluate.guidance_interval=[2, 1]")
    assert "`lora` adapts the weights that `init_from` names" in message(path, "diffusion.training.lora={}")
    adapted = ["autoencoder.training.lora={}", "autoencoder.training.init_from=x"]
    assert "`training.lora` is for the stage diffusion" in message(path, *adapted)
    assert "`evaluate.guidance_weak` 700: expected live" in message(path, "evaluate.guidance_weak=700")


def test_autoguidance_takes_weights_that_are_kept(path: Path) -> None:
    read = config.load(path, ["diffusion.training.half_lives=[2000, 500]", "evaluate.guidance_weak=500"])
    assert read.evaluate.guidance_weak == 500
    assert "one of `diffusion.training.half_lives`" in message(path, "evaluate.guidance_weak=2000")
    kept, auto = "diffusion.training.half_lives=[2000, 500]", "evaluate.guidance_kind=autoguidance"
    for same in (["evaluate.weights=live"], [kept, "evaluate.weights=ema-500", "evaluate.guidance_weak=500"]):
        assert "away from itself" in message(path, *same, auto)
        config.load(path, same)
    config.load(path, [kept, auto, "evaluate.weights=live", "evaluate.guidance_weak=500"])


def test_what_is_evaluated_is_there_after_training(path: Path) -> None:
    kept = ["diffusion.training.half_lives=[2000, 500]", "diffusion.training.average_lengths=[0.05]"]
    for weights in ("ema", "live", "ema-500", "length-0.05", "other.safetensors"):
        config.load(path, [*kept, f"evaluate.weights={weights}"])
    for weights in ("ema-2000", "length-0.1", "emma"):
        assert "this training leaves ema, live, ema-500, length-0.05" in message(
            path, *kept, f"evaluate.weights={weights}"
        )
    config.load(path, [*kept, "evaluate.weights=length-0.1", "diffusion.training.snapshot_every=640"])
    for none in ("diffusion.condition.drop=0", "diffusion.condition.kind=none"):
        assert "sometimes withheld" in message(path, none, "evaluate.guidance=2")
        config.load(path, [none, "evaluate.guidance=2", "evaluate.guidance_kind=autoguidance"])
        config.load(path, [none])
    caption = ["diffusion.condition.kind=none", "diffusion.condition.caption={}", "evaluate.guidance=2"]
    config.load(path, [*caption, "diffusion.backbone.tokens=cross"])


@pytest.mark.parametrize(
    ("path_options", "objective", "finite"),
    [
        ("{kind: variance_preserving, schedule: zero_terminal_snr}", ["prediction=velocity"], False),
        ("{kind: variance_preserving, schedule: zero_terminal_snr}", ["prediction=v"], True),
        ("{kind: variance_preserving, schedule: ddpm_linear}", ["prediction=velocity"], False),
        ("{kind: variance_preserving, schedule: ddpm_linear}", ["prediction=eps", "weighting=edm"], True),
        ("{kind: rectified_flow}", ["prediction=eps", "weighting=edm"], False),
        ("{kind: rectified_flow}", ["prediction=eps", "weighting=edm", "times.kind=edm"], True),
        ("{kind: edm}", ["prediction=eps", "times.kind=uniform"], True),
        ("{kind: edm}", ["prediction=x0", "times.kind=uniform"], False),
        ("{kind: rectified_flow}", ["prediction=x0", "weighting=edm"], False),
        ("{kind: edm}", ["prediction=x0", "weighting=edm", "times.kind=edm"], True),
    ],
)
def test_losses_without_a_mean_are_refused(path: Path, path_options: str, objective: list[str], finite: bool) -> None:
    overrides = [f"diffusion.path={path_options}", *(f"diffusion.{text}" for text in objective)]
    if finite:
        config.load(path, overrides)
    else:
        assert "infinite mean loss" in message(path, *overrides)


def test_betas_go_with_the_schedules_that_have_them(path: Path) -> None:
    steps = "diffusion.path={kind: variance_preserving, schedule: %s, betas: [%s]}"
    found = config.load(path, [steps % ("ddpm_scaled_linear", "0.00085, 0.012")]).diffusion.path
    assert result_fields(found)["betas"] == [0.00085, 0.012]
    assert "betas" not in result_fields(config.load(path, [steps % ("ddpm_linear", "0.0001, 0.02")]).diffusion.path)
    assert "`betas` goes with `schedule` ddpm_linear" in message(path, steps % ("cosine", "0.00085, 0.012"))
    assert "expected 0 < first <= last < 1" in message(path, steps % ("ddpm_linear", "0.02, 0.01"))


@pytest.mark.parametrize(
    ("overrides", "objective"),
    [
        ([], ("edm", "v", "edm", 0.3, "edm")),
        (["diffusion.path.kind=rectified_flow"], ("rectified_flow", "velocity", "uniform", 0.0, "uniform")),
        (["diffusion.path.kind=variance_preserving"], ("variance_preserving", "v", "uniform", 0.0, "uniform")),
        (
            ["diffusion.path={kind: rectified_flow}", "diffusion.times.kind=logit_normal", "diffusion.prediction=x0"],
            ("rectified_flow", "x0", "logit_normal", 0.0, "uniform"),
        ),
        (["diffusion.times={std: 1.2}"], ("edm", "v", "edm", 0.3, "edm")),
    ],
)
def test_a_path_brings_its_objective(path: Path, overrides: list[str], objective: tuple[object, ...]) -> None:
    values = config.load(path, overrides)
    section = values.diffusion
    found = (section.path.kind, section.prediction, section.times.kind, section.times.mean, section.weighting)
    assert found == objective
    again = Diffusion.model_validate(section.model_dump(mode="json"))  # as it travels to a worker
    assert again == section


def test_missing_file(tmp_path: Path) -> None:
    assert "cannot be read" in message(tmp_path / "none.yaml")


def test_adapters_need_peft_before_anything_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config.load(path, ["diffusion.training.lora={}", "diffusion.training.init_from=x"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"`diffusion.training.lora` needs peft; pip install 'ldm-pipeline\[lora\]'"):
        fits.check_models(asked)


def test_muon_needs_a_network_that_has_matrices_before_anything_runs(path: Path) -> None:
    muon = "diffusion.training.optimizer=muon"
    fits.check_models(config.load(path, [muon]))
    with pytest.raises(UserError, match=r"`training\.optimizer`: muon is for the stage diffusion and model kind text"):
        config.load(path, ["autoencoder.training.optimizer=muon"])
    with pytest.raises(UserError, match=r"training\.optimizer: muon is for the matrices of blocks, .*; use adamw"):
        fits.check_models(
            config.load(path, [muon, "diffusion.backbone={kind: unet, width: 8, groups: 4, head_width: 8}"])
        )


def test_models_options_are_checked(path: Path) -> None:
    with pytest.raises(UserError, match=r"`diffusion.backbone`: .*did you mean 'width'"):
        fits.check_models(config.load(path, ["diffusion.backbone={kind: dit, widht: 64}"]))
    with pytest.raises(UserError, match="no backbones kind 'dti'; did you mean 'dit'"):
        fits.check_models(config.load(path, ["diffusion.backbone.kind=dti"]))


@given(
    workers=st.integers(1, 512),
    stage=st.integers(0, 3),
    log=st.integers(1, 1000),
    micro=st.sampled_from([None, 1, 2, 64]),
)
def test_speed_changes_no_fingerprint(workers: int, stage: int, log: int, micro: int | None) -> None:
    base = {
        "run": {"name": "a"}, "data": {"source": {"kind": "digits"}},
        "autoencoder": {"training": {"steps": 1}}, "diffusion": {"training": {"steps": 1}},
    }  # fmt: skip
    fast = {
        **base,
        "cluster": {"workers": workers},
        "diffusion": {"training": {"steps": 1, "zero_stage": stage, "log_every": log, "micro_batch": micro}},
    }
    one, other = (result_fields(config.Config.model_validate(v)) for v in (base, fast))
    assert one == other
    changed = {**base, "diffusion": {"training": {"steps": 2}}}
    assert result_fields(config.Config.model_validate(changed)) != one


BUCKETS = "data.buckets={multiple: 8, max_ratio: 2}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["autoencoder.model={kind: kl, preset: tiny-f2, multipliers: [1, 1, 1, 1, 1]}"],
            "40x24 (height x width) are no",
        ),
        (["diffusion.backbone={kind: dit, width: 32, depth: 1, heads: 2, patch: 8}"], "gives latents of 20x12"),
        (["autoencoder.loss.adversarial={weight: 1, layers: 4}"], "24 pixels are too few for"),
    ],
)
def test_buckets_that_the_models_do_not_fit_are_one_line(path: Path, overrides: list[str], words: str) -> None:
    given = ["data.size=32", "autoencoder.model={kind: kl, preset: tiny-f2}", BUCKETS]
    fits.check_models(config.load(path, given))
    with pytest.raises(UserError) as caught:
        fits.check_models(config.load(path, [*given, *overrides]))
    assert "`data.buckets`" in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_what_needs_squares_is_refused_with_buckets(path: Path) -> None:
    assert "`diffusion.fd` samples one shape only" in message(path, BUCKETS, "diffusion.fd.every=10")
    told = "evaluate.agreement={columns: [class]}"
    assert "`evaluate.agreement` knows square images only" in message(path, BUCKETS, told)
    assert "use lpips or random" in message(path, BUCKETS, "autoencoder.loss.perceptual.kind=classifier")
    assert "`data`: `buckets.multiple` 24 does not divide" in message(path, "data.buckets={multiple: 24}")


def test_agreement_needs_something_told_and_something_judged(path: Path) -> None:
    plain, asked = config.load(path), config.load(path, ["evaluate.agreement={columns: [class]}"])
    assert "agreement" not in result_fields(plain.evaluate)  # old fingerprints hold
    assert result_fields(asked.evaluate)["agreement"]["columns"] == ["class"]
    assert "judges nothing" in message(path, "evaluate.agreement={samples: 20}")
    assert "expected different names" in message(path, "evaluate.agreement={columns: [a, a]}")
    nothing = ["diffusion.condition.kind=none", "evaluate.agreement={columns: [class]}"]
    assert "the model is told nothing" in message(path, *nothing)
    table = ["data.source={kind: table, path: a.csv, label: a}", "evaluate.agreement={captions: true}"]
    assert "`data.source.caption` names no column" in message(path, *table)


def test_a_gate_bounds_figures_that_there_are(path: Path) -> None:
    from pipeline.stages import register

    plain, gated = config.load(path), config.load(path, ["register.gate.copies=0.01"])
    assert set(register.recipe(plain)) == {"name", "alias", "defaults"}  # old fingerprints hold
    assert register.recipe(gated)["gate"] == {"copies": 0.01}
    assert "unknown key `register.gate.copy`; did you mean `copies`?" in message(path, "register.gate.copy=0.1")
    assert "expected number, at least 0.5, at most 1" in message(path, "register.gate.membership_auc=0.4")
    assert "expected number, at least 0, at most 1" in message(path, "register.gate.copies=.inf")
    assert "expected number" in message(path, "register.gate.copies=few")
    assert "bounds nothing" in message(path, "register.gate={}")
    assert "`register.gate` knows square images only" in message(path, BUCKETS, "register.gate.copies=0.01")
    assert config.load_as(config.Config, path, ["register.gate.copies=0.01"]).register_.gate


def test_guidance_needs_any_condition(path: Path) -> None:
    captions = ["diffusion.condition={kind: none, caption: {}}", "evaluate.guidance=2"]
    assert config.load(path, captions).evaluate.guidance == 2
    assert "needs a condition that is sometimes withheld" in message(path, *captions, "diffusion.condition.drop=0")
