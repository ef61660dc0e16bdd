"""Runs one stage: in this process, in one of its own, or in several under `accelerate launch`."""

import contextlib
import dataclasses
import gc
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cai.config.names import suite_data, unprobed
from cai.config.schema import Config
from cai.digest import JsonObject
from cai.errors import CaiError, Interrupted
from cai.observe import log, tracing
from cai.observe.progress import Progress
from cai.redact import redact
from cai.run.plan import stages
from cai.run.process import RUNNER, install_signals, quiet
from cai.stages.base import Context, Input, Stage
from cai.stages.probe import probe_sets
from cai.store.files import check_writable, write_json
from cai.store.manifest import read_manifest

CONTINUE = "what is done so far is kept: put that right, then the same command continues"


@dataclass(frozen=True)
class Job:
    """One run of one stage. A process of its own gets it as JSON, which is validated once."""

    stage: str
    config: Config
    root: str  # the run's folder
    work: str  # what the stage writes
    scratch: str  # checkpoints and progress
    inputs: dict[str, Input]
    later: float | None = None  # seconds that the stages after it are expected to take

    def save(self, file: Path) -> None:
        write_json(file, dataclasses.asdict(self))


@cache
def _job_type() -> TypeAdapter[Job]:
    return TypeAdapter(Job)


def run_stage(job: Job) -> JsonObject:
    """Runs the job's stage and returns its summary as JSON types."""
    work, scratch, root = Path(job.work), Path(job.scratch), Path(job.root)
    check_writable(work, 1 << 20, CONTINUE)  # before hours of work are spent to find out
    main_process = int(os.environ.get("RANK", "0")) == 0
    log.open_log(root)
    log.enter_stage(job.stage)
    file = scratch / "progress.json" if main_process else None
    progress = Progress(
        job.stage,
        file,
        quiet=not main_process,
        metrics_file=root / "metrics.prom",
        later=job.later,
    )
    stage = next(stage for stage in stages(job.config) if stage.name == job.stage)
    context = stage_context(stage, job.config, root, scratch, job.inputs, progress)
    try:
        with tracing.trace_stage(job.stage):
            summary: Any = stage.run(stage.section(job.config), work, context)
            return dataclasses.asdict(summary)
    except CaiError:
        raise
    except Exception as error:
        if shutil.disk_usage(work).free < 16 << 20:  # libraries say it in many ways, or not at all
            raise CaiError(f"no space is left on the disk of {root}; {CONTINUE}") from error
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise CaiError(f"{error.filename or work}: {reason}; {CONTINUE}") from error
        raise
    finally:
        progress.finish()
        collect_memory()


def collect_memory() -> None:
    """Gives a GPU's memory back: the next stage, or a server that it starts, may need all of it."""
    gc.collect()
    torch: Any = sys.modules.get("torch")  # not loaded by stages without a model
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()


def stage_context(
    stage: Stage,
    config: Config,
    root: Path,
    scratch: Path,
    inputs: Mapping[str, Input],
    progress: Progress,
) -> Context:
    """What a stage may see of the configuration: just what its key covers."""
    suites = suite_data(config) if stage.decontaminates else []
    probes = probe_sets(inputs, config.system_prompt)
    names = sorted({*stage.data(config, stage.round), *unprobed(suites)})
    data = {name: config.data[name] for name in names} | probes
    kinds = {stage.name: stage for stage in stages(config)}
    summaries = {}
    for name, source in inputs.items():
        if manifest := read_manifest(Path(source.path).parent):
            summaries[name] = kinds[name].summary.load(manifest)
    return Context(
        stage=stage.name,
        seed=config.seed,
        root=root,
        scratch=scratch,
        model=config.model,
        engine=config.engine,
        data=data,
        held_out={name: data[name] for name in suites if name in data},
        constitution=config.constitution,
        inputs=inputs,
        progress=progress,
        report_to=config.report_to,
        round=stage.round,
        verdicts=[name for name in config.verdicts if name in names],
        summaries=summaries,
    )


def _end_with_parent() -> None:
    """A worker whose runner was killed ends too: it must not hold the run's lock for hours.

    Under a launcher the runner is not its parent.
    """
    parent, runner = os.getppid(), int(os.environ.get(RUNNER, "0"))

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            while os.getppid() == parent:
                time.sleep(1)
                os.kill(runner, 0)  # signal 0 only asks; process 0, its own group, is always there
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    quiet()
    install_signals()
    _end_with_parent()
    job = _job_type().validate_json(Path(sys.argv[1]).read_bytes())
    scratch = Path(job.scratch)
    (scratch / "failure.json").unlink(missing_ok=True)
    try:
        summary = run_stage(job)
        if int(os.environ.get("RANK", "0")) == 0:
            write_json(scratch / "summary.json", summary)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)  # it is done, and ends
    except CaiError as error:
        if os.environ.get("CAI_DEBUG"):
            raise
        failure = {"message": redact(str(error)), "code": error.exit_code}
        write_json(scratch / "failure.json", failure)
        sys.exit(error.exit_code)
    except Exception as error:
        log.log(type(error).__name__, logging.ERROR, error)
        raise
    except Interrupted as error:
        os._exit(error.exit_code)  # every finished completion is committed: nothing to wait for


if __name__ == "__main__":
    main()
