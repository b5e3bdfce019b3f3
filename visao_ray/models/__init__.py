"""Model families: functions that build Keras models from settings, and the model file."""
