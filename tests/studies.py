"""Study files of the tests."""

from flatwise.study.study_file import parse_study
from flatwise.study.work import Callback

TUNED = """
task = "quick_tasks:QUICK"
[tuning]
seeds = 2
baseline.learning_rate = [0.1, 0.2]
[[arms]]
method = "vanilla"
space.learning_rate = { times = [0.5, 1, 2] }
[[arms]]
method = "leap"
space.sigma = [0.5, 0.1, 0.01]
[[arms]]
method = "lr_dropout"
space.keep = [0.3, 0.5, 0.7]
[final]
seeds = 6
"""


def study(text=TUNED, name="test", **changes):
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return parse_study(text, name=name, source="test.toml")


class Quiet(Callback):
    """A callback that counts."""

    def __init__(self):
        self.rounds = []
        self.records = []
        self.kept = []

    def on_reused(self, spec, record):
        self.kept.append(record)

    def on_round_start(self, start):
        self.rounds.append((start.missing, start.planned))

    def on_trial_end(self, spec, record):
        self.records.append(record)


def outcome(record):
    """What of a record must not depend on when, where and how often a study was interrupted."""
    epochs = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in record.epochs]
    return record.key, record.task, record.arm, record.seed, record.status, record.error, record.spec, epochs
