"""What settings need beyond cai is said before anything runs, with what installs it."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import trainer_optimizer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames

from cai.config.compose import compose
from cai.run import runner
from cai.run.packages import TRACKERS, missing_packages, optimizer_package

# what transformers' checks of optimizers ask for
CHECKS = [name for name in vars(trainer_optimizer) if name.startswith("is_")]


def needs_a_package(name: OptimizerNames) -> bool:
    """Whether transformers refuses an optimizer where no package but torch is installed."""
    args = SimpleNamespace(optim=name, optim_target_modules="all-linear", parallel_mode=None)
    context: Any = SimpleNamespace(
        args=args, model=None, optimizer_kwargs={}, adam_kwargs={"betas": (0, 0)}, optim_args={}
    )
    try:
        trainer_optimizer._OPTIMIZER_HANDLERS[name](context)
    except ImportError:
        return True
    except ValueError as error:
        return "install" in str(error) or "failed to import" in str(error)
    except KeyError:
        return False
    return False


@pytest.mark.parametrize("name", list(OptimizerNames), ids=str)
def test_transformers_optimizers_need_what_it_asks_for(
    name: OptimizerNames, monkeypatch: pytest.MonkeyPatch
):
    for check in CHECKS:
        monkeypatch.setattr(trainer_optimizer, check, lambda *_: False)
    assert needs_a_package(name) == (optimizer_package(name.value) is not None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.args.optim=grokadamw", "sft.args.optim=grokadamw: grokadamw is not installed; pip"),
        ("dpo.args.optim=adamw_torch_4bit", "dpo.args.optim=adamw_torch_4bit: torchao is not inst"),
        ("report_to=[trackio]", "report_to: trackio: trackio is not installed; pip install trac"),
        ("sft.args.report_to=wandb", "sft.args.report_to: wandb: wandb is not installed; pip ins"),
        ("dpo.args.report_to=[mlflow]", "dpo.args.report_to: mlflow: mlflow is not installed; pip"),
        ("sft.args.use_liger_kernel=true", "liger_kernel is not installed; pip install liger-kern"),
        ("launcher=deepspeed", "deepspeed is not installed; pip install -e '.[deepspeed]' in the"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(
    override: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cai.run.packages.find_spec", lambda name: None)
    config = compose(["experiment=smoke", "report_to=[]", override])
    errors = missing_packages(config)
    assert errors and all(message in str(error) for error in errors[:1])
    with pytest.raises(type(errors[0]), match="is not installed"):
        runner.check(config)


def test_what_is_there_is_no_matter():
    assert missing_packages(compose(["experiment=smoke", "sft.args.optim=adafactor"])) == []
    assert missing_packages(compose(["experiment=smoke", "sft.args.report_to=none"])) == []


def test_trackers_of_other_names_are_transformers_own():
    assert TRACKERS.keys() <= INTEGRATION_TO_CALLBACK.keys()
