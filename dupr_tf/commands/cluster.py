"""The command that prints TF_CONFIG for a worker."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import tyro

from dupr_tf.launching.cluster_env import Launcher, cluster_of


@dataclasses.dataclass
class ClusterEnv:
    """Print TF_CONFIG for this task of a Slurm job, or this pod of an Indexed Job or StatefulSet.

    In a script: tf_config=$(dupr-tf cluster-env --json) && export TF_CONFIG="$tf_config"; see configs/cluster/.
    """

    launcher: Annotated[Launcher, tyro.conf.arg(name="from")] = "auto"
    """What set the variables."""
    port: int | None = None
    """Port of the first worker on a host; none: made of the number of the Slurm job, or 2222 in a pod."""
    replicas: int | None = None
    """Pods of the Job or StatefulSet; none: the variable DUPR_REPLICAS."""
    service: str | None = None
    """Headless service of the pods; none: the variable DUPR_SERVICE."""
    json: bool = False
    """Print the JSON alone instead of a line of shell."""

    def run(self, overrides: dict[str, str]) -> None:
        cluster = cluster_of(os.environ, self.launcher, self.port, self.replicas, self.service)
        print(cluster.as_json() if self.json else cluster.as_shell())
