"""`cai push`: a finished model or its data to a hub, with a card. A dry run without --yes."""

import argparse
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2

# its names are loaded at their first use, after `quiet` has set its environment
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from cai.cli.options import add_run, verb_parser
from cai.config.compose import saved
from cai.config.names import first_round
from cai.config.schema import Config
from cai.digest import folder_files
from cai.errors import CaiError, UsageError
from cai.redact import redact, safe
from cai.report.card import data_card, load_origin, model_card
from cai.run.plan import trained, trained_inputs, view_of
from cai.run.process import quiet
from cai.stages.base import verb_context
from cai.store.files import SEAL
from cai.store.manifest import Manifest, verify_files
from cai.store.run_folder import Run, find_run

KINDS = {  # --what -> the kind of stage that makes it
    "model": "dpo",
    "revisions": "revise",
    "preferences": "label",
}

FILES = {"revisions": ("revisions.parquet", "training.parquet"), "preferences": ("pairs.parquet",)}

REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = verb_parser(
        "push",
        "Send a finished model or data set to a Hugging Face hub, with a card. Shows what would "
        "be sent;\n--yes sends it, with the token in HF_TOKEN, to HF_ENDPOINT or huggingface.co.",
        "outputs/quickstart --repo me/kind-model",
        "--repo me/kind-pairs --what preferences --private --yes",
    )
    add_run(parser)
    text = "the repository, made where it is missing"
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help=text)
    parser.add_argument("--what", dest="content", choices=list(KINDS), default="model")
    parser.add_argument(
        "--stage", help="sft, sl_cai, dpo, dpo2 ... or label2 ... (default: the last that is done)"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--yes", action="store_true", help="send it")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Raises UsageError where the stage is not done, and Damaged where a file was changed."""
    quiet()
    options = parse(arguments)
    if not REPO.fullmatch(options.repo):
        raise UsageError(f"--repo {safe(options.repo)}: write OWNER/NAME")
    root = find_run(options.run)
    config, run = saved(root), Run(root)
    stage = options.stage or _last_stage(config, run, options.content)
    stages = [*(("sft", "sl_cai") if options.content == "model" else ()), KINDS[options.content]]
    if first_round(stage) not in stages:
        raise UsageError(
            f"--stage {safe(stage)}: --what {options.content} is made by {', '.join(stages)}"
        )
    origin = load_origin(run, stage, config, view_of)
    out = run.folder(stage, origin.manifest.key) / "out"
    verify_files(out.parent, origin.manifest)
    files = _files(options.content, out, origin.manifest)
    if options.content == "model" and not files:
        files = _merged_files(config, root, stage)
    if options.content == "model":
        card = redact(model_card(origin, options.repo))
    else:
        card = redact(data_card(origin, options.repo, sorted(files)))
    token = os.environ.get("HF_TOKEN", "").strip()
    if options.yes and not token:
        raise UsageError(
            "cai push --yes: put a token that may write into the environment variable HF_TOKEN"
        )
    _show(card, files, options)
    if options.yes:
        message = f"{stage} of {config.name}, by cai"
        with tempfile.TemporaryDirectory(prefix="cai-push-") as folder:
            _gather(Path(folder), card, files)
            print(f"sent: {_send(Path(folder), message, options, token)}")


def _last_stage(config: Config, run: Run, content: str) -> str:
    stages = list(trained(config, run)) if content == "model" else []
    if content == "preferences":
        labels = [f"label{number}" for number in range(2, config.rounds + 1)]
        stages = [label for label in labels if run.latest(label)]
    return stages[-1] if stages else KINDS[content]


def _files(content: str, out: Path, manifest: Manifest) -> dict[str, Path]:
    """Name in the repository -> file. A model's stand at the top, for `from_pretrained`."""
    if content != "model":
        return {name: out / name for name in FILES[content] if name in manifest.files}
    names = [name for name in manifest.files if name.startswith("model/")]
    return {name.removeprefix("model/"): out / name for name in names}


def _merged_files(config: Config, root: Path, stage: str) -> dict[str, Path]:
    """The same of a stage that has published its adapter alone."""
    context = verb_context("push", config, root, config.constitution, trained_inputs(config, root))
    folder = Path(context.model_path(stage))
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder_files(folder)
        if path.name != SEAL
    }


def _show(card: str, files: Mapping[str, Path], options: argparse.Namespace) -> None:
    print(safe(card))
    sizes = {"README.md": len(card.encode())}
    sizes |= {name: file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        print(f"{size:>14,}  {safe(name)}")
    kind = "model" if options.content == "model" else "data set"
    private = "private " if options.private else ""
    print(f"{sum(sizes.values()):>14,}  bytes to the {private}{kind} {options.repo}")
    if not options.yes:
        print("nothing was sent: --yes sends it")


def _gather(folder: Path, card: str, files: Mapping[str, Path]) -> None:
    """The repository as it will be: links to the files, and the card."""
    for name, file in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(file.resolve())
    (folder / "README.md").write_text(card, encoding="utf-8")


def _send(folder: Path, message: str, options: argparse.Namespace, token: str) -> str:
    """The address of the commit. Raises CaiError with the hub's own words."""
    api = huggingface_hub.HfApi(token=token)
    repo, kind = options.repo, "model" if options.content == "model" else "dataset"
    try:
        api.create_repo(repo, repo_type=kind, private=options.private or None, exist_ok=True)
        if options.private and not api.repo_info(repo, repo_type=kind).private:
            raise UsageError(
                f"{repo} is there already and is public: make it private, or name another"
            )
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, repo_type=kind, commit_message=message
        )
        return commit.commit_url
    except HfHubHTTPError as error:
        reason = safe(error.server_message or str(error).splitlines()[0])
        raise CaiError(
            f"{api.endpoint} refused {repo} ({error.response.status_code}): {reason}"
        ) from None
    except (httpx2.HTTPError, OSError, ValueError) as error:
        raise CaiError(
            f"{api.endpoint} can't be reached or broke off: {error}; the same command sends the "
            "rest"
        ) from None
