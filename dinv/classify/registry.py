"""Learners by name: a new one is a file here and a line below."""

from dinv.section import Registry

LEARNERS = Registry(
    "learner",
    {
        "cnn": "dinv.classify.cnn:Cnn",
        "finetune": "dinv.classify.finetune:Finetune",
        "probe": "dinv.classify.probe:Probe",
    },
)
