"""How a killed run goes on: checkpoints, free of topology, free of pickle, each rank writes what it owns.

    folder/step-<position>-<lease token>-<attempt>/
        rank-00003-of-00008.safetensors   masters, moments and averages of this rank, 1-D fp32 (rank 0: + buffers)
        rank-00003-of-00008.json          which elements of which named parameter lie where; size and SHA-256
        manifest.json                     all tables and the caller's extra; rank 0 writes it last: none, no checkpoint

A reader with any number of ranks and any ZeRO stage reads the slices that overlap what it holds: names and element
numbers are all that writer and reader share. Training stands still for the copy to host memory; a thread hashes and
writes, and makes no collective. The loop takes the newest whole one (`loop.py`), and the position in it says which
samples come next (`data/order.py`). Where tensors lie is partition.py's business, when to save loop.py's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline import files
from pipeline.artifacts import lease_file
from pipeline.errors import UserError
from pipeline.training.engine import Engine, persistent_buffers

FORMAT = 1
CHUNK = 1 << 23  # bytes hashed and written at once
DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
NAME = re.compile(r"step-(\d+)-(\d+)-[0-9a-f]+")


class Saved(NamedTuple):
    """A checkpoint's folder, ordered from old to new: a later lease token comes after all of an earlier one."""

    token: int
    position: int
    name: str


def listing(folder: Path) -> list[Saved]:
    """The checkpoints in a folder, whole or not, newest first."""
    if not folder.is_dir():
        return []
    matches = [NAME.fullmatch(path.name) for path in folder.iterdir()]
    return sorted((Saved(int(m[2]), int(m[1]), m[0]) for m in matches if m), reverse=True)


# ---- save ------------------------------------------------------------------------------------------------------------


class Saver:
    """Writes the checkpoints of one run into `folder`, keeps the newest `keep`.

    token: of the lease; files of a smaller one give way to ours, and a greater one there ends this run.
    pinned: a position whose checkpoint is never removed.
    wait_s: seconds rank 0 waits for the other ranks' files. All ranks make one, at the same time.
    """

    def __init__(
        self, folder: Path, keep: int, token: int, engine: Engine, pinned: int = -1, wait_s: float = 1800
    ) -> None:
        self.folder, self.keep, self.token, self.engine, self.wait_s = Path(folder), keep, token, engine, wait_s
        self.pinned = pinned
        self._attempt = engine.ranks.broadcast_object(secrets.token_hex(4))  # so that leftovers never mix in
        self._host: dict[str, torch.Tensor] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None
        self._closing = threading.Event()

    def save(self, position: int, extra: dict[str, Any], good_until: int | None = None) -> None:
        """Copy everything to the host and return; a thread writes. All ranks call, between two steps.

        extra: plain JSON values of the caller, the same on all ranks. good_until: the newest whole checkpoint up to
        this position stays, whatever `keep` says. Errors of the last save are raised here.
        """
        self.wait()  # the host buffers are still the last save's
        engine, partition = self.engine, self.engine.saved
        tensors = self._copy()
        rows, at = [], 0
        for piece in partition.owned:
            adam = piece.flat < partition.trainable
            count = float(partition.state(partition.flats[piece.flat])["step"]) if adam else None
            rows.append([piece.name, piece.start, piece.numel, at, count])
            at += piece.numel
        meta = {"format": FORMAT, "position": position, "world": engine.ranks.world, "shapes": partition.shapes,
                "engine": engine.state(), "extra": extra}  # fmt: skip
        meta = json.loads(files.canonical_json(meta))  # a frozen copy; what is not plain data is an error here
        path = self.folder / f"step-{position:012d}-{self.token:06d}-{self._attempt}"
        good_until = position if good_until is None else good_until
        self._job = self._pool.submit(self._write, path, tensors, rows, meta, good_until)

    @torch.no_grad()
    def _copy(self) -> dict[str, torch.Tensor]:
        """Copies in host memory (pinned and reused) of what this rank owns: slot -> 1-D, in the order of `owned`."""
        partition, on_gpu = self.engine.saved, self.engine.ranks.device.type == "cuda"
        for key, flats in partition.slots(self.engine.averages).items():
            mine = [piece for piece in partition.owned if piece.flat < len(flats)]
            sizes = [piece.numel for piece in mine]
            if key not in self._host:
                self._host[key] = torch.empty(sum(sizes), pin_memory=on_gpu)
            for piece, target in zip(mine, self._host[key].split(sizes) if sizes else (), strict=True):
                target.copy_(flats[piece.flat][piece.at : piece.at + piece.numel], non_blocking=True)
        tensors = dict(self._host)
        if self.engine.ranks.first:
            buffers = persistent_buffers(self.engine.saved.module)
            tensors |= {f"buffer/{name}": buffer.detach().cpu().clone() for name, buffer in buffers.items()}
        if on_gpu:
            torch.cuda.synchronize()
        return tensors

    def failed(self) -> bool:
        """Whether the save under way has failed on this rank; `wait` then raises why."""
        return self._job is not None and self._job.done() and self._job.exception() is not None

    def wait(self) -> None:
        """Wait for the save under way, if there is one, and raise what went wrong with it. Makes no collective."""
        if self._job is not None:
            job, self._job = self._job, None
            job.result()

    def close(self) -> None:
        """End the thread, also one that waits for another rank's file; errors are not raised here."""
        self._closing.set()
        self._pool.shutdown()

    def _write(
        self, path: Path, tensors: dict[str, torch.Tensor], rows: list[Any], meta: dict[str, Any], good_until: int
    ) -> None:
        rank, world = self.engine.ranks.rank, self.engine.ranks.world
        needed = sum(t.numel() * t.element_size() for t in tensors.values())
        try:
            if self.engine.ranks.first:
                self._refuse_if_superseded()
            path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path).free
            if free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file = path / f"{_stem(rank, world)}.safetensors"
            written = write_safetensors(file, tensors)
            files.write_json(path / f"{_stem(rank, world)}.json", {"file": file.name, **written, "rows": rows})
            if self.engine.ranks.first:
                self._finish(path, meta)
                self._prune(good_until)
        except OSError as error:
            with suppress(OSError):  # rank 0 waits for this rank's table; on a full disk this file may fail as well
                (path / f"{_stem(rank, world)}.failed").touch()
            raise UserError(
                f"checkpoint {path} cannot be written: {error.strerror or error} (rank {rank} needs {needed:,} bytes, "
                f"{_free(self.folder)}); make room or move run.root, then start again: the last good one is untouched"
            ) from error

    def _refuse_if_superseded(self) -> None:
        """What is written now, its successor might go on from, beyond the steps whose metrics it counts as done."""
        newest = max([self.token, *(saved.token for saved in listing(self.folder))])
        if newest == self.token and lease_file(self.folder.parent / "lease", self.token + 1).exists():
            newest += 1
        if newest > self.token:
            raise UserError(
                f"{self.folder}: another job has taken over this run (lease token {newest}, ours is "
                f"{self.token}); this one stops"
            )

    def _finish(self, path: Path, meta: dict[str, Any]) -> None:
        """Rank 0: wait for the tables, write the manifest."""
        world = self.engine.ranks.world
        tables = [path / f"{_stem(rank, world)}.json" for rank in range(world)]
        late = time.monotonic() + self.wait_s
        while missing := [table for table in tables if not table.exists()]:
            failed = [table.stem for table in missing if table.with_suffix(".failed").exists()]
            if failed:
                raise OSError(errno.EIO, f"{failed[0]} could not be written, its rank says why")
            if time.monotonic() > late:
                raise OSError(errno.ETIMEDOUT, f"{missing[0].stem} was not written within {self.wait_s:.0f} s")
            if self._closing.wait(0.02):  # other ranks' threads share nothing with ours but the file system
                raise OSError(errno.ECANCELED, "training ended before all ranks had written")
        body = files.canonical_json({**meta, "files": [files.read_json(table) for table in tables]})
        manifest = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}
        self._refuse_if_superseded()
        files.write_json(path / "manifest.json", manifest)
        for table in tables:
            table.unlink()

    def _prune(self, good_until: int) -> None:
        """Remove what is older than the newest `keep` whole ones, but for the pinned and the newest to `good_until`."""
        saved = listing(self.folder)
        whole = [entry for entry in saved if (self.folder / entry.name / "manifest.json").exists()]
        oldest = whole[: self.keep][-1]
        good = [entry for entry in whole if entry.position <= good_until][:1]
        kept = [*good, *(entry for entry in whole if entry.position == self.pinned)]
        for entry in saved:
            if entry < oldest and entry not in kept:
                shutil.rmtree(self.folder / entry.name, ignore_errors=True)


def _stem(rank: int, world: int) -> str:
    return f"rank-{rank:05d}-of-{world:05d}"


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free:,} bytes free"


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write CPU tensors in the safetensors format (8 bytes length, JSON header, raw bytes), hashing on the way.

    Gives {"sha256", "bytes"}. By hand, so that the hash costs no second reading; whole or not at all.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:

        def put(data: bytes | memoryview) -> None:
            file.write(data)
            digest.update(data)

        put(len(head).to_bytes(8, "little"))
        put(head)
        for tensor in tensors.values():
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, len(raw), CHUNK):
                put(raw[start : start + CHUNK])
        file.flush()
    return {"sha256": digest.hexdigest(), "bytes": 8 + len(head) + end}


# ---- restore ---------------------------------------------------------------------------------------------------------


def examine(path: Path, rank: int = 0, world: int = 1) -> tuple[dict[str, Any], str | None]:
    """(manifest's body, None), or ({}, what is wrong). The ranks share the hashing: each takes every world-th file."""
    try:
        outer = files.read_json(path / "manifest.json")
        if hashlib.sha256(outer["body"].encode()).hexdigest() != outer["sha256"]:
            return {}, "manifest.json: wrong digest"
        body: dict[str, Any] = json.loads(outer["body"])
        for entry in body["files"]:
            size = (path / entry["file"]).stat().st_size
            if size != entry["bytes"]:
                return {}, f"{entry['file']}: {size} bytes instead of {entry['bytes']}"
        for entry in body["files"][rank::world]:
            if files.sha256_file(path / entry["file"]) != entry["sha256"]:
                return {}, f"{entry['file']}: wrong digest"
    except FileNotFoundError as error:
        return {}, f"{Path(error.filename).name}: missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"manifest.json: unreadable ({error})"
    return body, None


class NoneWhole(UserError):
    """Checkpoints were finished here, and every one is damaged."""


def newest_whole(
    folder: Path, engine: Engine, before: int | None = None, say: Callable[[str], None] = print
) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its manifest; damaged ones are named by `say` on rank 0. All ranks call.

    before: only such as were made at a position up to this one. None where none was ever finished; NoneWhole where
    those that were are all damaged: training anew in their place would hide the loss.
    """
    ranks = engine.ranks
    names = ranks.broadcast_object([s.name for s in listing(folder) if before is None or s.position <= before])
    finished = ranks.broadcast_object(sum((folder / name / "manifest.json").exists() for name in names))
    for name in names:
        body, wrong = examine(folder / name, ranks.rank, ranks.world)
        told = sorted({trouble for trouble in ranks.gather_objects(wrong) if trouble})
        if not told:
            return folder / name, body
        if ranks.first:
            say(f"checkpoint {folder / name} is not whole ({'; '.join(told)}): trying an older one")
    if finished:
        raise NoneWhole(
            f"{folder}: every checkpoint is damaged ({finished} of them, named above); put a whole copy of one there, "
            "or remove the folder to train from the start"
        )
    return None


def restore(
    folder: Path, engine: Engine, before: int | None = None, say: Callable[[str], None] = print
) -> dict[str, Any] | None:
    """Set weights, moments and averages from the newest whole checkpoint in `folder`. All ranks call.

    Gives the `extra` of its save with "position" added; None where there is no checkpoint. The checkpoint may come from
    any number of ranks, any ZeRO stage, another run's folder. Errors: a UserError where it is of another model.
    """
    found = newest_whole(Path(folder), engine, before, say)
    if found is None:
        return None
    path, body = found
    _check_model(path, body, engine)
    _fill(path, body, engine)
    engine.load_state(body["engine"])
    return {**body["extra"], "position": body["position"]}


def _check_model(path: Path, body: dict[str, Any], engine: Engine) -> None:
    """Every rank looks at every name, so that all raise or none does."""
    theirs, ours = body["shapes"], engine.saved.shapes
    wrong = [
        f"{name} is {theirs.get(name, 'not')} there, {ours.get(name, 'not')} in the model"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    found = dict.fromkeys(theirs, 0)
    for file in body["files"]:
        for name, _, numel, _, _ in file["rows"]:
            found[name] += numel
    wrong += [f"{name} is there in part only" for name, numel in found.items() if numel != math.prod(theirs[name])]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"checkpoint {path} is of another model: {'; '.join(wrong[:3])}{more}; use the config it was made with"
        )


@torch.no_grad()
def _fill(path: Path, body: dict[str, Any], engine: Engine) -> None:
    from safetensors import safe_open

    partition = engine.saved
    where: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in body["shapes"]}
    counts: dict[str, float | None] = {}
    for i, entry in enumerate(body["files"]):
        for name, start, numel, at, count in entry["rows"]:
            where[name].append((start, numel, at, i))
            counts[name] = count
    readers: list[Any] = [safe_open(path / entry["file"], "pt") for entry in body["files"]]
    slots = partition.slots(engine.averages)
    there = set(readers[0].keys())
    if missing := sorted(set(slots) - there):
        raise UserError(
            f"checkpoint {path} holds no {missing[0]}: give training.half_lives (and average_lengths) as made"
        )
    for piece in partition.held:
        for start, numel, at, i in where[piece.name]:
            a, b = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if a >= b:
                continue
            for key, flats in slots.items():
                if piece.flat < len(flats):
                    target = flats[piece.flat][piece.at + a - piece.start : piece.at + b - piece.start]
                    target.copy_(readers[i].get_slice(key)[at + a - start : at + b - start])
    top = max((count for count in counts.values() if count is not None), default=0.0)
    for i, flat in enumerate(partition.flats[: partition.trainable]):
        mine = [counts[piece.name] or 0.0 for piece in partition.held if piece.flat == i]
        partition.state(flat)["step"].fill_(max(mine, default=top))  # a flat may be all padding
    for name, buffer in persistent_buffers(partition.module).items():
        buffer.copy_(readers[0].get_tensor(f"buffer/{name}"))
    partition.refresh()
