"""Runs one stage from its spec: in this process, in one of its own, or in several under `accelerate launch`."""

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cai.config.build import build
from cai.config.schema import Config, DataConfig, EngineConfig, ModelConfig, first_round
from cai.errors import CaiError, Interrupted
from cai.observe import log as telemetry
from cai.observe import tracing
from cai.observe.progress import Progress
from cai.redact import redact
from cai.run.process import RUNNER, install_signals, quiet
from cai.stages.base import Context, Input
from cai.store.files import check_writable, write_json

CONTINUE = "what is done so far is kept: put that right, then the same command continues"


def run_stage(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs the stage that `spec` describes and returns its summary. Whatever is not in the spec, a stage can't see."""
    import importlib

    check_writable(Path(spec["work"]), 1 << 20, CONTINUE)  # before hours of work are spent to find out
    main = int(os.environ.get("RANK", "0")) == 0
    scratch, root = Path(spec["scratch"]), Path(spec["root"])
    telemetry.open_log(root)
    telemetry.enter_stage(spec["stage"])
    file = scratch / "progress.json" if main else None
    progress = Progress(spec["stage"], file, quiet=not main, metrics_file=root / "metrics.prom")
    section, context = stage_context(spec, scratch, progress)
    module = importlib.import_module(f"cai.stages.{spec['module']}")
    try:
        with tracing.trace_stage(spec["stage"]):
            return module.run(section, context.inputs, Path(spec["work"]), context)
    except CaiError:
        raise
    except Exception as error:
        if (
            shutil.disk_usage(spec["work"]).free < 16 << 20
        ):  # libraries say it in many ways, or not at all
            raise CaiError(f"no space is left on the disk of {spec['root']}; {CONTINUE}") from error
        if isinstance(error, OSError):
            raise CaiError(
                f"{error.filename or spec['work']}: {error.strerror or error}; {CONTINUE}"
            ) from error
        raise
    finally:
        progress.finish()


def stage_context(spec: dict[str, Any], scratch: Path, progress: Progress) -> tuple[Any, Context]:
    """A stage's section of the config, and its context."""
    import typing

    data = {name: build(DataConfig, values) for name, values in spec["data"].items()}
    context = Context(
        stage=spec["stage"],
        seed=spec["seed"],
        root=Path(spec["root"]),
        scratch=scratch,
        model=build(ModelConfig, spec["model"]),
        engine=build(EngineConfig, spec["engine"]),
        data=data,
        held_out={name: data[name] for name in spec["held_out"]},
        constitution=spec["constitution"],
        inputs={name: Input(**values) for name, values in spec["inputs"].items()},
        progress=progress,
        report_to=spec["report_to"],
        round=spec["round"],
    )
    return build(typing.get_type_hints(Config)[first_round(spec["stage"])], spec["config"]), context


def _end_with_parent() -> None:
    """A worker whose conductor was killed ends too, so that it doesn't hold the run's lock for hours. Under a launcher
    that is not its parent."""
    parent, conductor = os.getppid(), int(os.environ.get(RUNNER, "0"))

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            while os.getppid() == parent:
                time.sleep(1)
                os.kill(conductor, 0)  # 0, its own group, is always there
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    quiet()
    install_signals()
    _end_with_parent()
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    scratch = Path(spec["scratch"])
    (scratch / "failure.json").unlink(missing_ok=True)
    try:
        summary = run_stage(spec)
        if int(os.environ.get("RANK", "0")) == 0:
            write_json(scratch / "summary.json", summary)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)  # it is done, and ends
    except CaiError as error:
        if os.environ.get("CAI_DEBUG"):
            raise
        write_json(
            scratch / "failure.json", {"message": redact(str(error)), "code": error.exit_code}
        )
        sys.exit(error.exit_code)
    except Exception as error:
        telemetry.log(type(error).__name__, logging.ERROR, error)
        raise
    except Interrupted as error:
        os._exit(
            error.exit_code
        )  # every finished completion is committed; nothing else need be waited for


if __name__ == "__main__":
    main()
