"""Learners by name: a new one is a file here and a line below."""

from dinv.section import Registry

LEARNERS = Registry(
    "learner",
    {
        "amst": "dinv.classify.amst:Amst",
        "cnn": "dinv.classify.cnn:Cnn",
        "coop": "dinv.classify.coop:Coop",
        "ensemble": "dinv.classify.ensemble:Ensemble",
        "finetune": "dinv.classify.finetune:Finetune",
        "probe": "dinv.classify.probe:Probe",
        "tip_adapter": "dinv.classify.tip_adapter:TipAdapter",
        "tip_adapter_f": "dinv.classify.tip_adapter_f:TipAdapterF",
        "zero_shot_clip": "dinv.classify.zero_shot_clip:ZeroShotClip",
    },
)
