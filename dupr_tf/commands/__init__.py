"""The commands of `dupr-tf`, one dataclass each: its fields are the flags, its docstring the help, `run` the work."""

from dupr_tf.commands.doctor import Doctor
from dupr_tf.commands.images import Pack, Sample, Scan
from dupr_tf.commands.list import List
from dupr_tf.commands.plan import Plan
from dupr_tf.commands.probe import Probe, Views
from dupr_tf.commands.reference import Bench, Fields
from dupr_tf.commands.report_runs import Report
from dupr_tf.commands.train import Evaluate, Finetune, Pretrain
from dupr_tf.commands.weights import Export, Import

COMMANDS = {
    "pretrain": Pretrain, "finetune": Finetune, "evaluate": Evaluate, "export": Export, "import": Import,
    "probe": Probe, "views": Views, "report": Report, "doctor": Doctor, "plan": Plan,
    "scan": Scan, "pack": Pack, "sample": Sample, "bench": Bench, "fields": Fields, "list": List,
}  # fmt: skip
CONFIGURED = ("pretrain", "finetune", "probe", "views", "doctor", "plan")
