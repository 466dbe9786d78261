"""Inputs without data: made by the networks that will be run on them, one file for each kind.

`maker.InputMaker` chooses the kind and keeps what was made; `data.source.open_data` gives it out as batches.
"""
