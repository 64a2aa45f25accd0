"""What the shipper does with the lines of spools: sends each to MLflow, keeps its offset, and what was refused.

MLflow is imported when there is a first line to send; the process that does this is `shipper.py`.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import read_json, write_json
from pipeline.tracking.links import moved, public_uri, run_path, store_key, tracking_folder
from pipeline.tracking.mirror import Point, copy_curves, points, thin, thin_last
from pipeline.tracking.spool import spool_ends, spool_files, spool_stem, surely_dead, whole_lines

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_store import MlflowStore

Event = dict[str, Any]
GROUP = 1000  # metric values sent together


class Restart(Exception):
    """Runs that were known are gone from the tracker: their spools are sent again from the beginning."""


def say(text: str) -> None:
    """A line in the shipper's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


class Shipping:
    """The spools of one root on their way to one tracker. `state` is what `<root>/tracking/state.json` says of it:

    offsets {spool: bytes sent}, runs {run key: id, experiment, parent, steps, writer, running, last_ms}, mirrors
    {child>parent: state of thin()}, notes, models {run key: link}, experiments {name: id}, trouble, and what the
    tracker refused: refused (a counter), kept [{spool, start, after: bytes, lines, why}], tried again by each process.
    """

    def __init__(self, root: Path, uri: str) -> None:
        self.root, self.uri = root, uri
        self.path = tracking_folder(root) / "state.json"
        self.whole: dict[str, Any] = read_json(self.path) if self.path.exists() else {"stores": {}}
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            self.whole["stores"].pop(public_uri(uri), None)  # a database that was removed: everything goes again
        stores, key = self.whole["stores"], store_key(root, uri, self.whole["stores"])
        if key != public_uri(uri):
            stores[public_uri(uri)] = stores.pop(key)
        empty = {"offsets": {}, "runs": {}, "mirrors": {}, "notes": {}, "models": {}, "experiments": {}, "refused": 0}
        self.state: dict[str, Any] = self.whole["stores"].setdefault(public_uri(uri), empty)
        self.state.setdefault("kept", [])
        self.again: list[dict[str, Any]] = list(self.state["kept"])  # what this process will try once more
        self.seen: set[str] = set()  # run keys whose run this process has seen to exist
        self._store: MlflowStore | None = None

    @property
    def store(self) -> MlflowStore:
        """The tracker, opened at first use. Raises Down."""
        from pipeline.tracking.mlflow_store import MlflowStore

        if self._store is None:
            self._store = MlflowStore(self.uri, self.root)
        return self._store

    def save(self) -> None:
        """Store offsets and run ids, whole or not at all."""
        write_json(self.path, self.whole)

    # ---- one pass over the spools

    def ship(self, deadline: float) -> bool:
        """Send what there is until `deadline` (monotonic, s). True if nothing is left; else `trouble` may say why."""
        stages = spool_ends(spool_files(self.root)[1])  # looked at first: a parent's first line is older than a
        pipelines = spool_ends(spool_files(self.root)[0])  # child's, so no child is seen here without its parent
        todo = {p: e for p, e in (pipelines | stages).items() if self.offset(p) < e}
        if not todo and not self.unlinked() and not self.again:
            return True
        from pipeline.tracking.mlflow_calls import Down, Held

        trouble, self.state["trouble"] = self.state.get("trouble"), None
        try:
            self.retry()
            done = True
            for path, end in todo.items():
                try:
                    done &= self.ship_file(path, end, deadline)
                except Held as error:
                    if trouble is None:
                        say(f"{path}: kept: {error}")
                    self.state["trouble"], done = str(error), False
            self.render_notes()
        except Restart:
            done = False
        except Down as error:
            self.state["trouble"], done = str(error), False
            if trouble is None:
                say(f"tracker {public_uri(self.uri)} is down: {error}")
        self.save()
        return done

    def offset(self, path: Path) -> int:
        sent: int = self.state["offsets"].get(str(path.relative_to(self.root)), 0)
        return sent

    def ship_file(self, path: Path, end: int, deadline: float) -> bool:
        """Send the lines of a spool up to byte `end`, a group at a time; True if all went."""
        while self.offset(path) < end and time.monotonic() < deadline:
            group, after = next_group(path, self.offset(path), end)
            if after == self.offset(path):
                return True  # a last line without its end
            self.send(group, path, self.offset(path), after)
            self.state["offsets"][str(path.relative_to(self.root))] = after
            self.save()
        return self.offset(path) >= end

    def send(self, group: list[Event], path: Path, start: int, after: int) -> None:
        """Send the lines in bytes [start, after): many of metrics, or one other. What the tracker refuses is logged,
        counted and kept, line by line; a run that it refuses to begin is Held as a whole."""
        from pipeline.tracking.mlflow_calls import Held, Refused

        mirrors = copy.deepcopy(self.state["mirrors"])
        group = [self.placed(event) for event in group]
        try:
            if group and group[0]["kind"] == "metrics":
                self.on_metrics(group)
            elif group and group[0]["kind"] != "open":
                if not hasattr(self, f"on_{group[0]['kind']}"):
                    raise LookupError("unknown kind of line")
                getattr(self, f"on_{group[0]['kind']}")(group[0])
        except (Refused, LookupError) as error:
            self.state["mirrors"] = mirrors
            key = group[0].get("run")
            if isinstance(error, Refused) and key in self.seen:
                self.seen.discard(key)
                self.run_id(key)  # Restart, if it was deleted while this process was sending
            if isinstance(error, Refused) and group[0]["kind"] == "start":
                raise Held(str(error)) from error
            if len(group) > 1:
                for event, first, last in spans(path, start, after):
                    self.send([event], path, first, last)
            else:
                self.state["refused"] += 1
                say(f"{path}: refused: {error!r}: {json.dumps(group[0])[:500]}")
                if isinstance(error, KeyError):
                    self.keep(path, start, after, f"no run {error} has begun")
                elif isinstance(error, Refused):
                    self.keep(path, start, after, str(error))
        except BaseException:
            self.state["mirrors"] = mirrors  # not sent: the next try chooses again
            raise

    def placed(self, event: Event) -> Event:
        """A line with its file or folder where it lies now, if the root was moved since."""
        names = [name for name in ("path", "folder") if name in event]
        return event | {name: str(moved(self.root, event[name])) for name in names}

    def keep(self, path: Path, start: int, after: int, why: str) -> None:
        """Note a line that was refused; one that follows another of the same reason is noted with it."""
        kept, name = self.state["kept"], str(path.relative_to(self.root))
        if kept and (kept[-1]["spool"], kept[-1]["after"], kept[-1]["why"]) == (name, start, why):
            kept[-1].update(after=after, lines=kept[-1]["lines"] + 1)
        else:
            kept.append({"spool": name, "start": start, "after": after, "lines": 1, "why": why})

    def retry(self) -> None:
        """Once a process: send what was refused before."""
        while self.again:
            entry = self.again[0]
            path = self.root / entry["spool"]
            if entry in self.state["kept"]:  # else its spool goes again from the beginning
                self.state["kept"].remove(entry)
                try:
                    for event, start, after in spans(path, entry["start"], entry["after"]) if path.exists() else ():
                        self.send([event], path, start, after)
                except Restart:  # its spool goes again from the beginning
                    raise
                except BaseException:
                    self.state["kept"].append(entry)
                    raise
            self.again.pop(0)

    # ---- runs

    def run_id(self, key: str) -> str:
        """The MLflow run of a run key. Restart if it is there no more (a deleted run, a new database)."""
        run: str = self.state["runs"][key]["id"]
        if key not in self.seen:
            if not self.store.exists(run):
                self.forget(key)
                raise Restart(key)
            self.seen.add(key)
        return run

    def forget(self, gone: str) -> None:
        """Let the spools of a run that is gone, and of its children, begin again."""
        for key in [key for key, run in self.state["runs"].items() if gone in (key, run["parent"])]:
            say(f"run {key} is gone from the tracker, or its parent: sending it again")
            self.seen.discard(key)
            del self.state["runs"][key]
            for path in self.spools_of(key):
                name = str(path.relative_to(self.root))
                self.state["offsets"].pop(name, None)
                self.state["kept"] = [entry for entry in self.state["kept"] if entry["spool"] != name]
            self.state["mirrors"] = {n: v for n, v in self.state["mirrors"].items() if key not in n.split(">")}
            self.state["notes"].pop(key, None)

    def spools_of(self, key: str) -> list[Path]:
        pipelines, stages = spool_files(self.root)
        return [path for path in pipelines + stages if path.name.startswith(f"{spool_stem(key)}.")]

    def parent(self, key: str) -> str | None:
        parent: str | None = self.state["runs"][key]["parent"]
        return parent if parent in self.state["runs"] else None

    def on_start(self, event: Event) -> None:
        """Make the run or find it again, and say that it runs."""
        key, parent = event["run"], event["parent"]
        known = self.state["runs"].get(key)
        if known:
            self.run_id(key)  # is it still there?
        experiment = self.state["experiments"][event["experiment"]] = self.store.experiment(event["experiment"])
        tags = dict(event["tags"])
        if parent in self.state["runs"]:
            tags["mlflow.parentRunId"] = self.run_id(parent)
        group: str | None = event.get("group")
        if group and group in self.state["runs"]:
            tags["mlflow.parentRunId"] = self.run_id(group)
        run = self.store.start(experiment, key, event["name"], tags, event["ts_ms"])
        for name, value in self.store.params(run, event["params"]).items():
            say(f"run {key}: param {name} stays {value!r}, now it is {event['params'][name]!r}")
        self.seen.add(key)
        self.state["runs"][key] = {"id": run, "experiment": experiment, "parent": parent, "steps": event["steps"]}
        self.state["runs"][key] |= {"writer": event["writer"], "running": True, "last_ms": event["ts_ms"]}
        if group:
            self.state["runs"][key]["group"] = group
        elif not known:  # those of its group that were sent before it
            for child in [child for child in self.state["runs"].values() if child.get("group") == key]:
                self.store.tag(child["id"], "mlflow.parentRunId", run)
        if known and self.parent(key) and known["parent"] != parent:  # a stage that another pipeline began
            state = self.copy_mirror(key, self.spools_of(key), parent, event["ts_ms"])
            self.state["mirrors"][f"{key}>{parent}"] = state

    def on_end(self, event: Event) -> None:
        """Give the parent the last points and close the run with its own time."""
        key = event["run"]
        if parent := self.parent(key):
            self.log(parent, thin_last(self.state["mirrors"].setdefault(f"{key}>{parent}", {})))
        self.store.end(self.run_id(key), event["status"], event["ts_ms"])
        self.state["runs"][key] |= {"running": False, "last_ms": event["ts_ms"]}

    def repair(self) -> None:
        """Mark runs as KILLED whose writer is gone for certain and whose spools are sent."""
        dead = [key for key, run in self.state["runs"].items() if run["running"] and surely_dead(run["writer"])]
        if not dead:
            return
        from pipeline.tracking.mlflow_calls import Down, Refused

        for key in dead:
            run = self.state["runs"][key]
            try:
                self.store.end(self.run_id(key), "KILLED", run["last_ms"])
            except (Restart, Down, Refused) as error:
                say(f"run {key}: not repaired: {error}")
                return
            run["running"] = False
            say(f"run {key}: its process is gone: marked as KILLED")
            self.save()

    # ---- curves and pictures

    def log(self, key: str, chosen: list[Point]) -> None:
        if chosen:
            self.store.points(self.run_id(key), chosen)

    def on_metrics(self, events: list[Event]) -> None:
        """Log lines of values or pictures of one run, and the points of them that its parent repeats."""
        key = events[0]["run"]
        self.log(key, [point for event in events for point in points(event)])
        if parent := self.parent(key):
            state = self.state["mirrors"].setdefault(f"{key}>{parent}", {})
            self.log(parent, [p for event in events for p in thin(state, event, self.state["runs"][key]["steps"])])
        self.state["runs"][key]["last_ms"] = events[-1]["ts_ms"]

    def on_image(self, event: Event) -> None:
        self.on_metrics([event])

    def on_adopt(self, event: Event) -> None:
        files = sorted(Path(event["folder"]).glob(f"{spool_stem(event['of'])}.*.jsonl"))
        self.copy_mirror(event["of"], files, event["run"], None)

    def copy_mirror(self, key: str, files: list[Path], parent: str, before_ms: int | None) -> dict[str, Any]:
        """Give `parent` the curves of a run from its spools; the state of that mirror at their end."""
        if not files:
            raise LookupError(f"no spool of {key}: its curves cannot be copied")
        events = (event for path, end in spool_ends(files).items() for _, event in whole_lines(path, 0, end) if event)
        chosen, state = copy_curves(self.placed(e) for e in events if before_ms is None or e["ts_ms"] < before_ms)
        self.log(parent, chosen)
        return state

    # ---- words, files, models

    def on_note(self, event: Event) -> None:
        self.state["notes"][event["run"]] = {"text": event["markdown"], "shown": None}

    def unlinked(self) -> list[str]:
        """Keys of runs whose description shows other links than it would now."""
        notes = {key: note for key, note in self.state["notes"].items() if key in self.state["runs"]}
        return [key for key, note in notes.items() if self.render(note["text"], key) != note["shown"]]

    def render_notes(self) -> None:
        """Bring descriptions up to date: links become known as runs are made."""
        for key in self.unlinked():
            note = self.state["notes"][key]
            text = self.render(note["text"], key)
            self.store.note(self.run_id(key), text)
            note["shown"] = text

    def render(self, markdown: str, key: str) -> str:
        """Replace {{run:KEY}}, {{model:KEY}} and {{config:KEY}} by links; by the experiment's page if unknown."""

        def link(match: re.Match[str]) -> str:
            kind, name = match.groups()
            if kind == "model" and name in self.state["models"]:
                return str(self.state["models"][name])
            if kind == "run" and name in self.state["runs"]:
                return run_path(self.state["runs"][name]["experiment"], self.state["runs"][name]["id"])
            if kind == "config" and name in self.state["runs"] and (parent := self.parent(name)):
                pipeline = self.state["runs"][parent]
                return run_path(pipeline["experiment"], pipeline["id"], "config.yaml")
            return f"#/experiments/{self.state['runs'][key]['experiment']}"

        return re.sub(r"\{\{(run|model|config):([^}]+)\}\}", link, markdown)

    def on_tags(self, event: Event) -> None:
        for name, value in event["tags"].items():
            self.store.tag(self.run_id(event["run"]), name, value)

    def on_file(self, event: Event) -> None:
        self.store.file(self.run_id(event["run"]), Path(event["path"]), event["artifact_path"])

    def on_dataset(self, event: Event) -> None:
        self.store.dataset(self.run_id(event["run"]), event["name"], event["digest"], event["source"])

    def on_model(self, event: Event) -> None:
        key = event["run"]
        self.state["models"][key] = self.store.register(
            self.run_id(key),
            self.state["runs"][key]["experiment"],
            Path(event["folder"]),
            event["name"],
            event["alias"],
            event["tags"],
            self.render(event["description"], key),
        )

    def on_uses(self, event: Event) -> None:
        name, _, version = self.state["models"][event["of"]].removeprefix("#/models/").partition("/versions/")
        self.store.uses(self.run_id(event["run"]), name, version)


def next_group(path: Path, start: int, end: int) -> tuple[list[Event], int]:
    """The next lines to send together (metrics up to GROUP values, or one line of another kind), and the offset after.

    Torn lines are passed over.
    """
    group: list[Event] = []
    values = 0
    for after, event in whole_lines(path, start, end):
        if event is None:
            say(f"{path}: a torn line before byte {after} is left out")
        elif event["kind"] != "metrics":
            return (group, start) if group else ([event], after)
        else:
            values += len(event["values"])
            if group and values > GROUP:
                return group, start
            group.append(event)
        start = after
    return group, start


def spans(path: Path, start: int, after: int) -> Iterator[tuple[Event, int, int]]:
    """The lines of a spool in bytes [start, after), each with its own; torn ones are passed over."""
    for end, event in whole_lines(path, start, after):
        if event is not None:
            yield event, start, end
        start = end
