"""The built-in model family: how it is trained on `lab-words`, and its weights. See lab/README.md."""
