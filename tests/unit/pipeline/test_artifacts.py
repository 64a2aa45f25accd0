"""Artifacts: nothing half-written is believed; one writer; what was made of what is checked."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.artifacts import Artifact, Store, check_inputs, fingerprint
from pipeline.errors import UserError
from pipeline.files import atomic_path, canonical_json, write_json


def make(
    store: Store, stage: str = "ingest", text: str = "hello", inputs: dict[str, Artifact] | None = None
) -> Artifact:
    inputs = inputs or {}
    name = fingerprint(stage, {"size": 8}, {k: a.fingerprint for k, a in inputs.items()})
    with store.write(stage, name, {"size": 8}, inputs) as writer:
        (writer.path / "data.txt").write_text(text)
        (writer.work / "scratch").write_text("not content")
        return writer.finish({"count": 1})


def test_finished_artifact_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make(store)
    assert store.find("ingest", made.fingerprint) == made
    assert list(made.manifest["files"]) == ["data.txt"]
    assert made.verify() == []


def test_content_depends_on_files_alone(tmp_path: Path) -> None:
    one, same, other = (make(Store(tmp_path / n), text=t) for n, t in (("a", "x"), ("b", "x"), ("c", "y")))
    assert one.content == same.content != other.content
    assert one.fingerprint == other.fingerprint


def test_unfinished_is_not_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.write("ingest", "abc", {}, {}) as writer:
        (writer.path / "data.txt").write_text("half")
    assert store.find("ingest", "abc") is None


def test_damage_is_named(tmp_path: Path) -> None:
    made = make(Store(tmp_path))
    (made.path / "data.txt").write_text("longer than before")
    with pytest.raises(UserError, match=r"data.txt: 18 bytes, expected 5"):
        Store(tmp_path).find("ingest", made.fingerprint)
    (made.path / "data.txt").write_text("jello")
    assert made.verify() == ["data.txt"]
    (made.path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not a manifest"):
        Store(tmp_path).find("ingest", made.fingerprint)


def test_other_content_of_an_input_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = make(store, "autoencoder", "old")
    latents = make(store, "encode", "latents", {"autoencoder": old})
    check_inputs(latents, {"autoencoder": old})
    store.set_aside(old)
    new = make(store, "autoencoder", "new")
    assert new.fingerprint == old.fingerprint
    with pytest.raises(UserError) as caught:
        check_inputs(latents, {"autoencoder": new})
    assert old.content[:12] in str(caught.value) and new.content[:12] in str(caught.value)


def test_two_writers_of_one_path_never_share_a_temporary_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "a") as second:
        assert first != second and first.suffix == second.suffix == ".tmp"
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a").read_text() == "1" and len(list(tmp_path.iterdir())) == 1  # whole: the last one to end


def test_atomic_path_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_canonical_json() -> None:
    assert canonical_json({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


# ---- lease

HOLD = """
import sys, time
from pipeline.artifacts import Store
with Store(sys.argv[1]).write("ingest", "abc", {}, {}) as writer:
    print(writer.token, flush=True)
    time.sleep(60)
"""


def hold(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip()
    return process


def test_a_living_holder_is_named(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    try:
        with (
            pytest.raises(UserError, match=f"written by process {holder.pid} on "),
            Store(tmp_path).write("ingest", "abc", {}, {}),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_a_dead_holder_is_taken_over_at_once(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    holder.kill()
    holder.wait()
    with Store(tmp_path).write("ingest", "abc", {}, {}) as writer:
        assert writer.token == 2


def foreign(tmp_path: Path, **fields: object) -> Path:
    folder = tmp_path / "artifacts/ingest/abc/work/lease"
    holder = {
        "host": "elsewhere",
        "boot": "b",
        "pid": 1,
        "started": "1",
        "slurm_job": None,
        "slurm_restart": 0,
        "beat": 7,
        "released": False,
    }
    write_json(folder / "000001.json", holder | fields)
    return folder


def test_a_requeued_job_takes_over_from_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(tmp_path, slurm_job="12", slurm_restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with Store(tmp_path).write("ingest", "abc", {}, {}) as writer:
        assert writer.token == 2


def test_a_silent_holder_elsewhere_is_taken_over_by_our_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(tmp_path)
    monkeypatch.setattr(artifacts, "DEAD_AFTER", 0.2)
    begun = time.monotonic()
    with Store(tmp_path).write("ingest", "abc", {}, {}) as writer:
        assert writer.token == 2
    assert time.monotonic() - begun >= 0.2


def test_a_long_wait_says_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(tmp_path, slurm_job="17", since="today")
    monkeypatch.setattr(artifacts, "DEAD_AFTER", 0.2)
    monkeypatch.setattr(artifacts, "TELL_AFTER", 0.0)
    monkeypatch.setattr(artifacts, "BEAT", 0.05)
    with Store(tmp_path).write("ingest", "abc", {}, {}, "wait"):
        pass
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(
        "ingest/abc: being written by process 1 on elsewhere (Slurm job 17) since today; waiting for it"
    )


def test_a_superseded_holder_stops(tmp_path: Path) -> None:
    """It looks when it is asked, not only with its next beat."""
    with Store(tmp_path).write("ingest", "abc", {}, {}) as writer:
        writer.lease.check()
        write_json(writer.work / "lease" / "000002.json", {"host": "other"})
        with pytest.raises(UserError, match="taken over"):
            writer.lease.check()
        with pytest.raises(UserError, match="taken over"):
            writer.finish({})
    assert json.loads((writer.work / "lease" / "000002.json").read_text()) == {"host": "other"}
    assert [p.name for p in writer.path.iterdir()] == ["work"]


def test_a_root_is_tried_without_a_trace(tmp_path: Path) -> None:
    from pipeline.planning.forecast import check_root

    check_root(tmp_path / "new" / "runs")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for root in ("/proc/x", tmp_path / "file" / "runs"):
        with pytest.raises(UserError, match=r"^`run.root`: .* cannot be written"):
            check_root(root)


def test_a_dry_run_remembers_no_digests(tmp_path: Path) -> None:
    from pipeline.data.listing import Digests, forgetting

    (tmp_path / "a").write_text("a")
    for dry in (True, False):
        digests = Digests(tmp_path / "cache" / "digests.json")
        digests.of(tmp_path / "a")
        if dry:
            with forgetting():
                digests.save()
        else:
            digests.save()
        assert (tmp_path / "cache").exists() != dry
