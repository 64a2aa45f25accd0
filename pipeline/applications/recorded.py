"""What a verb has made with a trained model, as a run in the tracker: below the run of the pipeline that trained it.

A record is a spool (`tracking/tracker.py`) in a folder of its own, `<root>/pipelines/VERB-KEY`, with copies of what it
shows. KEY is a digest of what was asked, so the same call again records nothing new. The folder is renamed into place
when all is in it. A shipper sends it while the verb has ended already: nobody waits for the tracker. What a verb makes
comes first, its record after it: a call that was killed between the two records when it is given again.
"""

from __future__ import annotations

import http.client
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.applications.made_images import ASKED
from pipeline.config import load
from pipeline.errors import UserError
from pipeline.files import digest, read_json, write_json
from pipeline.past import history
from pipeline.past.history import Past
from pipeline.tracking import tracker
from pipeline.tracking.links import public_uri, resolve_uri, tracking_folder
from pipeline.tracking.runs import flatten

WAIT_S = 1.0  # for a tracker's sign of life


def record(
    root: Path,
    verb: str,
    out: Path,
    said: str,
    files: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> None:
    """Record what `verb` has made as `out`, in the tracker of the root where its model was trained.

    said: the run's description, one line. files: names in the folder `out` that go with the run. asked: what was asked,
    with `model` (as `Generator.about`) and `how`; default: what `made_images.begin` has written to `out`. A model that
    no run under the root has made is not recorded. Never raises for a disk or a tracker: what went wrong is one line.
    """
    try:
        asked = dict(asked or read_json(out / ASKED))
        name = f"{verb}-{digest([verb, asked])[:16]}"
        place, past = root.absolute() / "pipelines" / name, trained_by(root, asked["model"])
        if past is None:
            return
        tracking = load(past.folder / "config.yaml").tracking
        uri = resolve_uri(root, tracking.uri)
        if place.exists():
            if tracker.left(root, uri):  # by a call that was killed, it may be
                _send(root, uri, verb, tracking.deadline)
            return
        tracking_folder(root).mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=tracking_folder(root), suffix=".tmp") as temporary:
            made = Path(temporary) / name
            spool = tracker.Spool(made / "spool", f"{verb}/{name.rpartition('-')[2]}", 1)
            for file in files:
                shutil.copyfile(out / file, made / file)
            write_json(made / ASKED, asked)
            model, register = asked["model"], past.stages.get("register")
            made_of = model["lineage"]["diffusion"]
            weights = {f"ldm.weights.{file}": value for file, value in model.get("weights", {}).items()}
            given = {"images": len(asked["given"])} if asked.get("given") else {}
            spool.start(
                f"{verb} {out.name}",
                tags={
                    "ldm.verb": verb,
                    "ldm.diffusion": f"{made_of['fingerprint']} {made_of['content'][:12]}",
                    **weights,
                },
                params=flatten({**asked["how"], **given}),
                experiment=tracking.experiment,
                group=past.run_key,
            )
            if metrics:
                spool.metrics({f"{verb}/{key}": value for key, value in metrics.items()}, 0)
            spool.note(f"{said}\n\nModel: " + (f"[{past.name}]({{{{model:{register}}}}})" if register else past.name))
            if register:
                spool.uses(register)
            for file in (ASKED, *files):
                spool.file(place / file)
            spool.end()
            if not _moved(made, place):
                return
        _send(root, uri, verb, tracking.deadline)
    except (OSError, UserError) as error:
        print(f"this {verb} is not recorded: {' '.join(str(error).split())}", flush=True)


def trained_by(root: Path, about: Mapping[str, Any]) -> Past | None:
    """The run under a root that trained a model (`Generator.about`), the latest of several; None if there is none."""
    try:
        made = about["lineage"]["diffusion"]["fingerprint"]
    except (KeyError, TypeError):  # also what a file that was given says of its model
        return None
    if not made:
        return None
    found = [past for folder in root.absolute().glob("pipelines/*") if (past := history.read(folder))]
    mine = [p for p in found if f"/{made}" in p.stages.get("diffusion", "") and (p.folder / "config.yaml").is_file()]
    return max(mine, key=lambda past: past.started_ms, default=None)


def _moved(made: Path, place: Path) -> bool:
    """Rename the record into place; False where another process was first."""
    try:
        made.rename(place)
    except OSError:
        if not place.exists():
            raise
        return False
    return True


def _send(root: Path, uri: str, verb: str, deadline_s: float) -> None:
    """Have the record sent by a process that goes on when this one has ended. One line if the tracker is away."""
    if why := unreachable(uri):
        where = public_uri(uri)
        print(f"tracker {where}: {why}; the record of this {verb} is kept, `ldm mlflow sync` sends it", flush=True)
    else:
        tracker.start(root, uri, deadline_s)


def unreachable(uri: str) -> str | None:
    """Why a tracker's server does not answer within WAIT_S; None if it does, or is a file."""
    if not uri.startswith(("http://", "https://")):
        return None
    try:
        urllib.request.urlopen(f"{public_uri(uri)}/health", timeout=WAIT_S).close()  # noqa: S310 (http only, see above)
    except urllib.error.HTTPError:
        return None  # a server, whatever it thinks of the question
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last: no address, or no web server
        return f"cannot be reached ({getattr(error, 'reason', error)})"
    return None
