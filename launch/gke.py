"""Creates a run on Google Kubernetes Engine, as a JobSet: slices of a TPU, or nodes with GPUs.

    python -m launch.gke --image IMAGE --claim CLAIM --accelerator tpu-v5-lite-podslice --topology 4x4 --hosts 4 \\
        --chips 4 -- python -m launch.train --config ... --run /shared/runs/lcd
    python -m launch.gke --image IMAGE --claim CLAIM --accelerator nvidia-h100-80gb --hosts 2 --chips 8 -- ...

The image holds the checkout and its environment, the claim (mounted at /shared) data and run. What is preempted saves
and is started again, and goes on. --print shows the manifest, JSON as kubectl reads it, and creates nothing.
"""

import json
import math
import subprocess
from typing import Any

from absl import flags

from launch import entry

NAME = flags.DEFINE_string("name", "lcm-jax", "Name of the JobSet.")
IMAGE = flags.DEFINE_string("image", None, "Container image.")
ACCELERATOR = flags.DEFINE_string("accelerator", None, "GKE's name of it: tpu-v5-lite-podslice, nvidia-h100-80gb, ...")
TOPOLOGY = flags.DEFINE_string("topology", None, "A TPU slice's topology, such as 4x4.")
HOSTS = flags.DEFINE_integer("hosts", 1, "Hosts of a TPU slice, or nodes with GPUs; each a process.", lower_bound=1)
CHIPS = flags.DEFINE_integer("chips", 4, "Chips or GPUs a host.", lower_bound=1)
SLICES = flags.DEFINE_integer("slices", 1, "TPU slices.", lower_bound=1)
CLAIM = flags.DEFINE_string("claim", None, "Persistent volume claim, mounted at /shared.")
RESTARTS = flags.DEFINE_integer("restarts", 100, "How often it may be started again.", lower_bound=0)
PRINT = flags.DEFINE_bool("print", False, "Show the manifest, and create nothing.")
flags.mark_flags_as_required(["image", "accelerator"])

STOPPED = "75"  # EX_TEMPFAIL: a run that was stopped is no success, and is started again
GRACE = 300  # seconds from SIGTERM to SIGKILL: time to write a checkpoint
JOB, PORT = "process", 8476
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def main(command: list[str]) -> None:
    tpu = ACCELERATOR.value.startswith("tpu")
    if tpu != (TOPOLOGY.value is not None):
        entry.stop("give --topology of the slice for a TPU" if tpu else "--topology is for TPUs: leave it out")
    if tpu:
        check_topology()
    if not tpu and SLICES.value != 1:
        entry.stop("--slices is for TPUs: give the number of nodes as --hosts")
    text = json.dumps(manifest(command, tpu), indent=2)
    if PRINT.value:
        print(text)
        return
    try:
        raise SystemExit(subprocess.run(["kubectl", "create", "-f", "-"], input=text, text=True).returncode)
    except FileNotFoundError:
        entry.stop("there is no kubectl here: install it, or take --print")


def check_topology() -> None:
    """Stops where the hosts of a slice have other chips than its topology."""
    sides = TOPOLOGY.value.split("x")
    if not all(side.isdecimal() for side in sides):
        entry.stop(f"--topology {TOPOLOGY.value} is no topology, such as 4x4 or 2x2x4")
    chips, asked = math.prod(map(int, sides)), HOSTS.value * CHIPS.value
    if chips != asked:
        hosts = f"--hosts {HOSTS.value} of --chips {CHIPS.value} are {asked}"
        entry.stop(f"--topology {TOPOLOGY.value} is a slice of {chips} chips, {hosts}: make them equal")


def manifest(command: list[str], tpu: bool) -> dict[str, Any]:
    """The JobSet (jobset.x-k8s.io/v1alpha2): a job a slice of TPUs, or one of all nodes with GPUs."""
    job = {
        "parallelism": HOSTS.value,
        "completions": HOSTS.value,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one process that fails ends all; the JobSet starts them again
        "template": {"spec": pod(command, tpu)},
    }
    # A slice is a node pool of its own, which no two jobs share.
    alone = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": NAME.value, **({"annotations": alone} if tpu else {})},
        "spec": {
            "failurePolicy": {"maxRestarts": RESTARTS.value},
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": JOB, "replicas": SLICES.value, "template": {"spec": job}}],
        },
    }


def pod(command: list[str], tpu: bool) -> dict[str, Any]:
    """One host: its accelerator, the command as its first process, so that SIGTERM reaches it, and the volumes."""
    label = "cloud.google.com/gke-"
    selector = {f"{label}accelerator": ACCELERATOR.value}
    if tpu:
        selector = {f"{label}tpu-accelerator": ACCELERATOR.value, f"{label}tpu-topology": TOPOLOGY.value}
    env = [{"name": "LCM_JAX_STOPPED_STATUS", "value": STOPPED}]
    volumes = {"/shared": {"persistentVolumeClaim": {"claimName": CLAIM.value}}} if CLAIM.value else {}
    if not tpu:  # GKE tells TPU workers of each other, and jax reads it
        first = f"{NAME.value}-{JOB}-0-0.{NAME.value}"
        env += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{first}:{PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(HOSTS.value)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
        ]
        volumes["/dev/shm"] = {"emptyDir": {"medium": "Memory"}}  # NCCL's, larger than a container's own
    names = {path: path.strip("/").replace("/", "-") for path in volumes}
    limit = {"google.com/tpu" if tpu else "nvidia.com/gpu": CHIPS.value}
    container = {
        "name": "main",
        "image": IMAGE.value,
        "command": command,
        "env": env,
        "ports": [{"containerPort": port} for port in ((8471, 8080) if tpu else (PORT,))],
        "resources": {"requests": limit, "limits": limit},
        "volumeMounts": [{"name": names[path], "mountPath": path} for path in volumes],
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [{"name": names[path], **volume} for path, volume in volumes.items()],
    }


if __name__ == "__main__":
    entry.run_around(main)
