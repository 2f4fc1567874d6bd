"""The training process: models, data, local steps."""
