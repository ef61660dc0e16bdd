"""Runs what the plan says has to run: in order, each stage inline or in processes, its output published or refused."""

import contextlib
import dataclasses
import importlib.util
import logging
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cai import __version__
from cai.config.build import ASKING
from cai.config.schema import Config, in_round, lookup
from cai.digest import plain
from cai.errors import CaiError, Interrupted, UsageError, nearest
from cai.method.constitution import Constitution
from cai.observe.log import enter_stage, log, open_log
from cai.redact import redacted
from cai.run.plan import Stage, Step, settings, stages, step_of, suite_data
from cai.run.process import run_in_process
from cai.store.files import write_json
from cai.store.manifest import Damaged, Manifest, verify_files
from cai.store.run_folder import Run


def run_stages(
    config: Config, tell: Callable[[str], None], patient: bool = False
) -> dict[str, Manifest]:
    """Runs what has to run, in order. Returns every selected stage's manifest. Raises CaiError; what is done stays.

    `tell` shows a person each line; the run's log has it too, with what `tell` isn't told. `patient`: waits for another
    process that holds the run's folder, where it would raise UsageError.
    """
    names = [stage.name for stage in stages(config)]
    selected = config.stages if config.stages is not None else names
    for name in selected:
        if name not in names:
            raise UsageError(
                f"stages names '{name}', which is no stage{nearest(name, names)} (stages: {', '.join(names)})"
            )
    run = Run(Path(config.outputs) / config.name)
    with run.lock(tell if patient else None) as lock, _logged(run):

        def say(line: str) -> None:
            tell(line)
            log(line, logging.WARNING if line.startswith("WARNING") else logging.INFO)

        write_json(run.root / "run.json", {"schema": 1, "config": redacted(config)})
        constitution = Constitution.load(config.constitution)
        outputs: dict[str, str | None] = {}
        done: dict[str, Manifest] = {}
        checked = False
        for stage in stages(config):
            enter_stage(stage.name)
            step = _sound_step(stage, config, run, constitution, outputs, say)
            if stage.name in selected and step.manifest is None:
                if missing := [name for name in stage.inputs(config) if outputs[name] is None]:
                    wanted = ",".join(n for n in names if n in {*selected, *missing})
                    raise UsageError(
                        f"stage '{stage.name}' needs {', '.join(missing)}, which has not run with this configuration; "
                        f"run with 'stages=[{wanted}]', or without stages=..."
                    )
                if not checked:
                    check(config)
                    checked = True
                if stage.section == "dpo":
                    _heed(done[in_round("label", stage.round)], config, say)
                say(f"{stage.name}: {step.why}")
                made = _execute(step, config, run, lock, done)
                log(f"{stage.name}: done", seconds=made.seconds, output=made.output)
                step = replace(step, manifest=made)
            elif stage.name in selected and step.manifest is not None and step.key:
                run.point_latest(stage.name, step.key)
                shutil.rmtree(
                    run.folder(stage.name, step.key) / "scratch", ignore_errors=True
                )  # killed before it was
                say(f"{stage.name}: up to date")
            outputs[stage.name] = step.manifest.output if step.manifest else None
            if step.manifest:
                done[stage.name] = step.manifest
    return {name: manifest for name, manifest in done.items() if name in selected}


@contextlib.contextmanager
def _logged(run: Run) -> Iterator[None]:
    """Opens the run's log, and logs how the run ends."""
    open_log(run.root)
    log("the run begins", version=__version__, host=socket.gethostname())
    try:
        yield
    except BaseException as error:
        known = isinstance(error, CaiError | Interrupted)
        log(
            str(error) or type(error).__name__,
            logging.ERROR,
            None if known else error,
            kind=type(error).__name__,
        )
        raise
    finally:
        enter_stage("")
    log("the run is done")


def _sound_step(
    stage: Stage,
    config: Config,
    run: Run,
    constitution: Constitution,
    outputs: dict[str, str | None],
    tell: Callable[[str], None],
) -> Step:
    """As step_of, with every file read and compared with its digest; what is damaged is moved aside."""
    while True:
        try:
            step = step_of(stage, config, run, constitution, outputs)
            if step.manifest and step.key:
                verify_files(run.folder(stage.name, step.key), step.manifest)
            return step
        except Damaged as damaged:
            tell(f"{stage.name}: {damaged}")
            tell(f"{stage.name}: moved to {run.set_aside(damaged.folder)}")


def _heed(label: Manifest, config: Config, tell: Callable[[str], None]) -> None:
    """Says why the judge can't be relied on. Raises CaiError where the configuration asks for one that can."""
    doubts = label.summary.get("judge", {}).get("doubts", [])
    for doubt in doubts:
        tell(f"WARNING: {doubt}")
    if doubts and config.label.require_judge:
        raise CaiError(
            "label.require_judge: no DPO on this feedback. Take another judge (label.judge, label.model), other "
            "comparisons in the principle file, or label.require_judge=false"
        )


def _execute(
    step: Step, config: Config, run: Run, lock: int, done: dict[str, Manifest]
) -> Manifest:
    stage, key = step.stage, step.key
    if key is None:
        raise AssertionError("a stage runs only when its inputs have run")
    started = time.time()
    work, scratch = run.begin(stage.name, key)
    spec = spec_of(stage, config, run, done) | {"work": str(work), "scratch": str(scratch)}
    write_json(scratch / "spec.json", spec)
    if config.launcher.kind == "inline":
        from cai.run.worker import run_stage

        summary = run_stage(spec)
    else:
        summary = run_in_process(stage, config, scratch, lock)
    return run.publish(stage.name, stage.version, key, step.ingredients, plain(summary), started)


def spec_of(stage: Stage, config: Config, run: Run, done: Mapping[str, Manifest]) -> dict[str, Any]:
    """All that a stage sees, but for where it may write. `done` holds the manifests of its inputs."""
    used = {*stage.data(config), *(suite_data(config) if stage.apart else ())}
    return {
        "stage": stage.name,
        "module": stage.module,
        "root": str(run.root),
        "round": stage.round,
        "config": dataclasses.asdict(settings(stage, config)),
        "seed": config.seed,
        "model": dataclasses.asdict(config.model),
        "engine": dataclasses.asdict(config.engine),
        "constitution": config.constitution,
        "report_to": config.report_to,
        "data": {name: dataclasses.asdict(config.data[name]) for name in sorted(used)},
        "held_out": suite_data(config) if stage.apart else [],
        "inputs": {
            name: {
                "path": str(run.folder(name, done[name].key) / "out"),
                "digest": done[name].output,
            }
            for name in stage.inputs(config)
        },
    }


def check(config: Config) -> None:
    """Builds every trl and peft config and opens nothing else: a typo fails in seconds, not after hours."""
    from cai.stages import dpo, sft
    from cai.training.trainer import bits_config, lora_config

    engines = [config.engine, *(own for name in ASKING if (own := lookup(config, name).engine))]
    if (
        any(engine.kind == "vllm" for engine in engines)
        and importlib.util.find_spec("vllm") is None
    ):
        raise UsageError(
            "engine=vllm: vLLM is not installed; pip install 'constitutional-ai[vllm]'"
        )
    if "--use_deepspeed" in config.launcher.args and importlib.util.find_spec("deepspeed") is None:
        raise UsageError(
            "launcher=deepspeed: it is not installed; pip install 'constitutional-ai[deepspeed]'"
        )
    if config.engine.model is not None:
        raise UsageError(
            f"engine.model={config.engine.model}: every stage would ask this one model, whatever it trains; leave it "
            "null and serve the run's models as base, sft, sl_cai and dpo; a critic is named by revise.engine.model, a "
            "judge by label.engine.model"
        )
    for engine in engines:
        if engine.kind == "openai":
            from cai.engines.servers import read_key

            read_key(engine.server)
    if config.evaluate.lm_eval:
        from cai.scoring.harness import task_manager

        task_manager(config.evaluate.lm_eval)
    for name in config.report_to:
        if importlib.util.find_spec("tensorboardX" if name == "tensorboard" else name) is None:
            raise UsageError(
                f"report_to: {name} is not installed; pip install {name}, or leave it out of report_to"
            )
    for name in ("sft", "sl_cai"):
        section = lookup(config, name)
        if section.quantization is not None:
            bits_config(f"{name}.quantization", section.quantization)
        sft.arguments(name, section, config.seed, "unused", "cpu", section.validation > 0)
    dpo.arguments(config.dpo, config.seed, "unused", "cpu", config.dpo.validation > 0)
    for name in ("sft", "sl_cai", "dpo"):
        if (peft := lookup(config, name).peft) is not None:
            lora_config(f"{name}.peft", peft)
