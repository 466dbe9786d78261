"""The user's Python -> a module, without its weights where possible, and an input to run it on."""
