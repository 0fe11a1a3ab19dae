"""common/privacy.py: texts without names of users and machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from common.privacy import anonymous
from tests import PROJECT

CANARY = """
import platform, socket
platform.node = socket.gethostname = lambda: "canaryhost"
from pathlib import Path
from common.experiments.folder import create_experiment
home = Path.home()
create_experiment(Path("results"), None, {"seed": 1}, [
    "python", f"{home}/code/train.py", f"--output_dir={home}/out", f"--config={home}",
    "--data_input_folder=/mnt/canaryuser/x", "--net_weight_file=/net/canaryhost/best.pt", f"{home}2/canaryuserdata",
])
"""


def test_neither_user_nor_host_nor_home_folder_is_recorded(tmp_path):
    home = tmp_path / "home" / "canaryhome"
    variables = {
        **os.environ,
        "HOME": str(home),
        "LOGNAME": "canaryuser",
        "USER": "canaryuser",
        "PYTHONPATH": str(PROJECT),
    }
    subprocess.run([sys.executable, "-c", CANARY], cwd=tmp_path, env=variables, check=True)
    text = (tmp_path / "results" / "1" / "environment.json").read_text()
    command = json.loads(text)["command"].split()
    assert command[1:3] == ["~/code/train.py", "--output_dir=~/out"]
    assert command[3:6] == [
        "--config=~",
        "--data_input_folder=/mnt/<user>/x",
        "--net_weight_file=/net/<host>/best.pt",
    ]
    assert command[6] == f"{home}2/canaryuserdata"  # other folders, which only begin alike
    rest = text.replace(command[6], "")
    assert "canary" not in rest


def test_words_that_are_no_part_of_a_path_are_left_alone(monkeypatch):
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "train")
    assert anonymous("python train.py --split=train --x=/train.py") == "python train.py --split=train --x=/train.py"
    assert anonymous("/home/train/x") == "/home/<user>/x"
