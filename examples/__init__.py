"""Programs that use exported models, and need neither PyTorch nor iflow_lib."""
