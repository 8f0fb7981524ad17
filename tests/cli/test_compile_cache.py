"""Where compiled programs are kept between commands."""

import os
import stat
import subprocess
import sys

import pytest

from llc.cli.compile_cache import OFF, keep_compiled

FOLDER = "JAX_COMPILATION_CACHE_DIR"
MODEL = """
import jax.numpy as jnp
import numpy as np
import llc

posterior = llc.LocalPosterior(lambda w, x: 0.5 * (x @ w) ** 2, jnp.zeros(3), np.ones((50, 3), np.float32), gamma=1.0)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_folder_is_the_users_and_private(home):
    environment = {}
    keep_compiled(environment)
    folder = home / "llc" / "jax"
    assert environment[FOLDER] == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("environment", [{OFF: "1"}, {FOLDER: "/elsewhere"}])
def test_what_the_user_chose_is_kept(home, environment):
    before = dict(environment)
    keep_compiled(environment)
    assert environment == before
    assert not list(home.iterdir())


def test_without_a_folder_nothing_is_kept(home, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    environment = {}
    keep_compiled(environment)
    assert not environment


@pytest.mark.slow
def test_a_second_command_compiles_nothing_anew(home):
    (home / "model.py").write_text(MODEL)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # so that it does not depend on the machine's load
    main = "import sys; from llc.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "sample", "model.py:posterior", "--out", "run.nc", "--num-draws", "20"]
    programs = []
    for _ in range(2):
        subprocess.run([*command, "--num-warmup", "5"], cwd=home, check=True, env=environment)
        programs.append({path.name for path in (home / "llc" / "jax").iterdir() if path.name.endswith("-cache")})
    assert programs[0]
    assert programs[0] == programs[1]
