"""The commands' own words; what they call is tested beside."""

import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import config_file, entry
from lcm_jax.sampling import defaults

ROOT = Path(__file__).parents[2]


def command(*arguments):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("launch.sample", "--model=m", "--prompt=a", "--w=1", "--guidance=2"), "--w and --guidance exclude each"),
        (("launch.sample", "--prompt=a"), "give either --checkpoint RUN or --model FOLDER"),
        (("launch.sample", "--model=m", "--checkpoint=c", "--prompt=a"), "give either --checkpoint RUN"),
        (("launch.sample", "--model=emoji-teacher"), "nothing to draw: give --prompt or a --prompts file"),
        (("launch.sample", "--model=m", "--step=3", "--prompt=a"), "--step, --weights and --ema choose among"),
        (("launch.sample", "--model=m", "--promt=a"), "promt"),
        (("launch.sample", "--model=emoji-teacher", "--prompt=a", "--n=0"), "--n=0: 0 is not a positive integer"),
        (("launch.encode", "--folder=f", "--out=o", "--batch_size=0"), "--batch_size=0: 0 is not a positive integer"),
        (("launch.export", "--checkpoint=.", "--out=o", "--step=last"), ". holds no run"),
        (("launch.sample", "--model=emoji-teacher", "--prompt=a", "--target_size=0"), "--target_size is WIDTHxHEIGHT"),
        (("launch.sample", "--checkpoint=c", "--weights=params", "--ema=0.9"), "--ema chooses among averages"),
        (("launch.export", "--model=m", "--out=o", "--ema=0.9"), "--step, --weights and --ema choose among"),
        (("launch.encode", "--model=m", "--out=o"), "give --reader NAME, or --folder PICTURES"),
        (("launch.encode", "--folder=f"), "give --out, the folder of the latent data set"),
        (("launch.encode", "--folder=f", "--out=o", "--options=tag"), "--options takes KEY=VALUE, not 'tag'"),
        (("launch.synthesize", "--out=o"), "give either --prompts FILE or --reader NAME"),
        (("launch.synthesize", "--prompts=p", "--recombined=3", "--out=o"), "--recombined, --folder and --options are"),
        (("launch.synthesize", "--prompts=p"), "give --out, the folder of the latent data set"),
        (("launch.synthesize", "--prompts=p", "--out=o", "--w=1", "--guidance=2"), "--w and --guidance exclude each"),
        (("launch.export", "--out=o"), "checkpoint"),
        (("launch.export", "--checkpoint=c", "--out=o", "--kind=v"), "and --empty_caption are for --model"),
        (
            ("launch.train", "--config=configs/lora_sdxl.py:paper", "--run=r", "--config.model.teacher=./nowhere",
             "--config.optimizer.accumulate=4", "--config.model.lora.targets=('/attn1/',)"),
            "no model folder './nowhere'",  # what the flags say is known, what they name is not there
        ),
    ],
)
def test_wrong_flags_are_one_line(arguments, message):
    done = command(*arguments)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ")


EMOJI, EXAMPLE = "configs/emoji_lcd.py", "give a Python file with a get_config(), such as configs/emoji_lcd.py"


@pytest.mark.parametrize(
    "given, message",
    [
        ("README.md", "config file README.md, line 5: unterminated string literal (detected at line 5): mend it, or "),
        ("nowhere.py", f"config file nowhere.py does not exist: {EXAMPLE}"),
        ("configs", f"config file configs is a folder: {EXAMPLE}"),
        ("launch/entry.py", f"config file launch/entry.py has no get_config(): {EXAMPLE}"),
        ("configs/lcd_sd15.py:papr", "unknown preset 'papr'; write CONFIG:paper or CONFIG:diffusers"),
        (f"{EMOJI}:paper", f"config file {EMOJI} takes no preset: leave :paper out"),
    ],
)
def test_what_is_no_config_is_one_line(given, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=re.escape(f"error: {message}")) as left:
        config_file.check(["--config", given])
    assert "\n" not in left.value.code and "Traceback" not in left.value.code


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config(:\n", "config file {}, line 1: invalid syntax: mend it"),
        ("\ndef get_config():\n    return missing\n", "config file {}, line 3: NameError: name 'missing' is not"),
        ("import no_such_library\n", "config file {}, line 1: ModuleNotFoundError: No module named 'no_such_lib"),
        ("def get_config():\n    return int('a')\n", "config file {}, line 2: ValueError: invalid literal for int()"),
        ("def get_config():\n    pass\n", "config file {}: get_config() returns NoneType: have it return a ConfigDict"),
    ],
)
def test_what_is_wrong_in_a_config_is_said_with_its_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(SystemExit, match=re.escape("error: " + message.format(path))) as left:
        config_file.check([f"--config={path}"])
    assert "\n" not in left.value.code


@pytest.mark.parametrize(
    "key, message",
    [
        ("stepz=3", "config has no key 'stepz'; did you mean 'steps'?"),
        ("data.batch-size", "config.data has no key 'batch-size'; did you mean 'batch_size'?"),
        ("zzz=1", "config has no key 'zzz'; it takes: average, checkpoint, data, loop, mesh, model, objective,"),
    ],
)
def test_a_wrong_key_on_the_command_line_comes_with_the_nearest(key, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    right = ["--config=configs/emoji_lcd.py", "--config.steps=3", "--config.data.batch_size", "8", "--run=r"]
    config_file.check(right)
    with pytest.raises(SystemExit, match=re.escape(f"error: {message}")):
        config_file.check([*right, f"--config.{key}"])


def test_configs_are_looked_at_by_the_commands(tmp_path):
    done = command("launch.train", f"--config={EMOJI}", "--config.stepz=3", f"--run={tmp_path / 'run'}")
    assert done.returncode == 1 and done.stderr == "error: config has no key 'stepz'; did you mean 'steps'?\n"
    done = command("launch.train", "--config=configs/lcd_sd15.py:papr", "--dry_run")
    assert done.stderr == "error: unknown preset 'papr'; write CONFIG:paper or CONFIG:diffusers\n"


def test_a_dry_run_says_what_a_run_takes_and_makes_none(tmp_path):
    mesh = ("--config.mesh.rules=fsdp", "--config.mesh.data=1", "--config.mesh.fsdp=-1")
    config = ("--config=configs/emoji_lcd.py", *mesh)
    done = command("launch.train", *config, "--dry-run", "--devices=2", f"--run={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cpu:2: 2 chips (data 1, fsdp 2, tensor 1), rules: fsdp; global batch 32")
    assert all(word in done.stdout for word in ("U-Net", "opt_state", "GFLOP a sample", "estimated without a compiler"))
    assert not (tmp_path / "run").exists()
    done = command("launch.train", *config)
    assert done.returncode == 1 and "give --run, the folder of the run, or --dry_run" in done.stderr


@pytest.mark.parametrize("name", ["encode", "synthesize", "sample", "export", "score", "evaluate", "compare"])
def test_what_opens_a_model_can_be_told_how(name):
    done = command(f"launch.{name}", "--variant=fp16", "--kind=epsilon")
    assert done.returncode == 1 and "should be one of <eps|v>" in done.stderr


@pytest.mark.parametrize("name", ["encode", "synthesize", "sample", "export", "train"])
def test_help_shows_how_it_is_called(name):
    done = command(f"launch.{name}", "--help")
    assert f"python -m launch.{name}" in done.stdout


def test_the_help_of_w_says_what_it_is_by_default():
    words = " ".join(command("launch.sample", "--help").stdout.split())
    teacher = {"guidance": None, "role": "diffusion"}
    clip, other = (defaults.default_w({**teacher, "text": {"encoder": name}}) for name in ("clip", "minilm"))
    assert f"for a teacher with CLIP {clip:g} (guidance scale {clip + 1:g}), else {other:g}." in words


def test_options_are_read_as_json_where_they_are_json():
    assert entry.options(["heldout=0.2", "tag=flag", "name=a=b"]) == {"heldout": 0.2, "tag": "flag", "name": "a=b"}


def test_hyphens_in_names_of_flags_do_for_underscores():
    wanted = {"--size-ids": "--size_ids", "--negative-prompt=a-b": "--negative_prompt=a-b", "a-b": "a-b", "--": "--"}
    assert {given: entry.underscored(given) for given in wanted} == wanted
    done = command("launch.train", "--config=configs/quickstart.py", "--run=r", "--dry-runs")
    assert done.returncode == 1 and "dry_runs" in done.stderr  # unknown, and named as it is spelt
    done = command("launch.sample", "--model=emoji-teacher", "--negative-prompt=a-b")
    assert done.stderr.startswith("error: nothing to draw")


NAMED = {
    "sample": ["--model=nowhere", "--prompt=a"],
    "evaluate": ["--model=nowhere", "--data=nowhere"],
    "score": ["--config=configs/evaluation_paper.py", "--model=nowhere", "--real=nowhere"],
    "export": ["--model=nowhere"],
    "encode": ["--model=nowhere", "--folder=nowhere"],
    "synthesize": ["--model=nowhere", "--prompts=nowhere"],
    "convert": ["--inception=nowhere"],
}


@pytest.mark.parametrize("name", NAMED)
def test_an_out_that_is_a_file_is_refused_before_anything_is_opened(name, tmp_path):
    (tmp_path / "file").touch()
    done = command(f"launch.{name}", *NAMED[name], f"--out={tmp_path / 'file'}")
    place = tmp_path / "file"
    assert done.stderr == f"error: --out {place}: {place} is a file, no folder: give another place\n"
    assert done.returncode == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "is a folder: give the name of a picture, such as {}/grid.png"),
        ("/grid", "does not end in .png: give the name of a picture, such as grid.png"),
        ("/file/grid.png", ": {}/file is a file, no folder: give another place"),
    ],
)
def test_compare_wants_the_name_of_a_picture(name, message, tmp_path):
    (tmp_path / "file").touch()
    done = command("launch.compare", "--model=nowhere", "--teacher=nowhere", f"--out={tmp_path}{name}")
    assert done.returncode == 1 and message.format(tmp_path) in done.stderr and len(done.stderr.splitlines()) == 1


def test_places_are_tried_and_left_as_they_are(tmp_path):
    flag = lambda where: SimpleNamespace(name="out", value=str(where))  # noqa: E731
    entry.folder(flag("gs://bucket/out"))
    entry.folder(flag("not/there"))
    entry.folder(flag(tmp_path / "deep" / "out"))
    entry.picture(flag(tmp_path / "deep" / "x.PNG"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit, match=r"--out /proc/out: nothing can be written in /proc \(.*\): give an"):
        entry.folder(flag("/proc/out"))


def test_a_run_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").touch()
    done = command("launch.train", "--config=configs/quickstart.py", f"--run={tmp_path / 'run'}")
    assert done.stderr.startswith(f"error: --run {tmp_path / 'run'}: {tmp_path / 'run'} is a file, no folder")


WAITING = """
import os, pathlib, sys, threading, time
from launch import entry
scratch = pathlib.Path(sys.argv.pop())
def main():
    threading.Thread(target=time.sleep, args=(60,)).start()  # what a library leaves running
    scratch.touch()
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        scratch.unlink()
entry.run(main)
"""


@pytest.mark.parametrize("traced", [False, True])
def test_ctrl_c_is_one_line_and_leaves_no_scratch(tmp_path, traced):
    trace = {"LCM_JAX_TRACE": "1"} if traced else {}
    # a shell's background jobs ignore SIGINT, and so would what they start
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + WAITING
    if traced:
        code = code.replace("args=(60,)", "args=(0,)")
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "scratch")], cwd=ROOT, env={**os.environ, **trace}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert list(tmp_path.iterdir()) == []
    if traced:
        assert "Traceback" in said and started.returncode == -signal.SIGINT
    else:
        assert said == "interrupted; the same command goes on where it can\n" and started.returncode == 130


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize("keeps", [True, False])
def test_memory_that_was_freed_is_kept_for_the_next_step(keeps):
    code = f"""
import resource
import numpy as np
from launch import entry
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
if {keeps}:
    entry.keep_memory()
np.ones(2**24)
before = faults()
for _ in range(4):
    np.ones(2**24)
print(faults() - before)
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) < 100) == keeps  # four times 32,768 pages else; fewer where pages are huge


def test_any_accelerator_of_a_machine_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    for count, name in enumerate(("nvidia3", "dxg", "accel1", "vfio")):
        devices = tmp_path / str(count)
        devices.mkdir()
        (devices / "null").touch()
        (devices / "nvidiactl").touch()  # is there without a GPU, too
        assert not entry.accelerated(str(devices))
        (devices / name).touch()
        assert entry.accelerated(str(devices))
