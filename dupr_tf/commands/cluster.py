"""The command that prints TF_CONFIG for a worker."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import tyro

from dupr_tf.launching.cluster_env import Launcher, cluster_of


@dataclasses.dataclass
class ClusterEnv:
    """Print TF_CONFIG for a task of Slurm or a pod of Kubernetes.

    A pod belongs to an Indexed Job or a StatefulSet. configs/cluster/ has complete scripts.
    """

    EXAMPLE = 'tf_config=$(dupr-tf cluster-env --json) && export TF_CONFIG="$tf_config"'

    launcher: Annotated[Launcher, tyro.conf.arg(name="from")] = "auto"
    """Launcher whose environment variables are read."""
    port: int | None = None
    """Port of the first worker on a host. Default: derived from the number of the Slurm job, or 2222 in a pod."""
    replicas: int | None = None
    """Number of pods of the Job or StatefulSet. Default: the variable DUPR_REPLICAS."""
    service: str | None = None
    """Headless service of the pods. Default: the variable DUPR_SERVICE."""
    json: bool = False
    """Print the JSON alone instead of a line of shell."""

    def run(self, overrides: dict[str, str]) -> None:
        cluster = cluster_of(os.environ, self.launcher, self.port, self.replicas, self.service)
        print(cluster.as_json() if self.json else cluster.as_shell())
