"""What the kept answers of a run came from.

A run that goes on after an interruption must find the model, the reward model and the questions as they were. The
first and the last had a column, written at the end of a run; now they are written with the first answers.
"""

STATEMENTS = ("ALTER TABLE runs ADD COLUMN reward_fingerprint TEXT",)
