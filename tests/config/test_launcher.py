"""What `accelerate launch` is asked for is read as it reads it, or refused."""

import pytest

from cai.config.compose import compose
from cai.config.launcher import Launch, launch_of
from cai.errors import UsageError

BASE = ["experiment=smoke", "launcher=accelerate"]


@pytest.mark.parametrize(
    ("arguments", "launch"),
    [
        ("[]", Launch(1, False, False, False)),
        ("[--num_processes=4]", Launch(4, False, False, False)),
        ("[--num-processes,'4',--multi-gpu]", Launch(4, False, False, True)),
        ("[--use-fsdp,--num-processes=2]", Launch(2, True, False, True)),
        ("[--use_deepspeed,--zero-stage=2,--x=1]", Launch(1, False, True, True)),
    ],
)
def test_accelerates_arguments_have_either_spelling(arguments: str, launch: Launch):
    assert launch_of(compose([*BASE, f"launcher.args={arguments}"])) == launch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("[--num_processes=two]", "launcher.args: --num_processes/--num-processes: invalid int"),
        ("[--num_processes]", "launcher.args: --num_processes/--num-processes: expected one arg"),
        ("[--num-processes=0]", "--num_processes=0: must be at least 1"),
        ("[--num_processes=-2]", "--num_processes=-2: must be at least 1"),
    ],
)
def test_arguments_that_start_nothing_are_refused(arguments: str, message: str):
    with pytest.raises(UsageError) as caught:
        compose([*BASE, f"launcher.args={arguments}"])
    assert message in str(caught.value)
