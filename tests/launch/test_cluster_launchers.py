"""What the launchers of clusters would do, word by word; Slurm's script is run, with stand-ins for Slurm."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest

ROOT = Path(__file__).parents[2]
TRAIN = ("--", "python", "-m", "launch.train", "--run", "my run")
# Fields of the JobSet v1alpha2 API; what is batch/v1 and core/v1 is held against Kubernetes' own schema.
JOBSET = {"replicatedJobs", "network", "successPolicy", "failurePolicy", "suspend", "coordinator", "managedBy"}
NETWORK = {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"}
FAILURE = {"maxRestarts", "restartStrategy", "rules"}
REPLICATED = {"name", "groupName", "template", "replicas", "dependsOn"}


def launch(name, *arguments):
    command = [sys.executable, "-m", f"launch.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def printed(name, *arguments):
    done = launch(name, *arguments, "--print", *TRAIN)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def script():
    setup = "--setup=export READY=1${NOT_SET}"  # as scripts of clusters are written
    return printed("slurm", "--nodes=3", "--gpus=4", setup, "--sbatch=--partition=gpu")


def test_slurm_is_asked_for_one_process_a_node(script):
    asked = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert script.startswith("#!/bin/bash\n#SBATCH")
    assert script.index("#SBATCH --partition=gpu") < script.index("set -u")  # what comes later is not read
    assert {"--nodes=3", "--ntasks-per-node=1", "--gpus-per-node=4", "--signal=TERM@120", "--requeue"} <= set(asked)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("status, requeued", [(0, False), (75, True), (1, False)])
def test_slurms_script_names_the_first_node_and_queues_a_stopped_run_again(script, tmp_path, status, requeued):
    stand_ins = {
        "scontrol": 'if [ "$1" = show ]; then printf "n07\\nn08\\nn11\\n"; else echo "$@" >> "$LOG.queue"; fi',
        "srun": f'printf "%s\\n" "$@" "$JAX_COORDINATOR_ADDRESS" "$READY" >> "$LOG"; exit {status}',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[07-08,11]", "LOG": str(log)}
    env = {**os.environ, **slurm, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash"], input=script, env=env, text=True, capture_output=True)
    assert done.returncode == status, done.stderr
    words = log.read_text().splitlines()
    assert words[-7:] == ["python", "-m", "launch.train", "--run", "my run", "n07:8476", "1"]
    queue = tmp_path / "log.queue"
    assert (queue.read_text() if queue.exists() else "") == ("requeue 42\n" if requeued else "")


def test_a_tpu_vm_runs_the_command_on_every_worker():
    words = shlex.split(printed("tpu_vm", "--tpu=t", "--zone=z", "--project=p", "--setup=. .venv/bin/activate"))
    there = "--command=cd lcm_jax && . .venv/bin/activate && exec python -m launch.train --run 'my run'"
    where = ["t", "--zone=z", "--project=p", "--worker=all"]
    assert words == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", *where, there]


def valid(job):
    """Raises for what Kubernetes would not take as a Job."""
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": job}
    kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)


def test_a_field_that_does_not_exist_is_found():
    _, job, pod, _ = checked(json.loads(printed("gke", "--image=i", "--claim=c", "--accelerator=nvidia-l4")))
    pod["nodeSelectors"] = pod.pop("nodeSelector")
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelectors"):
        valid(job)


def checked(manifest):
    """The job and the pod of a manifest whose fields all exist."""
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
    spec = manifest["spec"]
    assert spec.keys() <= JOBSET and spec["network"].keys() <= NETWORK and spec["failurePolicy"].keys() <= FAILURE
    (replicated,) = spec["replicatedJobs"]
    assert replicated.keys() <= REPLICATED and replicated["template"].keys() == {"spec"}
    job = replicated["template"]["spec"]
    valid(job)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] in ("Never", "OnFailure") and job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]  # or the processes would not all run at once
    assert container["resources"]["requests"] == container["resources"]["limits"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] == list(TRAIN[1:])
    assert all({"name", "value"} == set(e) or {"name", "valueFrom"} == set(e) for e in container["env"])
    return replicated, job, pod, container


def test_a_tpu_slice_is_a_job_of_its_hosts():
    kind = ("--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--hosts=4", "--slices=2")
    manifest = json.loads(printed("gke", "--image=i", "--claim=c", *kind))
    replicated, job, pod, container = checked(manifest)
    assert replicated["replicas"] == 2 and job["completions"] == 4
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "c"}}]
    assert not any(e["name"].startswith("JAX_") for e in container["env"])  # jax finds the workers by itself
    (alone,) = manifest["metadata"]["annotations"].items()
    assert alone == ("alpha.jobset.sigs.k8s.io/exclusive-topology", "cloud.google.com/gke-nodepool")


def test_nodes_with_gpus_are_told_of_the_first():
    flags = ("--name=lcd", "--image=i", "--accelerator=nvidia-h100-80gb", "--hosts=2", "--chips=8")
    _, job, pod, container = checked(json.loads(printed("gke", *flags)))
    env = {e["name"]: e.get("value") or e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"]}
    assert env["JAX_COORDINATOR_ADDRESS"] == "lcd-process-0-0.lcd:8476"  # jobset-job-replica-pod.jobset
    assert env["JAX_NUM_PROCESSES"] == "2" == str(job["completions"])
    assert env["JAX_PROCESS_ID"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert env["LCM_JAX_STOPPED_STATUS"] == "75" and container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["volumes"] == [{"name": "dev-shm", "emptyDir": {"medium": "Memory"}}]


@pytest.mark.parametrize(
    "name, flags, words",
    [
        ("gke", ("--image=i", "--accelerator=tpu-v6e-slice"), "give --topology of the slice"),
        ("gke", ("--image=i", "--accelerator=nvidia-l4", "--topology=2x2"), "--topology is for TPUs"),
        ("gke", ("--image=i", "--accelerator=nvidia-l4", "--slices=2"), "--slices is for TPUs"),
        ("gke", ("--image=i",), "accelerator"),
        (
            "gke",
            ("--image=i", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--hosts=2", "--chips=4"),
            "error: --topology 4x4 is a slice of 16 chips, --hosts 2 of --chips 4 are 8: make them equal",
        ),
        ("gke", ("--image=i", "--accelerator=tpu-v4-podslice", "--topology=big"), "--topology big is no topology"),
        ("tpu_vm", ("--tpu=t",), "zone"),
    ],
)
def test_what_does_not_go_together_is_refused(name, flags, words):
    done = launch(name, *flags, *TRAIN)
    assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
