"""Lists the commands of `dupr-tf`. In each dataclass, fields are flags, the docstring is the help, `run` the work."""

from dupr_tf.commands.bench import Bench
from dupr_tf.commands.compare import Compare
from dupr_tf.commands.convert import Convert
from dupr_tf.commands.doctor import Doctor
from dupr_tf.commands.duplicates import Duplicates
from dupr_tf.commands.embed import Embed
from dupr_tf.commands.evaluate import Evaluate
from dupr_tf.commands.export import Export
from dupr_tf.commands.fields import Fields
from dupr_tf.commands.finetune import Finetune
from dupr_tf.commands.import_ import Import
from dupr_tf.commands.list import List
from dupr_tf.commands.pack import Pack
from dupr_tf.commands.plan import Plan
from dupr_tf.commands.predict import Predict
from dupr_tf.commands.pretrain import Pretrain
from dupr_tf.commands.probe import Probe
from dupr_tf.commands.report import Report
from dupr_tf.commands.sample import Sample
from dupr_tf.commands.scan import Scan
from dupr_tf.commands.views import Views

COMMANDS = {
    "sample": Sample, "scan": Scan, "duplicates": Duplicates, "convert": Convert, "pack": Pack,
    "pretrain": Pretrain, "finetune": Finetune, "evaluate": Evaluate, "predict": Predict,
    "compare": Compare,
    "views": Views, "probe": Probe, "embed": Embed, "report": Report,
    "export": Export, "import": Import,
    "doctor": Doctor, "plan": Plan, "bench": Bench, "fields": Fields, "list": List,
}  # fmt: skip
GROUPS = {
    "data": ("sample", "scan", "duplicates", "convert", "pack"),
    "training": ("pretrain", "finetune", "evaluate", "predict"),
    "looking": ("compare", "views", "probe", "embed", "report"),
    "weights": ("export", "import"),
    "planning": ("doctor", "plan", "bench", "fields", "list"),
}
CONFIGURED = ("pretrain", "finetune", "evaluate", "predict", "compare", "probe", "embed", "views", "doctor", "plan")
