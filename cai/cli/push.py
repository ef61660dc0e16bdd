"""`cai push RUN --repo ID`: a finished model or its data to a hub, with a card. A dry run unless --yes is said."""

import argparse
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cai.config.schema import Config, first_round
from cai.errors import CaiError, UsageError
from cai.redact import redact, safe
from cai.report.card import data_card, model_card, origin
from cai.run.plan import trained
from cai.store.manifest import Manifest, verify_files
from cai.store.run_folder import Run

KINDS = {
    "model": "dpo",
    "revisions": "revise",
    "preferences": "label",
}  # what -> the kind of stage that makes it

FILES = {"revisions": ("revisions.parquet", "training.parquet"), "preferences": ("pairs.parquet",)}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cai push",
        description="Send a finished model or data set to a Hugging Face hub, with a card. Shows what would be sent; "
        "--yes sends it, with the token in HF_TOKEN, to HF_ENDPOINT or huggingface.co.",
    )
    parser.add_argument(
        "run", nargs="?", help="a run's folder, e.g. outputs/quickstart (default: the newest)"
    )
    parser.add_argument(
        "--repo",
        required=True,
        metavar="OWNER/NAME",
        help="the repository, made where it is missing",
    )
    parser.add_argument("--what", choices=list(KINDS), default="model")
    parser.add_argument(
        "--stage", help="sft, sl_cai, dpo, dpo2 ... or label2 ... (default: the last that is done)"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--yes", action="store_true", help="send it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Raises UsageError where the stage is not done, and Damaged where a file is not as it was written."""
    from cai.config.compose import saved
    from cai.run.process import quiet
    from cai.store.run_folder import find_run

    quiet()
    options = parse(arguments)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", options.repo, re.ASCII):
        raise UsageError(f"--repo {safe(options.repo)}: write OWNER/NAME")
    root = find_run(options.run)
    config, run = saved(root), Run(root)
    stage = options.stage or _last(config, run, options.what)
    models = [name for name in ("sft", "sl_cai") if options.what == "model"]
    if first_round(stage) not in (KINDS[options.what], *models):
        raise UsageError(
            f"--stage {safe(stage)}: --what {options.what} is made by {', '.join([*models, KINDS[options.what]])}"
        )
    made = origin(run, stage, config)
    out = run.folder(stage, made.manifest.key) / "out"
    verify_files(out.parent, made.manifest)
    files = _files(options.what, out, made.manifest)
    repo = options.repo
    card = redact(
        model_card(made, repo) if options.what == "model" else data_card(made, repo, sorted(files))
    )
    token = os.environ.get("HF_TOKEN", "").strip()
    if options.yes and not token:
        raise UsageError(
            "cai push --yes: put a token that may write into the environment variable HF_TOKEN"
        )
    _show(card, files, options)
    if options.yes:
        with tempfile.TemporaryDirectory(prefix="cai-push-") as folder:
            for name, file in files.items():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).symlink_to(file.resolve())
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            print(
                f"sent: {_send(Path(folder), f'{stage} of {config.name}, by cai', options, token)}"
            )


def _last(config: Config, run: Run, what: str) -> str:
    names = list(trained(config, run)) if what == "model" else []
    if what == "preferences":
        names = [
            f"label{number}"
            for number in range(2, config.rounds + 1)
            if run.latest(f"label{number}")
        ]
    return names[-1] if names else KINDS[what]


def _files(what: str, out: Path, manifest: Manifest) -> dict[str, Path]:
    """Name in the repository -> file. A model's stand at the top, where `from_pretrained` looks."""
    if what != "model":
        return {name: out / name for name in FILES[what] if name in manifest.files}
    return {
        name.removeprefix("model/"): out / name
        for name in manifest.files
        if name.startswith("model/")
    }


def _show(card: str, files: dict[str, Path], options: argparse.Namespace) -> None:
    print(safe(card))
    sizes = {"README.md": len(card.encode())} | {
        name: file.stat().st_size for name, file in files.items()
    }
    for name, size in sizes.items():
        print(f"{size:>14,}  {safe(name)}")
    kind = "model" if options.what == "model" else "data set"
    print(
        f"{sum(sizes.values()):>14,}  bytes to the {'private ' if options.private else ''}{kind} {options.repo}"
    )
    if not options.yes:
        print("nothing was sent: --yes sends it")


def _send(folder: Path, message: str, options: argparse.Namespace, token: str) -> str:
    """The address of the commit. Raises CaiError with the hub's own words."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, kind = HfApi(token=token), "model" if options.what == "model" else "dataset"
    try:
        api.create_repo(
            options.repo, repo_type=kind, private=options.private or None, exist_ok=True
        )
        if options.private and not api.repo_info(options.repo, repo_type=kind).private:
            raise UsageError(
                f"{options.repo} is there already and is public: make it private, or name another"
            )
        return api.upload_folder(
            repo_id=options.repo, folder_path=folder, repo_type=kind, commit_message=message
        ).commit_url
    except HfHubHTTPError as error:
        said = error.server_message or str(error).splitlines()[0]
        raise CaiError(
            f"{api.endpoint} refused {options.repo} ({error.response.status_code}): {safe(said)}"
        ) from None
    except (httpx2.HTTPError, OSError, ValueError) as error:
        raise CaiError(
            f"{api.endpoint} can't be reached or broke off: {error}; the same command sends the rest"
        ) from None
